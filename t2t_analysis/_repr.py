"""How objects show themselves: one short line in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: rows of a result that a notebook shows
MOST_ROWS = 12


class Shown:
    """Gives a class ``__repr__`` and ``_repr_html_``; it says its ``_line`` and its ``_facts``."""

    def _line(self) -> str:
        """What it is, in one line."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """Name -> value; what is empty is left out."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._line()}>"

    def _repr_html_(self) -> str:
        rows = [(name, value) for name, value in self._facts().items() if value not in (None, "", (), [])]
        return html_table(f"{type(self).__name__}: {self._line()}", ("", ""), rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with its cells under each other.

    >>> aligned([("a", "b"), ("long", "c")])
    ['a     b', 'long  c']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def html_table(caption: str, head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as HTML, everything in it escaped.

    >>> html_table("a<b", ["x"], [[1]])
    '<table><caption>a&lt;b</caption><thead><tr><th>x</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>'
    """
    names = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a result to be read: words, model, place, value with interval, null, n.

    >>> from t2t_analysis.results import tidy
    >>> rows = tidy([{"quantity": "cosine_centred", "model": "a", "value": 0.5, "low": 0.4, "high": 0.6, "n": 8}])
    >>> readable(rows).iloc[0].tolist()
    ['centred cosine of attention maps', 'a', '0.500 [0.400, 0.600]', '8']
    """
    import pandas as pd

    from .quantities import quantity

    looks = [quantity(str(name)) for name in frame["quantity"]]
    rows = [row for _, row in frame.iterrows()]
    given = zip(looks, frame["null"], strict=True)
    nulls = [look.number(null) if pd.notna(null) else "" for look, null in given]
    names = ("variant", "model", "model_b", "place", "head")
    table = pd.DataFrame({
        "quantity": [look.words for look in looks],
        **{name: frame[name].astype("string").fillna("").tolist() for name in names},
        "value": [look.interval(row) for look, row in zip(looks, rows, strict=True)],
        "null": nulls, "n": frame["n"].astype("string").fillna("").tolist(),
    })  # fmt: skip
    return table.loc[:, (table != "").any()]
