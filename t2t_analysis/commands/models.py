"""``python -m t2t_analysis models``: a table that is ready before torch would be imported.

What it says of the networks is in ``models/table.json``; ``python -m t2t_analysis.commands.models`` writes that
anew, and a test compares it with the networks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .._paths import bundled_weights
from .._repr import aligned

TABLE = Path(__file__).parents[1] / "models" / "table.json"
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

    table = json.loads(TABLE.read_text(encoding="utf-8"))
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


def facts(name: str) -> dict[str, Any]:
    """What the table says of a model, read from the network."""
    import timm
    import torch

    from ..models import PUBLISHED

    with torch.device("meta"):  # shapes only: nothing is drawn at random or held in memory
        model: Any = timm.create_model(name)
    tokens = getattr(model, "tokens_to_token", None)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "classes": model.num_classes,
        "input": "x".join(str(side) for side in model.default_cfg["input_size"][1:]),
        "tokeniser": "hard" if tokens is None else str(getattr(tokens, "tokens_type", "soft split")),
        "published": list(PUBLISHED.get(name, {})),
    }


if __name__ == "__main__":
    from ..models import MODELS

    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(facts(name))}" for name in MODELS)
    TABLE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
