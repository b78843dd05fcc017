"""Which head sits in which layer; pairs, layer means and the change over depth of head-by-head tables.

The heads of a model are counted through its layers: M = sum of the layers' head counts, which may differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..estimates import Estimate
from .head_maps import thirds

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
