"""How alike the heads of a layer are, by depth, for one or more models; and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import UnknownNameError
from ..results import Result
from .base import (
    PALETTE,
    ROLES,
    Figure,
    Role,
    about_twins,
    estimated,
    finish,
    new_axes,
    role,
    series_styles,
    title_block,
    use_style,
)
from .differences import intervals_about_zero, p_words
from .similarity import QUANTITIES, interval, number, rows_of

__all__ = ["contrast_plot", "depth_curve", "divergence_against_entropy", "maps_against_outputs"]


def _models(result: Result, models: Sequence[str] | None) -> list[str]:
    known = [str(name) for name in result.frame["model"].dropna().unique()]
    for name in models or ():
        if name not in known:
            raise UnknownNameError("model", name, known, hint=f"in the result of {result.measure}")
    return list(models or known)


def _within(result: Result, quantity: str, model: str, tokens: str | None = None) -> pd.DataFrame:
    """Rows of the layers' means over their own heads, in order of depth."""
    frame = rows_of(result, quantity, model, tokens)
    own = frame["head"].isna() & (frame["layer"] == frame["layer_b"])
    return frame[own].sort_values("layer")


def _floats(frame: pd.DataFrame, *columns: str) -> list[np.ndarray]:
    return [frame[name].to_numpy(float, na_value=np.nan) for name in columns]


# ------------------------------------------------------------------------------------------------ by depth


def depth_curve(
    result: Result,
    quantities: Sequence[str] = ("cosine_raw", "cosine_centred"),
    models: Sequence[str] | None = None,
    *,
    tokens: str | None = None,
    twins: Sequence[str] = (),
) -> Figure:
    """Mean similarity of the heads within a layer by depth: a panel a quantity, a line a model.

    With 95 % intervals as bars; the null (the same heads on different images, or permuted images) as a dotted
    line with its interval as a band; under the raw cosine, the floor exp(-s^2) of independent heads as thin
    dashes.

    Parameters
    ----------
    result : of `HeadSimilarity`, `HeadDivergence` or `HeadOutputCKA`.
    quantities : of that result, one panel each.
    models : in the order of the comparison; all of the result when left out.
    tokens : where the result holds several choices.
    twins : labels of random-weights twins among the models: thin, with crosses, without null or floor.

    Raises UnknownNameError for what the result does not have.
    """
    names = _models(result, models)
    drawn = [(q, name, _within(result, q, name, tokens)) for q in quantities for name in names]
    depths = {len(rows) for *_, rows in drawn}
    with use_style():
        fig, axes = new_axes(1, len(quantities), width=4.0 * len(quantities) if len(quantities) > 1 else 5.6,
                             height=3.9, squeeze=False)  # fmt: skip
        for ax, quantity in zip(axes[0], quantities, strict=True):
            rows = {name: frame for q, name, frame in drawn if q == quantity}
            _panel(ax, result, quantity, rows, twins, relative=len(depths) > 1)
        known = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
        order = [label for name in names for label in _labels(name) if label in known]
        across = min(len(names), 2 if len(quantities) == 1 else 3)
        fig.legend([known[x] for x in order], order, loc="outside lower center", ncols=across)
    frame = pd.concat([rows for _, name, rows in drawn if name not in twins])
    return finish(fig, frame, _depth_caption(drawn, result) + about_twins(twins), _depth_alt(drawn))


def _panel(
    ax: Axes,
    result: Result,
    quantity: str,
    rows: dict[str, pd.DataFrame],
    twins: Sequence[str],
    relative: bool,
) -> None:
    look = QUANTITIES[quantity]
    for name, style in series_styles(list(rows), twins).items():
        frame, color = rows[name], style["color"]
        x = _depth(frame, relative)
        value, low, high, null, null_low, null_high = _floats(
            frame, "value", "low", "high", "null", "null_low", "null_high"
        )
        own, null_label, floor_label = _labels(name)
        ax.errorbar(x, value, [value - low, high - value], label=own, **style)
        if name in twins:
            continue
        ax.plot(x, null, color=color, linestyle=":", linewidth=1.1, label=null_label)
        ax.fill_between(x, null_low, null_high, color=color, alpha=0.15, linewidth=0)
        if quantity == "cosine_raw":
            (floor,) = _floats(_within(result, "cosine_floor", name), "value")
            ax.plot(x, floor, color=color, linestyle="-.", linewidth=0.8, label=floor_label)
    if look.low < 0:
        ax.axhline(0, color=PALETTE["black"], linewidth=0.6)
    ax.set_xlabel("depth (0 first layer, 1 last)" if relative else "layer")
    ax.set_ylabel(f"mean {look.label} within a layer")
    title_block(ax, f"{look.words[0].upper()}{look.words[1:]}".replace(" of attention maps", ""))


def _labels(name: str) -> tuple[str, str, str]:
    """Legend entries of one model: itself, its null and its floor."""
    return name, f"{name}, null", f"{name}, floor exp(−s²)"


def _depth(frame: pd.DataFrame, relative: bool) -> np.ndarray:
    layers = frame["layer"].to_numpy(float)
    return (layers - layers.min()) / max(np.ptp(layers), 1) if relative else layers


def _depth_caption(drawn: Sequence[tuple[str, str, pd.DataFrame]], result: Result) -> str:
    parts = [
        f"{QUANTITIES[q].label} in `{name}` {number(rows['value'].iloc[0])} in the first layer, "
        f"{number(rows['value'].iloc[-1])} in the last (null {number(rows['null'].iloc[-1])}"
        + (
            f", floor {number(_within(result, 'cosine_floor', name)['value'].iloc[-1])})"
            if q == "cosine_raw"
            else ")"
        )
        for q, name, rows in drawn
    ]
    row = drawn[0][2].iloc[0]
    floor = " Thin dash-dotted: floor exp(−s²) that independent heads of the same logit spread s reach."
    return (
        f"Mean similarity of different heads of one layer, by depth: {'; '.join(parts)}. Bars: 95 % interval "
        f"({estimated(row)}; n = {int(row['n'])} {row['unit']}s). Dotted, band: null, {row['null_kind']}."
        + (floor if any(q == "cosine_raw" for q, *_ in drawn) else "")
    )


def _depth_alt(drawn: Sequence[tuple[str, str, pd.DataFrame]]) -> str:
    main = drawn[-1][0]
    ends = [
        f"{name} {number(rows['value'].iloc[0])} to {number(rows['value'].iloc[-1])}"
        for q, name, rows in drawn
        if q == main
    ]
    return f"Lines of {QUANTITIES[main].label} within layers by depth, first to last layer: {'; '.join(ends[:3])}."


# ------------------------------------------------------------------------------------------------ contrasts


def contrast_plot(differences: Sequence[Result], smallest: float | None = None) -> Figure:
    """Change over depth of one model minus that of another, a line a quantity, with 95 % intervals.

    Parameters
    ----------
    differences : results of `contrast_difference`.
    smallest : smallest effect that counts, drawn as a grey band about 0.
    """
    frame = pd.concat([result.frame for result in differences], ignore_index=True)
    first = frame.iloc[0]
    across = f"(last third − first third) of {first['model']}\nminus the same of {first['model_b']}"
    title = "Do heads come to resemble each other with depth?"
    with use_style():
        names = [_contrast_name(row) for _, row in frame.iterrows()]
        fig = intervals_about_zero(frame, names, smallest, title, across)
    return finish(fig, frame, _contrast_caption(frame, smallest), _contrast_alt(frame))


def _contrast_name(row: pd.Series) -> str:
    look = QUANTITIES.get(str(row["quantity"]))
    tokens = {"class": ", class token", "pooled": ", mean patch"}.get(str(row["tokens"]), "")
    return (look.label if look else str(row["quantity"])) + tokens


def _contrast_caption(frame: pd.DataFrame, smallest: float | None) -> str:
    first = frame.iloc[0]
    each = "; ".join(f"{_contrast_name(r)} {interval(r)}, {p_words(r['p'])}" for _, r in frame.iterrows())
    band = "" if smallest is None else f" Smallest effect that counts: ±{smallest:g} (grey)."
    return (
        f"Similarity of heads within a layer, mean of the last third of the layers minus mean of the first, of "
        f"`{first['model']}` minus `{first['model_b']}`: {each}. Null: 0, {first['null_kind']}.{band} Intervals: "
        f"95 %, {estimated(first)}; n = {int(first['n'])} {first['unit']}s; p not corrected for several quantities."
    )


def _contrast_alt(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    each = "; ".join(f"{_contrast_name(r)} {interval(r)}" for _, r in frame.head(3).iterrows())
    return f"Intervals of the change over depth, {first['model']} minus {first['model_b']}: {each}."


# ------------------------------------------------------------------------------------------------ side by side


def divergence_against_entropy(result: Result, models: Sequence[str] | None = None) -> Figure:
    """Jensen-Shannon divergence of each layer against the mean entropy of its heads.

    Diffuse heads (entropy near ln T) have a small divergence whatever they attend to; the null, the same
    heads on different images, hangs on a thin line below or above each point. ``result`` is of
    `HeadDivergence`.
    """
    names = _models(result, models)
    drawn = [(name, _within(result, "js_divergence", name), _entropy(result, name)) for name in names]
    with use_style():
        fig, ax = new_axes(width=5.8, height=4.2)
        for position, (name, rows, entropy) in enumerate(drawn):
            looks = role(position)
            value, null = _floats(rows, "value", "null")
            ax.vlines(entropy, null, value, color=looks.color, linewidth=0.8, alpha=0.6)
            ax.scatter(entropy, value, color=looks.color, marker=looks.marker, label=name, s=26, zorder=3)
            ax.scatter(entropy, null, color=looks.color, marker="_", s=50, label=f"{name}, null")
            _number_ends(ax, rows, entropy, looks)
        uniform = float(result.frame.loc[result.frame["quantity"] == "entropy", "null"].astype(float).max())
        ax.axvline(uniform, color=PALETTE["grey"], linestyle=":", label="uniform attention")
        ax.set_xlabel("mean entropy of the layer's heads (nats)")
        ax.set_ylabel("mean divergence of its heads (nats)")
        fig.legend(loc="outside lower center", ncols=2)
        title_block(
            ax, "Divergence of heads against their entropy", "one point a layer; first and last numbered"
        )
    frame = pd.concat([rows for _, rows, _ in drawn])
    return finish(fig, frame, _divergence_caption(drawn, uniform), _divergence_alt(drawn))


def _entropy(result: Result, model: str) -> np.ndarray:
    frame = rows_of(result, "entropy", model)
    layers = _within(result, "js_divergence", model)["layer"]
    means = frame["value"].astype(float).groupby(frame["layer"].astype(int)).mean()
    return means.reindex(layers.astype(int)).to_numpy()


def _number_ends(ax: Axes, rows: pd.DataFrame, x: np.ndarray, looks: Role) -> None:
    (y,) = _floats(rows, "value")
    for i in {0, len(y) - 1}:
        ax.annotate(str(rows["layer"].iloc[i]), (x[i], y[i]), xytext=(5, 4), textcoords="offset points",
                    fontsize=9, color=looks.color)  # fmt: skip


def _divergence_caption(drawn: Sequence[tuple[str, pd.DataFrame, np.ndarray]], uniform: float) -> str:
    each = [
        f"`{name}`: divergence {number(rows['value'].min())} to {number(rows['value'].max())} nats (null "
        f"{number(rows['null'].astype(float).mean())}), entropy {number(x.min())} to {number(x.max())}"
        for name, rows, x in drawn
    ]
    row = drawn[0][1].iloc[0]
    return (
        f"Mean Jensen-Shannon divergence between the heads of a layer against their mean entropy, over patch keys. "
        f"{'; '.join(each)}. Uniform attention has {number(uniform)} nats. Dashes: null, {row['null_kind']}. n = "
        f"{int(row['n'])} {row['unit']}s."
    )


def _divergence_alt(drawn: Sequence[tuple[str, pd.DataFrame, np.ndarray]]) -> str:
    each = [
        f"{name} {number(rows['value'].min())} to {number(rows['value'].max())}" for name, rows, _ in drawn
    ]
    return (
        f"Scatter of head divergence against entropy, a point a layer; divergence in nats: {'; '.join(each)}."
    )


def maps_against_outputs(
    similarity: Result, outputs: Result, model: str | None = None, tokens: str = "pooled"
) -> Figure:
    """Every two heads of a layer: centred cosine of their maps against CKA of their outputs.

    Heads can look at the same place and write different things, and the other way round. Colour is the layer.
    ``similarity`` is of `HeadSimilarity`, ``outputs`` of `HeadOutputCKA`.
    """
    a, b = rows_of(similarity, "cosine_centred", model), rows_of(outputs, "head_output_cka", model, tokens)
    key = ["model", "layer", "head", "layer_b", "head_b"]
    both = a[_pair_of_layer(a)].merge(b[_pair_of_layer(b)], on=key, suffixes=("", "_out"))
    x, y, layer = _floats(both, "value", "value_out", "layer")
    with use_style():
        fig, ax = new_axes(width=5.8, height=4.4)
        points = ax.scatter(x, y, c=layer, cmap="cividis", s=18)
        limit = float(both["null_high_out"].astype(float).mean())
        ax.axhline(limit, label="CKA, 97.5 % point of its null (mean over pairs)", **_line("null"))
        ax.axvline(0, color=PALETTE["black"], linewidth=0.6)
        ax.set_xlabel("centred cosine of attention maps")
        ax.set_ylabel("unbiased CKA of head outputs")
        fig.colorbar(points, ax=ax, label="layer")
        fig.legend(loc="outside lower center")
        title_block(
            ax, "Alike in maps, alike in outputs?", f"{both['model'].iloc[0]}, pairs of heads of one layer"
        )
    frame = pd.concat([a, b])
    return finish(fig, frame, _outputs_caption(both, limit), _outputs_alt(both))


def _line(name: str) -> dict[str, Any]:
    return {k: v for k, v in ROLES[name].style().items() if k != "marker"}


def _pair_of_layer(frame: pd.DataFrame) -> pd.Series:
    return (frame["head"].notna() & (frame["layer"] == frame["layer_b"])).astype(bool)


def _outputs_caption(both: pd.DataFrame, limit: float) -> str:
    row = both.iloc[0]
    return (
        f"All {len(both)} pairs of heads of one layer in `{row['model']}`: centred cosine of their maps (mean "
        f"{number(both['value'].astype(float).mean())}; null {number(both['null'].astype(float).mean())}, "
        f"{str(row['null_kind']).split(';')[0]}) against CKA of their outputs (mean "
        f"{number(both['value_out'].astype(float).mean())}; dotted: 97.5 % point of its null, {number(limit)}, "
        f"{str(row['null_kind_out']).split(';')[0]}). n = {int(row['n'])} {row['unit']}s."
    )


def _outputs_alt(both: pd.DataFrame) -> str:
    return (
        f"Scatter of {len(both)} pairs of heads of {both['model'].iloc[0]}: CKA of outputs against centred cosine of "
        f"maps; means {number(both['value_out'].astype(float).mean())} and "
        f"{number(both['value'].astype(float).mean())}."
    )
