"""``python -m t2t_analysis models``: a table that is ready before torch would be imported.

What it says of the networks is in ``models/table.json``, which a test compares with them.
"""

from __future__ import annotations

import argparse
from typing import Any

from .._names import model_table
from .._paths import bundled_weights
from .._repr import aligned

_MEANING = """
parameters: all of them, with a classifier for as many classes as stand under classes; trained: without what stays
frozen (position tables that are no weights, the random features of a Performer). Weights for other classes differ by
their classifier. load_model also takes every name that timm.list_models() gives."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    parser.add_argument("pattern", nargs="?", default="*", help="only names that match, as 't2t_vit_1*'")


def run(arguments: argparse.Namespace) -> int:
    """Print a table of this package's models; timm's are known by their own names."""
    from fnmatch import fnmatchcase

    from ..errors import UnknownNameError

    table = model_table()
    names = [name for name in table if fnmatchcase(name, arguments.pattern)]
    if not names:
        raise UnknownNameError("model", arguments.pattern, table)
    head = ("name", "parameters", "trained", "classes", "input", "tokeniser", "weights that load_model finds")
    print("\n".join(aligned([head, *(_row(name, table[name]) for name in names)])))
    print(_MEANING)
    return 0


def _row(name: str, about: dict[str, Any]) -> tuple[str, ...]:
    bundled = [f"bundled ({data})" for data in bundled_weights().get(name, {})]
    published = [f"published{f'/{variant}' if variant else ''}" for variant in about["published"]]
    counts = (f"{about[key]:,}" for key in ("parameters", "trained", "classes"))
    weights = ", ".join([*bundled, *published]) or "random only"
    return (name, *counts, about["input"], about["tokeniser"], weights)
