"""The rule of every verdict, and the smallest effects that are worth speaking of."""

from __future__ import annotations

from typing import Literal

import pandas as pd

__all__ = ["SMALLEST", "Place", "place", "too_few_agree", "unseen_share"]

#: Smallest effect of interest by what is measured; fixed before any number was seen.
SMALLEST = {
    "edge_r2": 0.02,  # coefficient of determination of an edge map
    "channel_share": 0.01,  # of the channels
    "similarity": 0.05,  # of two heads, two layers; of an effective rank relative to its Gaussian null
    "rank_correlation": 0.1,  # Spearman
    "gradient_share": 0.05,  # of the squared gradient
    "accuracy": 0.005,  # half a point of top-1
    "backbone_accuracy": 0.01,  # one point
    "convolution_accuracy": 0.003,  # the paper speaks of 0.7 points, so finer than the others
    "cost": 0.01,  # of the printed number
}

Place = Literal["below", "above", "within", "across"]


def place(low: float, high: float, smallest: float) -> Place:
    """Return where an interval lies relative to the smallest effect of interest; a missing one settles nothing.

    >>> [place(*ends, 0.05) for ends in ((-0.2, -0.1), (0.06, 0.2), (-0.04, 0.01), (0.01, 0.2))]
    ['below', 'above', 'within', 'across']
    >>> place(pd.NA, pd.NA, 0.05)
    'across'
    """
    if pd.isna(low) or pd.isna(high):
        return "across"
    if high < -smallest:
        return "below"
    if low > smallest:
        return "above"
    return "within" if -smallest < low and high < smallest else "across"


def unseen_share(n: int) -> float:
    """Return the largest share of units that can go unseen in ``n`` of them with a probability of 5 %.

    Exact binomial bound, (1 - share)^n = 0.05: the "rule of three" for large n.

    >>> round(unseen_share(96), 4), unseen_share(299) < 0.01
    (0.0307, True)
    """
    return float(1 - 0.05 ** (1 / int(n)))


def too_few_agree(low: float, high: float, n: int, smallest: float) -> bool:
    """Whether ``n`` units that all agree leave an interval without width that promises too much.

    Resampling units that are all equal gives the same number every time; how many could differ unseen is
    `unseen_share`, and an effect as large as ``smallest`` is only ruled out if that is smaller.

    >>> too_few_agree(0.0, 0.0, 96, 0.01), too_few_agree(0.0, 0.0, 299, 0.01), too_few_agree(0.0, 0.001, 9, 0.01)
    (True, False, False)
    """
    return bool(low == high and n > 0 and unseen_share(n) > smallest)
