"""Curves over an abscissa (threshold, distance, frequency, share removed, batch size): one recipe for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .._names import TWIN
from ..quantities import quantity
from ..results import Result
from .base import ROLES, SEQUENTIAL, Figure, finish, role, series_styles, title_block, use_style
from .depth import is_zero, left_out
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
    panel_grid,
    panel_title,
    rows_of,
    same_null,
    shown,
    untrained_words,
    x_label,
    y_label,
)


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
    asked = [as_panel(panel) for panel in panels]
    drawn = [(panel, _curves(result, panel, names, by)) for panel in _with_models(asked, names, by)]
    kept = [(panel, rows) for panel, rows in drawn if not is_zero(rows)] or drawn[:1]
    whole = pd.concat([frame for _, rows in kept for frame in rows.values()])
    titles = [panel_title(panel, [p for p, _ in drawn], words) for panel, _ in kept]
    with use_style():
        fig, axes = panel_grid(len(kept), across=min(len(kept), 2 if len(kept) in (2, 4) else 3))
        for ax, (panel, rows), title in zip(axes, kept, titles, strict=True):
            _draw(ax, rows, by)
            if ticks:
                ax.set_xticks(list(ticks), list(ticks.values()), rotation=45, ha="right")
            x_label(ax, str(whole["at_unit"].dropna().iloc[0]))
            y_label(ax, panel["quantity"])
            if log:
                log_axis(ax, "x")
            title_block(ax, title)
        for name in dict.fromkeys(quantity(p["quantity"]).label for p, _ in kept):
            same = [i for i, (p, _) in enumerate(kept) if quantity(p["quantity"]).label == name]
            limits([axes[i] for i in same], [shown(f) for i in same for f in kept[i][1].values()])
        _key(fig, axes, names, kept, by, words or {})
    there = [panel for panel, _ in kept]
    zero = [panel_title(panel, [p for p, _ in drawn]) for panel, _ in drawn if panel not in there]
    bars = how_sure(whole.assign(low=np.nan) if by == "layer" else whole)  # a line a layer has none
    controls = names if by == "model" else ()  # lines of other kinds are of trained models
    return finish(fig, whole, _caption(kept, titles, whole, bars, zero, controls), _alt(kept, titles))


def _with_models(asked: Sequence[dict[str, Any]], names: Sequence[str], by: str) -> list[dict[str, Any]]:
    if by == "model":
        return list(asked)
    own = [name for name in names if not name.endswith(TWIN)]
    return [{**panel, "model": name} for panel in asked for name in own]


def _curves(result: Result, panel: dict[str, Any], names: Sequence[str], by: str) -> Rows:
    """The rows of every line, in order of the abscissa."""
    if by == "model":
        known = result.frame["model"].isin(list(names)) & (result.frame["quantity"] == panel["quantity"])
        found = {name: rows_of(result, **{**panel, "model": name}) for name in names
                 if (known & (result.frame["model"] == name)).any()}  # fmt: skip
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
            draw_null(ax, x, frame, ROLES["null"].color if grey else style["color"])


def _styles(rows: Rows, by: str) -> dict[str, dict[str, Any]]:
    if by == "model":
        return series_styles(list(rows))
    if by == "variant":
        return {key: role(number % 6).style() for number, key in enumerate(rows)}
    colours = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.92, len(rows)))
    return {key: {"color": colour, "linewidth": 1.2} for key, colour in zip(rows, colours, strict=True)}


def _key(
    fig: Any, axes: Sequence[Axes], names: Sequence[str], kept: Sequence[tuple[dict[str, Any], Rows]], by: str,
    words: Mapping[str, str],
) -> None:  # fmt: skip
    """A legend of models or variants, or a colour bar of layers."""
    null = any(frame["null"].notna().any() for _, rows in kept for frame in rows.values())
    if by == "layer":
        layers = [int(key.split()[1]) for _, rows in kept for key in rows]
        norm = matplotlib.colors.Normalize(min(layers), max(layers) / 0.92)
        scale = matplotlib.cm.ScalarMappable(norm, SEQUENTIAL)
        edges, step = np.arange(min(layers), max(layers) + 2) - 0.5, max(1, len(set(layers)) // 8)
        ticks = sorted(set(layers))[::step]
        fig.colorbar(scale, ax=list(axes), label="layer", aspect=30, boundaries=edges, ticks=ticks)
    variants = list(dict.fromkeys(key for _, rows in kept for key in rows)) if by == "variant" else []
    extra = [handle(words.get(key, key), **role(number % 6).style()) for number, key in enumerate(variants)]
    if by == "model" or extra or null:
        legend(fig, names if by == "model" else [], extra, null)


def _caption(
    kept: Sequence[tuple[dict[str, Any], Rows]], titles: Sequence[str], whole: pd.DataFrame, bars: str,
    zero: Sequence[str], names: Sequence[str],
) -> str:  # fmt: skip
    first = quantity(kept[0][0]["quantity"])
    unit = str(whole["at_unit"].dropna().iloc[0]).split(" (")[0].split(",")[0]
    of = "First to last" if titles[0] == first.title else titles[0]
    also = f"{of}: {ends(kept[0][1], kept[0][0]['quantity'])}." if len(kept[0][1]) <= 4 else ""
    return caption(
        f"{first.title} over the {unit}.", bars, untrained_words(names),
        left_out(zero), also=[null_words(whole), also],
    )  # fmt: skip


def _alt(kept: Sequence[tuple[dict[str, Any], Rows]], titles: Sequence[str]) -> str:
    parts = [
        f"{title}, first to last: {ends(dict(list(rows.items())[:3]), panel['quantity'])}"
        for title, (panel, rows) in list(zip(titles, kept, strict=True))[:2]
    ]
    return f"Curves. {'. '.join(parts)}."
