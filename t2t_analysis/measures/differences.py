"""The difference between two models of a headline that a measure keeps replicates of, paired over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..errors import UnknownNameError
from ..results import Result
from .head_summary import CONTRAST, Replicates, contrast, replicates, with_p
from .view import layer_of

__all__ = ["LAYERS", "key_of", "over_depth", "paired_difference"]

Kept = dict[str, Replicates]
#: The place of what is said of all attention layers of the backbone together.
LAYERS = "blocks.*.attn"


def key_of(quantity: str, tokens: str, place: str) -> str:
    """Under which replicates are stored in ``meta["replicates"][model]`` of a result."""
    return f"{quantity}|{tokens}|{place}"


def over_depth(fn: Callable[..., Tensor], sums: Sequence[Tensor], counts: Tensor) -> dict[str, Replicates]:
    """Mean over the layers (key ``""``), and last third minus first third of them, with their replicates.

    ``fn`` of the sums gives (..., L); ``sums`` and ``counts`` (G,) are as for `replicates`. The keys are what a
    quantity's name ends in.
    """

    def mean(*s: Tensor) -> Tensor:
        return fn(*s).nanmean(-1)

    def change(*s: Tensor) -> Tensor:
        return contrast(fn(*s))

    return {end: replicates(of, sums, counts) for end, of in (("", mean), (CONTRAST, change))}


def paired_difference(
    result: Result, model: str, model_b: str, place: str, place_b: str | None = None, **columns: Any
) -> Result:
    """First model minus second, for every quantity that both have at their place.

    Each group of images is left out of both models at once, so what the images do to both cancels. p is two-sided
    for "no difference", by Student's t on the jackknife standard error. ``columns`` go into every row.

    Raises
    ------
    UnknownNameError : a model or place without replicates in the result.
    T2TError : the models were measured on different images.
    """
    place_b = place_b or place
    first, second = (_at(result, label, at) for label, at in ((model, place), (model_b, place_b)))
    weights = result.frame.drop_duplicates("model").set_index("model")["weights"]
    shared = {
        "measure": result.measure, "model": model, "model_b": model_b, "place": place, "place_b": place_b,
        "layer": layer_of(place), "layer_b": layer_of(place_b), "weights": f"{weights[model]} | {weights[model_b]}",
        "null": 0.0, "null_kind": "no difference between the models", **columns,
    }  # fmt: skip
    rows = [
        shared
        | {"quantity": f"{quantity}_difference", "tokens": tokens}
        | with_p(kept, second[quantity, tokens])
        for (quantity, tokens), kept in first.items()
        if (quantity, tokens) in second
    ]
    return Result(result.measure, rows, {"models": [model, model_b]}, result.notes)  # type: ignore[arg-type]


def _at(result: Result, label: str, place: str) -> dict[tuple[str, str], Replicates]:
    """Replicates of one model at one place, by quantity and tokens."""
    parts: Iterable[dict[str, Any]] = [result.meta, *result.meta.get("parts", [])]
    stored: dict[str, Kept] = {
        name: kept for part in parts for name, kept in part.get("replicates", {}).items()
    }
    if label not in stored:
        raise UnknownNameError("model", label, list(stored), hint=f"in the result of {result.measure}")
    found: dict[str, dict[tuple[str, str], Replicates]] = {}
    for key, kept in stored[label].items():
        quantity, tokens, at = key.split("|")
        found.setdefault(at, {})[quantity, tokens] = kept
    if place not in found:
        raise UnknownNameError("place", place, list(found), hint=f"in the result for {label}")
    return found[place]
