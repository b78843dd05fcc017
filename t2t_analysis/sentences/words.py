"""Small words of sentences that have a form of their own: lists, percent, numbers without a quantity."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from .._names import TWIN
from ..quantities import Quantity, number

__all__ = ["NO_VERDICT", "interval", "listed", "no_verdict", "number", "percent", "untrained_in"]

#: what stands in place of a verdict where weights are random
NO_VERDICT = "No verdict: random weights show what an architecture starts from, not what it learns."
#: value and interval of a row whose number has no unit
interval = Quantity("", "").interval


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
