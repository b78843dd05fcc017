"""What all comparisons of heads share: which head is where, rows of pairs, layers and heads, the change over depth.

The heads of a model are counted through its layers: M = sum of the layers' head counts, which may differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..estimates import Estimate
from .base import Measure, MeasureBatch, View, grouped_estimate
from .head_maps import patch_logits, renormalised, thirds

#: What the null is of a comparison whose two sides are taken from different images.
OTHER_IMAGE = "permuted images (the other image of a pair); 95 % interval of its mean"
#: What is appended to a quantity's name for its change over depth.
CONTRAST = "_last_minus_first"
#: The place of such a row.
THIRDS = "last third - first third of blocks"
#: The place of what is said of all attention layers of the backbone together.
LAYERS = "blocks.*.attn"


@dataclass(frozen=True)
class HeadIndex:
    """The heads of a model by depth: ``layers[i]`` is a block number, ``heads[i]`` its head count."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def total(self) -> int:
        """M, the number of heads of all layers."""
        return sum(self.heads)

    @cached_property
    def member(self) -> Tensor:
        """(L, M) float64, 1 where a head belongs to a layer."""
        position = torch.arange(len(self.layers)).repeat_interleave(torch.tensor(self.heads))
        return torch.nn.functional.one_hot(position, len(self.layers)).T.double()

    @cached_property
    def table(self) -> np.ndarray:
        """(M, 2): layer number and head number within the layer."""
        return np.array(
            [(layer, h) for layer, n in zip(self.layers, self.heads, strict=True) for h in range(n)]
        )

    @property
    def slices(self) -> Iterator[tuple[int, slice]]:
        """Layer number and where its heads are along an axis of M."""
        start = 0
        for layer, n in zip(self.layers, self.heads, strict=True):
            yield layer, slice(start, start + n)
            start += n

    def spread(self, per_layer: Tensor) -> Tensor:
        """(..., L, L) -> (..., M, M): every pair of heads gets the value of its pair of layers."""
        position = self.member.argmax(0).to(per_layer.device)
        return per_layer[..., position[:, None], position]


def layer_table(matrix: np.ndarray, index: HeadIndex) -> np.ndarray:
    """Mean over the pairs of different heads, for every pair of layers: (..., M, M) -> (..., L, L).

    NaN within a layer of one head. A pair of heads that is not finite (never defined) is left out of its mean.

    >>> index = HeadIndex(layers=(0, 1), heads=(2, 1))
    >>> layer_table(np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]]), index).round(2).tolist()
    [[0.5, 0.3], [0.3, nan]]
    """
    matrix = np.asarray(matrix, dtype=float)
    used = ~np.eye(index.total, dtype=bool) & np.isfinite(matrix)
    member = index.member.numpy()
    total = member @ np.where(used, matrix, 0.0) @ member.T
    count = member @ used.astype(float) @ member.T
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def contrast(within: np.ndarray) -> np.ndarray:
    """Mean of the last third of the layers minus mean of the first: (..., L) -> (...).

    Layers of a single head (NaN) are left out; NaN if nothing is left, or if there is only one layer.

    >>> round(float(contrast(np.array([0.1, 0.1, 0.2, 0.3, 0.5, 0.7]))), 6)
    0.5
    """
    depth = within.shape[-1]
    if depth < 2:
        return np.full(within.shape[:-1], np.nan)
    first, last = (nanmean(within[..., list(part)]) for part in thirds(depth))
    return last - first


def nanmean(x: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is there; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an empty slice
        return np.nanmean(x, axis=-1)


def with_mean(found: Estimate, which: list[int]) -> Estimate:
    """Estimates (P, ...) of places, and behind them the mean over ``which`` of them: (P + 1, ...)."""

    def joined(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, nanmean(np.moveaxis(x[:, which], 1, -1))[:, None]], 1)

    return found.map(joined, np.concatenate([found.sizes, found.sizes[:, which].max(1, keepdims=True)], 1))


def over_depth(layers: Estimate) -> dict[str, Estimate]:
    """Mean over the layers (..., L) (key ``""``), and last third minus first third of them.

    The keys are what a quantity's name ends in.
    """
    sizes = layers.sizes.max(-1)
    return {"": layers.map(nanmean, sizes), CONTRAST: layers.map(contrast, sizes)}


def pair_rows(row: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> dict[str, Any]:
    """A row for every two different heads, h before g; pairs without a value are left out.

    ``estimate`` holds (M, M) arrays, and so may ``columns``, which may be estimates too; the rest of ``columns`` is the
    same in every row.
    """
    h, g = np.triu_indices(index.total, k=1)
    keep = ~np.isnan(estimate.value[h, g])
    h, g = h[keep], g[keep]
    (layer, head), (layer_b, head_b) = index.table[h].T, index.table[g].T
    places = {"layer": layer, "head": head, "layer_b": layer_b, "head_b": head_b}
    return _rows(row | places, estimate, (h, g), columns)


def layer_rows(row: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> dict[str, Any]:
    """A row for every two layers, a layer with itself included; as `pair_rows`, with (L, L) arrays."""
    a, b = np.triu_indices(len(index.layers))
    keep = ~np.isnan(estimate.value[a, b])
    a, b = a[keep], b[keep]
    number = np.array(index.layers)
    return _rows(row | {"layer": number[a], "layer_b": number[b]}, estimate, (a, b), columns)


def head_rows(row: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> dict[str, Any]:
    """A row for every head; as `pair_rows`, with (M,) arrays."""
    (h,) = np.nonzero(~np.isnan(estimate.value))
    layer, head = index.table[h].T
    return _rows(row | {"layer": layer, "head": head}, estimate, (h,), columns)


def _rows(
    row: dict[str, Any], estimate: Estimate, at: tuple[Any, ...], columns: dict[str, Any]
) -> dict[str, Any]:
    def picked(value: Any) -> Any:
        return (
            value[at]
            if isinstance(value, Estimate) or (isinstance(value, np.ndarray) and value.ndim)
            else value
        )

    found = row | {"estimate": estimate[at]} | {k: picked(v) for k, v in columns.items()}
    for end in ("", "_b"):
        if f"layer{end}" in row:
            layers = row[f"layer{end}"].tolist()
            found[f"place{end}"] = np.array([f"blocks.{layer}.attn" for layer in layers], dtype=object)
    return found


#: For pairs of heads (M, M), for pairs of layers (L, L), and for the change over depth.
Estimates = tuple[Estimate, Estimate, Estimate]


# ------------------------------------------------------------------------------------------ measures of heads


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """Sum over count, NaN where nothing was counted."""
    return total / count


class HeadMeasure(Measure):
    """Which head is where, and rows for pairs of heads, pairs of layers and the change over depth."""

    images: Tensor  # (G, L, L) images in which both layers are finite

    def bind(self, views: Sequence[View]) -> None:
        """Count the heads of every layer of the backbone whose attention can be observed."""
        (view,) = views
        anchors = {int(name.split(".")[1]): name for name in self.anchors(view)}
        self.sources = {layer: self.sources_of(view, name) for layer, name in anchors.items()}
        self.index = HeadIndex(tuple(anchors), tuple(view.num_heads(layer) for layer in anchors))
        layers = len(self.index.layers)
        self.add_sum("images", self.groups, layers, layers)
        self.make_states(view, self.index.total)

    def anchors(self, view: View) -> list[str]:
        """One place per layer that is compared; raises UnknownNameError where the model has none."""
        return view.select("blocks.*.attn.pattern")

    def sources_of(self, view: View, anchor: str) -> tuple[str, ...]:
        """Places to observe for one layer."""
        return (anchor,)

    def make_states(self, view: View, heads: int) -> None:
        """Add the states of the measure, for so many heads in all."""
        raise NotImplementedError

    def wants(self, view: View) -> list[str]:
        """All sources of all layers."""
        return [name for names in self.sources.values() for name in names]

    def present(self, seen: dict[str, Any]) -> Tensor:
        """(L,) float64, 1 for a layer whose places are all finite in this batch."""
        return torch.tensor([all(n in seen for n in names) for names in self.sources.values()]).double()

    def estimate_all(
        self, fn: Any, sums: Sequence[Tensor], per_layer: Tensor, unit: str = "image"
    ) -> Estimates:
        """Estimates for pairs of heads (M, M) and of layers (L, L), and the contrast over depth."""
        counts = per_layer.cpu().numpy()
        pairs = grouped_estimate(fn, sums, self.index.spread(per_layer), unit=unit)
        layers = pairs.map(lambda matrix: layer_table(matrix, self.index), counts)
        return pairs, layers, layers.map(lambda m: contrast(_within(m)), counts.max((-2, -1)))

    def report(
        self, estimates: Estimates, nulls: Sequence[dict[str, Any]], **columns: Any
    ) -> list[dict[str, Any]]:
        """Rows of one quantity: pairs of heads, layers, and last third minus first third of the layers.

        ``nulls`` are the columns of the null for each of the three.
        """
        pairs, layers, change = estimates
        row = self.row() | columns
        rows = [
            pair_rows(row, self.index, pairs, **nulls[0]),
            layer_rows(row, self.index, layers, **nulls[1]),
        ]
        if not np.isfinite(change.value):
            return rows
        how = f"{row['estimator']}; mean of last third - mean of first third of layers"
        over = {"quantity": row["quantity"] + CONTRAST, "place": THIRDS, "estimator": how, "estimate": change}
        return [*rows, row | {"p": change} | nulls[2] | over | {"ceiling": None, "ceiling_kind": None}]


def _within(table: np.ndarray) -> np.ndarray:
    """The diagonal of tables (..., L, L): each layer with itself."""
    return np.diagonal(table, axis1=-2, axis2=-1)


class PairedImagesMeasure(HeadMeasure):
    """Takes the images of a batch two by two, since the null of a pair of maps is a map of the other image.

    A last image without a partner counts as an image, not as a pair; pairs belong to the group of their first image.
    """

    pairs: Tensor  # (G, L, L) pairs of images in which both layers are finite

    def sources_of(self, view: View, anchor: str) -> tuple[str, ...]:
        """Queries and keys, to rebuild maps image by image; the pattern itself where a bias enters it too."""
        attn = anchor.removesuffix(".pattern")
        module = view.attention(int(attn.split(".")[1])).module
        biases = (
            getattr(module, "relative_position_bias_table", None),
            getattr(view.model, "rel_pos_bias", None),
        )
        return (f"{attn}.q", f"{attn}.k") if biases == (None, None) else (anchor,)

    def make_states(self, view: View, heads: int) -> None:
        """Scales of the logits, and how many pairs of images there are."""
        layers = self.index.layers
        self.scales = {layer: float(view.attention(layer).scale or 1.0) for layer in layers}
        self.add_sum("pairs", self.groups, len(layers), len(layers))

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Patch tokens of q or k, copied head by head since products of views are slow; or the patch map."""
        if obs.name.endswith(".pattern"):
            return renormalised(obs.value, obs.layout.prefix if obs.layout else 0)
        return obs.patches.clone(memory_format=torch.contiguous_format)

    def tensors(self, seen: dict[str, Tensor], layer: int) -> list[Tensor]:
        """What the maps of a layer are made of: q and k, or the maps; nothing where it is not finite."""
        names = self.sources[layer]
        return [seen[name] for name in names] if all(name in seen for name in names) else []

    def maps(self, seen: dict[str, Tensor], image: int, queries: slice = slice(None)) -> Tensor:
        """Maps (M, Q, K) of all heads for some queries of one image; uniform for layers that are not finite."""
        some = next(iter(seen.values()))
        keys = some.shape[2]
        maps = some.new_empty(self.index.total, len(range(keys)[queries]), keys)
        for layer, where in self.index.slices:
            match [x[image] for x in self.tensors(seen, layer)]:
                case [q, k]:
                    torch.softmax(patch_logits(q[:, queries], k, 0, self.scales[layer]), -1, out=maps[where])
                case [pattern]:
                    maps[where] = pattern[:, queries]
                case _:
                    maps[where] = 1 / keys
        return maps

    def update(self, batch: MeasureBatch) -> None:
        """Count the images and pairs in which two layers are finite, and add what they say."""
        seen, groups = batch.seen[0], self.group(batch).tolist()
        present = self.present(seen)
        if not present.any():
            return
        both = present.outer(present).to(self.images.device)
        for start in range(0, len(groups), 2):
            owners = groups[start : start + 2]
            for group in owners:
                self.images[group] += both
            if len(owners) == 2:
                self.pairs[owners[0]] += both
            self.add_images(seen, range(start, start + len(owners)), owners)

    def add_images(self, seen: dict[str, Tensor], images: range, groups: list[int]) -> None:
        """Rebuild the maps of one or two images, in pieces that fit into memory, and add what is asked of them."""
        raise NotImplementedError
