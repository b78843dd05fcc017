"""Channels that follow their image: shares by depth, for one or more networks and their random twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .._names import TWIN
from ..errors import UnknownNameError
from ..results import Result
from .base import ROLES, Figure, estimated, finish, new_axes, role, title_block, use_style
from .similarity import interval, number

__all__ = ["edge_channel_curves"]

#: quantity -> title of its panel, how to read it
PANELS = {
    "outline_channels": ("Outline", "steep where the image is"),
    "edge_channels": ("Edges", "mark edges, beyond brightness"),
    "brightness_channels": ("Brightness", "bright or dark where the image is"),
}
#: places before the first block: where they stand on the depth axis and how they are written
_BEFORE = {"tokens.0.out": (-0.24, "stage 1"), "tokens.1.out": (-0.12, "stage 2"), "embed": (0.0, "embed")}
_FIRST_THIRD = "first third of blocks"


def edge_channel_curves(result: Result, quantities: Sequence[str] = tuple(PANELS)) -> Figure:
    """Share of channels that follow their image, by depth: a panel a kind, a line a network.

    A random twin (its label ends as those of `random_twins`) is a thin line in the colour of its model; chance is a
    dotted line. Stages of a network without tokens stand at even distances.

    Raises UnknownNameError for a quantity that the ``result`` (of `EdgeChannels`) does not have.
    """
    frame = result.frame
    if unknown := [q for q in quantities if q not in set(frame["quantity"])]:
        raise UnknownNameError("quantity", unknown[0], frame["quantity"].unique(), f"in {result.measure}")
    models = [str(name) for name in frame["model"].unique()]
    names = [name for name in models if not name.endswith(TWIN)]
    with use_style():
        fig, axes = new_axes(1, len(quantities), width=8.0, height=4.1, sharey=True, squeeze=False)
        for ax, quantity in zip(axes[0], quantities, strict=True):
            part = frame[frame["quantity"] == quantity]
            for model in models:
                _line(ax, part[part["model"] == model], model, names)
            ax.axhline(float(part["null"].iloc[0]), label="chance", **_plain("null"))
            _axis(ax, part)
            title_block(ax, *PANELS.get(quantity, (quantity, "")))
        axes[0, 0].set_ylabel("share of channels, of all images")
        axes[0, 0].set_ylim(0, min(1.02, axes[0, 0].get_ylim()[1]))
        known = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        order = [*names, *(m for m in models if m not in names), "chance"]
        fig.legend([known[label] for label in order], order, loc="outside lower center", ncols=2)
    drawn = frame[frame["quantity"].isin(quantities)]
    own = drawn[drawn["model"].isin(names)]  # that twins are untrained is no warning
    return finish(fig, own, _caption(drawn, quantities, models), _alt(drawn, quantities[:2], names))


def _plain(name: str) -> dict[str, Any]:
    return {k: v for k, v in ROLES[name].style().items() if k != "marker"}


def _depth(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of single places with ``x``: stages below 0, embedding 0, blocks (or a network's layers) up to 1."""
    rows = rows[rows["place"] != _FIRST_THIRD].copy()
    if rows["layer"].isna().all() and not rows["place"].isin(list(_BEFORE)).any():
        return rows.assign(x=np.arange(1, len(rows) + 1) / len(rows))
    depth = float(rows["layer"].max()) + 1
    rows["x"] = [
        _BEFORE[place][0] if place in _BEFORE else (float(layer) + 1) / depth
        for place, layer in zip(rows["place"], rows["layer"], strict=True)
    ]
    return rows.sort_values("x")


def _line(ax: Axes, rows: pd.DataFrame, model: str, names: list[str]) -> None:
    rows = _depth(rows)
    x, value, low, high = (rows[c].to_numpy(float, na_value=np.nan) for c in ("x", "value", "low", "high"))
    if model.endswith(TWIN):
        owner = model.removesuffix(TWIN)
        look = role(names.index(owner) if owner in names else len(names))
        ax.plot(x, value, color=look.color, linestyle="-.", linewidth=0.9, label=model)
        ax.fill_between(x, low, high, color=look.color, alpha=0.12, linewidth=0)
    else:
        bars = np.nan_to_num([value - low, high - value])
        ax.errorbar(x, value, bars, label=model, **role(names.index(model)).style())


def _axis(ax: Axes, rows: pd.DataFrame) -> None:
    marks = [_BEFORE[place] for place in _BEFORE if place in set(rows["place"])]
    ax.set_xticks(
        [*(x for x, _ in marks), 1 / 3, 2 / 3, 1.0], [*(word for _, word in marks), "1/3", "2/3", "1"]
    )
    for tick in ax.get_xticklabels()[: len(marks)]:
        tick.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("depth of the network")


def _early(rows: pd.DataFrame) -> pd.Series:
    """The row that speaks for the early layers: their mean or, without blocks, the second place."""
    whole = rows[rows["place"] == _FIRST_THIRD]
    return whole.iloc[0] if len(whole) else rows.iloc[min(1, len(rows) - 1)]


def _caption(drawn: pd.DataFrame, quantities: Sequence[str], models: Sequence[str]) -> str:
    parts = []
    for quantity in quantities:
        rows = {name: drawn[(drawn["quantity"] == quantity) & (drawn["model"] == name)] for name in models}
        each = ", ".join(f"`{name}` {interval(_early(part))}" for name, part in rows.items())
        parts.append(f"{PANELS.get(quantity, (quantity, ''))[0].lower()}: {each}")
    row = drawn.iloc[0]
    thin = " Thin: the same networks with random weights." if any(m.endswith(TWIN) for m in models) else ""
    return (
        "Share of channels that follow their image more closely than 95 % of channels follow another image, by depth. "
        f"In the first third of the blocks, {'; '.join(parts)}. Dotted: chance, {number(row['null'])} "
        f"({row['null_kind']}). Bars and bands: 95 % interval ({estimated(row)}; "
        f"n = {int(row['n'])} {row['unit']}s).{thin}"
    )


def _alt(drawn: pd.DataFrame, quantities: Sequence[str], names: Sequence[str]) -> str:
    each = "; ".join(
        f"{PANELS.get(quantity, (quantity, ''))[0].lower()} "
        + ", ".join(
            f"{name} {number(_early(drawn[(drawn['quantity'] == quantity) & (drawn['model'] == name)])['value'])}"
            for name in names[:2]
        )
        for quantity in quantities
    )
    return f"Lines: share of channels that follow their image against depth; in the early layers {each}."
