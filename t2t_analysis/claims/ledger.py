"""The ledger: evidence in, verdicts out, by one rule.

An effect is *supported* if its 95 % interval lies beyond the smallest effect of interest in the direction of the claim
and Holm's corrected p is below 0.05; *contradicted* if the same holds for the other direction; *null* if the interval
lies within plus or minus the smallest effect; else *inconclusive*. Without a number, without an interval, or from
random weights, it is *not tested*. A claim is supported if all its deciding effects are. One that is contradicted
contradicts it, unless another one is supported: then its measures disagree, and it is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

import pandas as pd

from .. import stats
from ..results import Result
from . import entries
from .base import Claim, Effect
from .rule import SMALLEST, place, too_few_agree, unseen_share

__all__ = ["VERDICTS", "all_claims", "judge", "ledger", "overall", "summary"]

VERDICTS = ("supported", "contradicted", "null", "inconclusive", "not tested")
Evidence = Literal["controlled", "pair"]


@cache
def all_claims() -> tuple[Claim, ...]:
    """Every claim in ``entries/``, in the order of the ledger."""
    found = [import_module(f"{entries.__name__}.{m.name}").CLAIM for m in iter_modules(entries.__path__)]
    return tuple(sorted(found, key=lambda claim: (claim.order, claim.name)))


def judge(low: float, high: float, p: float, direction: int, smallest: float) -> str:
    """Verdict on one effect; ``p`` is the corrected one, NaN for a count.

    >>> judge(0.1, 0.2, 0.01, +1, 0.05), judge(0.1, 0.2, 0.01, -1, 0.05), judge(0.1, 0.2, 0.2, +1, 0.05)
    ('supported', 'contradicted', 'inconclusive')
    >>> judge(-0.01, 0.01, 0.9, 1, 0.05), judge(-0.01, 0.01, 0.9, 0, 0.05), judge(0.0, 0.2, 0.04, 1, 0.05)
    ('null', 'supported', 'inconclusive')
    """
    if math.isnan(low) or math.isnan(high):
        return "not tested"
    where = place(low, high, smallest)
    if where == "within":
        return "null" if direction else "supported"
    if where == "across" or p >= 0.05:
        return "inconclusive"
    claimed = {1: "above", -1: "below"}.get(direction)
    return "supported" if where == claimed else "contradicted"


def overall(verdicts: Sequence[str]) -> str:
    """What the deciding effects of a claim say together.

    >>> overall(["supported", "supported"]), overall(["supported", "contradicted"]), overall(["null", "null"])
    ('supported', 'inconclusive', 'null')
    >>> overall(["contradicted", "inconclusive"]), overall(["supported", "not tested"]), overall(["not tested"])
    ('contradicted', 'inconclusive', 'not tested')
    """
    kinds = set(verdicts)
    if len(kinds) == 1:
        return verdicts[0]
    if "contradicted" in kinds and "supported" not in kinds:
        return "contradicted"
    return "inconclusive"


def ledger(
    evidence: Result, which: Evidence | None = None, claims: Iterable[Claim] | None = None
) -> pd.DataFrame:
    """One row per effect of every claim.

    Parameters
    ----------
    evidence : of `controlled_evidence`, `pair_evidence` or `seed_evidence`.
    which : the names by which effects ask for their rows; by default the evidence's own kind, else those of the study.

    Returns
    -------
    Columns claim, statement, said, effect, deciding, compared, value, low, high, null, p, p_holm, n, unit, direction,
    smallest, verdict, reason (why it was not tested, or settles nothing), notebook, change. Holm's correction runs over
    all deciding effects that have a p, of all claims at once.
    """
    which = which or evidence.meta.get("kind", "controlled")
    rows = [
        _about(claim, effect) | _found(evidence, getattr(effect, str(which)))
        for claim in (all_claims() if claims is None else claims)
        for effect in claim.effects
    ]
    frame = pd.DataFrame(rows)
    family = frame["deciding"] & frame["p"].notna() & frame["low"].notna()
    frame["p_holm"] = math.nan
    if family.any():
        frame.loc[family, "p_holm"] = stats.holm(frame.loc[family, "p"].to_numpy(dtype=float))
    frame["verdict"] = [_verdict(row) for _, row in frame.iterrows()]
    alike = frame.apply(_without_spread, axis=1)
    frame.loc[alike != "", "verdict"] = "inconclusive"
    frame["reason"] = frame["reason"].where(alike == "", alike)
    return frame


def _about(claim: Claim, effect: Effect) -> dict[str, Any]:
    return {
        "claim": claim.name, "statement": claim.statement, "said": claim.said, "effect": effect.words,
        "deciding": effect.deciding, "direction": effect.direction, "smallest": SMALLEST[effect.smallest],
        "notebook": claim.notebook, "change": claim.change,
    }  # fmt: skip


_NUMBERS = ("value", "low", "high", "null", "p")


def _found(evidence: Result, quantity: str) -> dict[str, Any]:
    """The numbers of one row of the evidence, or why there are none."""
    empty = dict.fromkeys(_NUMBERS, math.nan) | {"n": 0, "unit": "", "compared": "", "weights": ""}
    if not quantity:
        return empty | {"reason": "two models cannot say: it takes training runs"}
    rows = evidence.frame[evidence.frame["quantity"] == quantity]
    if len(rows) != 1 or pd.isna(rows.iloc[0]["value"]):
        return empty | {"reason": _why_absent(evidence, quantity)}
    row = rows.iloc[0]
    numbers = {name: math.nan if pd.isna(row[name]) else float(row[name]) for name in _NUMBERS}
    sides = [str(row[name]) for name in ("model", "model_b") if pd.notna(row[name])]
    joined = " over " if "counted" in str(row["interval"]) else " minus "  # costs are ratios
    reason = "random weights" if "UNTRAINED" in str(row["weights"]) else ""
    if not reason and math.isnan(numbers["low"]):
        reason = str(row["interval"]) if pd.notna(row["interval"]) else "no interval"
    count = 0 if pd.isna(row["n"]) else int(row["n"])
    unit = "" if pd.isna(row["unit"]) else str(row["unit"])
    return numbers | {
        "n": count, "unit": unit, "compared": joined.join(sides), "reason": reason, "weights": str(row["weights"])
    }  # fmt: skip


def _without_spread(row: pd.Series) -> str:
    """Why an interval over images that has no width settles nothing; empty where it does, or has a width."""
    if (
        row["reason"]
        or row["unit"] != "image"
        or not too_few_agree(row["low"], row["high"], row["n"], row["smallest"])
    ):
        return ""
    return f"all {row['n']} images agree; up to {100 * unseen_share(row['n']):.1f} % of images could differ unseen"


def _why_absent(evidence: Result, quantity: str) -> str:
    """The note that says it, of the row itself or of its contrast."""
    contrast, _, of = quantity.partition(":")
    for start in (f"{contrast} of {of} not", f"{contrast} not"):
        for note in evidence.notes:
            if note.startswith(start):
                return note
    for note in evidence.notes:
        if note.startswith("random weights"):
            return note
    return f"no {quantity} in the evidence"


def _verdict(row: pd.Series) -> str:
    if row["reason"]:
        return "not tested"
    p = row["p_holm"] if row["deciding"] else row["p"]
    return judge(row["low"], row["high"], p, row["direction"], row["smallest"])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per claim: its verdict, and how many of its deciding effects say what."""
    rows = []
    for claim, effects in frame.groupby("claim", sort=False):
        deciding = effects[effects["deciding"]]
        counts = deciding["verdict"].value_counts()
        rows.append(
            {
                "claim": claim,
                "statement": effects["statement"].iloc[0],
                "said": effects["said"].iloc[0],
                "verdict": overall(list(deciding["verdict"])),
                "votes": ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts),
                "notebook": effects["notebook"].iloc[0],
                "change": effects["change"].iloc[0],
            }
        )
    return pd.DataFrame(rows)
