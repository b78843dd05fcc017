"""Why the heads of late layers are alike: by attention sinks, in content, or not at all. One rule, fixed beforehand."""

from __future__ import annotations

from typing import Any

from ..measures.sinks import KEYS, LAST_THIRD
from ..results import Result
from .rule import SMALLEST

__all__ = ["ALIKE", "why_alike"]

#: Mean centred cosine above which heads count as alike.
ALIKE = 0.5
BY_SINKS, IN_CONTENT, NOT_ALIKE, OPEN, NOT_TESTED = (
    "alike by sinks", "alike in content", "not alike", "open", "not tested",
)  # fmt: skip


def why_alike(sinks: Result, model: str) -> str:
    """Why the heads of the last third of the layers are alike, if they are.

    "not alike": the centred cosine over patch keys lies below `ALIKE` with its whole interval. "alike in content": it
    lies above, and so it does without the sinks. "alike by sinks": it lies above, without the sinks below, and taking
    them out costs more than random columns by the smallest difference that counts, with whole intervals. Else "open".
    Random weights are "not tested".

    Parameters
    ----------
    sinks : of `Sinks`.
    model : label in it.

    Raises
    ------
    UnknownNameError : a label that the result does not have.
    """
    rows = sinks.where(model=model, place=LAST_THIRD)
    if rows.frame["weights"].str.contains("UNTRAINED").any():
        return NOT_TESTED
    patch, without = (_side(rows, quantity="cosine_centred", variant=variant) for variant in KEYS[1:3])
    fall = rows.where(quantity="sink_likeness").frame.iloc[0]
    if patch < 0:
        return NOT_ALIKE
    if patch > 0 and without > 0:
        return IN_CONTENT
    if patch > 0 > without and fall["low"] - fall["null_high"] > SMALLEST["similarity"]:
        return BY_SINKS
    return OPEN


def _side(rows: Result, **where: Any) -> int:
    """On which side of `ALIKE` the whole interval lies, 0 for neither."""
    row = rows.where(**where).frame.iloc[0]
    return int(row["low"] > ALIKE) - int(row["high"] < ALIKE)
