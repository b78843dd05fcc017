"""Where does the attention of a whole stack of layers come from? Rollout, and what its maps still tell of an image.

Rollout multiplies the attention maps of all layers, each mixed half and half with the identity for the
residual stream. It ignores values, MLPs and norms, and a product of row-stochastic matrices loses rank: all
its rows, and then the maps of all images, become one. What is left of the image is measured here beside the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import first_images
from ..errors import T2TError
from ..results import Result
from .base import ImageMeans, MeasureBatch, View, at_first
from .feature_maps import correlation, stretched

# ---------------------------------------------------------------------------------------- pure functions


def rollout_step(rolled: Tensor | None, pattern: Tensor) -> Tensor:
    """Take one more layer into a rollout: R_l = A_l R_{l-1}, A_l = (mean of heads + I) / 2, rows summing to 1.

    Parameters
    ----------
    rolled : R_{l-1}, (B, N, N), or None before the first layer (R_0 = I).
    pattern : attention maps of layer l, (B, H, N, N).

    Returns
    -------
    (B, N, N): row i says how much each token of the first layer went into token i after layer l.
    """
    mixed = pattern.mean(1)
    mixed = (mixed + torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)) / 2
    mixed = mixed / mixed.sum(-1, keepdim=True)
    return mixed if rolled is None else mixed @ rolled


def reader_row(rolled: Tensor, prefix: int, has_class: bool) -> Tensor:
    """What the output reads of the patches: the class token's row, or the mean of the patch rows.

    (B, N, N) -> (B, P), not renormalised.
    """
    rows = rolled[:, 0] if has_class else rolled[:, prefix:].mean(1)
    return rows[:, prefix:]


def rollout_maps(model: nn.Module, images: Tensor, layers: int | None = None) -> Tensor:
    """Rollout of every image at its token grid, (B, h, w), as drawn over photographs; each sums to 1.

    The class token's row, or the mean over patch queries where there is no class token; prefix columns
    dropped and the rest renormalised. ``layers`` takes the first so many; default all.
    """
    view = capture.view(model)
    names = _patterns(view)[:layers]
    state = _Running(names)
    handlers: dict[str, Callable[[capture.Observation], Any]] = dict.fromkeys(names, state.take)
    with torch.no_grad(), capture.observe(view, handlers):
        model(images)
    assert state.rolled is not None
    assert state.layout is not None
    row = reader_row(state.rolled, state.layout.prefix, _has_class(view))
    return (row / row.sum(-1, keepdim=True)).unflatten(-1, state.layout.grid)


class RolloutExamples(NamedTuple):
    """Some images (n, 3, H, W) as the first model sees them, each stretched to 0..1; rollouts and weights of all."""

    photographs: Tensor
    maps: dict[str, Tensor]  # model -> (n, h, w), each summing to 1
    weights: dict[str, str]


def example_rollouts(
    models: Mapping[str, nn.Module], loader: Iterable[Any], count: int = 4
) -> RolloutExamples:
    """`rollout_maps` of all ``models`` over the first ``count`` images of the loader, or all if it has fewer."""
    shown = {name: first_images(model, loader, count) for name, model in models.items()}
    maps = {
        name: rollout_maps(model, shown[name].to(next(model.parameters()))).cpu()
        for name, model in models.items()
    }
    weights = {name: View(model).weights for name, model in models.items()}
    return RolloutExamples(stretched(next(iter(shown.values()))), maps, weights)


def _patterns(view: capture.ModelView) -> list[str]:
    """The maps of all blocks; a rollout with a layer missing would be one of another model."""
    names = view.select("blocks.*.attn.pattern")
    if len(names) < view.depth:
        raise T2TError(
            f"{view.label}: {view.depth} layers, but only {len(names)} of them have attention maps"
        )
    return names


def _has_class(view: capture.ModelView) -> bool:
    return getattr(view.model, "cls_token", None) is not None


class _Running:
    """The rollout up to the layer that was seen last, for one batch at a time."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}
        self.done = 0
        self.rolled: Tensor | None = None
        self.layout: capture.TokenLayout | None = None

    def take(self, obs: capture.Observation) -> Tensor | None:
        """Roll on; None if an earlier layer is missing, so that there is nothing to roll on from."""
        position = self.order[obs.name]
        if position == 0:
            self.done, self.rolled = 0, None
        if position != self.done:
            return None
        self.rolled, self.done, self.layout = rollout_step(self.rolled, obs.value), position + 1, obs.layout
        return self.rolled


# ---------------------------------------------------------------------------------------- the measure


class AttentionRollout(ImageMeans):
    """How little a rollout tells about an image, by depth (Abnar & Zuidema 2020).

    - ``rollout_between_images``: Pearson's r over patches between the rollouts of two *different* images (the
      class token's row; tokens ``patch`` means the mean over patch queries, where there is no class token).
      0: maps are about their image; 1: the map shows positions and no image at all. Images are taken two by
      two in the order of their batch.
    - ``rollout_entropy``: of that row over the patches, renormalised, in nats; null: uniform, ln P.

    Over the blocks of the backbone alone: maps of a T2T module's token transformers live on other grids.
    """

    name = "attention_rollout"
    invariances = frozenset({"permute_heads"})

    def bind(self, views: Sequence[View]) -> None:
        """Ask for all layers at once: a rollout cannot skip one."""
        (view,) = views
        self.add_means(_patterns(view), 2)
        self.layout = view.layout_of(self.names[0])
        self.has_class = _has_class(view)
        self.running = _Running(self.names)

    def reduce(self, obs: capture.Observation) -> Tensor | None:
        """Roll on to this layer; correlation with the next image, of every second one, and entropy: (B, 2)."""
        rolled = self.running.take(obs)
        if rolled is None:
            return None
        row = reader_row(rolled, self.running.layout.prefix if self.running.layout else 0, self.has_class)
        row = row / row.sum(-1, keepdim=True)
        alike = correlation(row[0 : len(row) - 1 : 2], row[1::2], constant=math.nan)
        return torch.stack([at_first(alike, len(row)), torch.special.entr(row).sum(-1)], dim=-1)

    def update(self, batch: MeasureBatch) -> None:
        """Add correlations and entropies of the layers that were reached."""
        self.running.rolled = None
        reached = {name: values for name, values in batch.seen[0].items() if values is not None}
        super().update(replace(batch, seen=(reached,)))

    def compute(self) -> Result:
        """Rows for every depth."""
        found = self.means()
        if self.n_images and not self.count[..., 0].any():
            self.note("every batch held one image: no correlation between images")
        assert self.layout is not None  # every attention place has tokens
        about = {
            "tokens": "class" if self.has_class else "patch",
            "estimator": "rollout of (mean of heads + I) / 2 from the first layer to this one",
        }
        places = np.array([name.removesuffix(".pattern") for name in self.names], dtype=object)
        reached = found.n[:, 1] > 0  # a layer that is not finite ends the rollout
        places = places[reached]
        alike, spread = replace(found[reached, 0], unit="image pair"), found[reached, 1]
        return self.result([
            self.row(places) | about | {
                "quantity": "rollout_between_images", "estimate": alike, "value_unit": "none", "null": 0.0,
                "null_kind": "maps of different images are unrelated", "ceiling": 1.0,
                "ceiling_kind": "a map that does not depend on the image",
            },
            self.row(places) | about | {
                "quantity": "rollout_entropy", "estimate": spread, "value_unit": "nats",
                "null": math.log(self.layout.num_patches), "null_kind": "uniform attention",
            },
        ])  # fmt: skip
