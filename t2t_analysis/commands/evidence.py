"""``python -m t2t_analysis evidence``: what real weights say of the claims' premises, into a table that ships."""

from __future__ import annotations

import argparse


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
    """Measure what is missing, model by model."""
    from ..claims.recorded import main

    return main(arguments)
