"""Where does the attention of a whole stack of layers come from? Rollout, and why its maps look alike.

Rollout multiplies the attention maps of all layers, each mixed half and half with the identity for the
residual stream. It ignores values, MLPs and norms, and a product of row-stochastic matrices loses rank: all
its rows, and then the maps of all images, become one. How far that has gone is measured here beside the maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import as_seen_by
from ..errors import DataError, T2TError
from ..results import Result
from .base import Measure, MeasureBatch, View
from .feature_maps import stretched
from .grouped import TOO_FEW, add_finite, grouped_estimate

__all__ = [
    "AttentionRollout",
    "RolloutExamples",
    "example_rollouts",
    "pearson",
    "rank_one_share",
    "rollout",
    "rollout_maps",
    "rollout_step",
    "uniform_rank_one_share",
]

#: Steps of the power iteration; between its start and rank one there is little to find.
_STEPS = 40


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


def rollout(patterns: Iterable[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020) of ``patterns``, (B, H, N, N) each, first layer first.

    >>> uniform = torch.full((1, 2, 4, 4), 0.25)
    >>> rollout([uniform] * 3)[0, 0]  # 2^-3 I + (1 - 2^-3) / 4
    tensor([0.3438, 0.2188, 0.2188, 0.2188])
    """
    rolled = None
    for pattern in patterns:
        rolled = rollout_step(rolled, pattern)
    if rolled is None:
        raise T2TError("a rollout needs the attention maps of at least one layer")
    return rolled


def rank_one_share(matrix: Tensor) -> Tensor:
    """Largest squared singular value over the sum of all: (..., N, N) -> (...), 1 for a matrix of rank one.

    By power iteration from R'1, which is the answer itself where all rows are equal.
    """
    vector = matrix.sum(-2).unsqueeze(-1)  # (..., N, 1)
    for _ in range(_STEPS):
        vector = vector / vector.norm(dim=-2, keepdim=True)
        vector = matrix.mT @ (matrix @ vector)
    largest = vector.norm(dim=-2).squeeze(-1)  # sigma_1 squared
    return largest / matrix.square().sum((-2, -1))


def uniform_rank_one_share(num_tokens: int, layers: int) -> float:
    """`rank_one_share` of a rollout through ``layers`` layers of uniform attention.

    That rollout is 2^-l I + (1 - 2^-l) 11'/N, with singular values 1 and, N - 1 times, 2^-l.

    >>> [round(uniform_rank_one_share(197, layers), 3) for layers in (0, 4, 12)]
    [0.005, 0.566, 1.0]
    """
    return 1 / (1 + (num_tokens - 1) * 4.0**-layers)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over the last axis; NaN where one side is constant.

    >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])).item(), 4)
    1.0
    """
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    size = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(size > 0, (a * b).sum(-1) / size, math.nan)


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
    shown = {name: _first(as_seen_by(loader, model), count) for name, model in models.items()}
    maps = {
        name: rollout_maps(model, shown[name].to(next(model.parameters()))).cpu()
        for name, model in models.items()
    }
    weights = {name: View(model).weights for name, model in models.items()}
    return RolloutExamples(stretched(next(iter(shown.values()))), maps, weights)


def _first(loader: Iterable[Any], count: int) -> Tensor:
    """The first ``count`` images, or all if there are fewer."""
    parts: list[Tensor] = []
    for batch in loader:
        parts.append(batch.images[: count - sum(map(len, parts))].cpu())
        if sum(map(len, parts)) >= count:
            break
    if not parts:
        raise DataError("the loader gave no images")
    return torch.cat(parts)


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


class AttentionRollout(Measure):
    """How little a rollout tells about an image, by depth (Abnar & Zuidema 2020).

    - ``rollout_rank_one``: sigma_1^2 / sum sigma_i^2 of R_l, 1 when all tokens have rolled into the same
      mixture. The null is uniform attention at the same depth, in closed form.
    - ``rollout_between_images``: Pearson's r over patches between the rollouts of two *different* images (the
      class token's row; tokens ``patch`` means the mean over patch queries, where there is no class token).
      0: maps are about their image; 1: the map shows positions and no image at all. Images are taken two by
      two in the order of their batch.
    - ``rollout_entropy``: of that row over the patches, renormalised, in nats; null: uniform, ln P.

    Over the blocks of the backbone alone: maps of a T2T module's token transformers live on other grids.
    """

    name = "attention_rollout"
    invariances = frozenset({"permute_heads"})

    total: Tensor  # (G, L, 3)
    count: Tensor  # (G, L, 3) images, pairs, images

    def bind(self, views: Sequence[View]) -> None:
        """Ask for all layers at once: a rollout cannot skip one."""
        (view,) = views
        self.names = _patterns(view)
        self.layout = view.layout_of(self.names[0])
        assert self.layout is not None  # every attention place has tokens
        self.has_class = _has_class(view)
        self.running = _Running(self.names)
        self.add_sum("total", self.groups, len(self.names), 3)
        self.add_sum("count", self.groups, len(self.names), 3)

    def wants(self, view: View) -> list[str]:
        """The patterns of all blocks."""
        return self.names

    def reduce(self, obs: capture.Observation) -> dict[str, Tensor] | None:
        """Roll on to this layer; keep its rank-one share (B,) and its row over patches (B, P)."""
        rolled = self.running.take(obs)
        if rolled is None:
            return None
        row = reader_row(rolled, self.running.layout.prefix if self.running.layout else 0, self.has_class)
        return {"rank_one": rank_one_share(rolled), "row": row / row.sum(-1, keepdim=True)}

    def update(self, batch: MeasureBatch) -> None:
        """Add rank-one shares, entropies, and correlations between neighbouring images."""
        groups = self.group(batch)
        self.running.rolled = None
        for i, name in enumerate(self.names):
            made = batch.seen[0].get(name)
            if made is None:
                continue
            row = made["row"]
            spread = torch.special.entr(row).sum(-1)
            pairs = len(row) // 2
            alike = pearson(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2])
            for j, (owners, values) in enumerate(
                [(groups, made["rank_one"]), (groups[0 : 2 * pairs : 2], alike), (groups, spread)]
            ):
                add_finite(self.total[:, i, j], self.count[:, i, j], owners, values)

    def compute(self) -> Result:
        """Rows for every depth."""
        found = grouped_estimate(lambda s, n: s / n, (self.total, self.count), self.count)
        self.note(TOO_FEW if ((found.groups == 1) & (found.n > 0)).any() else None)
        if self.n_images and not self.count[..., 1].any():
            self.note("every batch held one image: no correlation between images")
        rows = []
        for i, name in enumerate(self.names):
            place = name.removesuffix(".pattern")
            for j, columns in enumerate(self._quantities(i + 1)):
                if found.n[i, j]:
                    rows.append(self.row(place, **(columns | found.at(i, j) | _unit(j))))
        return Result(self.name, rows)  # type: ignore[arg-type]

    def _quantities(self, layers: int) -> list[dict[str, Any]]:
        assert self.layout is not None
        reader = "class" if self.has_class else "patch"
        estimator = "rollout of (mean of heads + I) / 2 from the first layer to this one"
        shared = {"estimator": estimator, "value_unit": "none"}
        share = uniform_rank_one_share(self.layout.num_tokens, layers)
        return [
            {"quantity": "rollout_rank_one", "tokens": "all", "null": share, "ceiling": 1.0,
             "null_kind": "uniform attention", "ceiling_kind": "all rows equal", **shared},
            {"quantity": "rollout_between_images", "tokens": reader, "null": 0.0, "ceiling": 1.0,
             "null_kind": "maps of different images are unrelated",
             "ceiling_kind": "a map that does not depend on the image", **shared},
            {"quantity": "rollout_entropy", "tokens": reader, "null": float(np.log(self.layout.num_patches)),
             "null_kind": "uniform attention", **shared, "value_unit": "nats"},
        ]  # fmt: skip


def _unit(quantity: int) -> dict[str, str]:
    return {"unit": "image pair" if quantity == 1 else "image"}
