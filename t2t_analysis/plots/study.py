"""The controlled study: accuracy by cell with every run, effects beside the paper's, learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..quantities import quantity
from ..results import Result, tidy
from .base import NULL, Figure, finish, new_axes, role, title_block, use_style
from .forests import forest
from .series import caption, error_bars, floats, handle, how_sure, shown

#: ending of the effects that are given for each length -> the optimiser of the runs
_LENGTHS = {"_at_epochs": "Muon, the study's own", "_adamw": "AdamW, the paper's"}


#: beginning of a cell's name -> how its tokens are made
_SPLITS = {"hard": "hard split", "performer": "soft split"}


def _short(name: Any) -> str:
    """A cell in words, as contrasts have it.

    >>> _short("small_performer_deep"), _short("small_conv_wide")
    ('soft split, deep', 'conv_wide')
    """
    kind, _, rest = str(name).removeprefix("small_").partition("_")
    return f"{_SPLITS[kind]}, {rest}" if kind in _SPLITS else str(name).removeprefix("small_")


def accuracy_by_cell(result: Result, runs: pd.DataFrame) -> Figure | None:
    """Every run as a diamond, every cell's mean with its interval over seeds.

    Parameters
    ----------
    result : of `training.effects.effects`; its rows "accuracy" at the whole training set are drawn.
    runs : rows of the study's table that the result rests on.
    """
    frame = result.frame
    cells = frame[(frame["quantity"] == "accuracy") & (frame["at"] == 1.0)]
    cells = cells.sort_values("value", ascending=False)
    whole = runs[runs["fraction"] == 1.0]
    single = {_short(n): list(rows["test_accuracy"].astype(float)) for n, rows in whole.groupby("model")}
    return forest(
        Result(result.measure, cells, result.meta), words=lambda row: _short(row["model"]), points=("a run", single),
        title="Accuracy by cell",
    )  # fmt: skip


def effect_plot(result: Result, smallest: float | None = None) -> Figure | None:
    """Effects on accuracy at the last length, in points with intervals; beside them the paper's, where it prints one.

    Parameters
    ----------
    result : of `training.effects.effects`.
    smallest : smallest effect that counts, as a fraction; drawn as a grey band.
    """
    frame = result.frame
    printed = frame[frame["quantity"].str.endswith("_published")]
    known = ~frame.index.isin(printed.index) & frame["low"].notna()
    effects = frame[(frame["quantity"] != "accuracy") & known]
    effects = effects[effects["at"].isna() & ~effects["quantity"].str.contains("_growth_per_")]
    names = effects["quantity"].astype(str)
    effects = effects[[quantity(name).unit == "points" and ":" not in name for name in names]]
    values = {
        str(q).removesuffix("_published"): float(v)
        for q, v in zip(printed["quantity"], printed["value"], strict=True)
    }
    lines = {"\n".join(textwrap.wrap(quantity(q).words, 44)): [v] for q, v in values.items()}
    return forest(
        Result(result.measure, effects, result.meta), smallest=smallest, title="What each factor does", across="points",
        points=("printed in the paper: single runs, ImageNet", lines),
        words=lambda row: quantity(str(row["quantity"])).words,
    )  # fmt: skip


def effects_by_length(result: Result, smallest: float) -> Figure | None:
    """Effects on accuracy over the length of training, at equal epochs, a panel for each optimiser.

    Nothing where there is a single length.

    Parameters
    ----------
    result : of `training.effects.effects`.
    smallest : smallest effect that counts, as a fraction; drawn as a grey band.
    """
    parts = result.frame["quantity"].str.extract(f"^(?P<of>.*)(?P<how>{'|'.join(_LENGTHS)})$")
    rows = result.frame.join(parts)[parts["how"].notna()]
    if rows["at"].nunique() < 2:
        return None
    panels = {how: rows[rows["how"] == how] for how in _LENGTHS if (rows["how"] == how).any()}
    names = list(dict.fromkeys(rows["of"]))
    ticks = sorted(rows["at"].unique())
    with use_style():
        fig, axes = new_axes(1, len(panels), width=8.0, height=4.0, sharex=True, sharey=True, squeeze=False)
        for ax, (how, drawn) in zip(axes.flat, panels.items(), strict=True):
            ax.axhspan(-100 * smallest, 100 * smallest, color=NULL["color"], alpha=0.2, linewidth=0)
            ax.axhline(0, color=NULL["color"], linewidth=0.8)
            for i, name in enumerate(names):
                one = shown(drawn[drawn["of"] == name].sort_values("at"))
                aside = 1 + 0.03 * (i - (len(names) - 1) / 2)  # lest intervals lie on one another
                x = aside * one["at"].to_numpy(float)
                error_bars(ax, x, one, **role(i), capsize=3, label=quantity(name).words)
            ax.set(xscale="log", xlabel="length of training (epochs)")
            ax.set_xticks(ticks, [f"{at:g}" for at in ticks])
            ax.minorticks_off()
            title_block(ax, _LENGTHS[how])
        axes[0, 0].set_ylabel("effect on top-1 accuracy (points)")
        axes[0, 0].set_ylim(*_span(rows))
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    words = caption(
        " ".join(_last(drawn, names[0], _LENGTHS[how]) for how, drawn in panels.items()),
        f"{how_sure(rows)}{_few(rows)} Grey: too small to count.",
        also=["Points are set aside a little, to be told apart."],
    )
    alt = (
        f"Effects of {len(names)} contrasts at {len(ticks)} lengths of training, a panel for each optimiser."
    )
    return finish(fig, rows.drop(columns=["how", "of"]), words, alt)


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis that holds all values, and all intervals but those of two seeds, which can be 100 points wide."""
    drawn = shown(rows)
    value, low, high = floats(drawn, "value", "low", "high")
    many = drawn["n"].to_numpy(float) > 2
    ends = np.concatenate([value, low[many], high[many]])
    margin = 0.05 * np.ptp(ends[np.isfinite(ends)])
    return float(np.nanmin(ends) - margin), float(np.nanmax(ends) + margin)


def _few(rows: pd.DataFrame) -> str:
    """What a caption says of points that rest on one seed or two."""
    two = " Of two seeds, bars may leave the picture." if (rows["n"] == 2).any() else ""
    return f"{' Without a bar: one seed.' if rows['low'].isna().any() else ''}{two}"


def _last(rows: pd.DataFrame, name: str, how: str) -> str:
    """An effect after the longest training."""
    row = rows[rows["of"] == name].sort_values("at").iloc[-1]
    about = quantity(name)
    return f"{how}: {about.words} {about.interval(row)} after {row['at']:g} epochs."


def learning_curves(curves: pd.DataFrame, runs: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Training loss and accuracy by epoch, a thin line a run.

    Parameters
    ----------
    curves : as `training.table.read_curves` returns them.
    runs : rows of the study's table; those of ``models`` on the whole training set are drawn.
    """
    chosen = runs[runs["model"].isin(list(models)) & (runs["fraction"] == 1.0)]
    drawn = curves.merge(chosen[["run", "model"]], on="run").sort_values("epoch")
    panels = {"train_loss": ("Training loss", "nats, labels smoothed", 1.0),
              "train_accuracy": ("Training accuracy", "% of crops", 100.0)}  # fmt: skip
    with use_style():
        fig, axes = new_axes(1, 2, width=8.0, height=3.4)
        for ax, (column, (title, unit, scale)) in zip(axes, panels.items(), strict=True):
            for _, rows in drawn.groupby("run"):
                style = role(list(models).index(str(rows["model"].iloc[0])))
                ax.plot(
                    rows["epoch"] + 1,
                    scale * rows[column].astype(float),
                    **style | {"linewidth": 0.8, "markersize": 0},
                )
            ax.set(xlabel="epoch", ylabel=unit)
            ax.xaxis.get_major_locator().set_params(integer=True)
            title_block(ax, title)
        handles = [
            handle(_short(name), **role(i) | {"markersize": 0})
            for i, name in enumerate(models)
            if name in set(drawn["model"])
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    last = drawn.groupby("run").tail(1)
    losses = {n: rows["train_loss"].astype(float).mean() for n, rows in last.groupby("model")}
    each = "; ".join(f"`{_short(name)}` {loss:.2f}" for name, loss in losses.items())
    words = caption(
        "Moving weights on augmented training images, a line a run.",
        also=[f"Mean loss of the last epoch: {each}."],
    )
    alt = f"Learning curves of {drawn['run'].nunique()} runs over {int(drawn['epoch'].max()) + 1} epochs."
    about = tidy([{"model": name, "weights": "trained by the study"} for name in models])
    return finish(fig, about, words, alt)
