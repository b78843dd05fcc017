"""Do the layers of a deep transformer attend to the same things? DeepViT's attention collapse.

Zhou et al. 2021 (DeepViT) compare how much token t gives to all outputs, a column of the attention map, in two
layers. Three things differ here. The number of a head means nothing across layers, so heads are matched (Hungarian
method). A column of positive numbers has a large cosine with any other, so Pearson's correlation over queries stands
beside it. And the same with the two maps from different images is the null: what position alone explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..results import Result
from .base import Estimate, View, grouped_estimate
from .head_maps import cosine_sums, unit_rows
from .head_measure import LAYERS, OTHER_IMAGE, HeadIndex, PairedImagesMeasure, layer_rows, nanmean

#: Numbers in the attention maps of one image that are worked on at a time.
_CHUNK = 2**21


# ---------------------------------------------------------------------------------------- pure functions


def match_heads(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Pair heads of two layers so that the sum of their similarities is largest: (H, H') -> two of (min,).

    >>> [x.tolist() for x in match_heads(torch.tensor([[0.1, 0.9], [0.8, 0.7]]))]
    [[0, 1], [1, 0]]
    """
    rows, columns = linear_sum_assignment(similarity.nan_to_num(-1.0).cpu().numpy(), maximize=True)
    return torch.as_tensor(rows), torch.as_tensor(columns)


def matched_mean(matrix: Tensor, index: HeadIndex, like: Tensor) -> Tensor:
    """Mean similarity of heads that ``like`` (M, M) matches, for every two layers: (..., M, M) -> (..., L, L).

    NaN within a layer.
    """
    where = [part for _, part in index.slices]
    out = matrix.new_full((*matrix.shape[:-2], len(where), len(where)), math.nan)
    for p, q in combinations(range(len(where)), 2):
        rows, columns = match_heads(like[where[p], where[q]])
        matched = matrix[..., rows + where[p].start, columns + where[q].start]
        out[..., p, q] = out[..., q, p] = matched.mean(-1)
    return out


# ---------------------------------------------------------------------------------------- the measure


class LayerCollapse(PairedImagesMeasure):
    """Cosine of attention columns between layers: whether attention stops changing with depth.

    For every two layers, ``column_cosine_matched``: heads are paired by the Hungarian method on the mean over images;
    the null is paired anew, since the best pairing of unrelated heads is above their mean. Also ``..._centred``,
    Pearson's correlation over queries. The mean over neighbouring layers stands in ``..._neighbours``.

    Patch queries and patch keys, rows renormalised. Source: Zhou et al. 2021 (DeepViT, arXiv 2103.11886);
    matching, centring and null are ours.
    """

    name = "layer_collapse"
    invariances = frozenset({"permute_keys"})

    def make_states(self, view: View, heads: int) -> None:
        """Sums over images and over pairs of images."""
        super().make_states(view, heads)
        for form in _FORMS:
            self.add_sum(f"cosine{form}", self.groups, heads, heads)
            self.add_sum(f"defined{form}", self.groups, heads, heads, dtype=torch.float32)

    def add_images(self, seen: dict[str, Tensor], images: range, groups: list[int]) -> None:
        """Rebuild the maps, and compare their columns some keys at a time."""
        there = (self.present(seen) @ self.index.member).bool()
        maps = [self.maps(seen, image) for image in images]
        tokens = maps[0].shape[-1]
        for m in maps:
            m[~there] = 0.0  # without a direction, so that they count nowhere
        for keys in torch.arange(tokens).split(max(1, _CHUNK // (self.index.total * tokens))):
            columns = [m[..., keys[0] : keys[-1] + 1].mT.contiguous() for m in maps]
            for form in ("", "_centred"):
                units = [unit_rows(c, centred=bool(form)) for c in columns]
                for group, unit in zip(groups, units, strict=True):
                    self._add(group, form, unit, unit, tokens)
                if len(units) == 2:
                    self._add(groups[0], form + "_other", units[0], units[1], tokens)

    def _add(self, group: int, form: str, a: Any, b: Any, tokens: int) -> None:
        """Add cosines, and shares of tokens that have one, of two sets of unit columns (M, keys, Q)."""
        total, count = cosine_sums(a, b)
        for name, value in (("cosine", total), ("defined", count)):
            state = getattr(self, name + form)
            state[group] += ((value + value.T) / (2 * tokens)).to(state)

    def compute(self) -> Result:
        """Rows for every two layers, and curves for neighbouring ones."""
        if len(self.index.layers) < 2:
            self.note("one layer only: nothing to compare it with")
            return self.result([])
        if not self.pairs.any():
            self.note("every batch held one image: no null from permuted images")
        return self.result([row for centred in ("", "_centred") for row in self._rows(centred)])

    def _rows(self, centred: str) -> Iterator[dict[str, Any]]:
        found, null = self._table(centred, self.images), self._table(f"{centred}_other", self.pairs)
        quantity = f"column_cosine_matched{centred}"
        how = "cosine per column, heads matched by the Hungarian method"
        how += ", less the column's mean" if centred else ""
        row = self.row(
            tokens="patch", value_unit="none", null_kind=OTHER_IMAGE, ceiling=1.0, ceiling_kind="a layer with itself"
        )  # fmt: skip
        yield layer_rows(row, self.index, found, null=null, quantity=quantity, estimator=how)
        yield row | {
            "quantity": f"{quantity}_neighbours", "place": LAYERS, "place_b": LAYERS, "estimate": _beside(found),
            "null": _beside(null), "estimator": f"{how}; mean over neighbouring layers",
        }  # fmt: skip

    def _table(self, form: str, counts: Tensor) -> Estimate:
        """Matched cosines (L, L); heads are matched once, on all images."""
        sums = getattr(self, f"cosine{form}"), getattr(self, f"defined{form}").double()
        like = sums[0].sum(0) / sums[1].sum(0)
        return grouped_estimate(lambda s, n: matched_mean(s / n, self.index, like), sums, counts)


_FORMS = ("", "_centred", "_other", "_centred_other")


def _beside(table: Estimate) -> Estimate:
    """Mean over neighbouring layers of a table (L, L)."""
    return table.map(lambda x: nanmean(np.diagonal(x, offset=1, axis1=-2, axis2=-1)))
