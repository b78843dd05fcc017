"""``python -m t2t_analysis evidence``: what real weights say of the claims' premises, into a table that ships."""

from __future__ import annotations

import argparse
import sys

from ..errors import T2TError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add("--models", required=True, metavar="A,B=FILE,...", help="models, each with its weights file")
    what = "images, as reports take them; boundaries that people drew in them, laid out as in BSDS500, are read too"
    add("--data", required=True, help=what)
    add("--n-images", type=int, help="how many of them; default: all")
    add("--seed", type=int, default=0, help="seed of choices and nulls")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 or mps")
    add("--remark", default="", help="what a reader must know of these images, kept in every row")
    add("--out", help="folder of the table; default: data/evidence of the package")


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing, model by model; the status is 1 if one could not be."""
    from ..claims.recorded import record

    asked = ("n_images", "seed", "device", "remark")
    how = {name: getattr(arguments, name) for name in asked} | {"folder": arguments.out}
    failed = 0
    for entry in arguments.models.split(","):
        name, _, weights = entry.partition("=")
        try:
            for line in record(name, weights or "auto", arguments.data, **how):
                print(line, flush=True)
        except T2TError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
    return failed
