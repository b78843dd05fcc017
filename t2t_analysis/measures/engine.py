"""One pass over the images that feeds all measures: models, batches and hooks brought together."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import capture
from .._commit import versions
from .._progress import progress as counted
from ..data.loading import batches_of, seen_by, told
from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result, Results, as_json, joined
from .base import Measure, MeasureBatch
from .view import View, views_of

__all__ = ["accumulate", "collect", "measure"]

#: A model, or a view of one where it must be looked at in another way (`FeatureMapView`).
Model = nn.Module | View
Models = Model | Sequence[Model] | Mapping[str, Model]


def measure(
    models: Models,
    loader: Any,
    measures: Measure | Sequence[Measure],
    *,
    device: str | torch.device | None = None,
    labels: Sequence[str] | None = None,
    autocast: bool | str | torch.dtype = False,
    progress: bool = True,
) -> Results:
    """Answer all ``measures`` in one pass over the images.

    Parameters
    ----------
    models : one model, several (the first is the baseline that pairs are made with), or label -> model. A
        measure of one model is asked of each; a comparison of two, of (first, other) for every other. A view
        may stand for a model, as `FeatureMapView` does for convolutional networks.
    measures : instances of `Measure`; a class or a name ("head_similarity") for one with its default settings.
    loader : as `load_images` gives it; then every model sees the same images, each through its own preprocessing.
        Or batches with ``images`` (B, C, H, W), ``labels`` and ``index`` (B,), plain (images, labels) pairs or image
        tensors, which are then numbered in order and shown to all models as they are.
    device : where the models run; they are put back afterwards. Default: where the first one is.
    labels : names of the models in the result. Default: architecture names.
    autocast : True for bfloat16, or a dtype or its name; the measures themselves always run outside autocast.

    Models run in eval mode without graph, in the precision of their weights, and get back the training mode they
    had. Under torch.distributed every process is given its own share of the images and all get the result for all
    images.

    Raises
    ------
    DataError : a loader without images, or whose images are not all of one size.
    T2TError : a comparison that lacks a second model; an argument that is none of the above.
    """
    made = accumulate(
        models, loader, measures, device=device, labels=labels, autocast=autocast, progress=progress
    )
    return collect(made, progress=progress)


def accumulate(
    models: Models,
    loader: Any,
    measures: Measure | Sequence[Measure],
    *,
    device: str | torch.device | None = None,
    labels: Sequence[str] | None = None,
    autocast: bool | str | torch.dtype = False,
    progress: bool = True,
) -> list[Measure]:
    """As `measure`, but return the accumulators: copies of ``measures``, bound and fed.

    Those of other shares of the images merge with ``a.merge_state(b)``; `collect` then makes results of them.
    """
    views = views_of(models, labels)
    prototypes = _prototypes(measures)
    loader = [loader] if isinstance(loader, Tensor) else loader
    loader, which = seen_by(loader, [view.model for view in views])
    with (
        torch.inference_mode(False),  # some measures need gradients by the images
        torch.no_grad(),
        _ready((view.model for view in views), device) as target,
    ):
        batches = _numbered(loader)
        first = next(batches)
        views = [
            view.showing(view.label, _for(view, first.images[i][:1], target))
            for i, view in zip(which, views, strict=True)
        ]
        accumulators = _bound(prototypes, views, loader, target)
        passes = (
            done
            for batch in chain([first], batches)
            for done in _feed(accumulators, views, which, batch, target, autocast)
        )
        total = len(loader) * len(views) if hasattr(loader, "__len__") else None
        for _ in counted(passes, "measuring", total, "forward pass", shown=progress):
            pass
    return accumulators


def _prototypes(measures: Any) -> list[Measure]:
    """The measures of one call; a class, or the name of a measure, stands for one with its default settings."""
    several = isinstance(measures, Iterable) and not isinstance(measures, str | Measure)
    return [_prototype(one) for one in (measures if several else [measures])]


def _prototype(one: Any) -> Measure:
    if isinstance(one, str):
        known = {name: cls for cls in _known() for name in (cls.name, cls.__name__) if cls.name}
        if one not in known:
            raise UnknownNameError("measure", one, [name for name, cls in known.items() if name == cls.name])
        one = known[one]
    if isinstance(one, type) and issubclass(one, Measure):
        try:
            return one()
        except TypeError as error:
            raise T2TError(f"measure {one.__name__} has no default settings, make one: {error}") from None
    if not isinstance(one, Measure):
        raise T2TError(f"measure of type {type(one).__name__}: expected a Measure, its class or its name")
    return one


def _known(of: type[Measure] = Measure) -> Iterator[type[Measure]]:
    for cls in of.__subclasses__():
        yield from (cls, *_known(cls))


def _for(view: View, images: Tensor, device: torch.device) -> Tensor:
    """Images as one model takes them: on the device, in the precision of its weights, all of one size."""
    if view.example is not None and images.shape[1:] != view.example.shape[1:]:
        sizes = " and ".join("x".join(map(str, x.shape[1:])) for x in (view.example, images))
        raise DataError(f"images of {sizes}: one measurement takes images of one size; measure them apart")
    kinds = (weight.dtype for weight in view.model.parameters() if weight.is_floating_point())
    images = images.clone() if images.is_inference() else images
    return images.to(device, next(kinds, images.dtype), non_blocking=True)


def collect(accumulators: Sequence[Measure], *, progress: bool = True) -> Results:
    """Compute every accumulator; results of the same measure (one per model or pair) become one."""
    by_name: dict[str, list[Result]] = {}
    for accumulator in counted(accumulators, "intervals", unit="measure", shown=progress):
        result = accumulator.compute()
        by_name.setdefault(result.measure, []).append(result)
    return Results(tuple(_joined(name, results) for name, results in by_name.items()))


def _joined(name: str, results: list[Result]) -> Result:
    if len(results) == 1:
        return results[0]
    models = [model for result in results for model in result.meta["models"]]
    unique = [model for i, model in enumerate(models) if model not in models[:i]]
    shared = {k: v for k, v in results[0].meta.items() if all(r.meta.get(k) == v for r in results)}
    parts = [{k: v for k, v in r.meta.items() if k not in shared} for r in results]
    notes = dict.fromkeys(note for result in results for note in result.notes)
    frame, kept = joined(results)
    return Result(name, frame, {**shared, "models": unique, "parts": parts}, tuple(notes), kept)


def _bound(prototypes: list[Measure], views: list[View], loader: Any, device: torch.device) -> list[Measure]:
    """One copy of each measure for every model, or every pair, that it is asked of."""
    run = {"data": as_json(told(loader)), "versions": versions("t2t-analysis", "torch", "timm", "numpy")}
    if (photographs := _photographs(loader)) is not None:
        run["photographs"] = int(photographs.max()) + 1
    state_device = "cpu" if device.type == "mps" else device  # no float64 there
    accumulators = []
    for prototype in prototypes:
        for group in _groups_of_views(prototype, views):
            accumulator = copy.deepcopy(prototype)
            accumulator.attach(group, n_expected=_expected(loader), run=run)
            accumulators.append(accumulator.to(state_device))
    return accumulators


def _groups_of_views(measure: Measure, views: list[View]) -> list[tuple[View, ...]]:
    if measure.arity == 1:
        return [(view,) for view in views]
    if len(views) > 1:
        return [(views[0], other) for other in views[1:]]
    if measure.alone:
        return [(views[0], views[0])]
    raise T2TError(f"{measure.name} compares two models, but only {views[0].label!r} was given")


def _feed(
    accumulators: list[Measure],
    views: list[View],
    which: Sequence[int],
    batch: _Batch,
    device: torch.device,
    autocast: bool | str | torch.dtype,
) -> Iterator[None]:
    """Run every model over its images of one batch, then update every accumulator with what its hooks reduced.

    Yields after each forward pass, so that a cell with one large batch says how far it is. ``which`` of
    the batch's kinds of images is each view's own.
    """
    shown = {id(v): _for(v, batch.images[i], device) for i, v in zip(which, views, strict=True)}
    takers = {id(view): [_Taker(a, {}, {}) for a in accumulators if view in a.views] for view in views}
    dtype = _autocast_dtype(autocast)
    for view in views:
        handlers = _handlers(view, takers[id(view)])
        if handlers:
            with (
                capture.observe(view, handlers),
                torch.autocast(shown[id(view)].device.type, dtype=dtype, enabled=bool(autocast)),
            ):
                view.model(shown[id(view)])
        _drop_nonfinite(takers[id(view)])
        yield
    for accumulator in accumulators:
        own = [next(t for t in takers[id(v)] if t.measure is accumulator) for v in accumulator.views]
        images = shown[id(accumulator.views[0])]
        fed = MeasureBatch(
            batch.index, images, batch.labels, tuple(t.seen for t in own), accumulator.views, batch.number,
            batch.photographs,
        )  # fmt: skip
        accumulator.feed(fed, [t.nonfinite for t in own])


def _autocast_dtype(autocast: bool | str | torch.dtype) -> torch.dtype:
    """bfloat16 for True; a dtype, or the name of one, is taken at its word."""
    if isinstance(autocast, torch.dtype | bool):
        return autocast if isinstance(autocast, torch.dtype) else torch.bfloat16
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if autocast not in known:
        raise UnknownNameError("autocast", str(autocast), known)
    return known[autocast]


@dataclass(eq=False)
class _Taker:
    """One accumulator's share of one view in one batch."""

    measure: Measure
    seen: dict[str, Any]
    nonfinite: dict[str, Any]  # images by place; counts stay on the device until the forward pass is over


def _handlers(view: View, takers: list[_Taker]) -> dict[str, Callable[[capture.Observation], None]]:
    wanting: dict[str, list[_Taker]] = {}
    for taker in takers:
        for name in taker.measure.wanted[taker.measure.views.index(view)]:
            wanting.setdefault(name, []).append(taker)
    return {name: functools.partial(_handle, takers) for name, takers in wanting.items()}


def _handle(takers: list[_Taker], obs: capture.Observation) -> None:
    """Hand one observation to all who want it, half precision made single; count what of it is not finite."""
    if obs.value.is_floating_point() and obs.value.itemsize < 4:
        obs = obs._replace(value=obs.value.float())
    bad = _count_nonfinite(obs.value)
    spoilt = bad.device.type == "cpu" and bool(bad)  # to ask another device would be to wait for it
    with torch.autocast(obs.value.device.type, enabled=False):
        for taker in takers:
            taker.nonfinite[obs.name] = bad
            if not spoilt:
                taker.seen[obs.name] = taker.measure.reduce(obs)


def _count_nonfinite(value: Tensor) -> Tensor:
    """How many images of (B, ...) hold a NaN or an infinity, (), on the device of ``value``."""
    if value.device.type == "cpu" and math.isfinite(value.sum()):  # the sum of one that is not, is not; quick
        return torch.zeros((), dtype=torch.long)
    return (~torch.isfinite(value)).flatten(1).any(dim=1).sum()


def _drop_nonfinite(takers: list[_Taker]) -> None:
    """Forget the places of one forward pass that were not finite, and keep the counts of those alone."""
    counts = {name: count for taker in takers for name, count in taker.nonfinite.items()}
    known = dict(zip(counts, torch.stack(list(counts.values())).tolist(), strict=True)) if counts else {}
    for taker in takers:
        taker.nonfinite = {name: known[name] for name in taker.nonfinite if known[name]}
        taker.seen = {name: made for name, made in taker.seen.items() if name not in taker.nonfinite}


@dataclass(frozen=True, eq=False)
class _Batch:
    images: Sequence[Tensor]  # one kind for each preprocessing
    labels: Tensor
    index: Tensor
    number: int
    photographs: Tensor


def _numbered(loader: Any) -> Iterator[_Batch]:
    """Batches with image numbers and a number of their own that no other process uses."""
    rank, world = _share(loader)
    known = _photographs(loader)
    for count, item in enumerate(batches_of(loader, rank, world)):
        kinds = [item.images] if isinstance(item.images, Tensor) else item.images
        index = item.index.long().cpu()
        photographs = index if known is None else known[index]
        yield _Batch(kinds, item.labels, index, count * world + rank, photographs)


def _photographs(loader: Any) -> Tensor | None:
    """Which photograph each image of the data set was cut from, (n,), if it tells."""
    known = getattr(getattr(loader, "dataset", None), "photographs", None)
    return None if known is None else torch.as_tensor(known).long()


def _share(loader: Any) -> tuple[int, int]:
    """(rank, world) of the loader's shard, or of this process; shards are dealt whole batches in turn."""
    sampler: Any = getattr(loader, "batch_sampler", None)
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(sampler, "rank") and hasattr(sampler, "world"):
        return sampler.rank, sampler.world
    if getattr(dataset, "shard", None):
        return dataset.shard
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _expected(loader: Any) -> int | None:
    """Number of images in all shares together, if the loader tells."""
    dataset: Any = getattr(loader, "dataset", None)
    n = getattr(told(loader), "n", None)
    if n is None and hasattr(dataset, "__len__"):
        n = len(dataset)
    return None if n is None else int(n)


@contextmanager
def _ready(models: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """Models on the device and in eval mode; afterwards back where and as they were."""
    models = list(dict.fromkeys(models))
    homes = [_device(model) for model in models]
    target = torch.device(device) if device is not None else homes[0]
    with ExitStack() as undo:
        for model, home in zip(models, homes, strict=True):
            for module in model.modules():
                undo.callback(setattr, module, "training", module.training)
            undo.callback(model.to, home)
            model.eval().to(target)
        yield target


def _device(model: nn.Module) -> torch.device:
    parameter = next(chain(model.parameters(), model.buffers()), None)
    return parameter.device if parameter is not None else torch.device("cpu")
