"""Which rows of a result are drawn, in which look, and what captions and alternative texts say of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from .._names import TWIN
from ..errors import UnknownNameError
from ..quantities import plural, quantity
from ..results import Result
from .base import NULL, PALETTE, inches, new_axes, series_styles

#: words that a caption has at most; with the figure's number and the link to its data they are 60
MOST_WORDS = 56
#: a panel: its quantity, or the columns that its rows have, for example {"quantity": ..., "place": "blocks.*.norm1"}
Panel = str | Mapping[str, Any]
Rows = dict[str, pd.DataFrame]

#: an axis is logarithmic where the largest value is so many times the median
SQUASHED = 8
#: what one sample was, where a figure shows a choice of tokens
TOKENS = {"pooled": "mean patch token", "patch": "patch tokens", "class": "class token",
          "flattened": "all patch tokens"}  # fmt: skip
#: last part of a place -> how it is written
PLACES = {"resid_post": "residual stream", "norm1": "after norm 1", "norm2": "after norm 2",
          "mlp.hidden": "MLP hidden", "embed": "embedding"}  # fmt: skip


def models_of(result: Result, models: Sequence[str] | None = None) -> list[str]:
    """Models of a result, or ``models`` if it has them; untrained controls last.

    Raises
    ------
    UnknownNameError
        a model that the result does not have.
    """
    known = [str(name) for name in result.frame["model"].dropna().unique()]
    for name in models or ():
        if name not in known:
            raise UnknownNameError("model", name, known, hint=f"in the result of {result.measure}")
    return sorted(models or known, key=lambda name: name.endswith(TWIN))


def own_models(result: Result, models: Sequence[str] | None = None) -> list[str]:
    """The same without untrained controls."""
    return [name for name in models_of(result, models) if not name.endswith(TWIN)]


def rows_of(result: Result, **columns: Any) -> pd.DataFrame:
    """Rows of a result whose columns have these values; a place may be a pattern, None leaves a column out.

    Where several choices of tokens or variants remain, the first is taken.

    Raises
    ------
    UnknownNameError
        names the nearest value that the result has.
    """
    frame = result.frame
    for column, wanted in columns.items():
        if wanted is None:
            continue
        names = frame[column].astype("string")
        found = frame[[pd.notna(name) and fnmatchcase(name, str(wanted)) for name in names]]
        if found.empty:
            known = [str(name) for name in names.dropna().unique()]
            raise UnknownNameError(column, str(wanted), known, hint=f"in the result of {result.measure}")
        frame = found
    for column in ("tokens", "variant"):
        if column not in columns and frame[column].nunique() > 1:
            frame = frame[frame[column] == frame[column].dropna().iloc[0]]
    return frame


def as_panel(panel: Panel | tuple[str, str]) -> dict[str, Any]:
    """A panel as columns; a pair is a quantity and its choice of tokens."""
    if isinstance(panel, tuple):
        return {"quantity": panel[0], "tokens": panel[1]}
    return {"quantity": panel} if isinstance(panel, str) else dict(panel)


def panel_title(
    panel: Mapping[str, Any], panels: Iterable[Mapping[str, Any]], words: Mapping[str, str] | None = None
) -> str:
    """The panel's words: its quantity, and whatever else tells it from the other panels; ``words`` for variants."""
    panels = list(panels)
    parts = [quantity(str(panel["quantity"])).title]
    for column in (name for name in panel if name not in ("quantity", "model")):
        value = str(panel[column])
        if len({str(other.get(column)) for other in panels}) > 1 or column == "tokens":
            kind = value.removeprefix("blocks.*.")
            parts.append({**TOKENS, **PLACES, **(words or {})}.get(kind, kind))
    same = len({other["quantity"] for other in panels}) == 1 and len(parts) > 1
    title = ", ".join(parts[1:] if same else parts)
    several = len({other["quantity"] for other in panels}) > 1 or same
    if "model" in panel:
        return f"{panel['model']}: {title}" if several else str(panel["model"])
    return title[:1].upper() + title[1:]


def floats(frame: pd.DataFrame, *columns: str) -> list[np.ndarray]:
    """Columns as arrays of float, missing values as NaN."""
    return [frame[name].to_numpy(float, na_value=np.nan) for name in columns]


#: columns in the unit of the value
_VALUES = ["value", "low", "high", "null", "null_low", "null_high", "ceiling"]


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the units in which they are drawn: shares in percent."""
    scale = frame["quantity"].map(lambda name: quantity(str(name)).scale).to_numpy(float)
    return frame.assign(**{name: frame[name].astype("Float64") * scale for name in _VALUES})


def whiskers(frame: pd.DataFrame) -> np.ndarray:
    """(2, n) lengths of the intervals below and above the values; 0 where there is none."""
    value, low, high = floats(frame, "value", "low", "high")
    return np.nan_to_num([value - low, high - value]).clip(0)


def error_bars(ax: Axes, x: Any, frame: pd.DataFrame, **style: Any) -> None:
    """Values with their 95 % intervals at the abscissae ``x``."""
    (value,) = floats(frame, "value")
    ax.errorbar(x, value, yerr=whiskers(frame), **style)


# ------------------------------------------------------------------------------------------------ axes


def panel_grid(
    count: int, *, across: int | None = None, width: float = 7.8, height: float = 2.7, **kwargs: Any
) -> Any:
    """Figure and axes of ``count`` panels, at most three in a row, with room for a legend below."""
    across = across or min(count, 3 if count != 4 else 2)
    down = -(-count // across)
    wide = {1: 5.8}.get(across, width)
    fig, axes = new_axes(down, across, width=wide, height=height * down + 1.0, squeeze=False, **kwargs)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return fig, list(axes.flat[:count])


def limits(
    axes: Sequence[Axes], drawn: Sequence[pd.DataFrame], *, axis: str = "y", log: bool | None = None
) -> bool:
    """Give panels of one quantity the same limits, from the data: 0 where it is near, logarithmic where one value
    would squash the rest. Return whether the axis is logarithmic.
    """
    whole = pd.concat(drawn)
    ends = np.concatenate(floats(whole, "value", "low", "high", "null", "null_low", "null_high"))
    (values,) = floats(whole, "value")
    ends, values = ends[np.isfinite(ends)], values[np.isfinite(values)]
    if log is None:
        log = bool(len(values) and values.min() > 0 and values.max() > SQUASHED * np.median(values))
    if log:
        # an interval down to 0 has no end there
        ends = np.maximum(ends[ends > 0], values[values > 0].min() / 10)
    low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
    if log:
        low, high = low / 1.3, high * 1.3
    else:
        low = 0.0 if 0 < low < 0.6 * high else low
        high = 0.0 if 0 > high > 0.6 * low else high
        room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
        low, high = low - room * (low != 0), high + room * (high != 0)
        low, high = (0.0, 1.0) if low == high else (low, high)
    for ax in axes:
        ax.set(**{f"{axis}lim": (low, high)})
        if log:
            log_axis(ax, axis)
            ax.set(**{f"{axis}lim": (low, high)})
        if not log and low < 0 < high:
            (ax.axhline if axis == "y" else ax.axvline)(0, color=PALETTE["black"], linewidth=0.6)
    return log


def log_axis(ax: Axes, axis: str) -> None:
    """A logarithmic axis with plain numbers, at 1, 2 and 5 where it spans less than two decades."""
    ax.set(**{f"{axis}scale": "log"})
    one, ends = (ax.yaxis, ax.get_ylim()) if axis == "y" else (ax.xaxis, ax.get_xlim())
    short = max(ends) < 100 * max(min(ends), 1e-300)
    one.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=9 if short else 5))
    one.set_major_formatter(lambda x, _: f"{x:g}")
    one.set_minor_formatter("")


def draw_null(ax: Axes, x: np.ndarray, rows: pd.DataFrame, color: str = NULL["color"]) -> None:
    """The null as a dotted line with its interval as a band."""
    null, low, high = floats(rows, "null", "null_low", "null_high")
    if np.isfinite(null).any():
        ax.plot(x, null, color=color, linestyle=":", linewidth=1.2)
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def same_null(rows: Iterable[pd.DataFrame]) -> bool:
    """Whether all models have one null, which is then drawn once."""
    bands = [np.stack(floats(frame, "null", "null_low", "null_high")) for frame in rows if len(frame)]
    return all(b.shape == bands[0].shape and np.allclose(b, bands[0], equal_nan=True) for b in bands)


def handle(label: str, **style: Any) -> Line2D:
    """An entry of a legend that looks as its series."""
    return Line2D([], [], label=label, **style)


def legend(fig: Any, names: Sequence[str], extra: Sequence[Line2D] = (), null: bool = True) -> None:
    """One legend below all panels: the models, then what is not one; untrained controls have one entry."""
    own = [name for name in names if not name.endswith(TWIN)]
    handles = [handle(name, **style) for name, style in series_styles(own or names).items()]
    if own and any(name.endswith(TWIN) for name in names):
        handles.append(handle("the same, UNTRAINED", color=PALETTE["grey"], marker="x", linewidth=0.8))
    if null:
        handles.append(handle("null", **NULL))
    handles += extra
    longest = max(len(str(one.get_label())) for one in handles) + 7
    columns = max(1, int(13 * fig.get_size_inches()[0] / longest))  # about 13 letters an inch
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns))


# ------------------------------------------------------------------------------------------------ words


def how_sure(frame: pd.DataFrame) -> str:
    """What the bars are, with n; that there are none where there are none."""
    counted = frame[frame["n"].notna()]
    known = counted[counted["low"].notna()]
    if counted.empty:
        return "No intervals."
    if known.empty:
        return f"No intervals (n = {plural(counted['n'].iloc[0], counted['unit'].iloc[0])})."
    least, most = int(known["n"].min()), plural(known["n"].max(), known["unit"].iloc[0])
    return f"Bars: 95 % interval (n = {most if least == known['n'].max() else f'{least} to {most}'})."


def null_kind(row: Mapping[str, Any] | pd.Series) -> str:
    """What the null of a row is, without how often it was drawn."""
    return str(row["null_kind"]).split(";")[0]


def null_words(frame: pd.DataFrame) -> str:
    """What the dotted null is, in the words of the rows."""
    known = frame[frame["null"].notna() & frame["null_kind"].notna()]
    several = {null_kind(row) for _, row in known[["null_kind"]].drop_duplicates().iterrows()}
    if not several:
        return ""
    return f"Dotted: null, {several.pop() if len(several) == 1 else 'see the table'}."


def untrained_words(names: Iterable[str]) -> str:
    """What a caption says of untrained controls, if there are any."""
    return "Crosses: the same, UNTRAINED." if any(name.endswith(TWIN) for name in names) else ""


def trained(names: Iterable[str]) -> list[str]:
    """Names without those of untrained controls; all where there are no others."""
    every = list(names)
    return [name for name in every if not name.endswith(TWIN)] or every


def ends(rows: Rows, name: str) -> str:
    """First and last value of every model, controls apart."""
    look = quantity(name)
    return "; ".join(
        f"{model} {look.number(rows[model]['value'].iloc[0])} to {look.number(rows[model]['value'].iloc[-1])}"
        for model in trained(rows)
        if len(rows[model])
    )


def x_label(ax: Axes, text: str) -> None:
    """Label the abscissa, broken to the width of the panel."""
    ax.set_xlabel(textwrap.fill(text, int(9 * inches(ax)[0])))


def y_label(ax: Axes, name: str) -> None:
    """Label the ordinate with a quantity and its unit, broken to fit; panels further right repeat no label."""
    spec: Any = ax.get_subplotspec()
    figure: Any = ax.get_figure()
    specs = {other: other.get_subplotspec() for other in figure.axes if other.get_subplotspec()}
    left = [
        other.get_ylabel()
        for other, its in specs.items()
        if its.rowspan == spec.rowspan and its.colspan.start < spec.colspan.start
    ]
    wrapped = textwrap.fill(quantity(name).label, max(int(10 * inches(ax)[1]) - 10, 14))
    ax.set_ylabel("" if wrapped in left else wrapped)


def caption(*needed: str, also: Sequence[str] = ()) -> str:
    """Join the sentences that are needed, and as many of the others as a caption has room for."""
    kept = [part for part in needed if part]
    for part in also:
        if part and len(" ".join([*kept, part]).split()) <= MOST_WORDS:
            kept.append(part)
    return " ".join(kept)
