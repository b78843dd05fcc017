"""CKA of layers with one vector per image: an exact stream over all, some kept for interval and null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..errors import DataError
from ..stats import null_columns, permutation_p
from .base import Estimate, MeasureBatch, View
from .cka import (
    LEAST,
    Moments,
    gram,
    gram_cka,
    gram_cka_leave_one_out,
    gram_cka_null,
    moments,
    moments_hsic1,
    permutations,
    ratio_of_means,
    u_centred,
    without_top_images,
    without_top_pcs,
)


class Exact:
    """Pooled or class tokens: exact sums over all images, features of some for interval and null."""

    estimator = "linear CKA, unbiased HSIC_1, all images at once"

    def __init__(self, measure: Any) -> None:
        self.m = measure  # the LayerCKA that owns the states

    def reduce(self, value: Tensor) -> Tensor:
        """(B, N, D) -> (B, D), the mean over patch tokens."""
        return value.mean(1, dtype=torch.float64) if value.ndim > 2 else value.double()

    def bind(self) -> None:
        """Shifts near the mean, slots for retained features, and sums if there are more images than slots."""
        m = self.m
        self.streams = m.n_expected is None or m.n_expected > m.retain
        self.shifts = [self._shift(view, names) for view, names in zip(m.sides, m.names, strict=True)]
        m.add_sum("filled", m.retain, dtype=torch.int64)
        for s, (depth, width) in enumerate(shift.shape for shift in self.shifts):
            m.add_sum(f"kept_{s}", m.retain, depth, width)
            m.add_sum(f"finite_{s}", m.retain, depth, dtype=torch.int64)
            if self.streams:
                self._add_moments(f"own_{s}", 1, width, 1, width, depth)
        if self.streams:
            (la, p), (lb, q) = self.shifts[0].shape, self.shifts[-1].shape
            self._add_moments("cross", la, p, lb, q)

    def _shift(self, view: View, names: Sequence[str]) -> Tensor:
        """What is taken off features (L, p), padded to the widest layer, lest sums of their squares lose digits.

        Those of a black image, the same in every process; 0 where all images are kept, since `gram` centres them.
        """
        if not self.streams:
            return _padded([torch.zeros(view.shape_of(name)[-1], dtype=torch.float64) for name in names])
        found: dict[str, Tensor] = {}

        def keep(obs: capture.Observation) -> None:
            found[obs.name] = self.m.reduce(obs)[0]

        assert view.example is not None
        with torch.no_grad(), capture.observe(view, dict.fromkeys(names, keep)):
            view.model(torch.zeros_like(view.example))
        return _padded([found[name] for name in names]).nan_to_num(0.0, 0.0, 0.0)

    def _add_moments(self, name: str, la: int, p: int, lb: int, q: int, *lead: int) -> None:
        shapes: list[tuple[int, ...]] = [
            *((la, p, lb, q), (la, p), (lb, q), (la,), (lb,)),
            *((la, lb), (la, p, lb), (la, lb, q), ()),
        ]
        for field, shape in zip(Moments._fields, shapes, strict=True):
            self.m.add_sum(f"{name}_{field}", *lead, *shape)

    def _features(self, batch: MeasureBatch, side: int) -> Tensor:
        """(B, L, p), less the shift; zeros where a place was not finite."""
        m, shift = self.m, self.shifts[side].to(getattr(self.m, f"kept_{side}").device)
        rows = [
            batch.seen[side][name].to(shift) - shift[i, :width]
            if name in batch.seen[side]
            else shift.new_zeros(len(batch.index), width)
            for i, (name, width) in enumerate(zip(m.names[side], m.widths[side], strict=True))
        ]
        return _padded(rows).transpose(0, 1)

    def update(self, batch: MeasureBatch) -> None:
        """Keep the images that have a slot, and add all of them to the sums."""
        m = self.m
        if m.n_expected is not None and int(batch.index.max()) >= m.n_expected:
            raise DataError(f"image number {int(batch.index.max())} in a data set of {m.n_expected} images")
        slot, kept = _slots(batch.index, m.n_expected, m.retain)
        m.filled[slot] += 1
        features = [self._features(batch, s) for s in range(len(m.sides))]
        for s, x in enumerate(features):
            getattr(m, f"kept_{s}")[slot] = x[kept.to(x.device)]
            there = torch.tensor([int(name in batch.seen[s]) for name in m.names[s]])
            getattr(m, f"finite_{s}")[slot] = there.to(m.filled.device)
            if self.streams:
                for layer in range(x.shape[1]):
                    one = x[:, layer : layer + 1]
                    self._add(f"own_{s}", moments(one, one), layer)
        if self.streams:
            self._add("cross", moments(features[0], features[-1]))

    def _add(self, name: str, sums: Moments, *position: int) -> None:
        for field, value in zip(Moments._fields, sums, strict=True):
            getattr(self.m, f"{name}_{field}")[position] += value

    def _hsic(self, name: str, *position: int) -> Tensor:
        return moments_hsic1(
            Moments(*(getattr(self.m, f"{name}_{field}")[position] for field in Moments._fields))
        )

    def _streamed(self) -> Tensor:
        """CKA (La, Lb) over all images."""
        own = [
            torch.stack([self._hsic(f"own_{s}", i)[0, 0] for i in range(len(shift))])
            for s, shift in enumerate(self.shifts)
        ]
        return ratio_of_means(self._hsic("cross"), own[0][:, None], own[-1][None])

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
        yield from m.map_rows(self._over_all(kept), null, kept.value)
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

    def _over_all(self, kept: Estimate) -> Estimate:
        """The streamed value if there were more images than slots; its error shrinks as 1 / sqrt(n)."""
        n, few = int(self.m.n_images), int(kept.n.flat[0])
        if n == few or int(self.m.nonfinite.sum()):  # the stream does not know which images to leave out
            return kept
        value = self._streamed().cpu().numpy()
        which = "the first" if self.m.n_expected is None else "evenly spread"
        self.m.note(f"CKA: values from all {n} images, interval and null from {few} of them, {which}")
        left = value + (kept.leave_out - kept.value) * np.sqrt(few / n)
        return Estimate(value, left, kept.sizes * (n / few))

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


def _padded(layers: Sequence[Tensor]) -> Tensor:
    """Stack (..., p_l) of different widths as (L, ..., p), zeros added, which changes no similarity."""
    width = max(x.shape[-1] for x in layers)
    return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in layers])


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
