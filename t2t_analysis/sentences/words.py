"""Small words of sentences that have a form of their own: lists."""

from __future__ import annotations

from collections.abc import Iterable


def listed(parts: Iterable[str]) -> str:
    """Join words as one says them.

    >>> listed(["a"]), listed(["a", "b"]), listed("abc")
    ('a', 'a and b', 'a, b and c')
    """
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last
