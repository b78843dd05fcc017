"""CKA of layers with one vector per image: the features of as many images as there is room for, kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..stats import null_columns, permutation_p
from .base import Estimate, MeasureBatch
from .cka import (
    LEAST,
    gram,
    gram_cka,
    gram_cka_leave_one_out,
    gram_cka_null,
    permutations,
    u_centred,
    without_top_images,
    without_top_pcs,
)


class Exact:
    """Pooled or class tokens: features of all images or, of very many, of some that are evenly spread."""

    estimator = "linear CKA, unbiased HSIC_1, all images at once"

    def __init__(self, measure: Any) -> None:
        self.m = measure  # the LayerCKA that owns the states

    def reduce(self, value: Tensor) -> Tensor:
        """(B, N, D) -> (B, D), the mean over patch tokens."""
        return value.mean(1, dtype=torch.float64) if value.ndim > 2 else value.double()

    def bind(self) -> None:
        """A slot for the features of each image that is kept."""
        m = self.m
        m.add_sum("filled", m.retain, dtype=torch.int64)
        for s, widths in enumerate(m.widths):
            m.add_sum(f"kept_{s}", m.retain, len(widths), max(widths))
            m.add_sum(f"finite_{s}", m.retain, len(widths), dtype=torch.int64)

    def _features(self, batch: MeasureBatch, side: int) -> Tensor:
        """(B, L, p), padded to the widest layer; zeros where a place was not finite."""
        kept, seen = getattr(self.m, f"kept_{side}"), batch.seen[side]
        x = kept.new_zeros(len(batch.index), *kept.shape[1:])
        for i, (name, width) in enumerate(zip(self.m.names[side], self.m.widths[side], strict=True)):
            if name in seen:
                x[:, i, :width] = seen[name]
        return x

    def update(self, batch: MeasureBatch) -> None:
        """Keep the images that have a slot."""
        m = self.m
        if m.n_expected is not None and int(batch.index.max()) >= m.n_expected:
            raise DataError(f"image number {int(batch.index.max())} in a data set of {m.n_expected} images")
        slot, kept = _slots(batch.index, m.n_expected, m.retain)
        m.filled[slot] += 1
        for s in range(len(m.sides)):
            getattr(m, f"kept_{s}")[slot] = self._features(batch, s)[kept]
            there = torch.tensor([int(name in batch.seen[s]) for name in m.names[s]])
            getattr(m, f"finite_{s}")[slot] = there.to(m.filled.device)

    def meta(self) -> dict[str, Any]:
        """How many images interval and null rest on."""
        return {"n_interval": int(self._usable().sum())}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The map, then the robust ones."""
        m = self.m
        if int(m.filled.max()) > 1:
            raise DataError("the same image number came twice: processes must get different images")
        used = self._usable()
        features = [getattr(m, f"kept_{s}")[used].transpose(0, 1) for s in range(len(m.sides))]  # (L, n, p)
        sides = [u_centred(gram(x)) for x in features]
        perms = permutations(sides[0].shape[-1], m.permutations, m.seed)
        null = gram_cka_null(sides[0], sides[-1], perms).cpu().numpy()
        kept = self._jackknifed(sides)
        if int(m.n_images) > m.retain:
            which = "the first" if m.n_expected is None else "evenly spread"
            m.note(f"CKA: from {int(used.sum())} of {int(m.n_images)} images, {which}")
        yield from m.map_rows(kept, null)
        yield from self._influence_rows(kept)
        yield from self._mean_rows(kept, "cka_mean", null)
        if m.robust:
            yield from self._robust_rows(features)

    def finite(self, side: int) -> np.ndarray:
        """Which places of a side are finite for at least half of the retained images, (L,)."""
        there = getattr(self.m, f"finite_{side % len(self.m.sides)}")[self.m.filled > 0]
        return (there.double().mean(0) >= 0.5).cpu().numpy()

    def _usable(self) -> Tensor:
        """Retained images for which all those places are finite, (retain,) bool."""
        m = self.m
        used = m.filled > 0
        for s in range(len(m.sides)):
            used &= (getattr(m, f"finite_{s}")[:, torch.from_numpy(self.finite(s))] > 0).all(1)
        if int(used.sum()) < LEAST:
            raise DataError(f"{m.name}: features of {int(used.sum())} images are finite, too few for CKA")
        return used

    def _jackknifed(self, sides: list[Tensor]) -> Estimate:
        """Map (La, Lb) of the retained images, and without each of them; no interval where they are too few."""
        value, n = gram_cka(sides[0], sides[-1]).cpu().numpy(), sides[0].shape[-1]
        if n > LEAST:
            left = gram_cka_leave_one_out(sides[0], sides[-1]).cpu().numpy()
            return Estimate(value, left, np.ones(n))
        self.m.note(f"interval missing: {n} images are too few for a jackknife of CKA")
        return Estimate(value, np.full((1, *value.shape), np.nan), np.full(1, n))

    def _mean_rows(
        self, kept: Estimate, quantity: str, permuted: np.ndarray | None = None, **columns: Any
    ) -> Iterator[dict[str, Any]]:
        """The mean over the cells that are compared, with that of permuted maps (K, La, Lb); none without cells."""
        m, cells = self.m, self.m.compared()
        if not cells.any():
            return
        mean = kept[cells].mean()
        if permuted is not None:
            drawn = permuted[:, cells].mean(1)
            columns = null_columns(drawn) | {"p": float(permutation_p(mean.value, drawn))}
            columns |= {"null_kind": f"second side's images permuted, {len(permuted)} times"}
        yield m.row(
            m.places, m.places, quantity=quantity, tokens=m.tokens, value_unit="none", estimate=mean,
            estimator=f"{self.estimator}; mean over {int(cells.sum())} cells", ceiling=1.0,
            ceiling_kind="a representation with itself", **columns,
        )  # fmt: skip

    def _influence_rows(self, kept: Estimate) -> Iterator[dict[str, Any]]:
        """The largest change of each cell when a single image is left out."""
        if kept.groups.flat[0] <= LEAST:
            return
        change = np.abs(kept.leave_out - kept.value).max(0)
        yield self.m.cells(change) | {
            "quantity": "cka_largest_influence", "n": kept.n, "unit": "image", "null": 0.0,
            "null_kind": "no single image carries the value",
        }  # fmt: skip

    def _robust_rows(self, features: list[Tensor]) -> Iterator[dict[str, Any]]:
        n = features[0].shape[1]
        count = max(1, round(0.01 * n))
        if n - count > LEAST:
            kept = without_top_images(*(layer for x in features for layer in x), count=count)
            sides = [u_centred(gram(x[:, kept])) for x in features]
            yield from self._variant(
                sides, "cka_without_top_images", count, "images of largest norm left out"
            )
        for count in (1, 5):
            if n > LEAST + count:
                sides = [
                    u_centred(gram(torch.stack([without_top_pcs(x, count) for x in f]))) for f in features
                ]
                yield from self._variant(sides, "cka_without_top_pcs", count, "principal components left out")

    def _variant(
        self, sides: list[Tensor], quantity: str, at: float, at_unit: str
    ) -> Iterator[dict[str, Any]]:
        kept = self._jackknifed(sides)
        columns: dict[str, Any] = {"at": at, "at_unit": at_unit, "null": 0.0, "null_kind": "expectation"}
        yield self.m.cells(kept) | {"quantity": quantity} | columns
        yield from self._mean_rows(kept, f"{quantity}_mean", **columns)


def _slots(index: Tensor, n: int | None, retain: int) -> tuple[Tensor, Tensor]:
    """Which images of a batch are kept, as a mask (B,), and their slots: evenly spread over ``n`` images.

    >>> slot, kept = _slots(torch.arange(6), 6, 3)
    >>> slot.tolist(), kept.int().tolist()
    ([0, 1, 2], [1, 0, 1, 0, 1, 0])
    """
    if n is None or n <= retain:
        kept = index < retain
        return index[kept], kept
    slot = index * retain // n
    kept = index == -(-slot * n // retain)  # the first image of each slot
    return slot[kept], kept
