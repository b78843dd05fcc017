"""Results in words: every number with its interval, and no number that a result does not hold.

A verdict follows a rule that was fixed before the numbers were seen: the 95 % interval of the effect lies
beyond the smallest effect of interest, or it does not. Random weights get no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ._names import has_soft_split
from ._show import code
from .errors import T2TError
from .results import Result

__all__ = ["SMALLEST_HEAD_EFFECT", "head_conclusions", "head_findings", "interval", "untrained_in", "verdict"]

#: difference of two similarities that is worth speaking of
SMALLEST_HEAD_EFFECT = 0.05
_CHANGE = "_last_minus_first"


def interval(row: Any) -> str:
    """Return value and interval of a row, three decimals, with the sign where the value can have one.

    >>> interval({"value": 0.1234, "low": 0.1, "high": 0.15})
    '0.123 [0.100, 0.150]'
    """
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if pd.isna(low) or pd.isna(high):
        return f"{_number(value)} (no interval)"
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    """Three decimals with a true minus sign; what rounds to nothing has no sign."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def untrained_in(frame: pd.DataFrame) -> bool:
    """Whether any row of a tidy frame rests on random weights."""
    return bool(frame["weights"].fillna("").str.contains("UNTRAINED").any())


def verdict(low: float, high: float, smallest: float) -> str:
    """Return where an interval lies relative to the smallest effect: below, above, within or across.

    >>> [verdict(*ends, 0.05) for ends in ((-0.2, -0.1), (0.06, 0.2), (-0.04, 0.01), (0.01, 0.2))]
    ['below', 'above', 'within', 'across']
    """
    if high < -smallest:
        return "below"
    if low > smallest:
        return "above"
    return "within" if -smallest < low and high < smallest else "across"


def _one(frame: pd.DataFrame, **where: Any) -> pd.Series:
    """Return the one row with these values; None asks for a missing one."""
    for column, value in where.items():
        frame = frame[frame[column].isna() if value is None else frame[column] == value]
    if len(frame) != 1:
        raise T2TError(f"expected one row with {where}, found {len(frame)}")
    return frame.iloc[0]


def _within(frame: pd.DataFrame, quantity: str, model: str) -> pd.DataFrame:
    """Rows of mean similarity within a layer, one per layer."""
    same = frame["layer"] == frame["layer_b"]
    whole = frame["head"].isna() & frame["head_b"].isna()
    return frame[same & whole & (frame["quantity"] == quantity) & (frame["model"] == model)]


def _change(result: Result, quantity: str, model: str) -> str:
    row = _one(result.frame, quantity=quantity + _CHANGE, model=model)
    return f"by {interval(row)} in {code(model)} (on permuted images by {_number(row['null'])})"


def _trend(similarity: Result, model: str, baseline: str) -> str:
    """Whether heads become alike with depth at all, which is what the paper says of a hard split."""
    rows = {
        name: _one(similarity.frame, quantity="cosine_centred" + _CHANGE, model=name)
        for name in (model, baseline)
    }
    falls = [code(name) for name, row in rows.items() if row["high"] < 0]
    rises = [code(name) for name, row in rows.items() if row["low"] > 0]
    parts = [f"rises in {' and '.join(rises)}"] * bool(rises) + [f"falls in {' and '.join(falls)}"] * bool(
        falls
    )
    return (
        f"So the likeness of heads {', and '.join(parts)} with depth."
        if parts
        else "Neither change is beyond zero."
    )


def head_findings(similarity: Result, difference: Result, model: str, baseline: str) -> list[str]:
    """Sentences on how alike the heads of a layer are, first the one that answers the question.

    Parameters
    ----------
    similarity : of `HeadSimilarity` for both models.
    difference : of `contrast_difference` on it.
    """
    row = _one(difference.frame, quantity="cosine_centred")
    untrained = untrained_in(difference.frame)
    return [
        f"{_head_verdict(row, model, baseline, untrained)} The change of {code(model)} minus that of "
        f"{code(baseline)} is {interval(row)}, paired over {row['n']} images.",
        "From the first to the last third of the layers, the centred cosine between heads of one layer "
        f"changes {_change(similarity, 'cosine_centred', model)} and "
        f"{_change(similarity, 'cosine_centred', baseline)}. {_trend(similarity, model, baseline)}",
        *(_most_alike(similarity, name) for name in (model, baseline)),
        _raw_against_floor(similarity, model),
    ]


def _most_alike(similarity: Result, model: str) -> str:
    """The layer whose heads are most alike, with its null."""
    rows = _within(similarity.frame, "cosine_centred", model)
    row = rows.sort_values("value").iloc[-1]
    return (
        f"In {code(model)} heads are most alike in layer {row['layer']}: mean centred cosine "
        f"{interval(row)}; on permuted images {_number(row['null'])}, a head with itself 1."
    )


def _raw_against_floor(similarity: Result, model: str) -> str:
    """What the usual, uncentred cosine would have said, and how much of it independent heads have as well."""
    rows = _within(similarity.frame, "cosine_raw", model)
    raw = rows.sort_values("layer").iloc[-1]
    floor = _one(_within(similarity.frame, "cosine_floor", model), layer=raw["layer"])
    return (
        f"The uncentred cosine in the last layer of {code(model)} is {interval(raw)}, but independent heads "
        f"with the same logit spread have {interval(floor)} already: the centred one is the one to read."
    )


def _head_verdict(row: Any, model: str, baseline: str, untrained: bool) -> str:
    """The answer in words, or why there is none."""
    if untrained:
        return "No verdict: at least one of the two has random weights."
    where = verdict(row["low"], row["high"], SMALLEST_HEAD_EFFECT)
    if where == "within":
        return (
            f"The likeness of heads changes with depth by the same amount in {code(model)} and {code(baseline)}, "
            f"to within {SMALLEST_HEAD_EFFECT}."
        )
    if where == "across":
        return (
            f"Inconclusive: the interval reaches across {SMALLEST_HEAD_EFFECT}, the smallest effect to count."
        )
    less, more = (model, baseline) if where == "below" else (baseline, model)
    return (
        f"From the first to the last third of the layers, the likeness of heads rises more (or falls less) in "
        f"{code(more)} than in {code(less)}{_expected(less, more)}."
    )


def _expected(less: str, more: str) -> str:
    """Whether that is what the paper says, which speaks only of a soft split against a hard one."""
    soft = has_soft_split(less), has_soft_split(more)
    if soft == (True, False):
        return ", as the paper claims"
    return ", contrary to the paper's claim" if soft == (False, True) else ""


def head_conclusions(differences: Sequence[Result], model: str, baseline: str) -> list[str]:
    """One sentence per quantity on the paired difference, then whether they agree."""
    rows = [row for result in differences for _, row in result.frame.iterrows()]
    lines = [f"{_named(row)}: {interval(row)}, {_side(row)}." for row in rows]
    untrained = any(untrained_in(result.frame) for result in differences)
    return [*lines, _agreement(rows, untrained, model, baseline)]


_QUANTITIES = {
    "cosine_raw": "Uncentred cosine of attention maps",
    "cosine_centred": "Centred cosine of attention maps",
    "cosine_content": "What changes from image to image in them",
    "js_divergence": "Jensen-Shannon divergence in nats (small means alike)",
    "head_output_cka": "CKA of head outputs",
}


def _bare(row: Any) -> str:
    return str(row["quantity"]).removesuffix(_CHANGE)


def _named(row: Any) -> str:
    """What the row measures, with the token where that is a choice."""
    tokens = {"class": ", class token", "pooled": ", mean patch"}.get(row["tokens"], "")
    return _QUANTITIES.get(_bare(row), _bare(row)) + tokens


def _side(row: Any) -> str:
    where = verdict(row["low"], row["high"], SMALLEST_HEAD_EFFECT)
    return {
        "below": f"beyond −{SMALLEST_HEAD_EFFECT}",
        "above": f"beyond +{SMALLEST_HEAD_EFFECT}",
        "within": f"within ±{SMALLEST_HEAD_EFFECT}",
        "across": f"not settled against ±{SMALLEST_HEAD_EFFECT}",
    }[where]


def _agreement(rows: Sequence[Any], untrained: bool, model: str, baseline: str) -> str:
    if untrained:
        return "No verdict: random weights show what an architecture starts from, not what it learns."
    centred = [row for row in rows if _bare(row) != "cosine_raw"]
    judged = [(_bare(row), verdict(row["low"], row["high"], SMALLEST_HEAD_EFFECT)) for row in centred]
    flipped = {"below": "above", "above": "below"}
    sides = {flipped.get(side, side) if name == "js_divergence" else side for name, side in judged}
    if len(sides) == 1:
        return f"All of them, the uncentred one aside, say the same of {code(model)} and {code(baseline)}."
    return "They do not all say the same: redundancy of heads is not one number."
