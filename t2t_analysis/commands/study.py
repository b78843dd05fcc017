"""``python -m t2t_analysis study``: train what is missing of the plan, or measure what was trained."""

from __future__ import annotations

import argparse

from ..training import study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    study.add_arguments(parser)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train nothing; measure the planned runs that are trained, for the verdicts (headlines.csv)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, or with ``--measure`` measure; both leave out what is there already."""
    return _measure(arguments) if arguments.measure else study.run(arguments)


def _measure(arguments: argparse.Namespace) -> int:
    from .._paths import data_dir
    from ..claims.headlines import measure_runs
    from ..training.table import read_runs

    out = arguments.out or data_dir() / "study"
    names = {one.name for one in study.planned(arguments)}
    table = read_runs(out)
    trained = table[table["run"].isin(names)]
    print(f"{len(trained)} of {len(names)} planned runs are trained")
    absent = measure_runs(trained, arguments.runs, out)
    for name in absent:
        print(f"{name}: no weights in {arguments.runs}, so not measured")
    return 1 if absent else 0
