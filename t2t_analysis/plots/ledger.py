"""Verdicts: every effect in units of the smallest effect that counts, so that all claims share one axis."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .base import PALETTE, Figure, new_axes, use_style
from .series import caption

#: verdict -> colour and marker; a reader who sees no colour tells them by the marker
_LOOKS = {
    "supported": (PALETTE["blue"], "o"),
    "contradicted": (PALETTE["vermillion"], "X"),
    "no difference that counts": (PALETTE["black"], "D"),
    "claimed effect excluded": (PALETTE["orange"], "v"),
    "open": (PALETTE["grey"], "s"),
    "not testable": (PALETTE["grey"], "x"),
}


def verdict_plot(frame: pd.DataFrame, title: str = "Effects, in the direction of the claim") -> Figure:
    """Intervals of all effects of a ledger, over the smallest effect that counts; to the right: as claimed.

    Parameters
    ----------
    frame : of `claims.ledger.ledger`. Effects that were not tested are named in the caption and not drawn.
    """
    tested = frame[frame["verdict"] != "not tested"].reset_index(drop=True)
    with use_style():
        fig, ax = new_axes(width=9.0, height=1.5 + 0.36 * max(1, len(tested)))
        ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
        for i, row in tested.iterrows():
            _interval(ax, len(tested) - 1 - int(str(i)), row)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_yticks(range(len(tested))[::-1], [_label(row) for _, row in tested.iterrows()], fontsize=9)
        ax.set_ylim(-0.7, len(tested) - 0.3)
        ax.set_xlabel(
            "effect / smallest effect that counts (no unit)\n"
            "right of the grey band, or of a bound at 0: as claimed\n"
            "(linear to ±1, logarithmic beyond)"
        )
        ax.set_xticks(_ticks(tested))
        ax.get_xaxis().set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
        if len(tested):
            fig.legend(*_legend(ax), loc="outside lower center", ncols=4)
        # of the figure, not of the axes, which names beside them push to the right
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return Figure(fig, _caption(frame, tested), _alt(tested))


def _scaled(row: pd.Series, name: str) -> float:
    away = float(row[name]) - float(row["bound"])
    return away / (float(row["smallest"]) or abs(float(row["bound"])) or 1) * (int(row["direction"]) or 1)


def _interval(ax: Axes, y: int, row: pd.Series) -> None:
    if not row["bound"]:  # what is held against a bound has no size that is too small
        ax.fill_betweenx([y - 0.5, y + 0.5], -1, 1, color=PALETTE["grey"], alpha=0.18, linewidth=0)
    value, ends = _scaled(row, "value"), sorted(_scaled(row, name) for name in ("low", "high"))
    colour, marker = _LOOKS[str(row["verdict"])]
    filled = colour if row["deciding"] else "white"
    ax.errorbar(
        [value], [y], xerr=[[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]], color=colour, marker=marker,
        markerfacecolor=filled, markersize=6, linestyle="", label=str(row["verdict"]),
    )  # fmt: skip


def _legend(ax: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = ax.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    known = [name for name in _LOOKS if name in each]
    return [each[name] for name in known], known


def _ticks(tested: pd.DataFrame) -> list[float]:
    """Symmetric powers of ten as far as the data go."""
    if tested.empty:
        return [-1.0, 0.0, 1.0]
    ends = [abs(_scaled(row, name)) for _, row in tested.iterrows() for name in ("low", "high")]
    powers = [float(10**k) for k in range(int(np.ceil(np.log10(max(1.0, *ends)))) + 1)]
    return [*(-p for p in reversed(powers)), 0.0, *powers]


def _label(row: pd.Series) -> str:
    compared = str(row["compared"])
    one_side = "" if " minus " in compared or " over " in compared or not compared else f" ({compared})"
    words = f"{row['claim']}{one_side}: {row['effect']}"
    return "\n".join(textwrap.wrap(words, 64, max_lines=2, placeholder=" …"))


def _caption(frame: pd.DataFrame, tested: pd.DataFrame) -> str:
    counts = tested.loc[tested["deciding"], "verdict"].value_counts()
    said = ", ".join(f"{counts[name]} {name}" for name in _LOOKS if name in counts) or "none tested"
    absent = frame.loc[frame["verdict"] == "not tested", "claim"]
    rest = f"Not tested, not drawn: {len(absent)} effects of {absent.nunique()} claims." * bool(len(absent))
    units = ", ".join(sorted({str(unit) for unit in tested["unit"] if unit})) or "none"
    return caption(
        f"95 % intervals of {len(tested)} effects over the smallest effect that counts for each; positive means as "
        f"claimed. Deciding effects (filled): {said}. Null: 0. Units resampled: {units}.", rest,
        "Without grey: distance from a bound." if any(tested["bound"]) else "",
    )  # fmt: skip


def _alt(tested: pd.DataFrame) -> str:
    each = "; ".join(
        f"{row['claim']}, {row['effect']}: {_scaled(row, 'value'):.2g} ({row['verdict']})".replace(" -", " −")
        for _, row in tested.head(6).iterrows()
    )
    each = each or "No effect was tested."
    return f"Forest plot of {len(tested)} effects in units of the smallest effect that counts. {each}"[:240]
