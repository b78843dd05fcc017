"""CKA of layers whose features are too long to keep: U-statistics of the Gram matrices of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .base import MeasureBatch, grouped_estimate
from .cka import LEAST, gram, inner, permutations, permuted_inner, ratio_of_means, self_inner, u_centred


class Batches:
    """Minibatch CKA (Nguyen, Raghu & Kornblith 2021): the ratio of sums over batches of n(n-3) HSIC_1.

    That weight makes a short last batch count for as many pairs of images as it has.
    """

    estimator = "linear CKA, unbiased HSIC_1, minibatches, ratio of means"

    def __init__(self, measure: Any) -> None:
        self.m = measure  # the LayerCKA that owns the states

    def reduce(self, value: Tensor) -> Tensor:
        """(B, N, D) -> Gram matrix (B, B) of the centred flattened tokens."""
        return gram(value.flatten(1))

    def bind(self) -> None:
        """Sums of inner products by batch group; those under permutation need no groups."""
        m = self.m
        la, lb = len(m.names[0]), len(m.names[-1])
        m.add_sum("inner", m.groups, la, lb)
        m.add_sum("own_a", m.groups, la)
        m.add_sum("own_b", m.groups, lb)
        m.add_sum("batches", m.groups)
        m.add_sum("drawn", m.permutations, la, lb)
        m.add_sum("dropped", dtype=torch.int64)

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch, or count its images as dropped if it is too short."""
        m, n = self.m, len(batch.index)
        if n < LEAST:
            m.dropped += n
            return
        a, b = self._u_grams(batch, 0), self._u_grams(batch, len(m.names) - 1)
        group = batch.number % m.groups
        m.inner[group] += inner(a, b)
        m.own_a[group] += self_inner(a)
        m.own_b[group] += self_inner(b)
        m.batches[group] += 1
        m.drawn += permuted_inner(a, b, permutations(n, m.permutations, m.seed, batch.number))

    def _u_grams(self, batch: MeasureBatch, side: int) -> Tensor:
        """U-centred Gram matrices (L, B, B); zeros where a place was not finite."""
        blank = self.m.inner.new_zeros(len(batch.index), len(batch.index))
        seen = batch.seen[side]
        return u_centred(torch.stack([seen.get(name, blank).to(blank) for name in self.m.names[side]]))

    def finite(self, side: int) -> np.ndarray:
        """Which places of a side were finite in every batch, (L,): sums over other batches would not compare."""
        return (self.m.nonfinite[side, : len(self.m.names[side])] == 0).cpu().numpy()

    def meta(self) -> dict[str, Any]:
        """How many batches the map rests on."""
        return {"batches": int(self.m.batches.sum()), "images_dropped": int(self.m.dropped)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The map, with a jackknife over batches."""
        m = self.m
        if not int(m.batches.sum()):
            raise DataError(
                f"every batch has fewer than {LEAST} images: too few for CKA, take a larger batch_size"
            )
        if int(m.dropped):
            m.note(
                f"CKA of flattened tokens: {int(m.dropped)} images in batches of fewer than {LEAST} left out"
            )
        value = grouped_estimate(_map, (m.inner, m.own_a, m.own_b), m.batches, unit="batch")
        m.note(value.note and value.note.replace("images", "batches"))
        null = _map(m.drawn, m.own_a.sum(0), m.own_b.sum(0)).cpu().numpy()
        yield from m.map_rows(value, null)


def _map(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """CKA (..., La, Lb) from summed inner products."""
    return ratio_of_means(cross, own_a[..., :, None], own_b[..., None, :])
