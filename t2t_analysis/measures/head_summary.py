"""Which head sits in which layer; pairs, layer means and the change over depth of head-by-head tables.

The heads of a model are counted through its layers: M = sum of the layers' head counts, which may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats as sps
from torch import Tensor

from ..errors import T2TError, UnknownNameError
from ..results import Result
from ..stats import delete_group_jackknife
from .grouped import Estimate
from .head_maps import thirds

__all__ = [
    "CONTRAST", "THIRDS", "HeadIndex", "Replicates",
    "contrast", "contrast_difference", "estimate_columns", "layer_table", "replicates", "with_p",
]  # fmt: skip

#: What is appended to a quantity's name for its change over depth.
CONTRAST = "_last_minus_first"
#: The place of such a row.
THIRDS = "last third - first third of blocks"

#: ``value``, ``leave_out`` (G,) and ``sizes`` (G,) of one estimate, in JSON values.
Replicates = dict[str, Any]


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


def layer_table(matrix: Tensor, index: HeadIndex) -> Tensor:
    """Mean over the pairs of different heads, for every pair of layers: (..., M, M) -> (..., L, L).

    NaN within a layer of one head. A pair of heads that is NaN (never defined) is left out of its mean.

    >>> index = HeadIndex(layers=(0, 1), heads=(2, 1))
    >>> layer_table(torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]]), index)
    tensor([[0.5000, 0.3000],
            [0.3000,    nan]], dtype=torch.float64)
    """
    different = ~torch.eye(index.total, dtype=torch.bool, device=matrix.device)
    used = (different & ~matrix.isnan()).double()
    member = index.member.to(matrix.device)
    total = member @ (matrix.double().nan_to_num(0.0) * used) @ member.T
    count = member @ used @ member.T
    return torch.where(count > 0, total / count, math.nan)


def contrast(within: Tensor) -> Tensor:
    """Mean of the last third of the layers minus mean of the first: (..., L) -> (...).

    Layers of a single head (NaN) are left out; NaN if nothing is left, or if there is only one layer.

    >>> contrast(torch.tensor([0.1, 0.1, 0.2, 0.3, 0.5, 0.7])).item()
    0.5
    """
    depth = within.shape[-1]
    if depth < 2:
        return within.new_full(within.shape[:-1], math.nan)
    first, last = (within[..., list(part)].nanmean(-1) for part in thirds(depth))
    return last - first


def estimate_columns(estimate: Estimate, at: Any = ()) -> dict[str, Any]:
    """Columns ``value, low, high, interval, n, unit`` of many rows at once: the elements that ``at`` picks.

    ``at`` is one index of the estimate's arrays, for example a tuple of index arrays.
    """
    groups = np.asarray(estimate.groups[at])
    words = {g: estimate.method(g) for g in np.unique(groups).tolist()}
    return {
        "value": estimate.value[at],
        "low": estimate.low[at],
        "high": estimate.high[at],
        "interval": [words[g] for g in groups.tolist()] if groups.ndim else words[int(groups)],
        "n": estimate.n[at],
        "unit": estimate.unit,
    }


def replicates(
    fn: Callable[..., Tensor], sums: Sequence[Tensor], counts: Tensor, unit: str = "image"
) -> Replicates:
    """An estimate and what it is without each group of images, in JSON values, to be paired with another.

    ``fn`` and ``sums`` are as for `grouped_estimate`, ``counts`` (G,) the images per group. Missing values
    are None.
    """
    totals = [s.sum(0, keepdim=True) for s in sums]
    values = fn(*(torch.cat([t, t - s]) for t, s in zip(totals, sums, strict=True))).double().cpu()
    plain = [None if math.isnan(v) else v for v in values.tolist()]
    return {"value": plain[0], "leave_out": plain[1:], "sizes": counts.cpu().long().tolist(), "unit": unit}


def with_p(kept: Replicates, minus: Replicates | None = None) -> dict[str, Any]:
    """Columns ``value, low, high, interval, p, n, unit`` of replicates, or of them minus other ones, paired.

    p is two-sided for "it is 0", by Student's t with (groups - 1) degrees of freedom on the jackknife
    standard error.

    Raises
    ------
    T2TError : the two rest on different images, so that they cannot be paired.

    >>> kept = {"value": 0.5, "leave_out": [0.5, 0.4, 0.6, 0.5], "sizes": [1, 1, 1, 1], "unit": "image"}
    >>> round(with_p(kept)["p"], 3), with_p(kept, minus=kept)["value"]
    (0.027, 0.0)
    """
    value, leave_out = _values(kept)
    if minus is not None:
        _same_images(kept, minus)
        other = _values(minus)
        value, leave_out = value - other[0], leave_out - other[1]
    sizes = np.array(kept["sizes"])
    groups = int((sizes > 0).sum())
    low, high, se = (float(x) for x in delete_group_jackknife(value, leave_out, sizes))
    paired = "" if minus is None else " paired over images"
    return {
        "value": float(value), "low": low, "high": high, "p": _p(float(value), se, groups),
        "interval": f"t, delete-a-group jackknife{paired}, {groups} groups" if groups >= 2 else None,
        "n": int(sizes.sum()), "unit": kept["unit"],
    }  # fmt: skip


def _values(kept: Replicates) -> tuple[np.ndarray, np.ndarray]:
    return np.array(kept["value"], float), np.array(kept["leave_out"], float)


def _same_images(a: Replicates, b: Replicates) -> None:
    if a["sizes"] != b["sizes"]:
        raise T2TError(
            f"cannot pair models measured on different images: {sum(a['sizes'])} and {sum(b['sizes'])}, "
            "or in other groups; measure both models in one call"
        )


def _p(value: float, se: float, groups: int) -> float:
    if groups < 2 or not math.isfinite(se):
        return math.nan
    if se == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * sps.t.sf(abs(value) / se, groups - 1))


def contrast_difference(result: Result, model: str, model_b: str) -> Result:
    """How much more the heads of ``model`` come to resemble each other with depth than those of ``model_b``.

    For every similarity in ``result``: (last third - first third) of ``model`` minus the same of ``model_b``,
    paired over images: each group of images is left out of both models at once, so what the images do to both
    cancels.

    Parameters
    ----------
    result : of `HeadSimilarity`, `HeadDivergence` or `HeadOutputCKA` for both models, from one pass over the
        images.
    model, model_b : labels as in the result's ``model`` column.

    Raises
    ------
    UnknownNameError : a label that the result does not have.
    T2TError : the models were measured on different images.
    """
    parts = [result.meta, *result.meta.get("parts", [])]
    stored = {label: kept for part in parts for label, kept in part.get("contrasts", {}).items()}
    for label in (model, model_b):
        if label not in stored:
            raise UnknownNameError("model", label, list(stored), hint=f"in the result of {result.measure}")
    weights = result.frame.drop_duplicates("model").set_index("model")["weights"]
    shared = {
        "measure": result.measure, "model": model, "model_b": model_b,
        "weights": f"{weights[model]} | {weights[model_b]}", "place": THIRDS,
        "null": 0.0, "null_kind": "no difference between the models",
        "estimator": "difference between models of (mean of last third - mean of first third of layers)",
    }  # fmt: skip
    rows = [
        {**shared, **dict(zip(("quantity", "tokens"), key.split("|"), strict=True)), **with_p(kept, other)}
        for key, kept in sorted(stored[model].items())
        if (other := stored[model_b].get(key)) is not None
    ]
    return Result(result.measure, pd.DataFrame(rows), {"models": [model, model_b]}, result.notes)


def pair_rows(base: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> pd.DataFrame:
    """One row for every two different heads, h before g; pairs without a value are left out.

    ``estimate`` holds (M, M) arrays, and so may ``columns``; the rest of ``columns`` is the same in every
    row.
    """
    h, g = np.triu_indices(index.total, k=1)
    keep = ~np.isnan(estimate.value[h, g])
    h, g = h[keep], g[keep]
    (layer, head), (layer_b, head_b) = index.table[h].T, index.table[g].T
    places = {"layer": layer, "head": head, "layer_b": layer_b, "head_b": head_b}
    return _rows(base | places, estimate, (h, g), columns)


def layer_rows(base: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> pd.DataFrame:
    """One row for every two layers, a layer with itself included; as `pair_rows`, with (L, L) arrays."""
    a, b = np.triu_indices(len(index.layers))
    keep = ~np.isnan(estimate.value[a, b])
    a, b = a[keep], b[keep]
    number = np.array(index.layers)
    return _rows(base | {"layer": number[a], "layer_b": number[b]}, estimate, (a, b), columns)


def head_rows(base: dict[str, Any], index: HeadIndex, estimate: Estimate, **columns: Any) -> pd.DataFrame:
    """One row for every head; as `pair_rows`, with (M,) arrays."""
    (h,) = np.nonzero(~np.isnan(estimate.value))
    layer, head = index.table[h].T
    return _rows(base | {"layer": layer, "head": head}, estimate, (h,), columns)


def _rows(
    base: dict[str, Any], estimate: Estimate, at: tuple[Any, ...], columns: dict[str, Any]
) -> pd.DataFrame:
    picked = {k: v[at] if isinstance(v, np.ndarray) and v.ndim else v for k, v in columns.items()}
    frame = pd.DataFrame({**estimate_columns(estimate, at), "layer": base["layer"]}).assign(**(base | picked))
    frame["place"] = "blocks." + frame["layer"].astype(str) + ".attn"
    if "layer_b" in frame:
        frame["place_b"] = "blocks." + frame["layer_b"].astype(str) + ".attn"
    return frame
