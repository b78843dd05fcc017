"""Weights that ship with this package, each with a card: how it was trained, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from .._files import whole_file, write_whole
from ..errors import CheckpointError, ParameterError
from .download import file_sha256
from .provenance import Accuracy, Kind, Provenance

_CARD = ("model", "data", "recipe", "seed", "commit", "test_accuracy", "sha256", "num_classes", "img_size",
         "in_chans")  # fmt: skip


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a weights file, with the file's hash checked against it."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        missing = [key for key in _CARD if key not in card]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the card of {path} cannot be read: {error}") from error
    if missing:
        raise CheckpointError(f"the card of {path} lacks {', '.join(missing)}")
    if (found := file_sha256(path)) != card["sha256"]:
        raise CheckpointError(
            f"{path} is not the file that its card describes: expected {card['sha256']}, found {found}"
        )
    return card


def card_beside(path: Path) -> dict[str, Any]:
    """The card of somebody's own weights file; empty where the ``.json`` beside it is missing or no card."""
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read_card(path) if isinstance(said, dict) and "sha256" in said else {}


def from_card(card: Mapping[str, Any], kind: Kind, source: str) -> Provenance:
    """What a card says of the origin of its weights."""
    measured, recipe = card["test_accuracy"], card["recipe"]
    given = measured if isinstance(measured, Mapping) else {}
    numbers: Any = {key: given[key] for key in Accuracy._fields if isinstance(given.get(key), int | float)}
    return Provenance(
        kind, source, recipe=recipe if isinstance(recipe, str) else json.dumps(recipe, sort_keys=True),
        accuracy=Accuracy(**numbers) if "value" in numbers else None,
        model=card["model"], data=card["data"], seed=card["seed"],
    )  # fmt: skip


def save_weights(state: Mapping[str, Tensor], path: str | Path, card: Mapping[str, Any]) -> Path:
    """Write ``state`` in half precision as safetensors and, beside it, its card (``.json``); return the former.

    Half precision changes the weights a little: the accuracy on the card should be that of the rounded ones.

    Parameters
    ----------
    card : model, data, recipe, seed, commit, test_accuracy (value, low, high, n), num_classes, img_size,
        in_chans; sha256 and precision are filled in.

    Raises
    ------
    ParameterError
        Something is missing from the card.
    """
    path = Path(path)
    if missing := [key for key in _CARD if key not in card and key != "sha256"]:
        raise ParameterError(f"the card lacks {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    kept = {key: value.detach().cpu().contiguous().clone() for key, value in rounded.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(kept))  # not save_file: it hides the file from others
    full = dict(card) | {"sha256": file_sha256(path), "precision": "float16"}
    write_whole(path.with_suffix(".json"), json.dumps(full, indent=2) + "\n")
    return path
