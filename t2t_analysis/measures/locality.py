"""Do tokens keep the edges of their image patch, and of those beside it? Ridge regression from features to edges.

The paper shows feature maps and says that a hard split loses edges and lines. Here that is a number: how well the
edge energy of a cell, and of its neighbours, can be read linearly from its token, on images not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import capture
from ..errors import T2TError, UnknownNameError
from ..results import Result
from .base import Measure, MeasureBatch, View, layer_of
from .grouped import add_by_group
from .head_maps import thirds
from .head_summary import Replicates, with_p
from .ridge import held_out_r2, leave_out, moments, pair_half, random_projection

__all__ = [
    "INVARIANCES", "TARGETS", "EdgeDecodability",
    "decodability", "edge_energy", "edge_targets", "first_third_difference", "luminance", "oriented_gradients",
]  # fmt: skip

#: What the functions of this module do not notice.
INVARIANCES = {"decodability": ("orthogonal", "scale", "translation", "permute_channels")}

ORIENTATIONS = 8
#: Where the edges are that a token is asked for.
TARGETS = ("own", "before", "after", "boundary")
QUANTITIES = (*TARGETS, "neighbour")
REFERENCES = ("pixels.cell", "pixels.field", "edges.cell")
FIRST_THIRD = "first third of blocks"
_REC601 = (0.299, 0.587, 0.114)


# ------------------------------------------------------------------------------------------- the targets


def luminance(images: Tensor, std: Sequence[float] | None = None) -> Tensor:
    """Luminance in grey levels (of 255), up to a constant: (B, C, H, W) normalised images to (B, H, W).

    255 sum_c w_c std_c x_c with the weights of ITU-R 601 for three channels, equal ones otherwise. The mean that
    normalising took away is not put back: gradients do not see it.
    """
    channels = images.shape[1]
    weights = images.new_tensor(_REC601 if channels == 3 else [1 / channels] * channels)
    scale = images.new_tensor([1.0] * channels if std is None else list(std))
    if len(scale) != channels:
        raise T2TError(
            f"std has {len(scale)} numbers for images of {channels} channels: {tuple(scale.tolist())}"
        )
    return 255 * torch.einsum("bchw,c->bhw", images, weights * scale)


def oriented_gradients(grey: Tensor, orientations: int = ORIENTATIONS) -> Tensor:
    """Magnitude of the gradient, sorted by its orientation: (B, H, W) to (B, O, H - 1, W - 1).

    One gradient per 2x2 square of pixels (Roberts 1963), so that it belongs to these four and to no others. Bin o
    holds directions from o to o + 1 times 180/O degrees, a direction and its opposite being the same; 0 is a
    gradient along the rows, that is an upright edge.
    """
    a, b, c, d = grey[:, :-1, :-1], grey[:, :-1, 1:], grey[:, 1:, :-1], grey[:, 1:, 1:]
    gx, gy = (b + d - a - c) / 2, (c + d - a - b) / 2
    angle = torch.atan2(gy, gx) % math.pi  # rounding can give pi itself
    place = (angle * (orientations / math.pi)).long() % orientations
    out = grey.new_zeros(grey.shape[0], orientations, *gx.shape[1:])
    return out.scatter_(1, place.unsqueeze(1), torch.hypot(gx, gy).unsqueeze(1))


def cell_size(size: Sequence[int], grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the cells of ``grid`` in an image of ``size``; at least 2 each.

    >>> cell_size((225, 224), (14, 14))
    (16, 16)
    """
    cell = size[0] // grid[0], size[1] // grid[1]
    if min(cell) < 2:
        raise T2TError(
            f"cells of {cell[0]}x{cell[1]} px hold no gradient; a {grid} grid needs a larger image than {tuple(size)}"
        )
    return cell


def _by_cell(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, O, H - 1, W - 1) gradients to (B, O, h, ph, w, pw); the last row and column of a cell straddle its border.

    The gradients that would straddle the image's own border are zero. Pixels beyond the last whole cell are dropped.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    gradients = F.pad(oriented_gradients(grey), (0, 1, 0, 1))[:, :, : h * ph, : w * pw]
    return gradients.unflatten(3, (w, pw)).unflatten(2, (h, ph))


def edge_energy(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """Edge energy inside every cell: log1p of the mean gradient magnitude by orientation, (B, h, w, 8).

    ``grey`` (B, H, W) is in grey levels, so that the logarithm begins to bend at one level per pixel. Only gradients
    whose four pixels lie inside the cell count: a token that sees its own cell alone knows nothing of its neighbours'.
    A histogram of oriented gradients (Dalal & Triggs 2005) without block normalisation.
    """
    inside = _by_cell(grey, grid)[:, :, :, :-1, :, :-1].mean((3, 5))
    return torch.log1p(inside).movedim(1, -1)


def _across(grey: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sums of gradient magnitude across each cell's right and its lower border, (B, h, w, 8) each."""
    cells = _by_cell(grey, grid)
    return cells[:, :, :, :-1, :, -1].sum(3).movedim(1, -1), cells[:, :, :, -1, :, :-1].sum(4).movedim(1, -1)


def edge_targets(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the token of each inner cell is asked for: (B, H, W) to (B, (h - 2)(w - 2), 4 x 8).

    In the order of `TARGETS`, 8 orientations each: edges inside its own cell; in the cells before it (mean of the
    left and the upper one); after it (right and lower one); and across its four borders. Before and after are kept
    apart since soft splits lie askew: the field of T2T-ViT's token begins 14 pixels before its 16-pixel cell and ends 1
    pixel after it. The outermost cells, which lack neighbours, are left out.
    """
    own = edge_energy(grey, grid)
    right, below = _across(grey, grid)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    left, upper = own[:, 1:-1, :-2], own[:, :-2, 1:-1]
    next_, lower = own[:, 1:-1, 2:], own[:, 2:, 1:-1]
    ph, pw = cell_size(grey.shape[-2:], grid)
    around = right[inner] + right[:, 1:-1, :-2] + below[inner] + below[:, :-2, 1:-1]
    boundary = torch.log1p(around / (2 * (ph - 1) + 2 * (pw - 1)))
    return torch.cat([own[inner], (left + upper) / 2, (next_ + lower) / 2, boundary], -1).flatten(1, 2)


# --------------------------------------------------------------------------------------- the predictors


def inner_tokens(tokens: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Features of every inner cell of ``onto``: (B, N, d) on ``grid``, prefix removed, to (B, (h-2)(w-2), d).

    The finer grids of T2T stages are averaged over each cell.
    """
    maps = tokens.mT.unflatten(2, grid)
    if grid != onto:
        maps = F.adaptive_avg_pool2d(maps, onto)
    return maps[:, :, 1:-1, 1:-1].flatten(2).mT


def pixel_windows(grey: Tensor, grid: tuple[int, int], wide: bool = False) -> Tensor:
    """Raw luminance in the window of every inner cell, (B, (h-2)(w-2), pixels).

    The cell itself, or with ``wide`` also as much before it as the cell is large and one pixel after it: at least
    what the token of a soft split sees, in the paper's sizes and in the small models'.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    top, left, size = (0, 0, (2 * ph + 1, 2 * pw + 1)) if wide else (ph, pw, (ph, pw))
    windows = grey[:, top:, left:].unfold(1, size[0], ph).unfold(2, size[1], pw)
    return windows[:, : h - 2, : w - 2].flatten(3).flatten(1, 2)


def decodability(x: Tensor, y: Tensor) -> Tensor:
    """R^2 with which targets are read from features on held-out images: (n, T, k), (n, T, q) to (q,).

    Image by image, for data that fit into memory; the halves are those of `pair_half`. One token per image may be
    given without its axis. See `held_out_r2`.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x, noise = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    >>> decodability(x, torch.stack([x[:, 0], noise[:, 0]], 1)).round(decimals=1).abs().tolist()
    [1.0, 0.0]
    """
    x, y = (a.unsqueeze(1) if a.ndim == 2 else a for a in (x, y))
    half = pair_half(torch.arange(len(x)))
    products, squares = (
        torch.stack([sums[half == h].sum(0) for h in (0, 1)]).unsqueeze(0) for sums in moments(x, y)
    )
    return held_out_r2(products, squares, [slice(0, y.shape[-1])])[0]


class EdgeDecodability(Measure):
    """R^2 with which edge energy is read linearly from a token, on held-out images, by place.

    Targets are those of `edge_targets`, on the grid of the last tokens for every place; ridge regression with
    intercept from streamed sums, each half of the images predicted from the other (`held_out_r2`), R^2 averaged over
    orientations. Quantities ``edge_r2_own``, ``_before``, ``_after``, ``_boundary`` and ``_neighbour`` (mean of before
    and after), per place, and the mean over the first third of the blocks.

    The null pairs each image with the targets of the image that came before it, at the same position: what remains is
    what position alone tells. The interval, and ``p`` for "no more than the null", leave each group of images out of
    fit and test (delete-a-group jackknife). A second null is a `random_twin` measured beside the model.

    The readout is linear and edge energy is not: an edge and its negative have the same. So raw pixels, and a hard
    split's embedding, which is linear in them, give R^2 near 0 whatever they keep. Compare what lies behind a
    nonlinearity.

    References, as rows of their own: the same ridge on the raw pixels of the cell (``pixels.cell``) and of a wider
    field (``pixels.field``), and on the cell's own edge energies (``edges.cell``): what edges tell of neighbouring
    edges in natural images.

    Parameters
    ----------
    dim : features are projected to this many dimensions by random orthogonal projections, so that wide and narrow
        tokens compare; places no wider are left as they are. None: never project.
    draws : random projections; R^2 is the mean over them.
    places : shell-style patterns; those that a model lacks are passed over.
    std : standard deviations with which the images were normalised; by default those of the model's own
        preprocessing. Models can only be compared on the same.

    Source: this package; ridge and generalised cross-validation after Golub, Heath & Wahba 1979.
    """

    name: ClassVar[str] = "edge_decodability"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation"})

    def __init__(
        self,
        *,
        dim: int | None = 64,
        draws: int = 3,
        places: Sequence[str] = ("embed", "tokens.*.out", "blocks.*.resid_post"),
        std: Sequence[float] | None = None,
        seed: int = 0,
        groups: int = 16,
    ) -> None:
        super().__init__(groups=groups)
        if (dim is not None and dim < 1) or draws < 1:
            raise T2TError(
                f"expected dim of at least 1 (or None) and draws of at least 1, got {dim} and {draws}"
            )
        self.dim, self.draws, self.places, self.std, self.seed = dim, draws, tuple(places), std, seed
        self._previous: Tensor | None = None

    # -- before the pass

    def bind(self, views: Sequence[View]) -> None:
        """One state of products and one of squares per place and reference."""
        (view,) = views
        self.names = self._select(view)
        self.grid = self._grid(view)
        self.std = self.std if self.std is not None else _normalisation(view)
        self.projections: dict[str, Tensor] = {}
        for i, name in enumerate((*self.names, *REFERENCES)):
            width = self._width(view, name)
            onto = width if self.dim is None else self.dim
            self.projections[name] = random_projection(width, onto, self.draws, self.seed)
            draws, _, k = self.projections[name].shape
            q = 2 * len(TARGETS) * ORIENTATIONS
            self.add_sum(f"products_{i}", self.groups, 2, draws, 1 + k, 1 + k + q)
            self.add_sum(f"squares_{i}", self.groups, 2, 1, q)
            self.add_sum(f"count_{i}", self.groups)
        self.add_sum("dropped", dtype=torch.int64)

    def _select(self, view: View) -> list[str]:
        found = [n for n in view.names if any(fnmatchcase(n, pattern) for pattern in self.places)]
        if not found:
            raise UnknownNameError("place", ", ".join(self.places), view.names, hint=f"in {view.label}")
        return found

    def _grid(self, view: View) -> tuple[int, int]:
        layout = view.layout_of("embed")
        if layout is None or min(layout.grid) < 3:
            raise T2TError(
                f"{view.label}: edge decodability needs at least 3x3 tokens, so that one has neighbours; "
                f"got {None if layout is None else layout.grid}; use larger images"
            )
        return layout.grid

    def _width(self, view: View, name: str) -> int:
        assert view.example is not None  # the engine supplies one
        ph, pw = cell_size(view.example.shape[-2:], self.grid)
        widths = {
            "pixels.cell": ph * pw,
            "pixels.field": (2 * ph + 1) * (2 * pw + 1),
            "edges.cell": ORIENTATIONS,
        }
        return widths[name] if name in widths else view.shape_of(name)[-1]

    def wants(self, view: View) -> Sequence[str]:
        """All places."""
        return self.names

    # -- during the pass

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Projected features of the inner cells, (B, draws, T, k)."""
        if obs.layout is None:
            raise T2TError(f"{obs.name} has no grid; choose places that hold patch tokens")
        tokens = obs.value[:, obs.layout.prefix :]
        return self._projected(obs.name, inner_tokens(tokens, obs.layout.grid, self.grid))

    def _projected(self, name: str, x: Tensor) -> Tensor:
        projection = self.projections[name].to(x.device)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unsqueeze(1) @ projection.to(x.dtype)

    def update(self, batch: MeasureBatch) -> None:
        """Add the products of features and targets, every image in its group and half."""
        grey = luminance(batch.images.float(), self.std)
        own = edge_targets(grey, self.grid)
        before = own[-1:] if self._previous is None else self._previous.to(own)
        lone = self._previous is None and len(own) == 1
        self._previous = own[-1:].clone()
        if lone:  # no other image to pair it with
            self.dropped += 1
            return
        targets = torch.cat([own, torch.cat([before, own[:-1]])], dim=-1).unsqueeze(1)  # (B, 1, T, 2 q)
        features = batch.seen[0] | self._references(grey, own)
        for i, name in enumerate((*self.names, *REFERENCES)):
            if name in features:
                self._add(i, batch, features[name], targets)

    def _references(self, grey: Tensor, own: Tensor) -> dict[str, Tensor]:
        windows = {
            "pixels.cell": pixel_windows(grey, self.grid),
            "pixels.field": pixel_windows(grey, self.grid, wide=True),
            "edges.cell": own[..., :ORIENTATIONS],
        }
        return {name: self._projected(name, x) for name, x in windows.items()}

    def _add(self, i: int, batch: MeasureBatch, x: Tensor, targets: Tensor) -> None:
        products, squares = moments(x, targets)
        group = batch.index // 2 % self.groups  # a pair of images, one of each half, stays together
        slot = group * 2 + pair_half(batch.index)
        add_by_group(getattr(self, f"products_{i}").flatten(0, 1), slot, products)
        add_by_group(getattr(self, f"squares_{i}").flatten(0, 1), slot, squares)
        add_by_group(getattr(self, f"count_{i}"), group, torch.ones(len(group)))

    # -- after the pass

    def compute(self) -> Result:
        """Rows per place and target, the first third of the blocks, and the references."""
        if int(self.dropped):
            self.note("the first image was left out: batches of one image give it no other to be paired with")
        r2 = {name: self._r2(i) for i, name in enumerate((*self.names, *REFERENCES))}
        counts = {name: getattr(self, f"count_{i}") for i, name in enumerate((*self.names, *REFERENCES))}
        first = self._first_third()
        if first:
            r2[FIRST_THIRD] = torch.stack([r2[name] for name in first]).mean(0)
            counts[FIRST_THIRD] = torch.stack([counts[name] for name in first]).amin(0)
        kept = {name: self._replicates(values, counts[name]) for name, values in r2.items()}
        rows = [row for name in kept for row in self._rows(name, kept[name])]
        contrasts = {q: kept[FIRST_THIRD][q] for q in QUANTITIES} if first else {}
        meta = {
            "contrasts": {self.views[0].label: contrasts},
            "edge_target": self._target(),
            "cells": list(self.grid),
        }
        return Result(self.name, pd.DataFrame(rows), meta)

    def _target(self) -> dict[str, Any]:
        return {
            "std": None if self.std is None else [round(float(s), 6) for s in self.std],
            "grid": list(self.grid),
        }

    def _first_third(self) -> list[str]:
        blocks = [name for name in self.names if layer_of(name) is not None]
        return [blocks[i] for i in thirds(len(blocks))[0]] if len(blocks) > 1 else blocks

    def _r2(self, i: int) -> Tensor:
        """(1 + G, 2, 5): for all images and without each group, real and null, for each of `QUANTITIES`."""
        products, squares = (
            leave_out(getattr(self, f"{kind}_{i}").cpu()) for kind in ("products", "squares")
        )
        count, n = 2 * len(TARGETS), ORIENTATIONS
        blocks = [slice(n * b, n * (b + 1)) for b in range(count)]
        each = held_out_r2(products, squares, blocks).mean(1)  # over draws: (1 + G, 2 x 4 x 8)
        four = each.unflatten(-1, (2, len(TARGETS), n)).nanmean(-1)
        return torch.cat([four, four[..., 1:3].mean(-1, keepdim=True)], -1)

    def _replicates(self, r2: Tensor, count: Tensor) -> dict[str, Replicates]:
        """By quantity, and by quantity with "null": value, values without each group, images per group."""
        sizes = count.cpu().long().tolist()
        kept = {}
        for kind, suffix in enumerate(("", "|null")):
            for i, quantity in enumerate(QUANTITIES):
                values = [None if math.isnan(v) else v for v in r2[:, kind, i].tolist()]
                kept[quantity + suffix] = {
                    "value": values[0],
                    "leave_out": values[1:],
                    "sizes": sizes,
                    "unit": "image",
                }
        return kept

    def _rows(self, name: str, kept: dict[str, Replicates]) -> Iterator[dict[str, Any]]:
        for quantity in QUANTITIES:
            found, null = with_p(kept[quantity]), with_p(kept[f"{quantity}|null"])
            if math.isnan(found["low"]):
                self.note("interval missing: fewer than 2 groups of images")
            shared = {
                "quantity": f"edge_r2_{quantity}", "tokens": "patch", "value_unit": "none", "ceiling": 1.0,
                "ceiling_kind": "all variance", "estimator": self._estimator(name),
                "null": null["value"], "null_low": null["low"], "null_high": null["high"],
                "null_kind": "edges of another image at the same position",
            }  # fmt: skip
            found["p"] = with_p(kept[quantity], minus=kept[f"{quantity}|null"])["p"]
            yield self.row(name, **found, **shared)

    def _estimator(self, name: str) -> str:
        if name == FIRST_THIRD:
            return "mean of held-out ridge R^2 over blocks"
        draws, width, k = self.projections[name].shape
        how = f"{width} dimensions" if width == k else f"{width} dimensions projected to {k}, {draws} draws"
        pooled = " (averaged over cells)" if name.startswith("tokens.") else ""
        return f"held-out ridge R^2 over orientations, {how}{pooled}"


def _normalisation(view: View) -> tuple[float, ...] | None:
    """Standard deviations of the model's own preprocessing."""
    config: Any = getattr(view.model, "pretrained_cfg", None) or {}
    std = config.get("std")
    return None if std is None else tuple(float(s) for s in std)


def first_third_difference(result: Result, model: str, model_b: str) -> Result:
    """Edge decodability in the first third of the blocks: ``model`` minus ``model_b``, paired over images.

    Returns
    -------
    One row per quantity (``edge_r2_own_difference`` and so on) with interval and two-sided p for "no difference".
    Compare it with the smallest effect of interest; both models must have been measured in one pass, with one ``dim``.

    Raises
    ------
    UnknownNameError : a label that the result does not have.
    T2TError : other images, or targets computed differently (grid, or ``std`` of the preprocessing).
    """
    parts = [result.meta, *result.meta.get("parts", [])]
    kept = {label: found for part in parts for label, found in part.get("contrasts", {}).items()}
    targets = {
        label: part.get("edge_target", result.meta.get("edge_target"))
        for part in parts
        for label in part.get("contrasts", {})
    }
    for label in (model, model_b):
        if label not in kept:
            raise UnknownNameError("model", label, list(kept), hint=f"in the result of {result.measure}")
    if targets[model] != targets[model_b]:
        raise T2TError(
            f"{model} and {model_b} were asked for different targets, {targets[model]} and {targets[model_b]}; "
            "measure them on the same grid and give EdgeDecodability one std for both"
        )
    weights = result.frame.drop_duplicates("model").set_index("model")["weights"]
    shared = {
        "measure": result.measure, "model": model, "model_b": model_b, "place": FIRST_THIRD,
        "weights": f"{weights[model]} | {weights[model_b]}", "tokens": "patch", "value_unit": "none", "null": 0.0,
        "null_kind": "no difference between the models",
        "estimator": "difference of mean held-out ridge R^2 over blocks",
    }  # fmt: skip
    rows = [
        {
            **shared,
            "quantity": f"edge_r2_{quantity}_difference",
            **with_p(kept[model][quantity], kept[model_b][quantity]),
        }
        for quantity in kept[model]
    ]
    return Result(result.measure, pd.DataFrame(rows), {"models": [model, model_b]}, result.notes)
