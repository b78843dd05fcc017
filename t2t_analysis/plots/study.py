"""The controlled study: accuracy by cell, effects, learning curves, fractions of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..results import Result
from .base import PALETTE, ROLES, Figure, Role, finish, new_axes, role, title_block, use_style

__all__ = ["accuracy_by_cell", "effect_plot", "fraction_curves", "learning_curves"]

_POINTS = 100.0  # fractions are drawn in percent, differences in points


def _percent(row: Any) -> str:
    value = f"{_POINTS * row['value']:.1f}"
    if pd.isna(row["low"]):
        return value.replace("-", "−")
    return f"{value} [{_POINTS * row['low']:.1f}, {_POINTS * row['high']:.1f}]".replace("-", "−")


def _whiskers(rows: pd.DataFrame) -> np.ndarray:
    """(2, n) lengths below and above, in percent; 0 where there is no interval."""
    value = rows["value"].to_numpy(float)
    ends = [value - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - value]
    return _POINTS * np.clip(np.nan_to_num(np.array(ends, dtype=float)), 0, None)


def _short(name: Any) -> str:
    return str(name).removeprefix("small_")


def accuracy_by_cell(result: Result, runs: pd.DataFrame) -> Figure:
    """Every run as a dot, every cell's mean with its interval over seeds.

    Parameters
    ----------
    result : of `training.effects.effects`; its rows "accuracy" at the whole training set are drawn.
    runs : rows of the study's table that the result rests on.
    """
    cells = result.frame[(result.frame["quantity"] == "accuracy") & (result.frame["at"] == 1.0)]
    cells = cells.sort_values("value").reset_index(drop=True)
    runs = runs[runs["fraction"] == 1.0]
    with use_style():
        fig, ax = new_axes(width=7.4, height=1.3 + 0.36 * len(cells))
        for height, (_, row) in enumerate(cells.iterrows()):
            dots = runs.loc[runs["model"] == row["model"], "test_accuracy"].to_numpy(float)
            ax.plot(
                _POINTS * dots,
                np.full(len(dots), float(height)),
                "o",
                color=PALETTE["sky"],
                markersize=5,
                alpha=0.8,
            )
        y = np.arange(len(cells))
        ax.errorbar(
            _POINTS * cells["value"].to_numpy(float), y, xerr=_whiskers(cells), **ROLES["model"]._replace(
                linestyle="", marker="|"
            ).style(), markersize=12,
        )  # fmt: skip
        chance = _POINTS * float(cells["null"].mean())
        ax.axvline(chance, **ROLES["null"]._replace(marker="").style())
        ax.annotate(" chance", (chance, len(cells) - 0.6), fontsize=8, color=PALETTE["grey"], ha="left")
        ax.set_yticks(y, [_short(name) for name in cells["model"]])
        ax.set_ylim(-0.6, len(cells) - 0.4)
        ax.set_xlim(left=0)
        ax.set_xlabel("test accuracy (% of test images)")
        title_block(ax, "Accuracy by cell", "dots: runs; bars: mean over seeds with 95 % interval")
    each = "; ".join(
        f"`{_short(row['model'])}` {_percent(row)}, n = {int(row['n'])}" for _, row in cells[::-1].iterrows()
    )
    caption = (
        f"Top-1 test accuracy in percent: {each}. Unit: seed; intervals: Student's t over seeds. Chance (commonest "
        f"class): {chance:.1f} %."
    )
    best = cells.iloc[-1]
    alt = (
        f"Dot plot of test accuracy of {len(cells)} kinds of model; highest {_short(best['model'])} "
        f"{_percent(best)} percent."
    )
    return finish(fig, cells, caption, alt)


#: quantity -> words on the axis
_EFFECTS = {
    "tokeniser_effect": "soft − hard, both backbones",
    "tokeniser_effect_deep": "soft − hard, deep",
    "tokeniser_effect_wide": "soft − hard, wide",
    "backbone_effect": "deep − wide, both tokenisers",
    "backbone_effect_hard": "deep − wide, hard",
    "backbone_effect_performer": "deep − wide, soft",
    "interaction": "interaction: extra gain of soft when deep",
    "t2t_minus_vit": "T2T-ViT − ViT: soft deep − hard wide",
    "performer_minus_convolution": "soft − convolutions, both backbones",
    "performer_minus_convolution_deep": "soft − convolutions, deep",
    "transformer_minus_performer": "transformer − performer tokens",
    "convolution_minus_hard": "convolutions − hard",
    "se_effect_performer": "squeeze-and-excitation, soft",
    "dense_effect_performer": "dense, soft",
    "ghost_effect_performer": "ghost, soft",
    "resnext_effect_performer": "more heads, soft",
    "gap_growth_per_halving": "growth of the gap per halving of the data",
}


def effect_plot(result: Result, smallest: float | None = None) -> Figure:
    """Every effect on accuracy in points with its interval; beside it the paper's, where it prints one.

    Parameters
    ----------
    result : of `training.effects.effects`.
    smallest : smallest effect that counts, as a fraction; drawn as a grey band.
    """
    frame = result.frame.set_index("quantity", drop=False)
    names = [name for name in _EFFECTS if name in frame.index]
    rows = frame.loc[names].reset_index(drop=True)
    y = np.arange(len(rows))[::-1]
    printed = {
        name: float(frame["value"][f"{name}_published"])
        for name in names
        if f"{name}_published" in frame.index
    }
    with use_style():
        fig, ax = new_axes(width=7.8, height=1.6 + 0.33 * len(rows))
        if smallest is not None:
            ax.axvspan(
                -_POINTS * smallest, _POINTS * smallest, color=PALETTE["grey"], alpha=0.18, linewidth=0
            )
        ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
        ours = ROLES["model"]._replace(linestyle="").style()
        ax.errorbar(
            _POINTS * rows["value"].to_numpy(float), y, xerr=_whiskers(rows), label="here, over seeds", **ours
        )
        ax.plot(
            [_POINTS * printed[n] for n in names if n in printed],
            [y[i] for i, n in enumerate(names) if n in printed],
            "D", color=PALETTE["vermillion"], markerfacecolor="none", markersize=7,
            label="printed in the paper: single runs, ImageNet",
        )  # fmt: skip
        ax.set_yticks(y, [_EFFECTS[name] for name in names])
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel("difference in test accuracy (points)")
        fig.legend(loc="outside lower center", ncols=2)
        title_block(
            ax,
            "What each factor does",
            "" if smallest is None else f"grey: smaller than ±{_POINTS * smallest:g} point",
        )
    each = "; ".join(
        f"{_EFFECTS[str(row['quantity'])]} {_percent(row)}{_p(row['p'])}" for _, row in rows.iterrows()
    )
    caption = (
        f"Differences in points: {each}. Null: 0. Unit: seed; least squares with a mean per cell, Student's t, p not "
        "corrected. The paper's differences are of single runs of far larger models on other data: compare signs, "
        "not sizes."
    )
    alt = (
        f"Intervals of {len(rows)} effects on accuracy. {_EFFECTS[names[0]]}: {_percent(rows.iloc[0])} points."
        if names
        else "No effect."
    )
    return finish(fig, rows, caption, alt)


def _p(p: Any) -> str:
    if pd.isna(p):
        return " (no p)"
    return " (p < 0.001)" if p < 0.001 else f" (p = {float(p):.3f})"


def fraction_curves(result: Result, models: Sequence[str]) -> Figure:
    """Accuracy against the share of the training images, a line a model, intervals over seeds."""
    frame = result.frame[(result.frame["quantity"] == "accuracy") & result.frame["model"].isin(list(models))]
    with use_style():
        fig, ax = new_axes(width=6.2, height=3.6)
        for position, name in enumerate(models):
            rows = frame[frame["model"] == name].sort_values("at")
            x = _POINTS * rows["at"].to_numpy(float)
            ax.errorbar(
                x,
                _POINTS * rows["value"].to_numpy(float),
                yerr=_whiskers(rows),
                label=_short(name),
                **role(position).style(),
            )
        shares = sorted({float(at) for at in frame["at"]})
        ax.set_xscale("log")
        ax.set_xticks([_POINTS * at for at in shares], [f"{_POINTS * at:g}" for at in shares])
        ax.minorticks_off()
        ax.set_xlabel("share of the training images (%, logarithmic)")
        ax.set_ylabel("test accuracy (%)")
        ax.legend()
        title_block(ax, "Does the gap grow as data shrink?", "the number of steps is the same at every share")
    each = "; ".join(
        f"`{_short(row['model'])}` at {_POINTS * row['at']:g} %: {_percent(row)}, n = {int(row['n'])}"
        for _, row in frame.sort_values(["model", "at"]).iterrows()
    )
    caption = (
        f"Top-1 test accuracy in percent by share of the training images: {each}. Unit: seed; bars: 95 %, "
        "Student's t."
    )
    names = " and ".join(map(_short, models))
    return finish(
        fig,
        frame,
        caption,
        f"Lines of test accuracy over {len(shares)} shares of the training images for {names}.",
    )


def learning_curves(curves: pd.DataFrame, runs: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Training loss by epoch, a thin line a run.

    Parameters
    ----------
    curves : as `training.table.read_curves` returns them.
    runs : rows of the study's table; those of ``models`` on the whole training set are drawn.
    """
    chosen = runs[runs["model"].isin(list(models)) & (runs["fraction"] == 1.0)]
    drawn = curves.merge(chosen[["run", "model"]], on="run")
    looks: dict[str, Role] = {name: role(i) for i, name in enumerate(models)}
    with use_style():
        fig, axes = new_axes(1, 2, width=8.6, height=3.6)
        for run, rows in drawn.groupby("run"):
            _curve(axes, rows.sort_values("epoch"), looks[str(rows["model"].iloc[0])], str(run))
        for ax, words in zip(
            axes,
            ("training loss (nats, labels smoothed)", "training accuracy (% of crops)"),
            strict=True,
        ):
            ax.set_xlabel("epoch")
            ax.set_ylabel(words)
            ax.xaxis.get_major_locator().set_params(integer=True)
        handles = [
            axes[0].plot([], [], label=_short(name), **look.style())[0] for name, look in looks.items()
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        title_block(axes[0], "Learning curves", "a line a run")
    last = drawn.sort_values("epoch").groupby("run").tail(1)
    each = "; ".join(
        f"`{_short(name)}` {rows['train_loss'].astype(float).mean():.2f} over {len(rows)} runs"
        for name, rows in last.groupby("model")
    )
    caption = (
        "Loss and accuracy of the moving weights on augmented training images, one line a run. An epoch has as many "
        f"images as the training set. Mean loss of the last epoch: {each}."
    )
    blank = pd.DataFrame({"model": list(models), "model_b": None, "weights": "trained by the study"})
    return finish(
        fig,
        blank,
        caption,
        f"Learning curves of {drawn['run'].nunique()} runs over {int(drawn['epoch'].max()) + 1} epochs: "
        "training loss and accuracy.",
    )


def _curve(axes: Sequence[Axes], rows: pd.DataFrame, look: Role, run: str) -> None:
    style = look.style() | {"linewidth": 0.9, "markersize": 3, "alpha": 0.8}
    epochs = rows["epoch"].to_numpy(float) + 1
    axes[0].plot(epochs, rows["train_loss"].to_numpy(float), **style)
    axes[1].plot(epochs, _POINTS * rows["train_accuracy"].to_numpy(float), **style)
