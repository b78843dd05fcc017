"""The controlled study: accuracy by cell with every run, effects beside the paper's, learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..quantities import quantity
from ..results import Result, tidy
from .base import Figure, finish, new_axes, role, title_block, use_style
from .forests import forest
from .series import caption, handle


def _short(name: Any) -> str:
    return str(name).removeprefix("small_")


def accuracy_by_cell(result: Result, runs: pd.DataFrame) -> Figure | None:
    """Every run as a diamond, every cell's mean with its interval over seeds.

    Parameters
    ----------
    result : of `training.effects.effects`; its rows "accuracy" at the whole training set are drawn.
    runs : rows of the study's table that the result rests on.
    """
    frame = result.frame
    cells = frame[(frame["quantity"] == "accuracy") & (frame["at"] == 1.0)].sort_values(
        "value", ascending=False
    )
    whole = runs[runs["fraction"] == 1.0]
    single = {
        _short(name): list(rows["test_accuracy"].astype(float)) for name, rows in whole.groupby("model")
    }
    return forest(
        Result(result.measure, cells, result.meta), words=lambda row: _short(row["model"]), points=("a run", single),
        title="Accuracy by cell",
    )  # fmt: skip


def effect_plot(result: Result, smallest: float | None = None) -> Figure | None:
    """Every effect on accuracy in points with its interval; beside it the paper's, where it prints one.

    Parameters
    ----------
    result : of `training.effects.effects`.
    smallest : smallest effect that counts, as a fraction; drawn as a grey band.
    """
    frame = result.frame
    printed = frame[frame["quantity"].str.endswith("_published")]
    effects = frame[
        (frame["quantity"] != "accuracy") & ~frame.index.isin(printed.index) & frame["low"].notna()
    ]
    effects = effects[
        [quantity(str(name)).unit == "points" and ":" not in str(name) for name in effects["quantity"]]
    ]
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
                style = role(list(models).index(str(rows["model"].iloc[0])) % 6).style()
                ax.plot(
                    rows["epoch"] + 1,
                    scale * rows[column].astype(float),
                    **style | {"linewidth": 0.8, "markersize": 0},
                )
            ax.set(xlabel="epoch", ylabel=unit)
            ax.xaxis.get_major_locator().set_params(integer=True)
            title_block(ax, title)
        handles = [
            handle(_short(name), **role(i % 6).style() | {"markersize": 0})
            for i, name in enumerate(models)
            if name in set(drawn["model"])
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    last = drawn.groupby("run").tail(1)
    each = "; ".join(
        f"`{_short(n)}` {rows['train_loss'].astype(float).mean():.2f}" for n, rows in last.groupby("model")
    )
    words = caption(
        "Moving weights on augmented training images, a line a run.",
        also=[f"Mean loss of the last epoch: {each}."],
    )
    alt = f"Learning curves of {drawn['run'].nunique()} runs over {int(drawn['epoch'].max()) + 1} epochs."
    return finish(
        fig, tidy([{"model": name, "weights": "trained by the study"} for name in models]), words, alt
    )
