"""What a measure is, and the sums by image group from which its estimates follow.

An accumulator cannot keep its images, so it deals them into ``G`` groups and keeps one sum per group. That is enough
to leave each group out, it is fixed in size, it adds up over processes, and it asks nothing of the estimator except
that it be a smooth function of sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from .. import capture
from ..errors import T2TError
from ..estimates import Estimate
from ..results import Result
from .view import View, layer_of


def add_by_group(state: Tensor, group: Tensor, values: Tensor) -> None:
    """Add ``values`` (B, ...) to ``state`` (G, ...) in place, image ``b`` to row ``group[b]``."""
    values = values.to(device=state.device, dtype=state.dtype).expand(len(group), *state.shape[1:])
    state.index_add_(0, group.to(state.device), values)


def add_finite(total: Tensor, count: Tensor, group: Tensor, values: Tensor) -> None:
    """Add the finite ones of ``values`` (B, ...) to ``total`` (G, ...) and their number to ``count``, in place."""
    values = values.to(device=total.device, dtype=total.dtype)
    exists = values.isfinite()
    add_by_group(total, group, torch.where(exists, values, 0.0))
    add_by_group(count, group, exists)


def at_first(values: Tensor, images: int) -> Tensor:
    """Numbers (B // 2, ...) of images taken two by two, at the first of each two: (B, ...), NaN at the others.

    >>> at_first(torch.tensor([1.0, 2.0]), 5).tolist()
    [1.0, nan, 2.0, nan, nan]
    """
    out = values.new_full((images, *values.shape[1:]), torch.nan)
    out[0 : 2 * len(values) : 2] = values
    return out


def left_out(sums: Tensor) -> Tensor:
    """(G, ...) -> (1 + G, ...): the total, then the total without each group."""
    total = sums.sum(0, keepdim=True)
    return torch.cat([total, total - sums])


def grouped_estimate(
    fn: Callable[..., Tensor], sums: Tensor | Sequence[Tensor], counts: Tensor, *, unit: str = "image"
) -> Estimate:
    """Estimate ``fn`` of summed states, with its value without each group.

    Parameters
    ----------
    fn : pure function of the sums, one argument each. It is called once with a leading axis of length 1 + G
        (all images, then each group left out), which it must keep; it works on the trailing axes.
    sums : one tensor or several, each (G, ...): sums over the images of a group.
    counts : (G,) or (G, ...), images per group; trailing axes match the first axes of the estimate.
    unit : what is counted.

    Groups without images are dropped. With fewer than two the interval is missing (NaN), never made up.

    Raises
    ------
    T2TError : a sum has another number of groups than ``counts``.

    >>> x = torch.arange(8.0, dtype=torch.float64)
    >>> e = grouped_estimate(lambda s, n: s / n, (x, torch.ones(8)), torch.ones(8))
    >>> [round(float(v), 6) for v in (e.value, e.low, e.high)]
    [3.5, 1.452175, 5.547825]
    """
    states = [sums] if isinstance(sums, Tensor) else list(sums)
    bad = [tuple(s.shape) for s in states if s.shape[:1] != counts.shape[:1]]
    if bad:
        raise T2TError(f"every sum needs the {counts.shape[0]} groups of counts as its first axis, got {bad}")
    out = fn(*map(left_out, states)).detach().cpu().double().numpy()  # (1 + G, ...)
    return Estimate(out[0], out[1:], counts.detach().cpu().double().numpy(), unit)


def mean_estimate(total: Tensor, count: Tensor, *, unit: str = "image") -> Estimate:
    """Mean over units of sums (G, ...) whose units are counted in ``count`` (G,) or (G, ...)."""
    count = count.reshape(count.shape + (1,) * (total.ndim - count.ndim))
    return grouped_estimate(lambda s, n: s / n, (total, count), count.expand_as(total), unit=unit)


# ------------------------------------------------------------------------------------------ measures

#: What a measure may declare that it does not notice.
INVARIANCES = frozenset(
    [
        "orthogonal",
        "scale",
        "translation",
        "permute_heads",
        "permute_keys",
        "permute_images",
        "permute_channels",
    ]
)


@dataclass(frozen=True, eq=False)
class MeasureBatch:
    """What `Measure.update` gets.

    ``seen`` holds one dict per view: name of the place -> what `Measure.reduce` made of it. A place whose
    values were not finite in this batch is missing from the dict; its images were counted and will be
    reported.

    ``photographs`` tells which images were cut from one photograph and are not independent; by default each image is
    its own.
    """

    index: Tensor  # (B,) number of each image in the data set
    images: Tensor  # (B, C, H, W) as the first view sees them
    labels: Tensor  # (B,)
    seen: tuple[dict[str, Any], ...]
    views: tuple[View, ...]
    number: int = 0  # of the batch, different in every process
    photographs: Tensor = None  # type: ignore[assignment]  # (B,) numbers from 0

    def __post_init__(self) -> None:
        if self.photographs is None:
            object.__setattr__(self, "photographs", self.index)


class Measure(Metric):
    """A question put to one model (``arity`` 1) or to a pair of them (``arity`` 2).

    A subclass says which places it ``wants``, makes its states in ``bind`` (with `add_sum`), reduces one
    place to small tensors in ``reduce`` (inside the hook, without graph or autocast), adds them up in
    ``update`` and returns a `Result` from ``compute``. States are sums with a leading axis of ``groups``
    image groups, so that they are fixed in size, merge by addition and leave room for a jackknife
    (`grouped_estimate`).

    Class attributes: ``name``; ``arity``; ``alone``, whether a comparison of two models given only one
    compares it with itself; ``invariances``, a subset of `INVARIANCES`; ``without_nonfinite``, what becomes of
    images of which a place is not finite.
    """

    full_state_update = False
    is_differentiable = False

    name: ClassVar[str] = ""
    arity: ClassVar[int] = 1
    alone: ClassVar[bool] = False
    without_nonfinite: str = "their batches are left out there"
    invariances: ClassVar[frozenset[str]] = frozenset()

    _computed: Any
    if TYPE_CHECKING:  # states are made at run time; nn.Module would have them be modules

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *, groups: int = 32) -> None:
        super().__init__()
        self.groups = groups
        self.views: tuple[View, ...] = ()
        self.wanted: tuple[tuple[str, ...], ...] = ()
        self.run: dict[str, Any] = {}
        self.notes: list[str] = []
        self.n_expected: int | None = None

    # what a subclass writes

    def bind(self, views: Sequence[View]) -> None:
        """Make the states; called once, before the first batch. ``views`` know names, shapes and layouts."""

    def wants(self, view: View) -> Sequence[str]:
        """Places to observe in ``view``, after `bind`: those in ``names``, unless a measure says otherwise."""
        return self.names

    def reduce(self, obs: capture.Observation) -> Any:
        """Turn the observation of one place into small tensors; runs inside the hook."""
        raise NotImplementedError

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch to the states."""
        raise NotImplementedError

    def compute(self) -> Result:
        """Rows and notes from the states; the engine adds metadata."""
        raise NotImplementedError

    # what it may use

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Add a state of zeros that merges by addition."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum", persistent=True)

    def group(self, batch: MeasureBatch) -> Tensor:
        """Image group of each image, (B,): its number modulo ``groups``."""
        return batch.index % self.groups

    def note(self, text: str | None) -> None:
        """Add a warning in words to the result, once."""
        if text and text not in self.notes:
            self.notes.append(text)

    def row(self, place: Any = None, place_b: Any = None, **columns: Any) -> dict[str, Any]:
        """Start a result row: measure, models, weights, places and their layers, then ``columns``.

        Places may be arrays of names (object), for many rows at once.
        """
        first, second = self.views[0], self.views[-1]
        row: dict[str, Any] = {"measure": self.name, "model": first.label, "weights": first.weights}
        if self.arity == 2:
            row["model_b"] = second.label
            row["weights"] = f"{first.weights} | {second.weights}"
        for end, where in (("", place), ("_b", place_b)):
            if where is not None:
                row |= {f"place{end}": where, f"layer{end}": _layers(where)}
        return row | columns

    def result(self, rows: Sequence[dict[str, Any]], **meta: Any) -> Result:
        """A result of rows (see `Result`); says where there are too few images for an interval."""
        found = Result.of_rows(self.name, rows, meta)
        self.note(found.replicates.note if found.replicates is not None else None)
        return found

    # what the engine calls

    def attach(
        self, views: Sequence[View], *, n_expected: int | None = None, run: dict[str, Any] | None = None
    ) -> None:
        """Bind to ``views`` and make the book-keeping states."""
        self.views, self.n_expected, self.run = tuple(views), n_expected, dict(run or {})
        self.bind(self.views)
        self.wanted = tuple(tuple(self.wants(view)) for view in self.views)
        self.add_sum("n_images", dtype=torch.int64)
        self.add_sum("nonfinite", len(self.views), max(map(len, self.wanted), default=0), dtype=torch.int64)

    def feed(self, batch: MeasureBatch, nonfinite: Sequence[Mapping[str, int]] = ()) -> None:
        """Count the images of a batch and those of them with non-finite places, then update."""
        self.n_images += len(batch.index)
        for v, counts in enumerate(nonfinite):
            for name, count in counts.items():
                self.nonfinite[v, self.wanted[v].index(name)] += count
        self.update(batch)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the states of an accumulator that saw other images.

        Raises
        ------
        T2TError : the other one is of another measure, of other models or weights, or of another number of images.
        """
        if isinstance(incoming_state, Measure) and self._about() != incoming_state._about():
            raise T2TError(f"cannot merge accumulators of {self._about()} and of {incoming_state._about()}")
        self._computed = None  # torchmetrics would go on answering from before the merge
        super().merge_state(incoming_state)

    def _about(self) -> str:
        """What an accumulator counts, in words: shards of one run have the same."""
        models = " and ".join(f"{view.label} ({view.weights})" for view in self.views)
        n = "so far unknown images" if self.n_expected is None else f"{self.n_expected} images"
        return f"{self.name} of {models} at {sum(map(len, self.wanted))} places, {self.groups} groups, {n}"

    def _wrap_compute(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        # torchmetrics' own would copy the result field by field, which a frozen dataclass refuses.

        @functools.wraps(compute)
        def wrapped() -> Result:
            if self._computed is None:
                self.notes = []
                with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
                    self._computed = self._finished(compute())
            return self._computed

        return wrapped

    def _finished(self, result: Result) -> Result:
        """Add to a result what is the same for all measures."""
        meta = {
            **self.run,
            "n_images": int(self.n_images),
            "models": [view.describe() for view in dict.fromkeys(self.views)],
            **result.meta,
        }
        notes = [
            *result.notes,
            *self.notes,
            *self._nonfinite_notes(),
            *(note for view in self.views for note in view.notes),
        ]
        return replace(result, meta=meta, notes=tuple(dict.fromkeys(notes)))

    def _nonfinite_notes(self) -> Iterator[str]:
        for v, names in enumerate(self.wanted):
            for i, name in enumerate(names):
                if count := int(self.nonfinite[v, i]):
                    share = f"{count} of {int(self.n_images)} images; {self.without_nonfinite}"
                    yield f"{self.views[v].label}: {name} is not finite for {share}"


class ImageMeans(Measure):
    """Means over images of what `reduce` makes of each place, with intervals over images.

    A subclass gives ``name``, ``places`` (names or patterns) and ``reduce``, which returns a tensor (B, *shape), with
    ``shape`` () unless `bind` says otherwise. A number that is not finite is left out of its mean: so numbers that only
    some places or images have, or that every second image has for a pair, are NaN elsewhere. Without a ``compute`` of
    its own it has a row for every place.

    Class attributes: ``places``; ``tokens``, ``value_unit`` and ``estimator``, as the rows say.
    """

    places: Any = ()
    tokens: ClassVar[str] = "patch"
    value_unit: ClassVar[str] = "none"
    estimator: ClassVar[str] = "mean over images"

    total: Tensor  # (G, L, *shape) sums over images
    count: Tensor  # (G, L, *shape) images in which the number exists

    def bind(self, views: Sequence[View]) -> None:
        """One number for every place that matches."""
        self.add_means(views[0].select(self.places))

    def add_means(self, names: Sequence[str], *shape: int) -> None:
        """Make the states, for so many numbers at each of ``names``."""
        self.names = list(names)
        self.add_sum("total", self.groups, len(self.names), *shape)
        self.add_sum("count", self.groups, len(self.names), *shape)

    def update(self, batch: MeasureBatch) -> None:
        """Add what `reduce` made of every finite place."""
        for i, name in enumerate(self.names):
            if name in batch.seen[0]:
                self.add(i, self.group(batch), batch.seen[0][name])

    def add(self, i: int, group: Tensor, values: Tensor) -> None:
        """Add the numbers (B, ...) of place ``i`` for images of these groups, padded with what they do not have."""
        size: Any = tuple(slice(n) for n in values.shape[1:])
        add_finite(self.total[(slice(None), i, *size)], self.count[(slice(None), i, *size)], group, values)

    def means(self) -> Estimate:
        """Mean over images, (L, *shape)."""
        return mean_estimate(self.total, self.count)

    def compute(self) -> Result:
        """One row for every place."""
        about = {"quantity": self.name, "tokens": self.tokens, "value_unit": self.value_unit}
        found = self.means()
        return self.result(
            [self.row(p, estimator=self.estimator, **found.at(i), **about) for i, p in enumerate(self.names)]
        )


class RunAgain(ImageMeans):
    """Means over the first ``max_images`` images of the data, for which the model is run again."""

    def __init__(self, max_images: int, groups: int) -> None:
        super().__init__(groups=groups)
        if max_images < 1:
            raise T2TError(f"expected max_images above 0, got {max_images}")
        self.max_images = max_images

    def wants(self, view: View) -> Sequence[str]:
        """Nothing: the model is run again."""
        return ()

    def update(self, batch: MeasureBatch) -> None:
        """Run the model, if the batch has images that are to be used."""
        use = batch.index < self.max_images
        if bool(use.any()):
            self.run_again(batch.views[0], batch.images[use.to(batch.images.device)], batch.index[use])

    def run_again(self, view: View, images: Tensor, index: Tensor) -> None:
        """Add what is to be known of images (B, C, H, W) of these numbers (B,)."""
        raise NotImplementedError


def _layers(place: Any) -> Any:
    if isinstance(place, str):
        return layer_of(place)
    return np.array([layer_of(name) for name in place.flat], dtype=object).reshape(place.shape)
