"""Sums by image group, and the estimates that follow from them.

An accumulator cannot keep its images, so it deals them into ``G`` groups and keeps one sum per group. That is
enough to leave each group out, it is fixed in size, it adds up over processes, and it asks nothing of the
estimator except that it be a smooth function of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import T2TError
from ..estimates import Estimate


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
