"""Small words of sentences that have a form of their own: lists and percent."""

from __future__ import annotations

from collections.abc import Iterable


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
