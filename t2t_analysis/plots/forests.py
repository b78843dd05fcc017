"""Values with their intervals, one line each: differences about 0, effects, models side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UnknownNameError
from ..quantities import Quantity, quantity
from ..results import COLUMNS, Result
from .base import PALETTE, Figure, finish, new_axes, role, title_block, use_style
from .series import TOKENS, caption, floats, handle, how_sure, limits, null_kind, shown, whiskers


def forest(
    results: Result | Sequence[Result | None] | None,
    quantities: Sequence[str] | None = None,
    *,
    by: str = "",
    groups: Mapping[str, str] | None = None,
    words: Mapping[str, str] | Callable[[pd.Series], str] | None = None,
    smallest: float | None = None,
    points: tuple[str, Mapping[str, Sequence[float]]] | None = None,
    title: str = "",
    across: str = "",
) -> Figure | None:
    """A line a row with its 95 % interval; a line for 0 and a grey band for effects too small to count.

    Parameters
    ----------
    results : whose rows are drawn, from top to bottom; all in one unit, since they share an axis. None, or a result
        without rows, is left out, and there is no figure of nothing: one model alone has no differences.
    quantities : which of them, in this order; all when left out.
    by : column whose values are drawn as marks of one line (a model, a readout), with a legend.
    groups : names of the marks in the legend, by the value of that column.
    words : names of lines by quantity or variant, or a function of a row; those of the quantity when left out.
    smallest : half width of the grey band; when left out that of the quantities, if all have the same.
    points : what else is drawn on the lines (single runs, printed values): its name, and values by name of a line.
    title : of the figure.
    across : label of the axis; when left out the models that are compared and the unit.

    Raises
    ------
    UnknownNameError
        a quantity that the results do not have.
    """
    asked = [results] if isinstance(results, Result) or results is None else results
    several = [result for result in asked if result is not None and len(result.frame)]
    if not several:
        return None
    frame = _chosen(several, quantities)
    labels = [_line(row, frame, words) for _, row in frame.iterrows()]
    lines = list(dict.fromkeys(labels))
    looks = [quantity(str(name)) for name in frame["quantity"]]
    if smallest is None and _compares(frame) and len({look.smallest for look in looks}) == 1:
        smallest = looks[0].smallest
    y = len(lines) - 1 - np.array([lines.index(label) for label in labels], dtype=float)
    rows = shown(frame)
    with use_style():
        tall = 0.3 * len(lines) + 0.16 * sum(label.count("\n") for label in lines)
        fig, ax = new_axes(width=8.0, height=1.5 + tall + 0.25 * bool(by))
        if smallest is not None:
            half = looks[0].shown(smallest)
            ax.axvspan(-half, half, color=PALETTE["grey"], alpha=0.18, linewidth=0)
        marks = list(dict.fromkeys(frame[by].astype(str))) if by else [""]
        for number, group in enumerate(marks):
            own = rows[by].astype(str) == group if by else pd.Series(True, index=rows.index)
            off = 0.16 * ((len(marks) - 1) / 2 - number)
            look = role(number) | {"linestyle": ""}
            drawn, at = rows[own], y[own.to_numpy()] + off
            ax.errorbar(*floats(drawn, "value"), at, xerr=whiskers(drawn), **look)
            _nulls(ax, drawn, at)
        extra = _points(ax, lines, *points, looks[0]) if points else []
        ends = looks[0].shown(smallest) if smallest else None  # the whole band is in sight
        band = [pd.DataFrame({"value": [-ends, ends]}).reindex(columns=list(COLUMNS))] if ends else []
        limits([ax], [rows, *extra, *band], axis="x", log=False)
        if not _compares(frame) and ax.get_xlim()[0] > 0:
            ax.set_xlim(left=0)
        ax.set_yticks(range(len(lines)), lines[::-1])
        ax.set_ylim(-0.6, len(lines) - 0.4)
        ax.set_xlabel(across or _across(frame))
        title_block(ax, title or looks[0].title, _band_words(smallest, looks[0]))
        if by or points:
            names = [handle((groups or {}).get(mark, mark), **(role(i) | {"linestyle": ""}))
                     for i, mark in enumerate(marks) if by]  # fmt: skip
            names += [handle(points[0], **_POINT)] if points else []
            fig.legend(handles=names, loc="outside lower center", ncols=min(3, len(names)))
    return finish(fig, frame, _caption(frame, labels, title), _alt(frame, labels))


_POINT: dict[str, Any] = {"marker": "D", "linestyle": "", "color": PALETTE["grey"], "markerfacecolor": "none"}


def _points(
    ax: Any, lines: Sequence[str], name: str, values: Mapping[str, Sequence[float]], look: Quantity
) -> list[pd.DataFrame]:
    """Draw single values on their lines; return them as rows for the limits of the axis."""
    single = [(float(x), i) for i, line in enumerate(lines) for x in values.get(line, ())]
    drawn = [(look.shown(x), len(lines) - 1 - i) for x, i in single]
    ax.plot([x for x, _ in drawn], [y for _, y in drawn], label=name, **_POINT)
    return [pd.DataFrame({"value": [x for x, _ in drawn]}).reindex(columns=list(COLUMNS))] if drawn else []


def _chosen(results: Sequence[Result], quantities: Sequence[str] | None) -> pd.DataFrame:
    """Rows in the order asked for; a difference is found by the name of what it is a difference of."""
    whole = pd.concat([result.frame for result in results], ignore_index=True)
    if quantities is None:
        return whole
    known = list(whole["quantity"].unique())
    plain = whole["quantity"].str.removesuffix("_difference")
    for name in quantities:
        if name not in known and name not in set(plain):
            raise UnknownNameError("quantity", name, known)
    return pd.concat([whole[(whole["quantity"] == q) | (plain == q)] for q in quantities], ignore_index=True)


def _line(
    row: pd.Series, frame: pd.DataFrame, words: Mapping[str, str] | Callable[[pd.Series], str] | None
) -> str:
    """The name of a row: its quantity and, where rows of one quantity differ in them, tokens and variant."""
    if callable(words):
        return "\n".join(textwrap.wrap(words(row), 44))
    name = str(row["quantity"])
    plain = name.removesuffix("_difference")
    if str(row["variant"]) in (words or {}):
        return "\n".join(textwrap.wrap((words or {})[str(row["variant"])], 44))
    text = (words or {}).get(plain) or quantity(plain).words
    same = frame[frame["quantity"] == name]
    for column in ("tokens", "variant"):
        if same[column].nunique() > 1 or (column == "tokens" and frame[column].nunique() > 1):
            text += f" ({TOKENS.get(str(row[column]), row[column])})"
    return "\n".join(textwrap.wrap(text, 44))


def _nulls(ax: Any, rows: pd.DataFrame, y: np.ndarray) -> None:
    """Nulls other than 0 as a band and a dotted line of their own height."""
    null, low, high = floats(rows, "null", "null_low", "null_high")
    if np.nan_to_num(null).any() or np.isfinite(low).any():
        ax.barh(y, high - low, 0.3, low, color=PALETTE["grey"], alpha=0.3, linewidth=0)
        ax.vlines(null, y - 0.25, y + 0.25, color=PALETTE["grey"], linestyle=":", linewidth=1.4)


def _compares(frame: pd.DataFrame) -> bool:
    """Whether rows are one model minus another."""
    return bool(frame["model_b"].notna().all() and (frame["null"].fillna(0.0) == 0).all())


def _across(frame: pd.DataFrame) -> str:
    """Whose difference, and in which unit."""
    first = frame.iloc[0]
    look = quantity(str(first["quantity"]))
    unit = f" ({look.unit})" if look.unit else ""
    if _compares(frame):
        return f"{first['model']} minus {first['model_b']}{unit}"
    return textwrap.fill(look.label, 70)


def _band_words(smallest: float | None, look: Any) -> str:
    if smallest is None:
        return ""
    return f"grey: within ±{look.shown(smallest):g}{f' {look.unit}' if look.unit else ''}, too small to count"


def _caption(frame: pd.DataFrame, labels: Sequence[str], title: str) -> str:
    first = frame.iloc[0]
    look = quantity(str(first["quantity"]))
    compared = f"`{first['model']}` minus `{first['model_b']}`"
    subject = compared if _compares(frame) else (title or look.title).rstrip("?.")
    several = "Not corrected for several quantities." if len(frame) > 1 and frame["p"].notna().any() else ""
    apart = frame[frame["null_kind"].notna() & frame["null"].notna() & (frame["null"] != 0)]
    null = f"Null (dotted): {null_kind(apart.iloc[0])}." if len(apart) else "Null: 0." * _compares(frame)
    plain = " ".join(labels[0].split())
    return caption(f"{subject}: {plain} {look.interval(first)}.", how_sure(frame), null, also=[several])


def _alt(frame: pd.DataFrame, labels: Sequence[str]) -> str:
    parts = [
        f"{' '.join(label.split())}: {quantity(str(row['quantity'])).interval(row)}"
        for label, (_, row) in zip(labels, frame.iterrows(), strict=True)
    ]
    return f"Intervals, a line each. {'; '.join(parts[:3])}."
