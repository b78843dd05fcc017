"""What probes read at each depth, and tokens painted by their principal components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import DataError, UnknownNameError
from ..measures.token_components import TokenPCA
from ..results import Result, tidy
from .attribution import pick, picture, row_label, units
from .base import ROLES, Figure, finish, new_axes, role, title_block, use_style
from .similarity import interval, number

__all__ = ["pca_maps", "probe_curves"]

_WORDS = {"linear_accuracy": "linear probe", "knn_accuracy": "nearest neighbours"}


def probe_curves(result: Result) -> Figure:
    """Draw probe accuracy by layer with intervals, a panel for each kind, and what shuffled labels give."""
    frame = result.frame[result.frame["layer"].notna()]
    kinds = [q for q in _WORDS if q in set(frame["quantity"])]
    if not kinds:
        raise UnknownNameError(
            "quantity", "probe accuracy", [str(q) for q in result.frame["quantity"].unique()]
        )
    models = [str(m) for m in frame["model"].unique()]
    with use_style():
        fig, axes = new_axes(
            1, len(kinds), width=3.6 * len(kinds) + 0.4, height=3.6, sharey=True, squeeze=False
        )
        for ax, kind in zip(axes[0], kinds, strict=True):
            for position, model in enumerate(models):
                _curve(ax, pick(frame, quantity=kind, model=model).sort_values("layer"), position, model)
            _shuffled(ax, pick(frame, quantity=kind))
            title_block(ax, _WORDS[kind])
            ax.set_xlabel("layer")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_ylim(0, 1.02)
        axes[0, 0].set_ylabel("accuracy on the test split")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]  # what is no model comes last
        fig.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return finish(fig, frame, _caption(frame, kinds, models), _alt(frame, kinds, models))


def _curve(ax: Axes, rows: pd.DataFrame, position: int, label: str) -> None:
    x, y, low, high = (rows[c].to_numpy(float) for c in ("layer", "value", "low", "high"))
    ax.errorbar(x, y, yerr=[y - low, high - y], label=label, **role(position).style())


def _shuffled(ax: Axes, rows: pd.DataFrame) -> None:
    """What shuffled labels give, all models together."""
    null = rows.groupby("layer").agg({"null": "mean", "null_low": "min", "null_high": "max"})
    x = null.index.to_numpy(float)
    mean, low, high = (null[c].to_numpy(float) for c in ("null", "null_low", "null_high"))
    ax.fill_between(x, low, high, color=ROLES["null"].color, alpha=0.3, linewidth=0)
    ax.plot(x, mean, label="shuffled labels", **ROLES["null"].style())


def _best(frame: pd.DataFrame, kind: str, model: str) -> pd.Series:
    rows = pick(frame, quantity=kind, model=model)
    return rows.iloc[int(rows["value"].argmax())]


def _caption(frame: pd.DataFrame, kinds: Sequence[str], models: Sequence[str]) -> str:
    first, tokens = frame.iloc[0], frame["tokens"].iloc[0]
    what = {"pooled": "the mean patch token", "class": "the class token"}.get(str(tokens), str(tokens))
    found = "; ".join(
        f"{model}, {_WORDS[kind]}: {interval(row)} at layer {int(row['layer'])}"
        for kind in kinds for model in models for row in [_best(frame, kind, model)]
    )  # fmt: skip
    return (
        f"Accuracy of probes of {what}, trained on the training split, by layer; 95 % interval over "
        f"{units(first)} of the test split. Grey: {first['null_kind']}, all models. "
        f"Highest: {found}."
    )


def _alt(frame: pd.DataFrame, kinds: Sequence[str], models: Sequence[str]) -> str:
    ends = []
    for kind in kinds:
        for model in models:
            rows = pick(frame, quantity=kind, model=model).sort_values("layer")
            values = f"{number(rows['value'].iloc[0])} to {number(rows['value'].iloc[-1])}"
            ends.append(f"{model} {_WORDS[kind]} {values}")
    return "Probe accuracy over layers, first to last: " + "; ".join(ends) + "."


def pca_maps(
    pcas: TokenPCA | Sequence[TokenPCA], result: Result, images: Sequence[int] | None = None
) -> Figure:
    """Paint patch tokens by their first three principal components: images on top, a row for each model.

    ``result`` is that of `pca_result` for the same ``pcas``; the caption takes its shares of variance.
    """
    several = [pcas] if isinstance(pcas, TokenPCA) else list(pcas)
    if missing := [one.label for one in several if one.label not in set(result.frame["model"])]:
        raise DataError(f"the result of pca_result holds no rows of {missing}")
    shown = list(images if images is not None else range(min(6, len(several[0].images))))
    with use_style():
        side = 7.4 / len(shown)
        fig, axes = new_axes(
            len(several) + 1, len(shown), width=8.0, height=side * (len(several) + 1) + 0.3, squeeze=False
        )
        for ax, index in zip(axes[0], shown, strict=True):
            ax.imshow(picture(several[0].images[index]), interpolation="nearest")
        for line, one in zip(axes[1:], several, strict=True):
            for ax, index in zip(line, shown, strict=True):
                ax.imshow(one.rgb[index], interpolation="nearest")
            row_label(line[0], one.label)
        row_label(axes[0, 0], "image")
        for ax in np.ravel(axes):
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
    shares = "; ".join(_shares(result.frame[result.frame["model"] == one.label], one) for one in several)
    n = len(several[0].images)
    places = " and ".join(dict.fromkeys(one.place for one in several))
    caption = (
        f"Patch tokens ({places}) by their first three principal components as red, green and blue, from all "
        f"tokens of {n} images of a model together: within a row one colour is one direction, between rows "
        "colours do not correspond. "
        f"Variance explained by the three: {shares}."
    )
    frame = tidy(result.frame)
    names = " and ".join(one.label for one in several)
    alt = f"{len(shown)} images and their tokens for {names}, coloured by three principal components."
    return finish(fig, frame, caption, alt)


def _shares(rows: pd.DataFrame, one: TokenPCA) -> str:
    parts = ", ".join(interval(row) for _, row in rows.sort_values("at").head(3).iterrows())
    null = ", ".join(number(x) for x in rows.sort_values("at")["null"].head(3))
    return f"{one.label} {parts} (channels shuffled: {null})"
