"""Attention distance, entropy and sinks by depth, head by head; rollout over photographs; collapse and redundancy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from .._names import TWIN
from ..errors import DataError
from ..results import Result
from .base import (
    DIVERGING,
    PALETTE,
    ROLES,
    Figure,
    about_twins,
    estimated,
    finish,
    new_axes,
    role,
    series_styles,
    title_block,
    use_style,
)
from .heads import _models
from .similarity import interval, number, rows_of

__all__ = ["by_depth", "heads_by_depth", "rollout_examples", "similar_tokens_curve"]


class Words(NamedTuple):
    """How a quantity is written: a title, and the label of its axis."""

    title: str
    axis: str


WORDS = {
    "attention_distance": Words("Attention distance", "mean distance (fraction of image side)"),
    "attention_distance_px": Words("Attention distance", "mean distance (pixels)"),
    "attention_entropy": Words("Attention entropy", "entropy (nats)"),
    "class_mass": Words("Attention to the class token", "share of patch queries' attention"),
    "prefix_mass": Words("Attention to prefix tokens", "share of patch queries' attention"),
    "sink_mass": Words("Attention sinks", "share that the most attended key gets"),
    "sink_on_prefix": Words("Sinks on prefix tokens", "share of images"),
    "rollout_rank_one": Words("Rollout loses rank", "σ₁² / Σσᵢ²"),
    "rollout_between_images": Words("Rollouts of different images", "correlation over patches"),
    "rollout_entropy": Words("Rollout entropy", "entropy (nats)"),
    "token_cosine": Words("Tokens of one image", "mean cosine"),
    "token_cosine_centred": Words("Tokens less their mean", "mean cosine"),
    "token_mean_share": Words("Shared mean of the tokens", "|mean|² / mean of |x|²"),
    "token_dirichlet_energy": Words("Dirichlet energy", "energy over that of unrelated tokens"),
    "attention_cosine": Words("Heads of one layer", "cosine of flattened maps"),
    "attention_cosine_centred": Words("Heads of one layer, centred", "cosine, 1/P taken off each share"),
    "stable_rank_qk": Words("Stable rank of W_Q' W_K", "fraction of head width"),
    "stable_rank_vo": Words("Stable rank of W_V W_O", "fraction of head width"),
    "effective_rank_qk": Words("Effective rank of W_Q' W_K", "fraction of head width"),
    "effective_rank_vo": Words("Effective rank of W_V W_O", "fraction of head width"),
    "column_cosine_same_head": Words("Columns, same head", "cosine with the next layer"),
    "column_cosine_matched": Words("Columns, heads matched", "cosine with the next layer"),
    "column_cosine_averaged": Words("Columns, heads averaged", "cosine with the next layer"),
    "effective_rank_over_null": Words("Effective rank", "share of that of Gaussian noise"),
    "participation_ratio_over_null": Words("Participation ratio", "share of that of Gaussian noise"),
}
#: What one sample was, where a figure shows more than one choice of tokens.
_TOKENS = {"pooled": "mean token of an image", "patch": "patch tokens", "class": "class token"}
#: Quantities whose axis begins at 0, so that a small difference looks small.
_FROM_ZERO = ("attention_distance", "attention_entropy", "class_mass", "prefix_mass", "sink_mass", "stable_rank",
              "effective_rank", "participation_ratio", "rollout_entropy")  # fmt: skip
WORDS |= {
    f"{name}_centred": Words(f"{words.title}, centred", words.axis)
    for name, words in list(WORDS.items())
    if name.startswith("column_cosine")
}


#: What `by_depth` draws: (quantity, tokens) of its panels, and for each with a model its rows by depth.
_Panels = Sequence[tuple[str, str | None]]
_Drawn = Mapping[tuple[str, str | None, str], pd.DataFrame]


def _words(quantity: str) -> Words:
    return WORDS.get(quantity, Words(quantity.replace("_", " "), quantity.replace("_", " ")))


def _rows(result: Result, quantity: str, model: str, tokens: str | None) -> pd.DataFrame:
    """As `rows_of`, without means over all layers; ranks of weights, which rest on no tokens, are found as well."""
    frame = result.frame[(result.frame["quantity"] == quantity) & (result.frame["model"] == model)]
    if tokens is not None or not len(frame) or frame["tokens"].notna().any():
        frame = rows_of(result, quantity, model, tokens)
    return frame[~frame["place"].str.contains("*", regex=False)]


def _order(place: str) -> float:
    """Where a place stands along the depth axis; token transformers and the embedding come before layer 0."""
    kind, *rest = place.split(".")
    if kind == "blocks":
        return float(rest[0])
    return {"tokens": float(rest[0]) - 3 if kind == "tokens" else 0.0, "embed": -1.0}.get(kind, np.nan)


def _along(frame: pd.DataFrame) -> np.ndarray:
    return frame["place"].map(_order).to_numpy(float)


def _floats(frame: pd.DataFrame, *columns: str) -> list[np.ndarray]:
    return [frame[name].to_numpy(float, na_value=np.nan) for name in columns]


def _ticks(ax: Axes, x: np.ndarray) -> None:
    """Layer numbers; T1, T2 for token transformers, E for the embedding."""
    places = np.unique(x[~np.isnan(x)])
    step = max(1, round(np.ptp(places[places >= 0]) / 12)) if (places >= 0).any() else 1
    shown = [p for p in places if p < 0 or p % step == 0]
    special = {-3.0: "T1", -2.0: "T2", -1.0: "E"}
    ax.set_xticks(shown, [special.get(p, f"{p:.0f}") for p in shown])


def _depth_label(places: Sequence[np.ndarray]) -> str:
    x = np.concatenate(places)
    parts = [text for there, text in (((x < -1).any(), "T token transformers"), ((x == -1).any(), "E embedding"))
             if there]  # fmt: skip
    return "layer" + (f" ({', '.join(parts)})" if parts else "")


# ------------------------------------------------------------------------------------------------ every head


def heads_by_depth(
    result: Result,
    quantity: str = "attention_distance",
    models: Sequence[str] | None = None,
    *,
    tokens: str | None = None,
) -> Figure:
    """One dot per head against its layer, a panel per model; the null as a dotted line.

    Dots carry 95 % intervals; the line joins the layers' means, where the result has them. ``result`` is of
    `AttentionGeometry`, or of `Redundancy` for ranks of weights. Raises UnknownNameError for what it does not
    have.
    """
    names, words = _models(result, models), _words(quantity)
    drawn = {name: _rows(result, quantity, name, tokens) for name in names}
    with use_style():
        fig, axes = new_axes(1, len(names), width=min(3.4 * len(names) + 0.8, 10), height=3.6, squeeze=False,
                             sharey=True)  # fmt: skip
        for position, (ax, (name, frame)) in enumerate(zip(axes[0], drawn.items(), strict=True)):
            _dots(ax, frame, position)
            title_block(ax, words.title if position == 0 else "", name)
            ax.set_xlabel(_depth_label([_along(frame)]))
        axes[0][0].set_ylabel(words.axis)
        _from_zero(axes[0][0], quantity)
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3)
    shown = pd.concat(drawn.values())
    return finish(fig, shown, _heads_caption(drawn, words), _heads_alt(drawn, words))


def _from_zero(ax: Axes, quantity: str) -> None:
    if quantity.startswith(_FROM_ZERO):
        ax.set_ylim(bottom=0)


def _dots(ax: Axes, frame: pd.DataFrame, position: int) -> None:
    heads, layers = frame[frame["head"].notna()], frame[frame["head"].isna()]
    look, x = role(position), _along(heads)
    value, low, high = _floats(heads, "value", "low", "high")
    count = heads.groupby("place")["head"].transform("count").to_numpy(float)
    spread = (heads["head"].to_numpy(float) - (count - 1) / 2) / np.maximum(count, 1) * 0.5
    bars = np.nan_to_num([value - low, high - value])
    label = "a head, with 95 % interval" if np.isfinite(low).any() else "a head"
    style: dict[str, Any] = {"markersize": 3, "elinewidth": 0.6, "capsize": 0, "alpha": 0.75}
    ax.errorbar(x + spread, value, bars, fmt=look.marker, color=look.color, label=label, **style)
    at = layers.assign(x=_along(layers)).sort_values("x")
    if len(at):
        ax.plot(
            at["x"], *_floats(at, "value"), color=PALETTE["black"], linewidth=1.0, label="mean of the heads"
        )
    _dotted_null(ax, frame)
    _ticks(ax, x)


def _dotted_null(ax: Axes, frame: pd.DataFrame) -> None:
    """The null of every place, as a step across its column."""
    at = frame.assign(x=_along(frame)).drop_duplicates("x").sort_values("x")
    x, null, low, high = at["x"].to_numpy(float), *_floats(at, "null", "null_low", "null_high")
    style: Any = dict(color=ROLES["null"].color, linestyle=":", linewidth=1.4)
    ax.hlines(null, x - 0.5, x + 0.5, label=f"null: {at['null_kind'].iloc[0]}", **style)
    for left, bottom, top in zip(x - 0.5, low, high, strict=True):
        if not np.isnan(bottom):
            ax.fill_between([left, left + 1], bottom, top, color=ROLES["null"].color, alpha=0.15, linewidth=0)


def _span(frame: pd.DataFrame) -> str:
    heads = frame[frame["head"].notna()]
    ordered = heads.sort_values("value")
    best, worst = ordered.iloc[-1], ordered.iloc[0]

    def where(row: Any) -> str:
        return f"{interval(row, 3)} ({row['place']}, head {int(row['head'])})"

    return f"from {where(worst)} to {where(best)}"


def _heads_caption(drawn: Mapping[str, pd.DataFrame], words: Words) -> str:
    parts = [f"in `{name}` {_span(frame)}, null {_nulls(frame)}" for name, frame in drawn.items()]
    row = next(iter(drawn.values())).iloc[0]
    rests = "" if str(row["interval"]).startswith("none") else f", n = {int(row['n'])} {row['unit']}s"
    return (
        f"{words.title}, a dot per head: {'; '.join(parts)}. {_sentence(row['estimator'])}; "
        f"bars: 95 % interval ({estimated(row)}{rests}). Dotted: {row['null_kind']}."
    )


def _sentence(text: str) -> str:
    """The first part, with a capital letter and the rest as it is (class, T, W_Q)."""
    first = text.split(";")[0]
    return first[0].upper() + first[1:]


def _nulls(frame: pd.DataFrame) -> str:
    values = frame["null"].astype(float)
    low, high = number(values.min(), 3), number(values.max(), 3)
    return low if low == high else f"{low} to {high}"


def _heads_alt(drawn: Mapping[str, pd.DataFrame], words: Words) -> str:
    return (
        f"Scatter of {words.axis} per head against layer, null dotted. "
        + ". ".join(
            f"{name}: {number(frame['value'].min(), 3)} to {number(frame['value'].max(), 3)}, null {_nulls(frame)}"
            for name, frame in drawn.items()
        )
        + "."
    )


# ------------------------------------------------------------------------------------------------ every layer


def by_depth(
    result: Result,
    quantities: Sequence[str | tuple[str, str]],
    models: Sequence[str] | None = None,
    *,
    tokens: str | None = None,
    twins: Sequence[str] = (),
) -> Figure:
    """Values of whole layers by depth: a panel per quantity, a line per model, its null dotted in its colour.

    For `AttentionRollout`, `Redundancy`, `AttentionGeometry` (means over heads), `EffectiveRank` and, between a
    layer and the next, `LayerCollapse`. A quantity may be given as (quantity, tokens). ``twins`` are labels of
    random-weights twins among the models: thin, with crosses, in the colour of the model whose twin they are. A
    null that is the same for all models is drawn once, in grey.
    """
    names = _models(result, models)
    asked = [(q, tokens) if isinstance(q, str) else q for q in quantities]
    panels = [panel for panel in asked if _drawable(result, panel, names)]
    drawn = {(q, t, name): _layer_rows(result, q, name, t) for q, t in panels for name in names}
    with use_style():
        across = min(len(panels), 2)
        down = -(-len(panels) // across)
        size = max(3.5 * across + 0.5, 5.0), 2.9 * down + 1.0
        fig, axes = new_axes(down, across, width=size[0], height=size[1], squeeze=False)
        for ax, (quantity, which) in zip(axes.flat, panels, strict=False):
            frames = {name: drawn[quantity, which, name] for name in names}
            _lines(ax, frames, twins)
            title_block(ax, _title(quantity, which))
            ax.set_ylabel(_words(quantity).axis)
            _from_zero(ax, quantity)
            x = np.concatenate([_along(frame) for frame in frames.values()])
            ax.set_xlabel(_depth_label([x]))
            _ticks(ax, x)
        _one_legend(fig, axes, len(panels))
    whole = pd.concat(drawn.values())
    caption = _depth_caption(drawn, panels, twins) + _left_out(asked, panels)
    return finish(fig, whole[~whole["model"].isin(list(twins))], caption, _depth_alt(drawn, panels, twins))


def _one_legend(fig: Any, axes: np.ndarray, panels: int) -> None:
    """All series of all panels once, models before nulls: in the free place of an odd number of panels, or below."""
    labelled = [ax.get_legend_handles_labels() for ax in axes.flat]
    known = {
        label: handle for handles, labels in labelled for handle, label in zip(handles, labels, strict=True)
    }
    order = sorted(known, key=lambda label: label.endswith("null"))
    handles = [known[label] for label in order]
    if axes.size > panels:
        axes.flat[-1].axis("off")
        axes.flat[-1].legend(handles, order, loc="center")
    else:
        fig.legend(handles, order, loc="outside lower center", ncols=min(len(order), 3))


def _drawable(result: Result, panel: tuple[str, str | None], names: Sequence[str]) -> bool:
    """Whether any of the models has the quantity: a model without a class token has no attention to one.

    A quantity that is not known here either is an error.
    """
    quantity, tokens = panel
    frame = result.frame[(result.frame["quantity"] == quantity) & result.frame["model"].isin(list(names))]
    if tokens is not None:
        frame = frame[frame["tokens"] == tokens]
    if not len(frame) and quantity not in WORDS:
        rows_of(result, quantity)  # says what there is
    return len(frame) > 0


def _left_out(asked: _Panels, panels: _Panels) -> str:
    missing = [_title(q, t) for q, t in asked if (q, t) not in panels]
    return f" Not in these models: {', '.join(missing)}." if missing else ""


def _title(quantity: str, tokens: str | None) -> str:
    """Title of a panel; with the tokens where they were chosen."""
    title = _words(quantity).title
    return title if tokens is None else f"{title}: {_TOKENS.get(tokens, tokens)}"


def _lines(ax: Axes, frames: Mapping[str, pd.DataFrame], twins: Sequence[str]) -> None:
    """One line a model, and their nulls."""
    bands = [np.stack(_floats(f, "null", "null_low", "null_high")) for f in frames.values() if len(f)]
    shared = all(b.shape == bands[0].shape and np.allclose(b, bands[0], equal_nan=True) for b in bands)
    for name, style in series_styles(list(frames), twins).items():
        if len(frame := frames[name]):
            value, low, high = _floats(frame, "value", "low", "high")
            bars = np.nan_to_num([value - low, high - value])
            ax.errorbar(_along(frame), value, bars, label=name, **style)
            if not shared and name not in twins:
                _null_line(ax, frame, f"{name}, null", style["color"])
    if shared:
        _null_line(ax, next(f for f in frames.values() if len(f)), "null", ROLES["null"].color)


def _layer_rows(result: Result, quantity: str, model: str, tokens: str | None) -> pd.DataFrame:
    """Rows of layers by depth; none for a model that has no such quantity while another one has."""
    if not _drawable(result, (quantity, tokens), [model]):
        return result.frame.head(0)
    frame = _rows(result, quantity, model, tokens)
    frame = frame[frame["head"].isna()]
    if frame["layer_b"].notna().any():
        layers = sorted(set(frame["layer"]) | set(frame["layer_b"]))
        following = dict(pairwise(layers))
        frame = frame[frame["layer"].map(following) == frame["layer_b"]]
    return frame.assign(x=_along(frame)).sort_values("x").drop(columns="x")


def _null_line(ax: Axes, frame: pd.DataFrame, label: str, color: str) -> None:
    x, (null, low, high) = _along(frame), _floats(frame, "null", "null_low", "null_high")
    ax.plot(x, null, color=color, linestyle=":", linewidth=1.1, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _depth_caption(drawn: _Drawn, panels: _Panels, twins: Sequence[str]) -> str:
    parts = [
        _panel_words(
            _title(*panel),
            {name: rows for (q, t, name), rows in drawn.items() if (q, t) == panel and len(rows)},
        )
        for panel in panels
    ]
    row = next(frame.iloc[-1] for frame in drawn.values() if len(frame))
    return (
        f"First place to last. {'; '.join(parts)}. Bars: 95 % interval ({estimated(row)}; "
        f"n = {int(row['n'])} {row['unit']}s). Dotted, band: null.{about_twins(twins)}"
    )


def _panel_words(title: str, frames: Mapping[str, pd.DataFrame]) -> str:
    """First and last value of every model; the null once where it is the same for all."""
    lasts = {name: rows.iloc[-1] for name, rows in frames.items()}
    kinds = " or ".join(dict.fromkeys(str(row["null_kind"]).split(";")[0] for row in lasts.values()))
    nulls = {number(row["null"], 3) for row in lasts.values()}
    words = [
        f"`{name}` {number(frames[name]['value'].iloc[0], 3)} to {interval(last, 3)}"
        + (f" (null {number(last['null'], 3)})" if len(nulls) > 1 else "")
        for name, last in lasts.items()
    ]
    null = f"null {nulls.pop()}, " if len(nulls) == 1 else "null: "
    return f"**{title}** ({null}{kinds}) {', '.join(words)}"


def _depth_alt(drawn: _Drawn, panels: _Panels, twins: Sequence[str]) -> str:
    parts: dict[str, list[str]] = {}
    for (quantity, tokens, name), frame in drawn.items():
        if name not in twins and len(frame):
            value, null = frame["value"].iloc[-1], frame["null"].iloc[-1]
            words = f"{name} {number(value)} (null {number(null)})"
            parts.setdefault(_title(quantity, tokens), []).append(words)
    each = "; ".join(f"{title}: {', '.join(words)}" for title, words in parts.items())
    return f"Lines by layer. In the last layer: {each}."


# ------------------------------------------------------------------------------------------------ collapse


def similar_tokens_curve(
    result: Result, quantity: str = "similar_tokens_same_head", models: Sequence[str] | None = None
) -> Figure:
    """Share of similar tokens between neighbouring layers against the threshold, a thin line a layer.

    A panel per model; dashed: the same on different images. DeepViT's thresholds, 0.5 and 80 %, are marked.
    ``result`` is of `LayerCollapse`.
    """
    names = _models(result, models)
    drawn = {name: rows_of(result, quantity, name) for name in names}
    with use_style():
        fig, axes = new_axes(
            1, len(names), width=3.2 * len(names) + 0.8, height=3.5, squeeze=False, sharey=True
        )
        for position, (ax, (name, frame)) in enumerate(zip(axes[0], drawn.items(), strict=True)):
            _curves(ax, frame, role(position).color)
            title_block(ax, "Similar tokens" if position == 0 else "", name)
            ax.set_xlabel("cosine above which a token is similar")
            ax.set_ylim(-0.02, 1.02)
        axes[0][0].set_ylabel("share of tokens, layer and next")
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    counts = {name: _similar_count(result, quantity, name) for name in names}
    frame = pd.concat(drawn.values())
    row = frame.iloc[0]
    caption = (
        f"Share of tokens whose attention column resembles that of the next layer, by threshold, one line per layer; "
        f"dashed: null, {row['null_kind'].split(';')[0]}. At 0.5, layers with 80 % similar tokens (cross): "
        f"{'; '.join(f'`{name}` {text}' for name, text in counts.items())}. n = {int(row['n'])} {row['unit']}s, "
        f"intervals ({estimated(row)}) in the table."
    )
    alt = "Curves of similar tokens against cosine threshold. " + "; ".join(
        f"{name}: {text} similar layers" for name, text in counts.items()
    )
    return finish(fig, frame, caption, f"{alt}.")


def _curves(ax: Axes, frame: pd.DataFrame, color: str) -> None:
    for i, (_, rows) in enumerate(frame.groupby("layer")):
        x, value, null = _floats(rows.sort_values("at"), "at", "value", "null")
        words = ("a layer and the next", "the same on different images") if i == 0 else (None, None)
        ax.plot(x, value, color=color, linewidth=1.0, alpha=0.8, label=words[0])
        ax.plot(x, null, color=ROLES["null"].color, linewidth=0.9, linestyle="--", alpha=0.8, label=words[1])
    ax.plot(
        0.5,
        0.8,
        marker="+",
        color=PALETTE["black"],
        markersize=10,
        linestyle="",
        label="DeepViT's thresholds",
    )


def _similar_count(result: Result, quantity: str, model: str) -> str:
    row = rows_of(result, quantity.replace("similar_tokens", "similar_blocks"), model).iloc[0]
    return f"{int(row['value'])} of {int(row['ceiling'])} (on different images {int(row['null'])})"


# ------------------------------------------------------------------------------------------------ photographs


def rollout_examples(
    photographs: ArrayLike, maps: Mapping[str, ArrayLike], *, weights: Mapping[str, str] | None = None
) -> Figure:
    """Photographs, and beside them the rollout of each model; one logarithmic scale for all maps, white at uniform.

    A scale of its own for every map, or every model, would make each look decided; with one scale, which spans a
    factor of 1.5 at least, maps that are nearly uniform, or that do not depend on the image, look so.

    Parameters
    ----------
    photographs : (n, 3, H, W), numbers from 0 to 1.
    maps : model -> (n, h, w) from `rollout_maps`, each summing to 1.
    weights : model -> where its weights came from, for the warning about untrained ones.

    Raises DataError where the numbers of photographs and maps differ.
    """
    pictures = np.clip(np.moveaxis(np.asarray(photographs, dtype=float), 1, -1), 0, 1)
    grids = {name: np.asarray(m, dtype=float) for name, m in maps.items()}
    for name, grid in grids.items():
        if len(grid) != len(pictures):
            raise DataError(f"{len(pictures)} photographs, but {len(grid)} maps of {name!r}")
    with use_style():
        columns = len(grids) + 1
        height = 1.55 * len(pictures) + 0.9
        fig, axes = new_axes(len(pictures), columns, width=1.75 * columns + 0.6, height=height, squeeze=False)
        for row, picture in zip(axes, pictures, strict=True):
            row[0].imshow(picture)
        axes[0][0].set_title("image", fontsize=9)
        shares = {name: grid * grid[0].size for name, grid in grids.items()}
        least = math.log(1.5)  # a narrower scale would paint a few percent as bright as a preference
        largest = max(float(np.abs(np.log(s[s > 0])).max(initial=least)) for s in shares.values())
        scale = LogNorm(math.exp(-largest), math.exp(largest))
        for column, (name, share) in enumerate(shares.items(), start=1):
            axes[0][column].set_title(name.replace(TWIN, f",\n{TWIN.strip(', ')}"), fontsize=9)
            for ax, one in zip(axes[:, column], share, strict=True):
                image = ax.imshow(one, cmap=DIVERGING, norm=scale)
        bar = fig.colorbar(image, ax=axes, shrink=0.5, aspect=30, location="bottom")
        bar.set_label("share × patches (1: uniform; logarithmic)")
        ticks = np.exp(largest * np.array([-1, -0.5, 0, 0.5, 1]))
        bar.set_ticks(list(ticks), labels=[number(tick) for tick in ticks])
        bar.minorticks_off()
        for ax in axes.flat:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
    labels, twins = weights or {}, [name for name in grids if name.endswith(TWIN)]
    frame = pd.DataFrame(
        [
            {"model": name, "model_b": None, "weights": labels.get(name, "unknown weights")}
            for name in grids
            if name not in twins
        ],
        columns=["model", "model_b", "weights"],
    )
    ranges = [
        f"`{name}` {number(g.min() * g[0].size)} to {number(g.max() * g[0].size)}"
        for name, g in grids.items()
    ]
    caption = (
        "Attention rollout to the class token (or to the mean patch where there is none) over each image, times the "
        f"number of patches, so that 1 is uniform: {'; '.join(ranges)}. One scale for all maps; "
        f"examples, not a sample: n = {len(pictures)}, no interval. Null: uniform rollout, 1 everywhere; how "
        "alike the maps of different images are is measured, not judged from here."
        + (" “random”: the same networks UNTRAINED, with random weights." if twins else "")
    )
    alt = (
        f"{len(pictures)} images, each beside its rollout by {', '.join(grids)}. Ranges: {'; '.join(ranges)}."
    )
    return finish(fig, frame, caption, alt.replace("`", ""))
