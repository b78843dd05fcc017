"""Which layers hold the same representation? Maps of unbiased CKA, within one model and between two.

Features of one vector per image are kept, so that value, interval and null come from all images at once; those that are
too long for that are compared by batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result
from ..stats import calibrated, max_statistic_p, null_columns, permutation_p
from .base import Estimate, Measure, MeasureBatch, View, add_by_group, grouped_estimate
from .cka import (
    LEAST,
    add_inner,
    correlation,
    gram,
    gram_cka,
    gram_cka_leave_one_out,
    gram_cka_null,
    permutations,
    permuted_inner,
    ratio_of_means,
    u_centred,
    without_top_images,
    without_top_pcs,
)

Tokens = Literal["pooled", "class", "flattened"]
TOKENS = ("pooled", "class", "flattened")


class LayerCKA(Measure):
    """Unbiased linear CKA of every layer with every other layer of a model.

    Parameters
    ----------
    tokens : what one image is: the mean of its patch tokens ("pooled"), its class token ("class"), or all its
        patch tokens side by side ("flattened"). The three answer different questions.
    places : shell-style pattern of the places to compare.
    retain : for pooled and class tokens, most images whose features are kept; of more, evenly spread ones are. Value,
        interval (jackknife over images) and null (permuted pairing) are theirs.
    permutations : draws of the null; each permutes all cells of the map alike.
    robust : also report the map without the images of largest norm (1 %, at least one) and without the first
        and the first five principal components, for values that a few images or directions make alone.

    Flattened tokens are compared by batches: Gram matrices of each batch, sums over batches, ratio at the end
    (Nguyen, Raghu & Kornblith 2021); the interval is a jackknife over images, left out of their batches.

    Rows: ``cka_unbiased`` with interval, null, calibrated ``p`` (max statistic over the map);
    ``cka_calibrated`` (beyond chance anywhere in the map); and the robust ones. The map is
    square within a model, its diagonal is 1 and has no p. The ceiling is 1, a representation with itself; a
    stricter one is `CrossLayerCKA` of two seeds of one architecture. For pooled and class tokens, ``cka_mean`` is
    the mean over the map, within a model over two different layers, from the images that were kept.
    """

    name: ClassVar[str] = "layer_cka"
    invariances: ClassVar[frozenset[str]] = frozenset(
        {"orthogonal", "scale", "translation", "permute_images", "permute_channels"}
    )

    def __init__(
        self,
        tokens: Tokens = "pooled",
        places: str = "blocks.*.resid_post",
        *,
        retain: int = 1024,
        permutations: int = 200,
        robust: bool = True,
        seed: int = 0,
        groups: int = 32,
    ) -> None:
        super().__init__(groups=groups)
        if tokens not in TOKENS:
            raise UnknownNameError("tokens", tokens, TOKENS)
        if retain < LEAST + 1 or permutations < 1:
            raise T2TError(
                f"retain={retain} must be at least {LEAST + 1}, permutations={permutations} at least 1"
            )
        self.tokens, self.places, self.robust = tokens, places, robust
        self.retain, self.permutations, self.seed = retain, permutations, seed
        self.how: _Kept | _Batched = _Batched(self) if tokens == "flattened" else _Kept(self)
        if tokens == "flattened":
            self.without_nonfinite = "the place is left out"

    def wants(self, view: View) -> Sequence[str]:
        """The places that match."""
        return view.select(self.places)

    def bind(self, views: Sequence[View]) -> None:
        """Ask for widths and make the states."""
        self.sides = [views[0]] if self.arity == 1 else list(views)
        self.names = [self.wants(view) for view in self.sides]
        self.widths = [[self._width(view, name) for name in view.select(self.places)] for view in self.sides]
        self.how.bind()

    def _width(self, view: View, name: str) -> int:
        shape, layout = view.shape_of(name), view.layout_of(name)
        if self.tokens == "class" and (layout is None or layout.prefix < 1):
            raise T2TError(
                f"{view.label} has no class token at {name}; tokens='pooled' or 'flattened' would do"
            )
        return shape[-1]

    def reduce(self, obs: capture.Observation) -> Tensor:
        """(B, N, D) -> features (B, D), or the batch's Gram matrix (B, B) for flattened tokens."""
        if self.tokens == "class":
            return obs.value[:, 0].double()
        return self.how.reduce(obs.patches)

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch; a place that was not finite counts as zeros and is left out of the result."""
        self.how.update(batch)

    def compute(self) -> Result:
        """One map, as rows."""
        if int(self.n_images) < LEAST:
            raise DataError(f"{int(self.n_images)} images are too few for CKA, which needs at least {LEAST}")
        meta = {"tokens": self.tokens, "seed": self.seed, "permutations": self.permutations}
        rows = list(self.how.rows())
        return self.result(rows, **meta, **self.how.meta())

    # shared by both ways

    def finite(self, side: int) -> np.ndarray:
        """Which places of a side have values, (L,)."""
        return self.how.finite(side)

    def map_rows(self, value: Estimate, null: np.ndarray) -> Iterator[dict[str, Any]]:
        """Rows of the main map: values (La, Lb), and null (K, La, Lb)."""
        looked_at = self.compared()
        cells, null = np.where(looked_at, value.value, np.nan), np.where(looked_at, null, np.nan)
        largest = np.broadcast_to(np.nanmax(null, axis=(1, 2), initial=-np.inf)[:, None, None], null.shape)
        beyond = calibrated(cells, largest)
        drawn = null_columns(null)
        alone = np.isnan(
            drawn["null"]
        )  # a layer with itself: nothing to permute, but the estimator is unbiased
        kind = f"second side's images permuted, {len(null)} times"
        top = {"ceiling": 1.0, "ceiling_kind": "a representation with itself"}
        yield self.cells(value) | top | drawn | {
            "quantity": "cka_unbiased", "p": max_statistic_p(cells, null), "null": np.where(alone, 0.0, drawn["null"]),
            "null_kind": np.where(alone, "independent representations", kind).astype(object),
        }  # fmt: skip
        place, place_b = self._places()
        yield self.row(place[looked_at], place_b[looked_at], **self._columns()) | top | {
            "quantity": "cka_calibrated", "value": beyond[looked_at], "n": value.n[looked_at], "unit": value.unit,
            "null": 0.0, "null_kind": kind,
        }  # fmt: skip

    def compared(self) -> np.ndarray:
        """Which cells say something, (La, Lb): finite ones, and no layer with itself."""
        found = np.outer(self.finite(0), self.finite(-1))
        if self.arity == 1 or self.sides[0] is self.sides[-1]:
            found &= ~np.eye(len(found), dtype=bool)
        return found

    def cells(self, value: Estimate) -> dict[str, Any]:
        """Rows of all cells (La, Lb); values of places that were not finite are missing."""
        finite = np.outer(self.finite(0), self.finite(-1))
        return self.row(
            *self._places(), estimate=value.map(lambda x: np.where(finite, x, np.nan)), **self._columns()
        )

    def _places(self) -> Sequence[np.ndarray]:
        """Names of first and second place of every cell, (La, Lb) each."""
        return np.meshgrid(*(np.array(self.names[i], dtype=object) for i in (0, -1)), indexing="ij")

    def _columns(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "value_unit": "none", "estimator": self.how.estimator}


class CrossLayerCKA(LayerCKA):
    """Unbiased linear CKA of every layer of one model with every layer of another.

    Parameters are those of `LayerCKA`. Given one model alone it compares the model with itself, whose
    diagonal is 1.
    """

    name: ClassVar[str] = "cross_layer_cka"
    arity: ClassVar[int] = 2
    alone: ClassVar[bool] = True


# ------------------------------------------------------------------------------------------ two ways to compare


class _Kept:
    """Pooled or class tokens: the features of all images or, of very many, of some that are evenly spread."""

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


class _Batched:
    """Flattened tokens, too long to keep: minibatch CKA, the ratio of sums over batches of n (n - 3) HSIC_1.

    That weight makes a short last batch count for as many pairs of images as it has.
    """

    estimator = "linear CKA, unbiased HSIC_1, minibatches, ratio of means"

    def __init__(self, measure: Any) -> None:
        self.m = measure

    def reduce(self, value: Tensor) -> Tensor:
        """(B, N, D) -> Gram matrix (B, B) of the centred flattened tokens."""
        return gram(value.flatten(1))

    def bind(self) -> None:
        """Inner products of all layers of both sides, and of one side with the other permuted."""
        m, depths = self.m, [len(names) for names in self.m.names]
        m.add_sum("inner", m.groups + 1, sum(depths), sum(depths))
        m.add_sum("images", m.groups + 1)
        m.add_sum("drawn", m.permutations, depths[0], depths[-1])
        m.add_sum("dropped", dtype=torch.int64)

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch, or count its images as dropped if it is too short."""
        m, n = self.m, len(batch.index)
        if n < LEAST:
            m.dropped += n
            return
        blank = m.inner.new_zeros(n, n)  # where a place was not finite
        sides = zip(m.names, batch.seen, strict=True)
        grams = torch.stack([seen.get(name, blank).to(blank) for names, seen in sides for name in names])
        add_inner(m.inner, grams, m.group(batch))
        add_by_group(m.images, m.group(batch), torch.ones(n))
        u, orders = u_centred(grams), permutations(n, m.permutations, m.seed, batch.number)
        m.drawn += permuted_inner(u[: len(m.names[0])], u[-len(m.names[-1]) :], orders)

    def finite(self, side: int) -> np.ndarray:
        """Which places of a side were finite in every batch, (L,): sums over other batches would not compare."""
        return (self.m.nonfinite[side, : len(self.m.names[side])] == 0).cpu().numpy()

    def meta(self) -> dict[str, Any]:
        """How many images are missing."""
        return {"images_dropped": int(self.m.dropped)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The map, with a jackknife over images."""
        m = self.m
        if not bool(m.images.any()):
            raise DataError(
                f"every batch has fewer than {LEAST} images: too few for CKA, take a larger batch_size"
            )
        if int(m.dropped):
            m.note(
                f"CKA of flattened tokens: {int(m.dropped)} images in batches of fewer than {LEAST} left out"
            )
        first, last = slice(len(m.names[0])), slice(-len(m.names[-1]), None)
        own = m.inner.sum(0).diagonal()
        null = ratio_of_means(m.drawn, own[first, None], own[last]).cpu().numpy()
        value = grouped_estimate(lambda s: correlation(s)[..., first, last], m.inner, m.images)
        yield from m.map_rows(value, null)
