"""How sure are we: intervals, permutation tests and corrections, as pure functions on numpy arrays.

The unit that is resampled is the caller's to choose and to name: images for what models do with images, heads
or channels for counts of them, training seeds for accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as sps

from .errors import DataError

Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Interval:
    """A value with its interval, how many units it rests on, which unit was resampled, and how."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    method: str


@dataclass(frozen=True)
class Student:
    """A value with its standard error: interval and p are Student's t, NaN where no degree of freedom is left.

    >>> found = Student.of([1.0, 2.0, 3.0, 4.0], "seed", "mean")
    >>> round(found.low, 5), round(found.p, 3), Student.of([1.0], "seed", "mean").low
    (0.44574, 0.03, nan)
    """

    value: float
    se: float
    df: float
    n: int
    unit: str
    estimator: str

    @classmethod
    def of(cls, x: ArrayLike, unit: str, estimator: str) -> Student:
        """The mean of one value per unit."""
        y = np.asarray(x, dtype=float)
        se = y.std(ddof=1) / np.sqrt(len(y)) if len(y) > 1 else np.nan
        return cls(float(y.mean()), float(se), len(y) - 1, len(y), unit, estimator)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - self._half()

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + self._half()

    def _half(self) -> float:
        return float(sps.t.ppf(0.975, self.df) * self.se) if self.df > 0 else math.nan

    @property
    def p(self) -> float:
        """Two-sided p of "it is 0"; NaN for a value without any spread."""
        known = self.df > 0 and self.se
        return 2 * float(sps.t.sf(abs(self.value) / self.se, self.df)) if known else math.nan

    def columns(self) -> dict[str, Any]:
        """Columns of a row of a result, with words for the interval or for why there is none."""
        known = ("value", "low", "high", "p", "n", "unit", "estimator")
        alone = not self.df > 0
        words = f"none: one {self.unit} per cell" if alone else f"t, {self.df:.3g} degrees of freedom"
        spread = {"se": math.nan, "df": math.nan} if alone else {"se": self.se, "df": self.df}
        return {name: getattr(self, name) for name in known} | spread | {"interval": words}


@dataclass(frozen=True)
class Test:
    """An effect with its interval, and the p-value of there being none."""

    __test__ = False  # pytest would take the name for a test class

    interval: Interval
    p: float
    method: str


# ------------------------------------------------------------------------------------------ intervals


def proportion_ci(successes: int, n: int) -> Interval:
    """Proportion with Wilson's score interval (Wilson 1927), for accuracies.

    >>> round(proportion_ci(8, 10).low, 4)
    0.4902
    """
    if not 0 <= successes <= n or n < 1:
        raise DataError(f"{successes} successes of {n} is no proportion")
    ci = sps.binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(ci.low), float(ci.high), n, "image", "Wilson")


def delete_group_jackknife(
    estimate: np.ndarray, leave_out: np.ndarray, sizes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval from the estimates that leave one group out (Busing, Meijer & van der Leeden 1999).

    Parameters
    ----------
    estimate : (...) from all the data.
    leave_out : (G, ...), row g without group g.
    sizes : (G, ...) units in each group, all equal if left out. Groups of size 0 are dropped.

    Returns
    -------
    low, high, standard error, each (...); NaN where fewer than two groups hold data. With groups of one unit
    this is the ordinary jackknife.
    """
    estimate, leave_out = np.asarray(estimate, float), np.asarray(leave_out, float)
    m = np.broadcast_to(1.0 if sizes is None else np.asarray(sizes, float), leave_out.shape)
    used = m > 0
    groups = used.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.where(used, m.sum(0) / m, np.nan)  # inverse share of each group
        centre = groups * estimate - np.where(used, (1 - 1 / h) * leave_out, 0.0).sum(0)
        pseudo = h * estimate - (h - 1) * leave_out
        variance = np.where(used, (pseudo - centre) ** 2 / (h - 1), 0.0).sum(0) / groups
        se = np.where(groups >= 2, np.sqrt(variance), np.nan)
        half = sps.t.ppf(0.975, np.maximum(groups - 1, 1)) * se
    return estimate - half, estimate + half, se


def jackknife(leave_out: ArrayLike, estimate: float, sizes: ArrayLike | None = None) -> Interval:
    """Interval of a scalar from ``leave_out`` (G,), the estimates without each unit or group of units.

    >>> x = np.arange(8.0)
    >>> jackknife((x.sum() - x) / 7, x.mean()) == jackknife((x.sum() - x) / 7, x.mean(), np.ones(8))
    True
    """
    left = np.asarray(leave_out, dtype=float)
    if left.ndim != 1 or len(left) < 2:
        raise DataError(f"a jackknife needs one axis of at least 2 values, got shape {left.shape}")
    m = np.ones(len(left)) if sizes is None else np.asarray(sizes, dtype=float)
    low, high, _ = delete_group_jackknife(np.asarray(estimate), left, m)
    method = f"t, delete-a-group jackknife, {int((m > 0).sum())} groups"
    return Interval(float(estimate), float(low), float(high), int(m.sum()), "image", method)


# ------------------------------------------------------------------------------------------ tests


def permutation_p(observed: ArrayLike, null: ArrayLike, alternative: Alternative = "greater") -> np.ndarray:
    """Permutation p-value (1 + exceedances) / (K + 1) of ``observed`` (...) among ``null`` (K, ...).

    It is never 0, and valid for any K (Phipson & Smyth 2010). Two-sided: twice the smaller side, at most 1.
    NaN where the observed value is.

    >>> float(permutation_p(3.0, np.arange(4.0)))
    0.4
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    slack = 1e-12 * np.abs(observed)  # a permutation equal but for rounding is a tie
    greater = (1 + (null >= observed - slack).sum(0)) / (len(null) + 1)
    less = (1 + (null <= observed + slack).sum(0)) / (len(null) + 1)
    p = {"greater": greater, "less": less, "two-sided": np.minimum(1.0, 2 * np.minimum(greater, less))}
    return np.where(np.isnan(observed), np.nan, p[alternative])


def max_statistic_p(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """Permutation p of each cell of a map (...), corrected for all of them (Westfall & Young 1993).

    ``null`` (K, ...) holds whole maps, each under one permutation for all its cells; every cell is compared
    with the largest value of each. Cells that are NaN take no part.
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    flat = np.where(np.isnan(null), -np.inf, null).reshape(len(null), -1)
    largest = flat.max(axis=1, initial=-np.inf).reshape(-1, *(1,) * observed.ndim)
    return permutation_p(observed, np.broadcast_to(largest, null.shape))


def null_columns(null: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a null sample (K, ...): its mean, 2.5 and 97.5 % points over the first axis."""
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return {"null": null.mean(0), "null_low": low, "null_high": high}


def calibrated(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """Similarity, at most 1, beyond chance: max(s - tau, 0) / (1 - tau) (Groeger, Wen & Brbic 2026).

    tau is the order statistic ceil(0.95 (K + 1)) of ``observed`` (...) and ``null`` (K, ...) together, so that a value
    from the null is positive with probability at most 0.05.

    >>> float(calibrated(0.6, np.linspace(0.0, 0.2, 99)))
    0.5050505050505051
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    everything = np.sort(np.concatenate([observed[None], null]), axis=0)
    tau = everything[math.ceil(0.95 * (len(null) + 1)) - 1]
    return np.maximum(observed - tau, 0.0) / (1 - tau)


def mcnemar(a: ArrayLike, b: ArrayLike) -> Test:
    """Exact McNemar test of accuracy(a) - accuracy(b) from what each got right on the same images.

    The p-value is binomial over the discordant pairs; the interval is Agresti & Min's (2005), half an image
    added to each cell of the table.
    """
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise DataError(f"McNemar needs two equally long lists, got shapes {x.shape} and {y.shape}")
    only_a, only_b, n = int((x & ~y).sum()), int((y & ~x).sum()), len(x)
    p = 1.0 if only_a + only_b == 0 else float(sps.binomtest(only_a, only_a + only_b).pvalue)
    shift, total, discordant = (only_a - only_b) / (n + 2), n + 2, only_a + only_b + 1
    half = sps.norm.ppf(0.975) * math.sqrt((discordant / total - shift**2) / total)
    interval = Interval((only_a - only_b) / n, shift - half, shift + half, n, "image", "Agresti-Min")
    return Test(interval, p, "exact McNemar")


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's (1979) corrected p-values, in the order given; NaN stays NaN and counts for nothing.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    out = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return out
