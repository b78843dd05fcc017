"""Words that every notebook's sentences are made of: numbers, intervals, where an interval lies.

A verdict follows a rule that was fixed before the numbers were seen: the 95 % interval of the effect lies
beyond the smallest effect of interest, or it does not. Random weights get no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from .._names import TWIN
from ..claims.rule import place
from ..errors import T2TError
from ..quantities import enough_digits

__all__ = [
    "NO_VERDICT",
    "found",
    "interval",
    "listed",
    "no_verdict",
    "number",
    "one",
    "percent",
    "side",
    "untrained_in",
]

#: what stands in place of a verdict where weights are random
NO_VERDICT = "No verdict: random weights show what an architecture starts from, not what it learns."


def interval(row: Any) -> str:
    """Return value and interval of a row, three decimals, with the sign where the value can have one.

    Four where one of the three is not 0 and would read so: whether an interval holds 0 has to be seen.

    >>> interval({"value": 0.1234, "low": 0.1, "high": 0.15})
    '0.123 [0.100, 0.150]'
    >>> interval({"value": 0.0011, "low": 0.0002, "high": 0.0021})
    '0.0011 [0.0002, 0.0021]'
    """
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if pd.isna(value):
        return number(value)
    if pd.isna(low) or pd.isna(high):
        return f"{number(value)} (no interval)"
    digits = enough_digits(_digits(value, low, high), value, low, high)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int | None = None) -> str:
    """Three decimals, or as many as a smaller number needs, with a true minus sign; exactly 0 has no sign.

    >>> number(0.1234), number(-0.00004), number(-0.0), number(pd.NA)
    ('0.123', '−0.00004', '0.000', 'not measured')
    """
    if pd.isna(value):
        return "not measured"
    text = f"{value:.{_digits(value) if digits is None else digits}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "−")


def _digits(*values: float) -> int:
    """Three, unless all would round to nothing and one is not 0."""
    largest = max(abs(value) for value in values)
    return 3 if largest == 0 or not largest < 0.0005 else min(9, math.ceil(-math.log10(largest)))


def untrained_in(frame: pd.DataFrame) -> bool:
    """Whether any row of a tidy frame rests on random weights."""
    return bool(frame["weights"].fillna("").str.contains("UNTRAINED").any())


def no_verdict(*frames: pd.DataFrame, words: str = NO_VERDICT) -> str:
    """Why there is no verdict on two models; nothing where random weights are the other's own control alone.

    >>> frame = pd.DataFrame({"model": ["a"], "model_b": ["a, random"], "weights": ["file | UNTRAINED (seed 1)"]})
    >>> no_verdict(frame), no_verdict(frame.assign(model_b="b"))[:11]
    ('', 'No verdict:')
    """
    random = {
        name
        for frame in frames
        for row in frame.to_dict("records")
        for name, weights in zip(
            (row["model"], row["model_b"]), str(row["weights"]).split(" | "), strict=False
        )
        if "UNTRAINED" in weights
    }
    return "" if random and all(name.endswith(TWIN) for name in random) else words


def one(frame: pd.DataFrame, **where: Any) -> pd.Series:
    """Return the one row with these values; None asks for a missing one."""
    for column, value in where.items():
        frame = frame[frame[column].isna() if value is None else frame[column] == value]
    if len(frame) != 1:
        raise T2TError(f"expected one row with {where}, found {len(frame)}")
    return frame.iloc[0]


def found(frame: pd.DataFrame, **where: Any) -> pd.Series | None:
    """Return the row with these values if there is one and it has a number, else None; as `one` otherwise."""
    for column, value in where.items():
        frame = frame[frame[column].isna() if value is None else frame[column] == value]
    frame = frame[frame["value"].notna()]
    return one(frame) if len(frame) else None


def percent(value: float, digits: int = 1) -> str:
    """Return a share as percent.

    >>> percent(0.1234), percent(-0.0001)
    ('12.3 %', '0.0 %')
    """
    text = f"{100 * value:.{digits}f}"
    return f"{text.lstrip('-') if float(text) == 0 else text} %".replace("-", "−")


def listed(parts: Iterable[str]) -> str:
    """Join words as one says them.

    >>> listed(["a"]), listed(["a", "b"]), listed("abc")
    ('a', 'a and b', 'a, b and c')
    """
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def side(low: float, high: float, smallest: float) -> str:
    """Say in words what `place` says of an interval.

    >>> side(-0.2, -0.1, 0.05), side(float("nan"), float("nan"), 0.05)
    ('beyond −0.05', 'no interval')
    """
    if pd.isna(low) or pd.isna(high):
        return "no interval"
    words = {
        "below": f"beyond −{smallest:g}",
        "above": f"beyond +{smallest:g}",
        "within": f"within ±{smallest:g}",
        "across": f"not settled against ±{smallest:g}",
    }
    return words[place(low, high, smallest)]
