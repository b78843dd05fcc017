"""``python -m t2t_analysis evidence``: what real weights say of the claims' premises, into a table that ships."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    parser.add_argument(
        "--models", required=True, metavar="A,B=FILE,...", help="models, each with its weights file"
    )
    parser.add_argument(
        "--data", required=True, help="images: a folder, a tar or any other name that reports take"
    )
    parser.add_argument("--n-images", type=int, help="how many of them; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of choices and nulls")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--remark", default="", help="what a reader must know of these images, kept in every row"
    )
    parser.add_argument("--out", help="folder of the table; default: data/evidence of the package")


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing, model by model."""
    from ..claims.recorded import main

    return main(arguments)
