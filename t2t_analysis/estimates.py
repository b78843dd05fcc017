"""A number that keeps what it would be without each group of units, so that whatever follows from it has an interval.

Differences, ratios, means and any other smooth function are taken of the value and of its replicates alike; standard
error, interval and p are then those of a delete-a-group jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats as sps

from .errors import DataError, T2TError
from .stats import delete_group_jackknife

TOO_FEW = "interval missing: fewer than 2 groups of images"


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values with their leave-one-out replicates; every operation acts on both.

    Parameters
    ----------
    value : (...), from all the data.
    leave_out : (G, ...), row g without the units of group g.
    sizes : (G,) or (G, ...), units in each group; its axes match the first axes of ``leave_out``. Groups of size 0 are
        not there.
    unit : what is left out: image, image pair, channel, run.
    logarithm : whether Student's t is taken of the logarithm, see `positive`.
    paired : whether units were left out of two sides at once, as in a difference.

    >>> a, b = (Estimate(v, [v - 0.1, v + 0.1, v], np.ones(3)) for v in (0.5, 0.3))
    >>> a.interval, round(float(a.low), 3), round(float(a.se), 3)
    ('t, delete-a-group jackknife, 3 groups', 0.003, 0.115)
    >>> float((a - b).value), round(float((a - b).se), 6), round(float((a / b).value), 3)
    (0.2, 0.0, 1.667)
    """

    value: np.ndarray
    leave_out: np.ndarray
    sizes: np.ndarray
    unit: str = "image"
    logarithm: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        value, left, sizes = (np.asarray(x, dtype=float) for x in (self.value, self.leave_out, self.sizes))
        sizes = np.broadcast_to(sizes.reshape(sizes.shape + (1,) * (left.ndim - sizes.ndim)), left.shape)
        for name, array in (("value", value), ("leave_out", left), ("sizes", sizes)):
            object.__setattr__(self, name, array)

    # ---------------------------------------------------------------------------------- how sure

    @property
    def n(self) -> np.ndarray:
        """How many units, (...)."""
        return np.rint(self.sizes.sum(0)).astype(np.int64)

    @property
    def groups(self) -> np.ndarray:
        """How many groups hold units, (...)."""
        return (self.sizes > 0).sum(0)

    @cached_property
    def _jackknife(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low, high, se = delete_group_jackknife(self.value, self.leave_out, self.sizes)
        if self.logarithm:
            half = (high - low) / 2
            ratio = np.divide(half, self.value, out=np.where(np.isnan(half), half, 0.0), where=self.value > 0)
            with np.errstate(over="ignore"):
                low, high = self.value * np.exp(-ratio), self.value * np.exp(ratio)
        return low, high, se

    @property
    def low(self) -> np.ndarray:
        """Lower end of the 95 % interval; NaN with fewer than two groups."""
        return self._jackknife[0]

    @property
    def high(self) -> np.ndarray:
        """Upper end of the 95 % interval."""
        return self._jackknife[1]

    @property
    def se(self) -> np.ndarray:
        """Standard error; NaN with fewer than two groups."""
        return self._jackknife[2]

    @property
    def df(self) -> np.ndarray:
        """Degrees of freedom of Student's t: groups less one; NaN without an interval."""
        return np.where(self.groups >= 2, self.groups - 1.0, np.nan)

    @property
    def p(self) -> np.ndarray:
        """Two-sided p of "it is 0"; 1 where neither the value nor any replicate differs from 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * sps.t.sf(np.abs(self.value) / self.se, np.maximum(self.groups - 1, 1))
        p = np.where(self.se == 0, np.where(self.value == 0, 1.0, 0.0), p)
        return np.where(np.isfinite(self.se), p, np.nan)

    @property
    def interval(self) -> Any:
        """How the interval was made, one text for each value; None where there is none."""
        words = " of the logarithm" * self.logarithm, f" paired over {self.unit}s" * self.paired
        how = f"t{words[0]}, delete-a-group jackknife{words[1]}"
        texts = {g: f"{how}, {g} groups" for g in np.unique(self.groups)}
        groups = np.where(np.isnan(self.value), 0, self.groups)
        return np.vectorize(lambda g: texts[g] if g >= 2 else None, otypes=[object])(groups)[()]

    @property
    def note(self) -> str | None:
        """What a reader must know about the intervals, or None."""
        return TOO_FEW if bool(((self.groups < 2) & (self.n > 0)).any()) else None

    def at(self, *position: Any) -> dict[str, Any]:
        """``{"estimate": self[position]}``, to be put into a row of a `Result`."""
        return {"estimate": self[position]}

    def columns(self) -> dict[str, Any]:
        """Columns value, low, high, interval, se, df, n and unit of one number."""
        numbers = {name: float(getattr(self, name)) for name in ("value", "low", "high", "se", "df")}
        return numbers | {"interval": self.interval, "n": int(self.n), "unit": self.unit}

    # ---------------------------------------------------------------------------------- what follows from it

    def __getitem__(self, position: Any) -> Estimate:
        position = position if isinstance(position, tuple) else (position,)
        rest = (slice(None), *position)
        value, left, sizes = self.value[position], self.leave_out[rest], self.sizes[rest]
        return replace(self, value=value, leave_out=left, sizes=sizes)

    def map(self, fn: Callable[[np.ndarray], np.ndarray], sizes: Any = None) -> Estimate:
        """``fn`` of the value and of every replicate: it gets (1 + G, ...) and keeps that first axis.

        ``sizes`` are those of the outcome; by default the same, or the largest where axes are lost.
        """
        out = np.asarray(fn(np.concatenate([self.value[None], self.leave_out])))
        if sizes is None:
            same = out.shape[1:] == self.value.shape
            sizes = self.sizes if same else self.sizes.max(tuple(range(1, self.sizes.ndim)), initial=0)
        return replace(self, value=out[0], leave_out=out[1:], sizes=sizes, logarithm=False)

    def mean(self, axis: int = -1) -> Estimate:
        """Mean over an axis that is counted from the end; missing where one of them is."""
        return self.map(lambda x: x.mean(axis), self.sizes.max(axis))

    def __sub__(self, other: Any) -> Estimate:
        """Less a constant, or less another estimate with the same units left out of both.

        Raises
        ------
        T2TError : the two rest on different units.
        """
        return self._with(other, np.subtract)

    def __truediv__(self, other: Any) -> Estimate:
        """Over a constant, or over another estimate of the same units."""
        return self._with(other, np.divide)

    def _with(self, other: Any, fn: Callable[..., np.ndarray]) -> Estimate:
        if not isinstance(other, Estimate):
            return self.map(lambda x: fn(x, other))
        if self.sizes.shape != other.sizes.shape or (self.sizes != other.sizes).any():
            raise T2TError(
                f"cannot pair models measured on different images: {np.max(self.n, initial=0)} and "
                f"{np.max(other.n, initial=0)}, or in other groups; measure both models in one call"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            value, left = fn(self.value, other.value), fn(self.leave_out, other.leave_out)
        return replace(self, value=value, leave_out=left, logarithm=False, paired=True)

    def positive(self) -> Estimate:
        """The same for a quantity that is never below 0, such as a divergence: t on the scale of its logarithm.

        By the delta method the logarithm has the standard error se / value, so the interval is
        value * exp(-+ half / value) with half the width of the symmetric one: it stays above 0 and reaches further up,
        as means of skewed effects do. A value of 0 keeps [0, 0].
        """
        return replace(self, logarithm=True)

    @classmethod
    def of_units(cls, values: Any, unit: str = "image", groups: int = 32, group: Any = None) -> Estimate:
        """Mean over units of ``values`` (n, ...), a number each; NaN is left out of its own mean.

        ``group`` (n,) numbers what belongs together, such as crops of one photograph, and is left out together.

        >>> e = Estimate.of_units([1.0, 2.0, 3.0, 4.0, float("nan")])
        >>> float(e.value), round(float(e.low), 5), int(e.n)
        (2.5, 0.44574, 4)

        Raises
        ------
        DataError
            There are no units.
        """
        x = np.asarray(values, dtype=float)
        if not len(x):
            raise DataError(f"no {unit}s: a mean needs at least one value")
        exists = np.isfinite(x)
        known = np.arange(len(x)) if group is None else np.unique(group, return_inverse=True)[1]
        sums, counts = (np.zeros((min(groups, int(known.max()) + 1), *x.shape[1:])) for _ in range(2))
        group = known % len(sums)
        np.add.at(sums, group, np.where(exists, x, 0.0))
        np.add.at(counts, group, exists)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = (sums.sum(0) - sums) / (counts.sum(0) - counts)
            return cls(sums.sum(0) / counts.sum(0), left, counts, unit)

    @classmethod
    def concatenate(cls, parts: Sequence[Estimate]) -> Estimate:
        """(R,) from scalars and vectors of one kind, with as many groups as the longest has."""
        groups = max(len(part.sizes) for part in parts)

        def padded(array: np.ndarray, fill: float) -> np.ndarray:
            flat = array.reshape(len(array), math.prod(array.shape[1:]))
            rest = groups - len(flat)
            return np.concatenate([flat, np.full((rest, flat.shape[1]), fill)]) if rest else flat

        left = np.concatenate([padded(part.leave_out, np.nan) for part in parts], axis=1)
        sizes = np.concatenate([padded(part.sizes, 0.0) for part in parts], axis=1)
        value = np.concatenate([part.value.reshape(-1) for part in parts])
        return replace(parts[0], value=value, leave_out=left, sizes=sizes)
