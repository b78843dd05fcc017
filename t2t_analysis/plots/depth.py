"""Values by depth, for whole layers or head by head: the same axes, null and controls for every quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .._names import TWIN
from ..errors import UnknownNameError
from ..quantities import quantity
from ..results import Result
from .base import PALETTE, Figure, finish, role, series_styles, title_block, use_style
from .series import (
    Panel,
    Rows,
    as_panel,
    caption,
    draw_null,
    ends,
    error_bars,
    floats,
    handle,
    how_sure,
    legend,
    limits,
    models_of,
    null_words,
    own_models,
    panel_grid,
    panel_title,
    rows_of,
    same_null,
    shown,
    untrained_words,
    y_label,
)


def by_depth(
    result: Result,
    panels: Sequence[Panel | tuple[str, str]],
    models: Sequence[str] | None = None,
    *,
    place: str | None = None,
    variant: str | None = None,
    beside: Mapping[str, str] | None = None,
    references: Mapping[str, str] | None = None,
    smallest: float | None = None,
) -> Figure:
    """Values of whole layers by depth: a panel a quantity, a line a model, with 95 % intervals and nulls.

    A null that is the same for all models is drawn once, in grey; untrained controls are thin with crosses. A panel
    that no model has, or in which all is exactly 0, is named in the caption instead of drawn. Panels of one
    quantity share an axis, which is logarithmic where one value would squash the others. Token transformers (T1, T2)
    and the embedding (E) stand before the layers; models of different depth share an axis from 0 to 1.

    Parameters
    ----------
    result : with rows by layer: means within a layer, or between a layer and the next.
    panels : quantities, pairs (quantity, tokens), or columns such as {"quantity": ..., "place": "blocks.*.norm1"}.
    models : in the order of the comparison; all of the result when left out.
    place, variant : columns that all panels share; a place may be a pattern.
    beside : quantity -> a second one that is drawn in its panel, thin (the floor of a similarity).
    references : place -> words; the value at that place is drawn as a horizontal line (raw pixels).
    smallest : smallest effect that counts, drawn as a grey band about 0.

    Raises
    ------
    UnknownNameError
        what the result does not have.
    """
    names = models_of(result, models)
    asked = [{"place": place, "variant": variant, **as_panel(panel)} for panel in panels]
    asked = [{k: v for k, v in panel.items() if v is not None} for panel in asked]
    drawn = [_rows(result, panel, names) for panel in asked]
    empty = [i for i, rows in enumerate(drawn) if is_zero(rows)]
    kept = [i for i in range(len(asked)) if i not in empty] or [i for i in range(len(asked)) if drawn[i]][:1]
    if not kept:
        rows_of(result, **asked[0])  # says what there is
    axis = DepthAxis(frame for i in kept for frame in drawn[i].values())
    beside, references = beside or {}, references or {}
    with use_style():
        fig, axes = panel_grid(len(kept))
        for ax, i in zip(axes, kept, strict=True):
            if smallest is not None:
                half = quantity(asked[i]["quantity"]).shown(smallest)
                ax.axhspan(-half, half, color=PALETTE["grey"], alpha=0.15, linewidth=0)
            _lines(ax, axis, drawn[i])
            if (second := beside.get(asked[i]["quantity"])) is not None:
                _thin_lines(ax, axis, _rows(result, {**asked[i], "quantity": second}, names))
            _references(ax, result, asked[i] | {"model": names[0]}, references)
            axis.label(ax)
            title_block(ax, panel_title(asked[i], asked))
            y_label(ax, asked[i]["quantity"])
        _share_limits(axes, [asked[i] for i in kept], [drawn[i] for i in kept])
        extra = [handle(quantity(name).words, color=PALETTE["grey"], **_THIN) for name in beside.values()]
        extra += [handle(text, **look) for text, look in zip(references.values(), _LINES, strict=False)]
        whole = pd.concat([frame for i in kept for frame in drawn[i].values()])
        legend(fig, names, extra, null=bool(whole["null"].notna().any()))
    return finish(fig, whole, _caption(asked, drawn, kept, whole, names, axis), _alt(asked, drawn, kept))


def _rows(result: Result, panel: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """Rows of whole layers of every model in order of depth; none for a model that has no such quantity."""
    if panel["quantity"] not in set(result.frame["quantity"]):
        rows_of(result, **panel)  # says what there is
    found: Rows = {}
    for name in names:
        try:
            frame = rows_of(result, model=name, **panel)
        except UnknownNameError:  # a model without a class token has no attention to one
            continue
        found[name] = _by_layer(frame[frame["head"].isna()])
    return found


def _by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of single places in order; of pairs, a layer with itself if there are such, else with the next."""
    if frame["at"].isna().any():
        frame = frame[frame["at"].isna()]  # the others are points of a curve
    if frame["layer_b"].notna().any():
        own = (frame["layer"] == frame["layer_b"]).fillna(False).astype(bool)
        following = dict(pairwise(sorted(set(frame["layer"].dropna()) | set(frame["layer_b"].dropna()))))
        frame = frame[own if own.any() else frame["layer"].map(following) == frame["layer_b"]]
    order = frame["place"].map(position)
    if order.isna().all():
        return frame  # a network without tokens: its stages in their order
    return frame[order.notna()].assign(x=order).sort_values("x", kind="stable").drop(columns="x")


def position(place: str) -> float:
    """Where a place stands along depth: blocks by their number, the embedding and token transformers before."""
    kind, *rest = str(place).split(".")
    if kind == "blocks" and rest[0].isdigit():
        return float(rest[0])
    if kind == "tokens" and rest[0].isdigit():
        return float(rest[0]) - 3
    return -1.0 if kind == "embed" else np.nan


class DepthAxis:
    """One abscissa for networks of any depth: layers where all have as many, else from 0 to 1."""

    def __init__(self, frames: Iterable[pd.DataFrame]) -> None:
        places = [frame["place"].map(position) for frame in frames if len(frame)]
        depths = {int(x.max()) + 1 for x in places if x.notna().any() and x.max() >= 0}
        self.relative = len(depths) != 1 or any(x.isna().all() for x in places)
        self.depth = max(depths, default=1)
        before = {x for one in places for x in one.dropna() if x < 0}
        self.marks = {x: {-3.0: "T1", -2.0: "T2", -1.0: "E"}[x] for x in sorted(before)}

    def of(self, frame: pd.DataFrame) -> np.ndarray:
        """Abscissae of rows."""
        x = frame["place"].map(position).to_numpy(float)
        if np.isnan(x).all():
            return np.arange(1, len(x) + 1) / max(len(x), 1)
        if not self.relative:
            return x
        return np.where(x < 0, 0.12 * (x + 1), (x + 1) / (np.nanmax(x) + 1))

    @property
    def words(self) -> str:
        """What the letters mean."""
        known = {"T": "T1: first token transformer", "E": "E: embedding"}
        parts = [known[k] for k in known if any(mark.startswith(k) for mark in self.marks.values())]
        return f"{'; '.join(parts)}." if parts else ""

    def label(self, ax: Axes) -> None:
        """Ticks and words of the axis."""
        if self.relative:
            at, ticks = [0.12 * (x + 1) for x in self.marks], [1 / 3, 2 / 3, 1.0]
            ax.set_xticks([*at, *ticks], [*self.marks.values(), "1/3", "2/3", "1"])
            ax.set_xlabel("depth (share of the layers)")
            return
        spec: Any = ax.get_subplotspec()
        figure: Any = ax.get_figure()
        room = int(3.4 * figure.get_size_inches()[0] / spec.get_gridspec().ncols) - len(self.marks)
        layers = range(0, self.depth, max(1, -(-self.depth // max(room, 1))))
        marks = {x: mark for x, mark in self.marks.items() if mark != "T2"}
        ax.set_xticks([*marks, *layers], [*marks.values(), *map(str, layers)])
        ax.set_xlabel("layer")


def _lines(ax: Axes, axis: DepthAxis, rows: Rows) -> None:
    shared = same_null(frame for name, frame in rows.items() if not name.endswith(TWIN))
    for name, style in series_styles(list(rows)).items():
        frame, x = shown(rows[name]), axis.of(rows[name])
        error_bars(ax, x, frame, **style)
        if not name.endswith(TWIN) and not (shared and name != next(iter(rows))):
            draw_null(ax, x, frame, **({} if shared else {"color": style["color"]}))


#: looks of references, and of what is drawn beside a quantity
_STROKES: tuple[Any, ...] = ((0, (1, 1)), (0, (4, 2)), "-.")
_LINES: list[dict[str, Any]] = [
    {"color": PALETTE["black"], "linestyle": s, "linewidth": 0.9} for s in _STROKES
]
_THIN: dict[str, Any] = {"linestyle": "-.", "linewidth": 0.8}


def _thin_lines(ax: Axes, axis: DepthAxis, rows: Rows) -> None:
    for name, style in series_styles(list(rows)).items():
        if not name.endswith(TWIN):
            ax.plot(axis.of(rows[name]), *floats(shown(rows[name]), "value"), color=style["color"], **_THIN)


def _references(ax: Axes, result: Result, panel: Mapping[str, Any], places: Iterable[str]) -> None:
    for place, look in zip(places, _LINES, strict=False):
        try:
            value = float(rows_of(result, **{**panel, "place": place}).iloc[0]["value"])
        except UnknownNameError:
            continue
        if abs(value - 1) > 1e-6:  # else the target itself
            ax.axhline(quantity(panel["quantity"]).shown(value), **look)


def is_zero(rows: Rows) -> bool:
    """Whether nothing would be seen: no rows, or every value and interval is 0 as it is written."""
    whole = pd.concat(rows.values()) if rows else pd.DataFrame()
    if not len(whole):
        return True
    digits = quantity(str(whole["quantity"].iloc[0])).digits
    return not np.nan_to_num(np.stack(floats(shown(whole), "value", "low", "high"))).round(digits).any()


def left_out(titles: Sequence[str]) -> str:
    """What a caption says of panels that are not drawn."""
    if not titles:
        return ""
    what = ", ".join(titles) if len(titles) <= 2 else f"{len(titles)} panels"
    return f"Not drawn, as all 0 or missing: {what}."


def _share_limits(axes: Sequence[Axes], panels: Sequence[Mapping[str, Any]], drawn: Sequence[Rows]) -> None:
    """One scale for all panels whose axis says the same."""
    labels = [quantity(panel["quantity"]).label.split(",")[0] for panel in panels]
    for label in dict.fromkeys(labels):
        same = [i for i, other in enumerate(labels) if other == label]
        limits([axes[i] for i in same], [shown(frame) for i in same for frame in drawn[i].values()])


def _caption(
    asked: Sequence[dict[str, Any]], drawn: Sequence[Rows], kept: Sequence[int], whole: pd.DataFrame,
    names: Sequence[str], axis: DepthAxis,
) -> str:  # fmt: skip
    titles = [panel_title(panel, asked) for panel in asked]
    what = quantity(asked[kept[0]]["quantity"])
    zero = [titles[i] for i in range(len(asked)) if i not in kept]
    first = drawn[kept[0]]
    own = [name for name in first if not name.endswith(TWIN)] or list(first)
    last = "; ".join(f"`{name}` {what.interval(first[name].iloc[-1])}" for name in own)
    where = f"{titles[kept[0]]}, in the last layer" if len(kept) > 1 else "In the last layer"
    subject = f"{what.title} by depth" if len(kept) == 1 else "By depth"
    return caption(
        f"{subject}. {where}: {last}.", how_sure(whole), untrained_words(names),
        left_out(zero),
        also=[null_words(whole), axis.words],
    )  # fmt: skip


def _alt(asked: Sequence[dict[str, Any]], drawn: Sequence[Rows], kept: Sequence[int]) -> str:
    parts = [f"{panel_title(asked[i], asked)}: {ends(drawn[i], asked[i]['quantity'])}" for i in kept[:2]]
    return f"Lines by depth, first place to last. {'. '.join(parts)}."


# ------------------------------------------------------------------------------------------------ head by head


def heads_by_depth(
    result: Result, name: str, models: Sequence[str] | None = None, *, tokens: str | None = None
) -> Figure:
    """One dot per head against its layer with 95 % intervals, a panel per model; the mean of the heads as a line.

    Arguments and errors as for `by_depth`; ``name`` is one quantity.
    """
    names = own_models(result, models)
    look = quantity(name)
    found = {model: rows_of(result, quantity=name, model=model, tokens=tokens) for model in names}
    drawn = {model: _of_heads(frame) for model, frame in found.items()}
    with use_style():
        fig, axes = panel_grid(len(names), across=min(len(names), 2), height=3.2)
        for number, (ax, (model, frame)) in enumerate(zip(axes, drawn.items(), strict=True)):
            axis = DepthAxis([frame])
            _dots(ax, axis, frame, _by_layer(found[model][found[model]["head"].isna()]), number)
            axis.label(ax)
            title_block(ax, model)
            y_label(ax, name)
        limits(axes, [shown(frame) for frame in drawn.values()])
        extra = [handle("a head", color=PALETTE["grey"], marker="o", linestyle=""),
                 handle("mean of the heads", color=PALETTE["black"])]  # fmt: skip
        legend(fig, [], extra)
    whole = pd.concat(drawn.values())
    ranges = [(model, frame["value"].astype(float)) for model, frame in drawn.items()]
    each = "; ".join(f"{m} {look.number(v.min())} to {look.number(v.max())}" for m, v in ranges)
    words = f"{look.title}, a dot a head: {each}."
    return finish(fig, whole, caption(words, how_sure(whole), null_words(whole)), f"Dots by layer. {words}")


def _of_heads(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["head"].notna() & ~frame["place"].str.contains("*", regex=False)]


def _dots(ax: Axes, axis: DepthAxis, heads: pd.DataFrame, layers: pd.DataFrame, number: int) -> None:
    look, x, heads = role(number), axis.of(heads), shown(heads)
    count = heads.groupby("place")["head"].transform("count").to_numpy(float)
    spread = (heads["head"].to_numpy(float) - (count - 1) / 2) / np.maximum(count, 1) * 0.6
    error_bars(ax, x + spread, heads, marker=look.marker, linestyle="", color=look.color, markersize=3, elinewidth=0.6,
               capsize=0, alpha=0.75)  # fmt: skip
    if len(layers):
        ax.plot(axis.of(layers), *floats(shown(layers), "value"), color=PALETTE["black"], linewidth=1.0)
    at = heads.assign(x=x).drop_duplicates("x").sort_values("x")
    steps = np.repeat(at["x"].to_numpy(float), 2) + np.tile([-0.5, 0.5], len(at))
    draw_null(ax, steps, at.loc[at.index.repeat(2)])
