"""How alike heads are, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from .._names import has_soft_split
from .._show import code
from ..claims.rule import SMALLEST, place
from ..results import Result
from .words import interval, no_verdict, number, one, side, untrained_in

__all__ = ["head_conclusions", "head_findings"]

SMALLEST_EFFECT = SMALLEST["similarity"]

_CHANGE = "_last_minus_first"


def _within(frame: pd.DataFrame, quantity: str, model: str) -> pd.DataFrame:
    """Rows of mean similarity within a layer, one per layer."""
    same = frame["layer"] == frame["layer_b"]
    whole = frame["head"].isna() & frame["head_b"].isna()
    return frame[same & whole & (frame["quantity"] == quantity) & (frame["model"] == model)]


def _change(result: Result, quantity: str, model: str) -> str:
    row = one(result.frame, quantity=quantity + _CHANGE, model=model)
    return f"by {interval(row)} in {code(model)} (on permuted images by {number(row['null'])})"


def _trend(similarity: Result, model: str, baseline: str) -> str:
    """Whether heads become alike with depth at all, which is what the paper says of a hard split."""
    rows = {
        name: one(similarity.frame, quantity="cosine_centred" + _CHANGE, model=name)
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
    difference : of `difference` on it, last third minus first third of blocks.
    """
    row = one(difference.frame, quantity=f"cosine_centred{_CHANGE}_difference")
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
        f"{interval(row)}; on permuted images {number(row['null'])}, a head with itself 1."
    )


def _raw_against_floor(similarity: Result, model: str) -> str:
    """What the usual, uncentred cosine would have said, and how much of it independent heads have as well."""
    rows = _within(similarity.frame, "cosine_raw", model)
    raw = rows.sort_values("layer").iloc[-1]
    floor = one(_within(similarity.frame, "cosine_floor", model), layer=raw["layer"])
    return (
        f"The uncentred cosine in the last layer of {code(model)} is {interval(raw)}, but independent heads "
        f"with the same logit spread have {interval(floor)} already: the centred one is the one to read."
    )


def _head_verdict(row: Any, model: str, baseline: str, untrained: bool) -> str:
    """The answer in words, or why there is none."""
    if untrained:
        return no_verdict(row.to_frame().T, words="No verdict: at least one of the two has random weights.")
    where = place(row["low"], row["high"], SMALLEST_EFFECT)
    if where == "within":
        return (
            f"The likeness of heads changes with depth by the same amount in {code(model)} and {code(baseline)}, "
            f"to within {SMALLEST_EFFECT}."
        )
    if where == "across":
        return f"Inconclusive: the interval reaches across {SMALLEST_EFFECT}, the smallest effect to count."
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
    return str(row["quantity"]).removesuffix("_difference").removesuffix(_CHANGE)


def _named(row: Any) -> str:
    """What the row measures, with the token where that is a choice."""
    tokens = {"class": ", class token", "pooled": ", mean patch"}.get(row["tokens"], "")
    return _QUANTITIES.get(_bare(row), _bare(row)) + tokens


def _side(row: Any) -> str:
    return side(row["low"], row["high"], SMALLEST_EFFECT)


def _agreement(rows: Sequence[Any], untrained: bool, model: str, baseline: str) -> str:
    if untrained:
        return no_verdict(*(row.to_frame().T for row in rows))
    centred = [row for row in rows if _bare(row) != "cosine_raw"]
    judged = [(_bare(row), place(row["low"], row["high"], SMALLEST_EFFECT)) for row in centred]
    flipped = {"below": "above", "above": "below"}
    sides = {flipped.get(side, side) if name == "js_divergence" else side for name, side in judged}
    if len(sides) == 1:
        return f"All of them, the uncentred one aside, say the same of {code(model)} and {code(baseline)}."
    return "They do not all say the same: redundancy of heads is not one number."
