"""How sure are we: intervals, permutation tests and corrections, as pure functions on numpy arrays."""

from __future__ import annotations

import numpy as np
from scipy import stats as sps

__all__ = ["delete_group_jackknife"]


def delete_group_jackknife(
    estimate: np.ndarray, leave_out: np.ndarray, sizes: np.ndarray | None = None, *, level: float = 0.95
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
    m = (
        np.ones_like(leave_out)
        if sizes is None
        else np.broadcast_to(np.asarray(sizes, float), leave_out.shape)
    )
    used = m > 0
    groups = used.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.where(used, m.sum(0) / m, np.nan)  # inverse share of each group
        centre = groups * estimate - np.where(used, (1 - 1 / h) * leave_out, 0.0).sum(0)
        pseudo = h * estimate - (h - 1) * leave_out
        variance = np.where(used, (pseudo - centre) ** 2 / (h - 1), 0.0).sum(0) / groups
        se = np.where(groups >= 2, np.sqrt(variance), np.nan)
        half = sps.t.ppf(0.5 + level / 2, np.maximum(groups - 1, 1)) * se
    return estimate - half, estimate + half, se
