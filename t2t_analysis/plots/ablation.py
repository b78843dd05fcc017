"""What heads do, head by head; whether similar heads do less; and what happens as many of them go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import UnknownNameError
from ..results import Result
from .base import (
    DIVERGING,
    PALETTE,
    ROLES,
    SEQUENTIAL,
    Figure,
    estimated,
    finish,
    new_axes,
    role,
    title_block,
    use_style,
)
from .similarity import QUANTITIES, interval, number, rows_of

__all__ = [
    "effects_by_kind",
    "head_effects",
    "layer_effects",
    "pruning_curves",
    "similarity_against_effect",
]

#: quantity -> words, unit in the label, colours, whether it has a sign
EFFECTS = {
    "kl": ("KL divergence from the full model", "KL (nats)"),
    "loss_change": ("change of the loss", "loss change (nats)"),
    "accuracy_change": ("change of accuracy", "accuracy change"),
    "prediction_change": ("images whose predicted class changes", "fraction of images"),
    "output_shift": ("change of the output", "fraction of variance"),
    "importance": ("importance by gradients", "importance (layer norm 1)"),
    "importance_label_free": ("importance by gradients, without labels", "importance (layer norm 1)"),
}
SIGNED = {"loss_change", "accuracy_change"}
ALPHA = 0.05


def _effect_rows(result: Result, quantity: str, model: str | None, starts: str) -> pd.DataFrame:
    if quantity not in EFFECTS:
        raise UnknownNameError("effect", quantity, EFFECTS)
    frame = rows_of(result, quantity, model)
    return frame[frame["estimator"].str.startswith(starts)].drop_duplicates(["layer", "head"])


def _corrected(result: Result, quantity: str, frame: pd.DataFrame) -> pd.DataFrame | None:
    """Holm's p of the same heads and the same estimator, None where the result has none."""
    name, first = f"{quantity}_p_holm", frame.iloc[0]
    rows = result.frame[(result.frame["quantity"] == name) & (result.frame["model"] == first["model"])]
    rows = rows[rows["estimator"].str.endswith(str(first["estimator"]))]
    return rows if len(rows) else None


def _table(frame: pd.DataFrame, column: str = "value") -> tuple[np.ndarray, list[int]]:
    """(L, H) of one column, NaN where a layer has fewer heads, and the layer numbers."""
    layers = sorted(frame["layer"].astype(int).unique())
    table = np.full((len(layers), int(frame["head"].max()) + 1), np.nan)
    rows = frame["layer"].astype(int).map({layer: i for i, layer in enumerate(layers)})
    table[rows, frame["head"].astype(int)] = frame[column].to_numpy(float, na_value=np.nan)
    return table, layers


# ------------------------------------------------------------------------------------------- head by head


def head_effects(result: Result, quantity: str = "kl", model: str | None = None, *, mode: str = "") -> Figure:
    """What taking out each head does: a map of layers by heads, beside the heads in order with their nulls.

    A ring marks heads whose p, corrected by Holm over all heads of the model, is below 0.05. On the right the
    heads in order of their effect with 95 % intervals, and what a random subspace does instead.

    Parameters
    ----------
    result : of `HeadAblation`.
    quantity : one of ``EFFECTS``.
    mode : how the estimator begins ("mean", "zero", "resample") where the result holds several.

    Raises UnknownNameError for what the result does not have.
    """
    frame = _effect_rows(result, quantity, model, mode)
    marked = _marks(result, quantity, frame)
    with use_style():
        fig, (left, right) = new_axes(1, 2, width=8.6, height=4.0, width_ratios=(1, 1.6))
        _draw_map(fig, left, frame, quantity, marked)
        _draw_sorted(right, frame, quantity, marked)
        title_block(left, _words(quantity), f"{frame.iloc[0]['model']}; rows: layers, columns: heads")
        fig.legend(loc="outside lower right", ncols=3)
    return finish(
        fig, frame, _effects_caption(frame, quantity, marked), _effects_alt(frame, quantity, marked)
    )


def _words(quantity: str) -> str:
    words = EFFECTS[quantity][0]
    return words[0].upper() + words[1:]


def _marks(result: Result, quantity: str, frame: pd.DataFrame) -> set[tuple[int, int]] | None:
    """Heads with a corrected p below 0.05, None where there is no test."""
    rows = _corrected(result, quantity, frame)
    if rows is None:
        return None
    low = rows[rows["value"] < ALPHA]
    return {(int(layer), int(head)) for layer, head in low[["layer", "head"]].to_numpy()}


def _draw_map(
    fig: Any, ax: Axes, frame: pd.DataFrame, quantity: str, marked: set[tuple[int, int]] | None
) -> None:
    table, layers = _table(frame)
    most = float(np.nanmax(np.abs(table))) or 1.0
    signed = quantity in SIGNED
    cmap = matplotlib.colormaps[DIVERGING if signed else SEQUENTIAL].with_extremes(bad="#c8c8c8")
    image = ax.imshow(table, cmap=cmap, vmin=-most if signed else 0, vmax=most, aspect="auto")
    ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    ax.set_xticks(range(table.shape[1]))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    where = [(layers.index(layer), head) for layer, head in marked or ()]
    if where:
        y, x = zip(*where, strict=True)
        ax.scatter(x, y, s=42, facecolors="none", edgecolors="black", linewidths=2.4)
        ax.scatter(x, y, s=42, facecolors="none", edgecolors="white", linewidths=1.1)
    fig.colorbar(image, ax=ax)


def _draw_sorted(ax: Axes, frame: pd.DataFrame, quantity: str, marked: set[tuple[int, int]] | None) -> None:
    rows = frame.sort_values("value", ascending=False, kind="stable")
    value, low, high, null, null_low, null_high = (
        rows[c].to_numpy(float, na_value=np.nan)
        for c in ("value", "low", "high", "null", "null_low", "null_high")
    )
    x, look = np.arange(len(rows)), ROLES["model"]
    ax.fill_between(x, null_low, null_high, step="mid", color=PALETTE["grey"], alpha=0.25, linewidth=0)
    ax.plot(x, null, color=PALETTE["grey"], linestyle=":", drawstyle="steps-mid", label="random subspace")
    ax.errorbar(x, value, [value - low, high - value], color=look.color, marker=look.marker, linestyle="",
                elinewidth=1.0, markersize=3.5, capsize=0, label="head")  # fmt: skip
    keys = [(int(layer), int(head)) for layer, head in rows[["layer", "head"]].to_numpy()]
    at = [i for i, key in enumerate(keys) if key in (marked or ())]
    if at:
        ax.scatter(at, value[at], s=42, facecolors="none", edgecolors="black", linewidths=1.0, zorder=3,
                   label=f"Holm p < {ALPHA:g}")  # fmt: skip
    for i, (layer, head) in enumerate(keys[:3]):
        ax.annotate(f"{layer}.{head}", (x[i], np.nanmax([value[i], high[i]])), xytext=(0, 3), rotation=90,
                    textcoords="offset points", ha="center", va="bottom", fontsize=9)  # fmt: skip
    ax.axhline(0, color=PALETTE["black"], linewidth=0.6)
    ax.set_xticks([])
    ax.set_xlabel(f"{len(rows)} heads, the largest effect first (layer.head)")
    ax.set_ylabel(EFFECTS[quantity][1])


def _effects_caption(frame: pd.DataFrame, quantity: str, marked: set[tuple[int, int]] | None) -> str:
    row = frame.iloc[0]
    top = frame.iloc[int(frame["value"].astype(float).argmax())]
    tested = "" if marked is None else (
        f" Rings: {len(marked)} of {len(frame)} heads with p < {ALPHA:g} after Holm over {len(frame)} heads "
        f"({str(row['estimator']).split('; ')[-1]}).")  # fmt: skip
    return (
        f"{_words(quantity)} when one head of `{row['model']}` is taken out ({row['estimator']}): largest in layer "
        f"{int(top['layer'])}, head {int(top['head'])}, {interval(top)}; mean over heads "
        f"{number(frame['value'].astype(float).mean())}, of the null {number(frame['null'].astype(float).mean())}. "
        f"Null: {str(row['null_kind']).split(';')[0]}.{tested} Bars and band: 95 % intervals "
        f"({estimated(row)}); n = {int(row['n'])} {row['unit']}s."
    )


def _effects_alt(frame: pd.DataFrame, quantity: str, marked: set[tuple[int, int]] | None) -> str:
    values = frame["value"].astype(float)
    return (
        f"Map of {EFFECTS[quantity][0]} for {len(frame)} heads of {frame.iloc[0]['model']}, and the heads in order: "
        f"{number(values.min())} to {number(values.max())}, null {number(frame['null'].astype(float).mean())} on "
        f"average; {'no test' if marked is None else f'{len(marked)} significant'}."
    )


# ------------------------------------------------------------------------------------------- kinds, layers


def effects_by_kind(result: Result, quantity: str = "kl", models: Sequence[str] | None = None) -> Figure:
    """Effect of every head by each kind of ablation, a panel a model, heads in order of the first kind.

    With 95 % intervals; dotted, in the same colour, what a random subspace does. ``result`` is of `HeadAblation`,
    of several kinds.
    """
    whole = result.frame[result.frame["quantity"] == quantity]
    whole = whole.assign(kind=whole["estimator"].str.split(" ").str[0])
    names = list(models or whole["model"].unique())
    with use_style():
        fig, axes = new_axes(
            1, len(names), width=1.0 + 3.9 * len(names), height=4.0, sharey=True, squeeze=False
        )
        for ax, name in zip(axes[0], names, strict=True):
            _draw_kinds(ax, whole[whole["model"] == name])
            title_block(ax, name)
        axes[0][0].set_ylabel(EFFECTS[quantity][1])
        _log_if_positive(axes[0], whole)
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    frame = whole[whole["model"].isin(names)]
    return finish(
        fig, frame.drop(columns="kind"), _kinds_caption(frame, quantity), _kinds_alt(frame, quantity)
    )


def _draw_kinds(ax: Axes, frame: pd.DataFrame) -> None:
    heads = ["layer", "head"]
    first = frame[frame["kind"] == frame["kind"].iloc[0]]
    order = first.sort_values("value", ascending=False, kind="stable")[heads].reset_index(drop=True)
    kinds = list(frame["kind"].unique())
    for position, kind in enumerate(kinds):
        rows = order.merge(frame[frame["kind"] == kind], on=heads, how="left")
        value, low, high, null = (
            rows[c].to_numpy(float, na_value=np.nan) for c in ("value", "low", "high", "null")
        )
        x = np.arange(len(rows)) + 0.25 * (position - (len(kinds) - 1) / 2)
        look = role(position)
        ax.errorbar(x, value, [value - low, high - value], color=look.color, marker=look.marker, linestyle="",
                    elinewidth=0.7, markersize=3, capsize=0, alpha=0.85, label=kind)  # fmt: skip
        ax.plot(x, null, color=look.color, linestyle=":", linewidth=0.9)
    ax.set_xticks([])
    ax.set_xlabel(f"{len(order)} heads, by their effect under {kinds[0]} ablation")


def _log_if_positive(axes: Any, frame: pd.DataFrame) -> None:
    """A logarithmic axis that holds all intervals, unless something is not above 0."""
    least = np.nanmin(frame[["value", "null", "low", "null_low"]].to_numpy(float, na_value=np.nan))
    if least > 0:
        for ax in axes:
            ax.set_yscale("log")


def _kinds_caption(frame: pd.DataFrame, quantity: str) -> str:
    each = []
    for (name, kind), rows in frame.groupby(["model", "kind"], sort=False):
        row, value, null = rows.iloc[0], rows["value"].astype(float), rows["null"].astype(float)
        each.append(
            f"`{name}`, {kind} (n = {int(row['n'])} {row['unit']}s): median {number(value.median())}, largest "
            f"{number(value.max())}, null {number(null.median())}"
        )
    ways = "; ".join(dict.fromkeys(frame["interval"].dropna())) or "none: too few images"
    return (
        f"{_words(quantity)} when one head is taken out, by kind of ablation. {'; '.join(each)}. Bars: 95 % interval "
        f"({ways}). Dotted: null, {str(frame.iloc[0]['null_kind']).split(';')[0]}."
    )


def _kinds_alt(frame: pd.DataFrame, quantity: str) -> str:
    medians = frame.groupby(["model", "kind"], sort=False)["value"].median().reset_index()
    each = ", ".join(f"{row.model} {row.kind} {number(row.value)}" for row in medians.itertuples())
    return f"Points for every head by kind of ablation, {EFFECTS[quantity][0]}; medians: {each}."


def layer_effects(result: Result, models: Sequence[str] | None = None, *, mode: str = "") -> Figure:
    """All heads of a layer taken out at once, against the sum over its heads one by one, by layer.

    Where the first is larger, heads push the output the same way or stand in for each other. ``result`` is of
    `HeadAblation`; ``mode`` is how the estimator begins where it holds several.
    """
    names = list(models or result.frame["model"].unique())
    drawn = {}
    for name in names:
        rows = rows_of(result, "kl_layer", name)
        drawn[name] = rows[rows["estimator"].str.startswith(mode)].sort_values("layer")
    frame = pd.concat(drawn.values())
    with use_style():
        fig, axes = new_axes(
            1, len(names), width=1.0 + 3.7 * len(names), height=3.8, sharey=True, squeeze=False
        )
        for position, (ax, (name, rows)) in enumerate(zip(axes[0], drawn.items(), strict=True)):
            _draw_layers(ax, rows, position)
            title_block(ax, name)
        axes[0][0].set_ylabel("KL (nats)")
        _log_if_positive(axes[0], frame)
        known: dict[str, Any] = {}
        for ax in axes[0]:
            known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        fig.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known))
    return finish(fig, frame, _layers_caption(drawn), _layers_alt(drawn))


def _draw_layers(ax: Axes, rows: pd.DataFrame, position: int) -> None:
    x, value, low, high, null, null_low, null_high = (
        rows[c].to_numpy(float, na_value=np.nan)
        for c in ("layer", "value", "low", "high", "null", "null_low", "null_high")
    )
    ax.fill_between(x, null_low, null_high, color=PALETTE["grey"], alpha=0.25, linewidth=0)
    ax.plot(x, null, color=PALETTE["grey"], linestyle=":", label="its heads one by one, summed")
    look = role(position)
    ax.errorbar(x, value, [value - low, high - value], label="all heads of a layer" if not position else None,
                **look.style())  # fmt: skip
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _layers_caption(drawn: dict[str, pd.DataFrame]) -> str:
    each = []
    for name, rows in drawn.items():
        more = rows[(rows["value"] > rows["null"]).fillna(False)]
        clear = more[(more["p"].astype(float) < ALPHA).fillna(False)]
        each.append(
            f"in `{name}` it is larger in {len(more)} of {len(rows)} layers, with p < {ALPHA:g} in {len(clear)}"
        )
    row = next(iter(drawn.values())).iloc[0]
    return (
        f"KL divergence from the full model without all heads of a layer ({row['estimator'].split(';')[0]}). Dotted, "
        f"band: null, {str(row['null_kind']).split(';')[0]}; {'; '.join(each)} (paired; not corrected for the layers). "
        f"Bars: 95 % interval ({estimated(row)}); n = {int(row['n'])} {row['unit']}s."
    )


def _layers_alt(drawn: dict[str, pd.DataFrame]) -> str:
    each = [
        f"{name} {number(rows['value'].astype(float).min())} to {number(rows['value'].astype(float).max())}, sums "
        f"{number(rows['null'].astype(float).min())} to {number(rows['null'].astype(float).max())}"
        for name, rows in drawn.items()
    ]
    return f"Lines of KL divergence by layer, without all its heads and summed over single heads: {'; '.join(each)}."


# ------------------------------------------------------------------------------------------- similar, redundant?


def similarity_against_effect(
    similarity: Result,
    ablation: Result,
    association: Result,
    model: str | None = None,
    *,
    quantity: str = "cosine_centred",
    effect: str = "kl",
    mode: str = "",
) -> Figure:
    """Every head: its largest similarity to another head of its layer against what taking it out does.

    Parameters
    ----------
    similarity, ablation : what ``association``, of `similarity_is_redundancy`, was made from.
    quantity, effect, mode : as they were given to it.
    """
    rows = _effect_rows(ablation, effect, model, mode)
    name = str(rows.iloc[0]["model"])
    pairs = rows_of(similarity, quantity, name)
    points = rows.merge(_largest(pairs), on=["layer", "head"])
    found = association.frame[association.frame["model"] == name]
    with use_style():
        fig, ax = new_axes(width=6.0, height=4.4)
        x, y, low, high, layer = (
            points[c].to_numpy(float) for c in ("largest", "value", "low", "high", "layer")
        )
        ax.errorbar(x, y, [y - low, high - y], linestyle="", color=PALETTE["grey"], elinewidth=0.7, capsize=0)
        dots = ax.scatter(x, y, c=layer, cmap="cividis", s=26, zorder=3, edgecolors="white", linewidths=0.4)
        if effect not in SIGNED and (y > 0).all():
            ax.set_yscale("log")
            ax.set_ylim(float(y.min()) / 2, None)
        ax.set_xlabel(f"largest {QUANTITIES[quantity].label} to another head of the layer")
        ax.set_ylabel(EFFECTS[effect][1])
        fig.colorbar(dots, ax=ax, label="layer")
        title_block(ax, f"Do similar heads of {name} do less?", _spearman_words(found))
    caption, alt = _scatter_words(points, found, quantity, effect)
    return finish(fig, pd.concat([rows, found]), caption, alt)


def _largest(pairs: pd.DataFrame) -> pd.DataFrame:
    """Largest value of each head over its pairs within the layer."""
    own = pairs[(pairs["head"].notna() & (pairs["layer"] == pairs["layer_b"])).astype(bool)]
    swapped = own.assign(head=own["head_b"])
    both = pd.concat([own, swapped])[["layer", "head", "value"]].astype(float)
    largest = both.groupby(["layer", "head"])["value"].max()
    return largest.rename("largest").reset_index()


def _spearman_words(found: pd.DataFrame) -> str:
    whole, within = (found.iloc[i] for i in (0, 1))
    return f"Spearman {interval(whole)}, within layers {interval(within)}"


def _p(p: Any) -> str:
    return "no p" if pd.isna(p) else "p < 0.001" if p < 0.001 else f"p = {float(p):.3f}"


def _scatter_words(points: pd.DataFrame, found: pd.DataFrame, quantity: str, effect: str) -> tuple[str, str]:
    whole, within = (found.iloc[i] for i in (0, 1))
    row = points.iloc[0]
    caption = (
        f"{len(points)} heads of `{row['model']}`: largest {QUANTITIES[quantity].label} to another head of the layer "
        f"against {EFFECTS[effect][0]} without the head ({row['estimator'].split(';')[0]}). If similar heads were "
        f"redundant the points would fall. Spearman over all heads {interval(whole)}, {_p(whole['p'])}, null "
        f"[{number(whole['null_low'])}, {number(whole['null_high'])}]; within layers {interval(within)}, "
        f"{_p(within['p'])}. Null: {whole['null_kind']}. Intervals: 95 %, {whole['interval']}. Bars: 95 % "
        f"interval over {int(row['n'])} {row['unit']}s."
    )
    alt = (
        f"Scatter of {EFFECTS[effect][0]} against {QUANTITIES[quantity].label} for {len(points)} heads "
        f"of {row['model']}; Spearman {interval(whole)}, within layers {interval(within)}."
    )
    return caption, alt


# ------------------------------------------------------------------------------------------- pruning


def pruning_curves(
    result: Result, model: str | None = None, quantities: Sequence[str] | None = None
) -> Figure:
    """Output against the fraction of heads removed, a line an order, with the band of the random orders.

    ``result`` is of `PruningCurves`; ``quantities`` are ``pruned_kl`` and ``pruned_accuracy``, as far as it
    has them.
    """
    known = [q for q in ("pruned_accuracy", "pruned_kl") if q in set(result.frame["quantity"])]
    chosen = list(quantities or known)
    drawn = [rows_of(result, quantity, model) for quantity in chosen]
    with use_style():
        fig, axes = new_axes(1, len(chosen), width=4.3 * len(chosen) + 0.4, height=3.9, squeeze=False)
        for ax, rows in zip(axes[0], drawn, strict=True):
            _draw_curves(ax, rows)
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    frame = pd.concat(drawn)
    name = str(frame.iloc[0]["model"])
    summary = result.frame[(result.frame["model"] == name) & result.frame["at"].isna()]
    return finish(fig, frame, _pruning_caption(frame, summary), _pruning_alt(frame, summary))


_CURVES = {"pruned_accuracy": ("Accuracy", "accuracy"), "pruned_kl": ("KL from the full model", "KL (nats)")}


_FIRST = {
    "similarity": "similarity (most similar first)",
    "importance": "importance (least important first)",
}


def _order(estimator: str) -> str:
    return estimator.split(" in order of ")[1].split(";")[0]


def _draw_curves(ax: Axes, rows: pd.DataFrame) -> None:
    orders = rows["estimator"].map(_order)
    first = rows[orders == orders.iloc[0]]
    x, null, low, high = (first[c].to_numpy(float) for c in ("at", "null", "null_low", "null_high"))
    ax.fill_between(x, low, high, color=PALETTE["grey"], alpha=0.25, linewidth=0, label="random, 95 %")
    ax.plot(x, null, color=PALETTE["grey"], linestyle=":", label="random, mean")
    for position, order in enumerate(orders.unique()):
        own = rows[orders == order]
        x, value, low, high = (
            own[c].to_numpy(float, na_value=np.nan) for c in ("at", "value", "low", "high")
        )
        ax.errorbar(x, value, [value - low, high - value], label=f"by {order}", **role(position).style())
    title, label = _CURVES[str(rows.iloc[0]["quantity"])]
    ax.set_xlabel("fraction of heads removed")
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.02 if rows.iloc[0]["quantity"] == "pruned_accuracy" else None)
    title_block(ax, title, str(rows.iloc[0]["model"]))


def _summary_words(summary: pd.DataFrame) -> str:
    parts = []
    for _, row in summary.sort_values("quantity", ascending=False, kind="stable").iterrows():
        order, quantity = _order(str(row["estimator"])), str(row["quantity"])
        if quantity.startswith("pruning_area_"):
            what = quantity.removeprefix("pruning_area_").replace("kl", "KL")
            parts.append(
                f"area in {what} to the mean of the random orders, by {order}: {interval(row, 3)} ({_p(row['p'])})"
            )
        elif _resolved(row):
            until = str(row["estimator"]).rsplit("; ", 1)[1].replace("kl", "KL")
            null = f"random [{number(row['null_low'])}, {number(row['null_high'])}]"
            parts.append(f"removable by {order} {until}: {interval(row)} of the heads ({null})")
    return "; ".join(parts)


def _resolved(row: Any) -> bool:
    """Whether so many images can show the change that an order is judged by: one image is 1/n of the accuracy.

    >>> row = {"quantity": "removable_by_accuracy", "estimator": "by x; until accuracy falls by 0.01"}
    >>> _resolved(row | {"n": 99}), _resolved(row | {"n": 100})
    (False, True)
    """
    limit = float(str(row["estimator"]).split()[-1])
    return row["quantity"] != "removable_by_accuracy" or limit * float(row["n"]) >= 1


def _pruning_caption(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    row, words = frame.iloc[0], _summary_words(summary)
    orders = ", ".join(_FIRST.get(name, name) for name in frame["estimator"].map(_order).unique())
    return (
        f"Heads of `{row['model']}` taken out together ({str(row['estimator']).split(',')[0]}), in order of {orders}. "
        f"{words[:1].upper()}{words[1:]}. Grey: {row['null_kind']}, mean and 2.5 to 97.5 % points. Bars: 95 % interval "
        f"({estimated(row)}; n = {int(row['n'])} {row['unit']}s)."
    )


def _pruning_alt(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    areas = summary[summary["quantity"].str.startswith("pruning_area_")]
    each = [
        f"{_order(str(r['estimator']))} {str(r['quantity']).removeprefix('pruning_area_')} {number(r['value'], 3)}"
        for _, r in areas.iterrows()
    ]
    return (
        f"Curves of output against fraction of heads removed in {frame.iloc[0]['model']}, with a random band; areas to "
        f"the random mean: {'; '.join(each)}."
    )
