"""One model as the measures see it: its name, where its weights came from, what it offers and how big."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError

__all__ = ["View", "as_json", "layer_of"]


def layer_of(place: str) -> int | None:
    """Block number in the name of a place, or None.

    >>> layer_of("blocks.3.attn.z"), layer_of("tokens.0.out")
    (3, None)
    """
    found = re.match(r"blocks\.(\d+)\.", place)
    return int(found[1]) if found else None


def as_json(value: Any) -> Any:
    """``value`` with dataclasses and named tuples turned into dicts; what JSON does not know becomes text.

    >>> as_json({"n": 3, "chance": float("nan"), "size": (2, 3)})
    {'n': 3, 'chance': None, 'size': [2, 3]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


class View(capture.ModelView):
    """A model under observation: a `capture.ModelView` that also knows its weights and all shapes.

    Attributes
    ----------
    label : its name in results, unique among the models measured together.
    weights : where its weights came from, in words; says UNTRAINED where nothing was learned.
    untrained : whether the weights are random; None where the model does not say.
    example : one image (1, C, H, W) to ask for shapes with; `measure` supplies it.
    """

    def __init__(self, model: nn.Module, label: str | None = None, example: Tensor | None = None) -> None:
        super().__init__(model, label)
        self.example = example
        self.untrained: bool | None = getattr(self.provenance, "untrained", None)
        self.weights = self._weights()
        self._probed: dict[str, tuple[tuple[int, ...], capture.TokenLayout | None]] = {}

    def _weights(self) -> str:
        if self.provenance is None:
            return "unknown weights"
        label = str(self.provenance.label)
        return f"UNTRAINED, {label}" if self.untrained and "UNTRAINED" not in label else label

    def showing(self, label: str, example: Tensor) -> View:
        """Return the same view under another label, for images like ``example``."""
        twin = copy.copy(self)
        twin.label, twin.example, twin._probed = label, example, {}
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        return self  # copying an accumulator must not copy the model

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of the value at ``name`` for one image, without the batch axis."""
        return self._probe(name)[0]

    def layout_of(self, name: str) -> capture.TokenLayout | None:
        """Layout of the tokens of one place at the size of the images that are measured."""
        return self._probe(name)[1]

    def describe(self) -> dict[str, Any]:
        """JSON values for the metadata of a result."""
        return {"model": self.label, "weights": self.weights, "provenance": as_json(self.provenance)}

    def _probe(self, name: str) -> tuple[tuple[int, ...], capture.TokenLayout | None]:
        if name not in self._probed:
            self.probe([name])
        return self._probed[name]

    def probe(self, names: Iterable[str]) -> None:
        """Learn shapes and layouts of ``names`` from one forward pass over one image."""
        missing = [name for name in self.select(names) if name not in self._probed]
        if not missing:
            return
        if self.example is None:
            raise T2TError(f"no image to learn the shape of {missing[0]} from; `measure` supplies one")

        def learn(seen: capture.Observation) -> None:
            self._probed[seen.name] = (tuple(seen.value.shape[1:]), seen.layout)

        with torch.no_grad(), capture.observe(self, dict.fromkeys(missing, learn)):
            self.model(self.example)
