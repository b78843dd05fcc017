"""Lines by depth or over an abscissa (threshold, distance, share removed), and dots for heads: one look for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .._names import TWIN
from ..errors import UnknownNameError
from ..quantities import quantity
from ..results import Result
from .base import (
    NULL,
    PALETTE,
    SEQUENTIAL,
    Figure,
    finish,
    inches,
    role,
    series_styles,
    title_block,
    use_style,
)
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
    log_axis,
    models_of,
    null_words,
    own_models,
    panel_grid,
    panel_title,
    rows_of,
    same_null,
    shown,
    trained,
    untrained_words,
    x_label,
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
    kept, titles = _kept(drawn), [panel_title(panel, asked) for panel in asked]
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
            title_block(ax, titles[i])
            y_label(ax, asked[i]["quantity"])
        _share_limits(axes, [asked[i] for i in kept], [drawn[i] for i in kept])
        extra = [handle(quantity(name).words, color=PALETTE["grey"], **_THIN) for name in beside.values()]
        extra += [handle(text, **look) for text, look in zip(references.values(), _LINES, strict=False)]
        whole = _whole(drawn, kept)
        legend(fig, names, extra, null=bool(whole["null"].notna().any()))
    what, first = quantity(asked[kept[0]]["quantity"]), drawn[kept[0]]
    last = "; ".join(f"`{name}` {what.interval(first[name].iloc[-1])}" for name in trained(first))
    several = len(kept) > 1
    text = caption(
        f"{'By depth' if several else f'{what.title} by depth'}. "
        f"{f'{titles[kept[0]]}, in' if several else 'In'} the last layer: {last}.",
        how_sure(whole), untrained_words(names), left_out(titles, kept), also=[null_words(whole), axis.words],
    )  # fmt: skip
    return finish(fig, whole, text, _alt("Lines by depth", titles, drawn, kept))


def _rows(result: Result, panel: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """Rows of whole layers of every model in order of depth; none for a model that has no such quantity."""
    found = _by_model(result, panel, names)
    return {name: _by_layer(frame[frame["head"].isna()]) for name, frame in found.items()}


def _by_model(result: Result, panel: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """Rows of every model that has such."""
    if panel["quantity"] not in set(result.frame["quantity"]):
        rows_of(result, **panel)  # says what there is
    found: Rows = {}
    for name in names:
        with suppress(UnknownNameError):  # a model without a class token has no attention to one
            found[name] = rows_of(result, model=name, **panel)
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
        room = int(3.4 * inches(ax)[0]) - len(self.marks)
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
        with suppress(UnknownNameError):
            value = float(rows_of(result, **{**panel, "place": place}).iloc[0]["value"])
            if abs(value - 1) > 1e-6:  # else the target itself
                ax.axhline(quantity(panel["quantity"]).shown(value), **look)


def is_zero(rows: Rows) -> bool:
    """Whether nothing would be seen: no rows, or every value and interval is 0 as it is written."""
    whole = pd.concat(rows.values()) if rows else pd.DataFrame()
    if not len(whole):
        return True
    digits = quantity(str(whole["quantity"].iloc[0])).digits
    return not np.nan_to_num(np.stack(floats(shown(whole), "value", "low", "high"))).round(digits).any()


def _kept(drawn: Sequence[Rows]) -> list[int]:
    """Numbers of the panels in which something is to be seen; else of the first that has rows."""
    seen = [i for i, rows in enumerate(drawn) if not is_zero(rows)]
    return seen or [i for i, rows in enumerate(drawn) if rows][:1]


def _whole(drawn: Sequence[Rows], kept: Sequence[int]) -> pd.DataFrame:
    """All rows of the panels that are drawn."""
    return pd.concat([frame for i in kept for frame in drawn[i].values()])


def left_out(titles: Sequence[str], kept: Sequence[int]) -> str:
    """What a caption says of panels that are not drawn."""
    others = [title for i, title in enumerate(titles) if i not in kept]
    what = ", ".join(others)
    what = f"{len(others)} panels" if len(what.split()) > 10 else what
    return f"Not drawn, as all 0 or missing: {what}." if others else ""


def _share_limits(axes: Sequence[Axes], panels: Sequence[Mapping[str, Any]], drawn: Sequence[Rows]) -> None:
    """One scale for all panels whose axis says the same."""
    labels = [quantity(panel["quantity"]).label.split(",")[0] for panel in panels]
    for label in dict.fromkeys(labels):
        same = [i for i, other in enumerate(labels) if other == label]
        limits([axes[i] for i in same], [shown(frame) for i in same for frame in drawn[i].values()])


def _alt(kind: str, titles: Sequence[str], drawn: Sequence[Rows], kept: Sequence[int]) -> str:
    parts = [f"{titles[i]}: {ends(drawn[i], str(_whole(drawn, [i])['quantity'].iloc[0]))}" for i in kept[:2]]
    return f"{kind}, first to last. {'. '.join(parts)}."


# ------------------------------------------------------------------------------------------------ over an abscissa


def along(
    result: Result,
    panels: Sequence[Panel | tuple[str, str]],
    models: Sequence[str] | None = None,
    *,
    by: str = "model",
    words: Mapping[str, str] | None = None,
    log: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> Figure:
    """Values over the column ``at``, with 95 % intervals as bands and nulls dotted.

    ``by`` says what a line is. "model": a panel for each of ``panels``, a line a model. "variant": a panel for each
    of ``panels`` and model, a line a variant, with one grey null. "layer": the same, a thin line a layer, coloured by
    depth. Panels of one quantity share an axis; those in which all is 0 are named in the caption instead.

    Parameters
    ----------
    result : with rows that have ``at``.
    panels : quantities, pairs (quantity, tokens), or columns such as {"quantity": ..., "place": "embed"}.
    models : in the order of the comparison; all of the result when left out.
    words : names of variants as they are written.
    log : logarithmic abscissa.
    ticks : labels of the abscissa instead of numbers.

    Raises
    ------
    UnknownNameError
        what the result does not have.
    """
    names = models_of(result, models)
    asked = _with_models([as_panel(panel) for panel in panels], names, by)
    drawn = [_curves(result, panel, names, by) for panel in asked]
    kept, titles = _kept(drawn), [panel_title(panel, asked, words) for panel in asked]
    whole = _whole(drawn, kept)
    with use_style():
        fig, axes = panel_grid(len(kept), across=min(len(kept), 2 if len(kept) in (2, 4) else 3))
        for ax, i in zip(axes, kept, strict=True):
            _draw(ax, drawn[i], by)
            if ticks:
                ax.set_xticks(list(ticks), list(ticks.values()), rotation=45, ha="right")
            x_label(ax, str(whole["at_unit"].dropna().iloc[0]))
            y_label(ax, asked[i]["quantity"])
            if log:
                log_axis(ax, "x")
            title_block(ax, titles[i])
        _share_limits(axes, [asked[i] for i in kept], [drawn[i] for i in kept])
        _key(fig, axes, names, [drawn[i] for i in kept], by, words or {})
    first, unit = asked[kept[0]]["quantity"], str(whole["at_unit"].dropna().iloc[0])
    of = "First to last" if titles[kept[0]] == quantity(first).title else titles[kept[0]]
    text = caption(
        f"{quantity(first).title} over the {unit.split(' (')[0].split(',')[0]}.",
        how_sure(whole.assign(low=np.nan) if by == "layer" else whole),  # a line a layer has no interval
        untrained_words(names if by == "model" else ()),  # lines of other kinds are of trained models
        left_out(titles, kept),
        also=[null_words(whole), f"{of}: {ends(drawn[kept[0]], first)}." if len(drawn[kept[0]]) <= 4 else ""],
    )
    return finish(fig, whole, text, _alt("Curves", titles, drawn, kept))


def _with_models(asked: Sequence[dict[str, Any]], names: Sequence[str], by: str) -> list[dict[str, Any]]:
    if by == "model":
        return list(asked)
    own = [name for name in names if not name.endswith(TWIN)]
    return [{**panel, "model": name} for panel in asked for name in own]


def _curves(result: Result, panel: dict[str, Any], names: Sequence[str], by: str) -> Rows:
    """The rows of every line, in order of the abscissa."""
    if by == "model":
        found = _by_model(result, panel, names)
    else:
        whole = rows_of(result, **panel, **({by: None} if by == "variant" else {}))
        found = {f"layer {key}" if by == "layer" else str(key): rows
                 for key, rows in whole.groupby(by, sort=by == "layer")}  # fmt: skip
    if not found:
        rows_of(result, **panel)
    return {key: rows[rows["at"].notna()].sort_values("at") for key, rows in found.items()}


def _draw(ax: Axes, rows: Rows, by: str) -> None:
    shared = same_null(frame for key, frame in rows.items() if not key.endswith(TWIN))
    for number, (key, style) in enumerate(_styles(rows, by).items()):
        frame = shown(rows[key])
        x = frame["at"].to_numpy(float)
        if by == "layer":
            ax.plot(x, *floats(frame, "value"), **style)
        elif len(frame) > 12:
            value, low, high = floats(frame, "value", "low", "high")
            ax.plot(x, value, **style)
            ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        else:
            error_bars(ax, x, frame, **style)
        if not key.endswith(TWIN) and not (number and (shared or by == "layer")):
            grey = shared or by != "model"
            draw_null(ax, x, frame, NULL["color"] if grey else style["color"])


def _styles(rows: Rows, by: str) -> dict[str, dict[str, Any]]:
    if by == "model":
        return series_styles(list(rows))
    if by == "variant":
        return {key: role(number) for number, key in enumerate(rows)}
    colours = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.92, len(rows)))
    return {key: {"color": colour, "linewidth": 1.2} for key, colour in zip(rows, colours, strict=True)}


def _key(
    fig: Any, axes: Sequence[Axes], names: Sequence[str], drawn: Sequence[Rows], by: str, words: Mapping[str, str],
) -> None:  # fmt: skip
    """A legend of models or variants, or a colour bar of layers."""
    null = any(frame["null"].notna().any() for rows in drawn for frame in rows.values())
    if by == "layer":
        layers = [int(key.split()[1]) for rows in drawn for key in rows]
        norm = matplotlib.colors.Normalize(min(layers), max(layers) / 0.92)
        scale = matplotlib.cm.ScalarMappable(norm, SEQUENTIAL)
        edges, step = np.arange(min(layers), max(layers) + 2) - 0.5, max(1, len(set(layers)) // 8)
        ticks = sorted(set(layers))[::step]
        fig.colorbar(scale, ax=list(axes), label="layer", aspect=30, boundaries=edges, ticks=ticks)
    variants = list(dict.fromkeys(key for rows in drawn for key in rows)) if by == "variant" else []
    extra = [handle(words.get(key, key), **role(number)) for number, key in enumerate(variants)]
    if by == "model" or extra or null:
        legend(fig, names if by == "model" else [], extra, null)


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
    drawn = {m: f[f["head"].notna() & ~f["place"].str.contains("*", regex=False)] for m, f in found.items()}
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


def _dots(ax: Axes, axis: DepthAxis, heads: pd.DataFrame, layers: pd.DataFrame, number: int) -> None:
    x, heads = axis.of(heads), shown(heads)
    count = heads.groupby("place")["head"].transform("count").to_numpy(float)
    spread = (heads["head"].to_numpy(float) - (count - 1) / 2) / np.maximum(count, 1) * 0.6
    dots = {"linestyle": "", "markersize": 3, "elinewidth": 0.6, "capsize": 0, "alpha": 0.75}
    error_bars(ax, x + spread, heads, **(role(number) | dots))
    if len(layers):
        ax.plot(axis.of(layers), *floats(shown(layers), "value"), color=PALETTE["black"], linewidth=1.0)
    at = heads.assign(x=x).drop_duplicates("x").sort_values("x")
    steps = np.repeat(at["x"].to_numpy(float), 2) + np.tile([-0.5, 0.5], len(at))
    draw_null(ax, steps, at.loc[at.index.repeat(2)])
