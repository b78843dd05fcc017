"""The rule of every verdict.

An effect counts if it is shown to be larger than the smallest effect of interest, delta, not merely larger than 0. What
is tested is the minimal-effect null |effect| <= delta (Murphy & Myors 1999), and for "no difference" the two one-sided
tests of equivalence within delta (Schuirmann 1987). All verdicts of one report hold at once: the interval that decides
is widened for the number of effects in the report (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats as sps

from ..quantities import SMALLEST as SMALLEST

#: probability of any false verdict in a report
ALPHA = 0.05
#: an interval wider than so many smallest effects cannot answer the question
WIDEST = 5
SUPPORTED, CONTRADICTED, SAME, EXCLUDED, OPEN, NOT_TESTABLE, NOT_TESTED = VERDICTS = (
    "supported", "contradicted", "no difference that counts", "claimed effect excluded", "open", "not testable",
    "not tested",
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What the rule says of one effect.

    Parameters
    ----------
    verdict
        One of `VERDICTS`.
    p
        Of the minimal-effect null: the effect is no larger than the smallest that counts, in either direction.
    p_same
        Of the two one-sided tests: the effect is at least as large as that.
    low, high
        The interval that holds for all effects of the report at once.
    reason
        What an unsettled effect lacks, in words: also where it would be settled if it were judged alone.
    """

    verdict: str
    p: float = math.nan
    p_same: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


class _Spread(NamedTuple):
    """Standard error towards either side, and degrees of freedom."""

    below: float
    above: float
    df: float


#: columns of a result, by name
Row = Mapping[str, Any] | pd.Series


def judge(row: Row, *, direction: int, smallest: float, family: int = 1) -> Judgement:
    """Judge an effect by its value and what is known of its error.

    Parameters
    ----------
    row
        Columns ``value`` and either ``se`` and ``df``, or the ends ``low`` and ``high`` of a 95 % interval, which then
        stand for a normal error of either side. A value whose ends are equal is exact, unless it rests on ``n`` images
        that all agree: so many can differ unseen (`unseen_share`).
    direction
        +1 or -1, the sign that is claimed; 0 if it is claimed that nothing differs.
    smallest
        The smallest effect that counts, in the units of the value. 0 if the value is measured from a bound.
    family
        Number of effects that are judged together.

    >>> judge({"value": 0.12, "se": 0.01, "df": 30}, direction=1, smallest=0.05, family=4).verdict
    'supported'
    >>> judge({"value": 0.12, "low": 0.01, "high": 0.23}, direction=1, smallest=0.05).verdict
    'open'
    >>> [judge({"value": v, "low": v - 0.02, "high": v + 0.02}, direction=1, smallest=0.05).verdict for v in (0, -0.05)]
    ['no difference that counts', 'claimed effect excluded']
    >>> judge({"value": 0.12, "low": 0.06, "high": 0.18}, direction=1, smallest=0.05, family=9).reason
    'supported by itself, not with 9 judged at once'
    """
    value, spread = number_in(row, "value"), _spread(row)
    if spread is None:
        return Judgement(NOT_TESTED, reason="no interval")
    if not spread.below and not spread.above and row.get("unit") == "image":
        unseen = unseen_share(int(row["n"]))
        if unseen > smallest:
            text = f"all {row['n']} images agree; up to {100 * unseen:.1f} % of images could differ unseen"
            return Judgement(OPEN, low=value, high=value, reason=text)
    low, high = _ends(value, spread, family)
    p, p_same = _p_minimal(value, spread, smallest), _p_same(value, spread, smallest)
    verdict = _verdict(low, high, direction, smallest)
    own = _ends(value, spread, 1)
    alone = _verdict(*own, direction, smallest)
    reason = ""
    if verdict == OPEN and smallest and own[1] - own[0] > WIDEST * smallest:
        verdict, reason = NOT_TESTABLE, f"the interval is wider than {WIDEST} smallest effects"
    elif verdict != alone:
        reason = f"{alone} by itself, not with {family} judged at once"
    return Judgement(verdict, p, p_same, low, high, reason)


def _verdict(low: float, high: float, direction: int, smallest: float) -> str:
    beyond = 1 if low > smallest else -1 if high < -smallest else 0
    if beyond:
        return SUPPORTED if beyond == direction else CONTRADICTED
    if -smallest <= low and high <= smallest:
        return SAME if direction else SUPPORTED
    reached = high if direction > 0 else -low
    return EXCLUDED if direction and reached < smallest else OPEN


def number_in(row: Row, name: str) -> float:
    """A number of a row; NaN where it is missing."""
    given = row.get(name)
    return math.nan if given is None or pd.isna(given) else float(given)


def _spread(row: Row) -> _Spread | None:
    """Standard errors; None where nothing is known of them."""
    value, se, low, high = (number_in(row, name) for name in ("value", "se", "low", "high"))
    if not math.isnan(value + se):
        df = number_in(row, "df")
        return _Spread(se, se, math.inf if math.isnan(df) else df)
    if math.isnan(value + low + high):
        return None
    normal = float(sps.norm.ppf(0.975))
    return _Spread(max(0.0, value - low) / normal, max(0.0, high - value) / normal, math.inf)


def _ends(value: float, spread: _Spread, family: int) -> tuple[float, float]:
    """Ends of the interval that holds for so many effects at once."""
    quantile = float(sps.t.ppf(1 - ALPHA / (2 * family), spread.df))
    return value - quantile * spread.below, value + quantile * spread.above


def _tail(distance: float, se: float, df: float) -> float:
    """P(error >= distance); an exact value has no error."""
    return float(sps.t.sf(distance / se, df)) if se else float(distance <= 0)


def _p_minimal(value: float, spread: _Spread, smallest: float) -> float:
    """Two-sided p of |effect| <= smallest, at the end of the null that is hardest to reject.

    >>> round(_p_minimal(0.3, _Spread(0.1, 0.1, 9), 0.0), 6) == round(2 * float(sps.t.sf(3, 9)), 6)
    True
    """
    se = spread.below if value >= 0 else spread.above
    near, far = abs(value) - smallest, abs(value) + smallest
    return min(1.0, _tail(near, se, spread.df) + _tail(far, se, spread.df))


def _p_same(value: float, spread: _Spread, smallest: float) -> float:
    """The larger p of the two one-sided tests that the effect lies within the smallest."""
    above = _tail(smallest - value, spread.above, spread.df)
    return max(above, _tail(value + smallest, spread.below, spread.df))


def overall(verdicts: Sequence[str]) -> str:
    """What the deciding effects of a claim say together; what holds for support holds for contradiction.

    All must agree. Effects that each exclude the claimed one, in whatever way, exclude it together. Any other mixture
    leaves the claim open.

    >>> overall(["supported", "supported"]), overall(["supported", "contradicted"]), overall(["contradicted", "open"])
    ('supported', 'open', 'open')
    >>> overall(["contradicted", "no difference that counts"]), overall(["not tested", "not testable"])
    ('claimed effect excluded', 'not testable')
    """
    kinds = set(verdicts)
    if len(kinds) == 1:
        return verdicts[0]
    if kinds <= {CONTRADICTED, SAME, EXCLUDED}:
        return EXCLUDED
    return NOT_TESTABLE if kinds == {NOT_TESTABLE, NOT_TESTED} else OPEN


def unseen_share(n: int) -> float:
    """Return the largest share of units that can go unseen in ``n`` of them with a probability of 5 %.

    Exact binomial bound, (1 - share)^n = 0.05: the "rule of three" for large n.

    >>> round(unseen_share(96), 4), unseen_share(299) < 0.01
    (0.0307, True)
    """
    return float(1 - 0.05 ** (1 / int(n)))
