"""One model as the measures see it: its name, where its weights came from, what it offers and how big."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError, UnknownNameError
from ..results import Result, as_json
from .head_maps import thirds

#: The place of a mean over them.
FIRST_THIRD = "first third of blocks"


def layer_of(place: str) -> int | None:
    """Block number in the name of a place, or None.

    >>> layer_of("blocks.3.attn.z"), layer_of("tokens.0.out")
    (3, None)
    """
    found = re.match(r"blocks\.(\d+)\.", place)
    return int(found[1]) if found else None


def place_kind(place: str) -> str:
    """Name of a place for all layers together.

    >>> place_kind("blocks.11.mlp.hidden"), place_kind("tokens.0.out")
    ('blocks.*.mlp.hidden', 'tokens.0.out')
    """
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", place)


def first_third(places: Sequence[str]) -> list[str]:
    """Those of ``places`` in the first third of the blocks.

    >>> first_third(["embed", "blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_post"])
    ['blocks.0.resid_post']
    """
    blocks = [place for place in places if layer_of(place) is not None]
    return blocks[: len(thirds(len(blocks))[0])]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, with gradients, but none of weights: a graph of them is a tenth of the time and never asked for.

    Modules and parameters get back the modes that they had.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()
        for module, mode in modes:
            module.training = mode


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

    def showing(self, label: str, example: Tensor | None) -> View:
        """Return the same view under another label, for images like ``example``."""
        twin = copy.copy(self)
        twin.label, twin.example, twin._probed = label, example, {}
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        return self  # copying an accumulator must not copy the model

    def offered(self, patterns: Sequence[str]) -> list[str]:
        """Names that match any shell-style pattern; those that nothing matches are passed over.

        Raises
        ------
        UnknownNameError : nothing matches any of them.
        """
        found = [name for name in self.names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not found:
            raise UnknownNameError("place", ", ".join(patterns), self.names, hint=f"in {self.label}")
        return found

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of the value at ``name`` for one image, without the batch axis."""
        return self._probe(name)[0]

    def layout_of(self, name: str) -> capture.TokenLayout | None:
        """Layout of the tokens of one place at the size of the images that are measured."""
        return self._probe(name)[1]

    @property
    def notes(self) -> list[str]:
        """What a reader must know of its weights."""
        return [f"{self.label}: UNTRAINED weights ({self.weights})"] * bool(self.untrained)

    @property
    def about(self) -> dict[str, Any]:
        """Columns of a row about it."""
        return {"model": self.label, "weights": self.weights}

    def describe(self) -> dict[str, Any]:
        """JSON values for the metadata of a result."""
        return self.about | {"provenance": as_json(self.provenance)}

    def _probe(self, name: str) -> tuple[tuple[int, ...], capture.TokenLayout | None]:
        if name not in self._probed:  # of all layers in one pass: whoever asks for one asks for the others
            self.probe([other for other in self.names if place_kind(other) == place_kind(name)] or [name])
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


def views_of(models: Any, labels: Sequence[str] | None = None) -> list[View]:
    """Views of one model, of several, or of a mapping label -> model; the same label twice gets a number.

    Raises
    ------
    T2TError : no models, or as many labels as there are not.
    """
    if isinstance(models, Mapping):
        models, labels = list(models.values()), labels or list(models)
    alone = isinstance(models, nn.Module | View) or not isinstance(models, Iterable)
    several = [models] if alone else list(models)
    for model in several:
        if not isinstance(model, nn.Module | View):
            raise T2TError(f"model of type {type(model).__name__}: expected a model, as load_model gives it")
    views = [model if isinstance(model, View) else View(model) for model in several]
    given = [view.label for view in views] if labels is None else list(labels)
    if len(given) != len(views) or not views:
        raise T2TError(f"{len(views)} models, but {len(given)} labels {given}")
    before = [given[:i].count(label) for i, label in enumerate(given)]
    return [
        view.showing(f"{label} ({count + 1})" if count else label, view.example)
        for view, label, count in zip(views, given, before, strict=True)
    ]


def result_of(
    measure: str,
    views: Sequence[View],
    rows: Iterable[dict[str, Any]],
    notes: Sequence[str] = (),
    **meta: Any,
) -> Result:
    """What was asked of some models one by one, with what a reader must know of them."""
    every = dict.fromkeys((*(note for view in views for note in view.notes), *notes))
    about = {"models": [view.describe() for view in views]} | meta
    return Result.of_rows(measure, [{"measure": measure} | row for row in rows], about, tuple(every))
