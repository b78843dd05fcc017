"""What models cost: a panel a cost, a bar a model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..quantities import quantity
from ..results import Result
from .base import PALETTE, Figure, finish, new_axes, role, use_style
from .lines import left_out
from .series import caption, models_of, rows_of, shown

#: costs that are drawn
COSTS = ("parameters", "macs_all", "peak_training", "tokeniser_saved")


def cost_bars(result: Result, quantities: Sequence[str] = COSTS) -> Figure:
    """A panel per cost, a bar per model; the dotted line is the baseline. A cost that none has is named, not drawn.

    ``result`` is of `costs`; raises UnknownNameError for what it does not have.
    """
    names = models_of(result)
    every = [pd.concat([rows_of(result, quantity=q, model=name) for name in names]) for q in quantities]
    kept = [i for i, frame in enumerate(every) if frame["value"].fillna(0).any()] or [0]
    missing = left_out([quantity(q).title for q in quantities], kept)
    rows, quantities = [every[i] for i in kept], [quantities[i] for i in kept]
    with use_style():
        size = {"width": 2.6 * len(quantities), "height": 0.34 * len(names) + 1.5}
        fig, axes = new_axes(1, len(quantities), squeeze=False, sharey=True, **size)
        for ax, name, frame in zip(axes[0], quantities, rows, strict=True):
            _bars(ax, shown(frame), names, name)
        axes[0][0].set_yticks(range(len(names)), names)
        axes[0][0].invert_yaxis()
    frame = pd.concat(rows)
    first = frame[frame["quantity"] == quantities[0]]
    look = quantity(quantities[0])
    each = "; ".join(f"`{row['model']}` {look.number(row['value'])}" for _, row in first.iterrows())
    words = f"Models of this page. {look.title}: {each}."
    batch = frame["at"].dropna()
    sizes = f"Memory for a batch of {int(batch.iloc[0])}, float32." if len(batch) else ""
    note = "Counted on shapes, so there is no interval."
    dotted = f"Dotted: {frame['null_kind'].dropna().iloc[0]}." if len(names) > 1 else ""
    text = caption(words, note, dotted, missing, also=[sizes])
    return finish(fig, frame, text, f"Bars of cost, a bar a model. {words}")


def _bars(ax: Axes, frame: pd.DataFrame, names: Sequence[str], name: str) -> None:
    values = frame.set_index("model")["value"].reindex(list(names)).to_numpy(float, na_value=np.nan)
    ax.barh(range(len(names)), values, color=[role(i)["color"] for i in range(len(names))], height=0.65)
    null = frame["null"].astype(float).dropna()
    if len(null) and len(names) > 1:
        ax.axvline(null.iloc[0], color=PALETTE["black"], linestyle=":", linewidth=1.0)
    for i, value in enumerate(values):
        ax.text(np.nan_to_num(value), i, f"  {_digits(value)}", va="center", fontsize=9)
    ax.set_xlim(0, 1.3 * np.nanmax([*values, 0]) or 1)
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel(textwrap.fill(quantity(name).label, 26), fontsize=9)


def _digits(value: float) -> str:
    """Three significant digits, so that small models tell apart as large ones do; a missing one is a dash.

    >>> _digits(0.05957), _digits(1234.5), _digits(0.0), _digits(float("nan"))
    ('0.0596', '1234', '0', '–')
    """
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"
