"""What heads do, head by head, and whether heads that are alike do less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..quantities import Quantity, p_words, plural, quantity
from ..results import Result
from .base import PALETTE, Figure, finish, new_axes, role, title_block, use_style
from .maps import Map, draw_maps
from .series import (
    caption,
    floats,
    handle,
    how_sure,
    legend,
    limits,
    null_kind,
    null_words,
    own_models,
    panel_grid,
    rows_of,
    shown,
    whiskers,
)

ALPHA = 0.05
#: what heads are compared by, and what taking one out does
_ALIKE, _EFFECT = "cosine_centred", "kl"


def head_effects(result: Result, name: str = "kl", *, variant: str | None = None) -> Figure:
    """What taking out each head does, a row a model: a map of layers by heads, and the heads in order with their nulls.

    Models share the scale of the maps and that of the values, logarithmic where one head would squash the others. A
    cross, and a ring, mark heads whose p, corrected by Holm over all heads of the model, is below 0.05.

    Parameters
    ----------
    result : of `HeadAblation`.
    name : the quantity.
    variant : kind of ablation; the first of the result when left out.

    Raises
    ------
    UnknownNameError
        what the result does not have.
    """
    names = own_models(result)
    drawn = {model: _marked(result, _heads(result, name, model, variant), name, variant) for model in names}
    whole = pd.concat(drawn.values())
    look = quantity(name)
    with use_style():
        fig, axes = new_axes(
            len(names), 2, width=8.6, height=3.0 * len(names) + 0.6, squeeze=False, width_ratios=(1, 1.7)
        )
        maps = [_map(frame, model) for model, frame in drawn.items()]
        log = limits(axes[:, 1], [shown(frame) for frame in drawn.values()])
        draw_maps(fig, axes[:, 0], maps, look.label, log=log)
        for number, (ax, frame) in enumerate(zip(axes[:, 1], drawn.values(), strict=True)):
            _in_order(ax, shown(frame), number, log)
            ax.set_xlabel(f"{len(frame)} heads, the largest effect first (layer.head)")
        ring = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markersize": 7}
        words = f"Holm p < {ALPHA:g}"
        legend(fig, [], [handle(words, color=PALETTE["black"], **ring)] if whole["marked"].any() else [])
    return finish(fig, whole.drop(columns="marked"), *_effect_words(drawn, look, whole))


def _heads(result: Result, name: str, model: str, variant: str | None) -> pd.DataFrame:
    return rows_of(result, quantity=name, model=model, variant=variant).drop_duplicates(["layer", "head"])


def _marked(result: Result, heads: pd.DataFrame, name: str, variant: str | None) -> pd.DataFrame:
    """Heads with a column that marks those with a corrected p below 0.05; none where there is no test."""
    tests = result.frame[result.frame["quantity"] == f"{name}_p_holm"]
    tests = tests[tests["variant"] == variant] if variant else tests
    small = tests[tests["value"] < ALPHA]
    key = ["model", "layer", "head"]
    return heads.assign(
        marked=pd.MultiIndex.from_frame(heads[key]).isin(pd.MultiIndex.from_frame(small[key]))
    )


def _map(frame: pd.DataFrame, title: str) -> Map:
    """(L, H) of the values, NaN where a layer has fewer heads."""
    wide = shown(frame).pivot(index="layer", columns="head", values=["value", "marked"])
    cells, marked = (
        wide["value"].to_numpy(float, na_value=np.nan),
        wide["marked"].fillna(False).to_numpy(bool),
    )
    return Map(cells, list(wide.index), list(wide["value"]), title, marked, across="head")


def _in_order(ax: Axes, frame: pd.DataFrame, number: int, log: bool) -> None:
    rows = frame.sort_values("value", ascending=False, kind="stable")
    value, null, null_low, null_high = floats(rows, "value", "null", "null_low", "null_high")
    x = np.arange(len(rows))
    floor = ax.get_ylim()[0] if log else -np.inf
    ax.fill_between(
        x, np.maximum(null_low, floor), null_high, step="mid", color=PALETTE["grey"], alpha=0.25, linewidth=0
    )
    ax.plot(x, null, color=PALETTE["grey"], linestyle=":", drawstyle="steps-mid")
    dots = {"linestyle": "", "elinewidth": 0.8, "markersize": 3, "capsize": 0}
    ax.errorbar(x, value, whiskers(rows), **(role(number) | dots))
    at = rows["marked"].to_numpy()
    ax.scatter(x[at], value[at], s=40, facecolors="none", edgecolors="black", linewidths=1.0, zorder=3)
    near: Any = {"xytext": (6, 2), "textcoords": "offset points", "fontsize": 9}
    ax.annotate(f"{rows['layer'].iloc[0]}.{rows['head'].iloc[0]}", (0, value[0]), **near)
    ax.set_xticks([])


def _effect_words(drawn: Mapping[str, pd.DataFrame], look: Quantity, whole: pd.DataFrame) -> tuple[str, str]:
    tops = {model: frame.iloc[int(frame["value"].astype(float).argmax())] for model, frame in drawn.items()}
    each = "; ".join(
        f"`{m}` layer {int(row['layer'])}, head {int(row['head'])}, {look.interval(row)}"
        for m, row in tops.items()
    )
    counts = ", ".join(f"{f['marked'].sum()} of {len(f)} in `{m}`" for m, f in drawn.items())
    tested = f"Marked: p < {ALPHA:g} after Holm, {counts}." if whole["marked"].any() else ""
    words = caption(
        f"{look.title} without one head. Largest: {each}.", tested, also=[how_sure(whole), null_words(whole)]
    )
    return words, f"Map and ordered values of {look.words} for every head. Largest: {each}."


# ------------------------------------------------------------------------------------------------ head against head


def similarity_against_effect(
    similarity: Result, ablation: Result, association: Result, *, variant: str | None = None
) -> Figure:
    """Every head, a panel a model: its largest similarity to another head of its layer against what taking it out does.

    Parameters
    ----------
    similarity, ablation : what ``association``, of `similarity_is_redundancy`, was made from.
    variant : kind of ablation; the first of the result when left out.
    """
    names, drawn = own_models(ablation), {}
    for model in names:
        pairs = rows_of(similarity, quantity=_ALIKE, model=model)
        rows = _heads(ablation, _EFFECT, model, variant)
        drawn[model] = rows.assign(
            x=_largest(pairs).reindex(pd.MultiIndex.from_frame(rows[["layer", "head"]])).to_numpy()
        )
    within = "similarity_effect_spearman_within_layers"  # what the verdict rests on
    found = {model: rows_of(association, quantity=within, model=model).iloc[0] for model in names}
    spearman = {model: quantity(str(row["quantity"])).interval(row) for model, row in found.items()}
    with use_style():
        across = f"largest {quantity(_ALIKE).label} to a head of its layer"
        fig, _ = _scatter(drawn, across, quantity(_EFFECT).label)
    whole = pd.concat([frame.drop(columns="x") for frame in drawn.values()])
    row = next(iter(found.values()))
    each = "; ".join(f"`{m}` {spearman[m]}, {p_words(found[m]['p'])}" for m in names)
    words = caption(
        f"If heads that are alike were redundant, the points of a layer would fall. Spearman within layers: {each}.",
        how_sure(whole), also=[f"Null: {null_kind(row)}."],
    )  # fmt: skip
    what = f"{quantity(_EFFECT).words} against {quantity(_ALIKE).words}, a dot a head"
    return finish(fig, whole, words, f"Scatter of {what}. Spearman: {each}.")


def _largest(pairs: pd.DataFrame) -> pd.Series:
    """Largest value of each head over its pairs within the layer, by (layer, head)."""
    own = pairs[_within(pairs)]
    both = pd.concat([own, own.assign(head=own["head_b"])])
    return both.groupby(["layer", "head"])["value"].max()


def _within(frame: pd.DataFrame) -> pd.Series:
    return (frame["head"].notna() & (frame["layer"] == frame["layer_b"])).fillna(False).astype(bool)


def _scatter(drawn: Mapping[str, pd.DataFrame], x_label: str, y_label: str) -> Any:
    """Values over the column ``x``, coloured by layer, a panel a model, with one colour bar and one scale."""
    fig, axes = panel_grid(len(drawn), across=len(drawn), width=8.6, height=3.0, sharex=True, sharey=True)
    top = max(float(frame["layer"].max()) for frame in drawn.values())
    limits(axes, [shown(frame) for frame in drawn.values()])
    axes[0].set_ylabel(y_label)
    for ax, (model, frame) in zip(axes, drawn.items(), strict=True):
        ax.set_xlabel(x_label)
        rows, x = shown(frame), frame["x"].to_numpy(float)
        y, layer = floats(rows, "value", "layer")
        ax.errorbar(x, y, whiskers(rows), linestyle="", color=PALETTE["grey"], elinewidth=0.6, capsize=0)
        look = {"c": layer, "cmap": "cividis", "vmin": 0, "vmax": top}
        dots = ax.scatter(x, y, s=20, zorder=3, edgecolors="white", linewidths=0.3, **look)
        title_block(ax, model)
    fig.colorbar(dots, ax=list(axes), label="layer")
    return fig, list(axes)


def maps_against_outputs(similarity: Result, outputs: Result) -> Figure:
    """Every two heads of a layer, a panel a model: centred cosine of their maps against CKA of their outputs.

    Heads can look at the same place and write different things, and the other way round. ``similarity`` is of
    `HeadSimilarity`, ``outputs`` of `HeadOutputCKA`.
    """
    key, drawn = ["layer", "head", "layer_b", "head_b"], {}
    for model in own_models(outputs):
        maps = rows_of(similarity, quantity=_ALIKE, model=model)
        out = rows_of(outputs, quantity="head_output_cka", model=model, tokens="pooled")
        x = maps[_within(maps)][[*key, "value"]].rename(columns={"value": "x"})
        drawn[model] = out[_within(out)].merge(x, on=key).assign(low=np.nan, high=np.nan)
    with use_style():
        fig, axes = _scatter(drawn, quantity(_ALIKE).words, quantity("head_output_cka").words)
        for ax, frame in zip(axes, drawn.values(), strict=True):
            ax.axhline(frame["null_high"].astype(float).mean(), color=PALETTE["grey"], linestyle=":")
            ax.axvline(0, color=PALETTE["black"], linewidth=0.6)
    each = "; ".join(f"`{m}` {len(f)} pairs" for m, f in drawn.items())
    row = next(iter(drawn.values())).iloc[0]
    words = caption(
        f"Every two heads of one layer: are maps alike, outputs alike? {each}; n = {plural(row['n'], row['unit'])}.",
        f"Dotted: 97.5 % point of the null, {null_kind(row)} (mean over pairs).",
    )  # fmt: skip
    whole = pd.concat([frame.drop(columns="x") for frame in drawn.values()])
    alt = f"Scatter of CKA of head outputs against cosine of their attention maps, a dot two heads of a layer. {each}."
    return finish(fig, whole, words, alt)
