"""Sums by image group, and what follows from them: an estimate with a delete-a-group jackknife interval.

An accumulator cannot keep its images, so it deals them into ``G`` groups and keeps one sum per group. That is
enough to leave each group out, it is fixed in size, it adds up over processes, and it asks nothing of the
estimator except that it be a smooth function of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import T2TError
from ..stats import delete_group_jackknife

__all__ = ["TOO_FEW", "Estimate", "add_by_group", "add_finite", "grouped_estimate"]

TOO_FEW = "interval missing: fewer than 2 groups of images"


@dataclass(frozen=True)
class Estimate:
    """Values with 95 % intervals; all arrays have one shape, that of the estimate.

    ``low`` and ``high`` are NaN where fewer than two groups had images (``note`` then says so); ``of`` says of which
    transform of the value Student's t was taken, of none by default.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    groups: np.ndarray
    unit: str = "image"
    of: str = ""

    def positive(self) -> Estimate:
        """The same for a quantity that is never below 0, such as a divergence: t on the scale of its logarithm.

        By the delta method the logarithm has the standard error se / value, so the interval is
        value * exp(-+ half / value) with half the width of the symmetric one: it stays above 0 and reaches further up,
        as means of skewed effects do. A value of 0 keeps [0, 0].

        >>> e = Estimate(*(np.array([x]) for x in (0.5, -0.1, 1.1, 64, 32))).positive()
        >>> [round(float(v[0]), 3) for v in (e.value, e.low, e.high)], e.at(0)["interval"]
        ([0.5, 0.151, 1.66], 't of the logarithm, delete-a-group jackknife, 32 groups')
        """
        half = (self.high - self.low) / 2
        ratio = np.divide(half, self.value, out=np.where(np.isnan(half), half, 0.0), where=self.value > 0)
        with np.errstate(over="ignore"):
            low, high = self.value * np.exp(-ratio), self.value * np.exp(ratio)
        return replace(self, low=low, high=high, of=" of the logarithm")

    def method(self, groups: int) -> str | None:
        """Where an interval from so many groups comes from; None where there is none.

        >>> Estimate(*(np.zeros(1) for _ in range(5))).method(32)
        't, delete-a-group jackknife, 32 groups'
        """
        return f"t{self.of}, delete-a-group jackknife, {groups} groups" if groups >= 2 else None

    @property
    def note(self) -> str | None:
        """What a reader must know about the interval, or None."""
        return TOO_FEW if bool((self.groups < 2).any()) else None

    def at(self, *position: int) -> dict[str, Any]:
        """Columns ``value, low, high, interval, n, unit`` of one element, ready for a result row.

        >>> e = Estimate(*(np.array([x]) for x in (0.5, 0.4, 0.6, 64, 32)))
        >>> e.at(0)["interval"]
        't, delete-a-group jackknife, 32 groups'
        """
        groups = int(self.groups[position])
        return {
            "value": float(self.value[position]),
            "low": float(self.low[position]),
            "high": float(self.high[position]),
            "interval": self.method(groups),
            "n": int(self.n[position]),
            "unit": self.unit,
        }


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


def grouped_estimate(
    fn: Callable[..., Tensor], sums: Tensor | Sequence[Tensor], counts: Tensor, *, unit: str = "image"
) -> Estimate:
    """Estimate ``fn`` of summed states, with a delete-a-group jackknife interval (t quantiles).

    Parameters
    ----------
    fn : pure function of the sums, one argument each. It is called once with a leading axis of length 1 + G
        (all images, then each group left out), which it must keep; it works on the trailing axes.
    sums : one tensor or several, each (G, ...): sums over the images of a group.
    counts : (G,) or (G, ...), images per group; trailing axes match the first axes of the estimate.

    Groups without images are dropped. With fewer than two the interval is missing (NaN), never made up.

    >>> x = torch.arange(8.0, dtype=torch.float64)
    >>> e = grouped_estimate(lambda s, n: s / n, (x, torch.ones(8)), torch.ones(8))
    >>> [round(float(v), 6) for v in (e.value, e.low, e.high)]
    [3.5, 1.452175, 5.547825]
    """
    states = [sums] if isinstance(sums, Tensor) else list(sums)
    bad = [tuple(s.shape) for s in states if s.shape[:1] != counts.shape[:1]]
    if bad:
        raise T2TError(f"every sum needs the {counts.shape[0]} groups of counts as its first axis, got {bad}")
    out = fn(*(_leave_one_out(s) for s in states)).detach().cpu().double().numpy()  # (1 + G, ...)
    sizes = counts.detach().cpu().double().numpy()
    sizes = np.broadcast_to(sizes.reshape(sizes.shape + (1,) * (out.ndim - sizes.ndim)), out[1:].shape)
    low, high, _ = delete_group_jackknife(out[0], out[1:], sizes)
    return Estimate(out[0], low, high, sizes.sum(0).astype(np.int64), (sizes > 0).sum(0), unit)


def _leave_one_out(sums: Tensor) -> Tensor:
    """(G, ...) -> (1 + G, ...): the total, then the total without each group."""
    total = sums.sum(0, keepdim=True)
    return torch.cat([total, total - sums])
