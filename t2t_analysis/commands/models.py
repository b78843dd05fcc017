"""``python -m t2t_analysis models``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    parser.add_argument("pattern", nargs="?", default="*", help="only names that match, as 't2t_vit_1*'")


def run(arguments: argparse.Namespace) -> int:
    """Print a table of this package's models; timm's are known by their own names."""
    from fnmatch import fnmatchcase

    from ..errors import UnknownNameError
    from ..models import MODELS

    names = [name for name in MODELS if fnmatchcase(name, arguments.pattern)]
    if not names:
        raise UnknownNameError("model", arguments.pattern, MODELS)
    rows = [("name", "parameters", "input", "tokeniser", "weights that load_model finds"), *map(_row, names)]
    print("\n".join(_aligned(rows)))
    print("\nload_model also takes every name that timm.list_models() gives.")
    return 0


def _row(name: str) -> tuple[str, ...]:
    import timm
    import torch

    from ..models import PUBLISHED, bundled_weights

    with torch.device("meta"):  # shapes only: nothing is drawn at random or held in memory
        model = timm.create_model(name)
    bundled = [f"bundled ({data})" for data in bundled_weights().get(name, {})]
    published = [f"published{f'/{variant}' if variant else ''}" for variant in PUBLISHED.get(name, {})]
    count = sum(weight.numel() for weight in model.parameters())
    config: Any = model.default_cfg
    size = "x".join(str(n) for n in config["input_size"][1:])
    return name, f"{count:,}", size, _tokeniser(model), ", ".join([*bundled, *published]) or "random only"


def _tokeniser(model: nn.Module) -> str:
    """What turns pixels into tokens: the T2T module's kind, or one hard split."""
    tokens = getattr(model, "tokens_to_token", None)
    return str(getattr(tokens, "tokens_type", "soft split")) if tokens is not None else "hard"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
