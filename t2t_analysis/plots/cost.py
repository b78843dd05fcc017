"""Costs: counted against printed, and time by batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ..claims.rule import SMALLEST
from ..errors import UnknownNameError
from ..measures.latency import machine_words
from ..measures.paper_costs import agreeing
from ..results import Result
from .base import PALETTE, ROLES, Figure, estimated, finish, new_axes, role, title_block, use_style
from .heads import _models
from .similarity import interval, number

__all__ = ["cost_bars", "latency_curve", "printed_against_counted"]

#: a count this far from the printed number is marked
TOLERANCE = SMALLEST["cost"]
_CONVENTIONS = {
    "macs_all": ("all products", ROLES["model"]),
    "macs_linear": ("linear layers only", ROLES["baseline"]),
}


def printed_against_counted(result: Result) -> Figure:
    """Counted over printed, a line per row of the paper's tables: parameters left, multiply-accumulates right.

    ``result`` is of `printed_costs`. The band is 1 % on both sides of agreement.
    """
    frame = result.frame.assign(ratio=result.frame["value"] / result.frame["null"] - 1)
    lines = list(dict.fromkeys(frame["place"]))
    at = {line: i for i, line in enumerate(lines)}
    with use_style():
        fig, axes = new_axes(1, 2, width=9.0, height=0.2 * len(lines) + 1.6, sharey=True)
        _ratios(axes[0], frame, at, {"parameters": ("parameters", ROLES["model"])})
        _ratios(axes[1], frame, at, _CONVENTIONS)
        axes[0].set_yticks(range(len(lines)), lines, fontsize=8)
        axes[0].set_ylim(len(lines) - 0.5, -0.5)
        for ax, words in zip(axes, ("Parameters", "Multiply-accumulates"), strict=True):
            title_block(ax, words)
            ax.set_xlabel("counted less printed, of printed")
        fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return finish(fig, frame.drop(columns="ratio"), _printed_caption(frame, result), _printed_alt(frame))


def _ratios(ax: Axes, frame: pd.DataFrame, at: dict[str, int], looks: dict[str, tuple[str, Any]]) -> None:
    ax.axvspan(-TOLERANCE, TOLERANCE, color=PALETTE["grey"], alpha=0.2, linewidth=0)
    ax.axvline(0, color=PALETTE["black"], linewidth=0.6)
    for quantity, (words, look) in looks.items():
        rows = frame[(frame["quantity"] == quantity) & frame["ratio"].notna()]
        y = rows["place"].map(at).to_numpy(float)
        # Rings stay visible where both conventions agree, as they do for convolutional networks.
        ring = {"markersize": 8, "markerfacecolor": "none"} if quantity == "macs_all" else {}
        style: dict[str, Any] = {
            "linestyle": "",
            "marker": look.marker,
            "color": look.color,
            "label": words,
        } | ring
        ax.plot(rows["ratio"].to_numpy(float), y, **style)
    ax.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _within(frame: pd.DataFrame, quantity: str) -> str:
    """How many lines agree, in words."""
    rows = frame[(frame["quantity"] == quantity) & frame["ratio"].notna()]
    return f"{int(agreeing(rows, TOLERANCE).sum())} of {len(rows)}"


def _printed_caption(frame: pd.DataFrame, result: Result) -> str:
    parameters = frame[frame["quantity"] == "parameters"]
    worst = parameters.sort_values("ratio", key=abs).iloc[-1]
    skipped = f" {len(result.notes)} printed lines have no code to count." if result.notes else ""
    return (
        "Counted costs against the numbers printed in the paper. Within 1 % (grey), or equal once rounded: parameters "
        f"{_within(frame, 'parameters')} lines, multiply-accumulates {_within(frame, 'macs_all')} counting all "
        f"products and {_within(frame, 'macs_linear')} counting linear layers only. Furthest in parameters: "
        f"{worst['place']}, "
        f"{number(worst['value'])} M against {number(worst['null'], 1)} M printed. Counts are exact, so there is no "
        f"interval; null: the printed number.{skipped}"
    )


def _printed_alt(frame: pd.DataFrame) -> str:
    return (
        f"Dot plot of counted over printed cost for {frame['place'].nunique()} table lines. Agreeing: "
        f"parameters {_within(frame, 'parameters')}, all products {_within(frame, 'macs_all')}, linear only "
        f"{_within(frame, 'macs_linear')}."
    )


# ------------------------------------------------------------------------------------------------ costs of models

_BARS = {
    "parameters": ("parameters", 1e6, "million"),
    "macs_all": ("multiply-accumulates", 1e9, "10⁹ an image"),
    "peak_training": ("peak of a training step", 2**20, "MiB a batch"),
    "tokeniser_saved": ("kept by the tokeniser", 2**20, "MiB a batch"),
}


def cost_bars(
    result: Result, quantities: Sequence[str] = tuple(_BARS), models: Sequence[str] | None = None
) -> Figure:
    """A panel per cost, a bar per model; the dotted line is the baseline. ``result`` is of `costs`."""
    names = _models(result, models)
    drawn = {
        q: result.frame[(result.frame["quantity"] == q) & result.frame["model"].isin(names)]
        for q in quantities
    }
    with use_style():
        fig, axes = new_axes(1, len(quantities), width=2.6 * len(quantities), height=0.34 * len(names) + 1.5,
                             squeeze=False, sharey=True)  # fmt: skip
        for ax, (quantity, frame) in zip(axes[0], drawn.items(), strict=True):
            _bars(ax, frame, names, quantity)
        axes[0][0].set_yticks(range(len(names)), names)
        axes[0][0].invert_yaxis()
    frame = pd.concat(drawn.values())
    batch = frame["at"].dropna()
    sizes = f" Memory for a batch of {int(batch.iloc[0])}, float32." if len(batch) else ""
    parts = [_bar_words(q, rows, names) for q, rows in drawn.items()]
    return finish(
        fig, frame,
        f"What the models cost. {'; '.join(parts)}.{sizes} Counted on shapes, so there is no interval; dotted: "
        f"{frame['null_kind'].iloc[0]}.",
        f"Bars of cost per model. {'; '.join(parts)}.".replace("`", ""),
    )  # fmt: skip


def _bars(ax: Axes, frame: pd.DataFrame, names: Sequence[str], quantity: str) -> None:
    words, scale, unit = _BARS.get(quantity, (quantity.replace("_", " "), 1.0, ""))
    values = frame.set_index("model")["value"].reindex(list(names)).to_numpy(float, na_value=np.nan) / scale
    ax.barh(range(len(names)), values, color=[role(i % 6).color for i in range(len(names))], height=0.65)
    null = frame["null"].astype(float).dropna()
    if len(null):
        ax.axvline(null.iloc[0] / scale, color=PALETTE["black"], linestyle=":", linewidth=1.0)
    for i, value in enumerate(values):
        ax.text(np.nan_to_num(value), i, f" {_digits(value)}", va="center", fontsize=9)
    ax.set_xlim(0, 1.3 * np.nanmax([*values, 0]) or 1)
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel(f"{words}\n({unit})", fontsize=9)


def _digits(value: float) -> str:
    """Three significant digits, so that small models tell apart as large ones do; a missing one is a dash.

    >>> _digits(0.05957), _digits(1234.5), _digits(0.0), _digits(float("nan"))
    ('0.0596', '1234', '0', '–')
    """
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"


def _bar_words(quantity: str, frame: pd.DataFrame, names: Sequence[str]) -> str:
    words, scale, unit = _BARS.get(quantity, (quantity.replace("_", " "), 1.0, ""))
    values = frame.set_index("model")["value"].astype(float) / scale
    return f"{words} ({unit}): " + ", ".join(
        f"`{name}` {_digits(values[name])}" for name in names if name in values
    )


# ------------------------------------------------------------------------------------------------ time


_TIMES = {
    "latency_ratio": "time over that of {}",
    "latency": "milliseconds a batch",
    "throughput": "images per second",
}


def latency_curve(
    result: Result, quantity: str = "latency_ratio", models: Sequence[str] | None = None
) -> Figure:
    """Time by batch size, a line per model with its interval; ``result`` is of `latencies`.

    The ratio to the baseline holds on a machine that was busy; ``latency`` and ``throughput`` do not.
    """
    if quantity not in set(result.frame["quantity"]):
        known = [str(q) for q in result.frame["quantity"].unique()]
        raise UnknownNameError("quantity", quantity, known, hint="in these timings")
    looks = {name: role(i % 6) for i, name in enumerate(_models(result, models))}
    rows = {name: _of(result, quantity, name).sort_values("at") for name in looks}
    drawn = {name: frame for name, frame in rows.items() if len(frame)}  # the baseline has no ratio
    label = _TIMES.get(quantity, quantity).format(result.meta.get("baseline", "the first model"))
    with use_style():
        fig, ax = new_axes(width=5.6, height=3.5)
        for name, frame in drawn.items():
            x, value, low, high = (
                frame[c].to_numpy(float, na_value=np.nan) for c in ("at", "value", "low", "high")
            )
            bars = np.nan_to_num([value - low, high - value])
            ax.errorbar(x, value, bars, label=name, **looks[name].style())
        if quantity == "latency_ratio":
            ax.axhline(1, label=next(iter(drawn.values()))["null_kind"].iloc[0], **_null_style())
        ax.set_xscale("log", base=2)
        sizes = sorted({int(b) for frame in drawn.values() for b in frame["at"]})
        ax.set_xticks(sizes, [str(b) for b in sizes])
        ax.set_xlabel("batch size")
        ax.set_ylabel(label.replace(" of ", " of\n"))
        ax.set_ylim(bottom=0)
        title = "Images per second by batch size" if quantity == "throughput" else "Time by batch size"
        title_block(ax, title, str(result.meta.get("device", "")))
        fig.legend(loc="outside lower center", ncols=3)
    found = [f"`{name}` {_by_size(frame)}" for name, frame in drawn.items()]
    row = next(iter(drawn.values())).iloc[-1]
    null = f"; null: {row['null_kind']}, dotted" if quantity == "latency_ratio" else ""
    caption = (
        f"{row['estimator'].capitalize()}, {label}, by batch size: {'; '.join(found)}. Bars: 95 % interval "
        f"({estimated(row, 'none: too few repeats')}). {machine_words(result.meta)}, "
        f"{result.meta.get('dtype')}{null}."
    )
    return finish(
        fig, pd.concat(drawn.values()), caption,
        f"Lines of {label} against batch size: {'; '.join(found)}.".replace("`", ""),
    )  # fmt: skip


def _by_size(rows: pd.DataFrame) -> str:
    """Smallest and largest batch, with intervals."""
    ends = [rows.iloc[0], rows.iloc[-1]][: len(rows)]
    return ", ".join(f"{interval(row, 2 if row['value'] < 10 else 1)} at {int(row['at'])}" for row in ends)


def _of(result: Result, quantity: str, model: str) -> pd.DataFrame:
    return result.frame[(result.frame["quantity"] == quantity) & (result.frame["model"] == model)]


def _null_style() -> dict[str, Any]:
    return {"color": ROLES["null"].color, "linestyle": ROLES["null"].linestyle}
