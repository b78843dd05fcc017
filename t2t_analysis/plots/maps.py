"""Heat maps that share one scale: heads by heads, layers by layers, layers by heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from .._names import TWIN
from ..quantities import Quantity, plural, quantity
from ..results import Result
from .base import DIVERGING, SEQUENTIAL, Figure, finish, new_axes, title_block, use_style
from .series import SQUASHED, TOKENS, caption, null_kind, own_models, rows_of, shown, untrained_words

#: so many cells a side carry their numbers at most
ANNOTATED = 9
#: so many heads are drawn one by one at most; more are drawn as means over pairs
HEADS = 64
ALPHA = 0.05


class Map(NamedTuple):
    """One heat map: cells (NaN is grey), labels of rows and columns, title, which cells are marked, words of axes."""

    cells: np.ndarray
    rows: Sequence[Any]
    columns: Sequence[Any]
    title: str
    marked: np.ndarray | None = None
    down: str = "layer"
    across: str = "layer"


def scale_of(maps: Sequence[Map], log: bool = False) -> tuple[Normalize, str]:
    """Limits from the data of all maps, symmetric about 0 where they go below it; with the colours that fit."""
    values = np.concatenate([one.cells[np.isfinite(one.cells)] for one in maps])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log and low > 0 and high > SQUASHED * float(np.median(values)):
        return LogNorm(low, high), SEQUENTIAL
    if low < -0.25 * high:
        most = max(-low, high)
        return Normalize(-most, most), DIVERGING
    return Normalize(min(0.0, low), high or 1.0), SEQUENTIAL  # a little below 0 is noise about 0


def draw_maps(fig: Any, axes: Sequence[Axes], maps: Sequence[Map], label: str, *, log: bool = False) -> None:
    """Draw maps on one scale with one colour bar; numbers in the cells where there is room."""
    norm, colours = scale_of(maps, log)
    numbers = max(max(one.cells.shape) for one in maps) <= ANNOTATED
    for ax, one in zip(axes, maps, strict=True):
        _heat_map(ax, one, norm, colours, numbers)
        if not numbers and one.marked is not None:
            y, x = np.nonzero(one.marked)  # black on white, so that a cross is seen on every colour
            ax.scatter(x + 0.5, y + 0.5, marker="x", s=14, linewidth=1.8, color="white")
            ax.scatter(x + 0.5, y + 0.5, marker="x", s=10, linewidth=0.8, color="black")
        title_block(ax, one.title)
    bar = fig.colorbar(axes[0].collections[0], ax=list(axes), label=label, shrink=0.85, aspect=25)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        bar.ax.yaxis.set_minor_formatter("")


def _heat_map(ax: Axes, one: Map, norm: Normalize, colours: str, numbers: bool) -> None:
    """Cell (i, j) is the square whose middle is (j + 0.5, i + 0.5)."""
    import seaborn  # takes a second, which commands that draw no map need not wait for

    seaborn.heatmap(
        one.cells, ax=ax, norm=norm, cmap=colours, mask=np.isnan(one.cells), cbar=False, rasterized=True,
        square=one.cells.shape[0] == one.cells.shape[1], annot=_cell_texts(one) if numbers else None, fmt="",
        annot_kws={"fontsize": 9}, xticklabels=False, yticklabels=False,
    )  # fmt: skip
    ax.set_facecolor("#c8c8c8")
    for text in ax.texts:  # black or white, what stands out more (WCAG 2); seaborn turns to white too soon
        x, y = text.get_position()
        red, green, blue, _ = colormaps[colours](norm(one.cells[int(y), int(x)]))
        dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
        text.set_color("white" if dark else "black")
    for axis, labels in ((ax.yaxis, one.rows), (ax.xaxis, one.columns)):
        at = range(0, len(labels), -(-len(labels) // 13))
        axis.set_ticks([i + 0.5 for i in at], [str(labels[i]) for i in at])
    ax.tick_params(length=0)
    ax.set_xlabel(one.across)
    ax.set_ylabel(one.down)


def _cell_texts(one: Map) -> np.ndarray:
    """Numbers in two decimals, marked ones in brackets; none where a layer is compared with itself.

    >>> _cell_texts(Map(np.array([[1.0, -0.25]]), "a", "ab", "")).tolist()
    [['', '−.25']]
    """
    texts = np.full(one.cells.shape, "", dtype=object)
    for at, value in np.ndenumerate(one.cells):
        if not np.isnan(value) and round(value, 6) != 1:
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("0.", ".", 1).replace("-", "−")
            texts[at] = f"({text})" if one.marked is not None and one.marked[at] else text
    return texts


# ------------------------------------------------------------------------------------------------ heads


def head_map(result: Result, name: str = "cosine_centred", *, tokens: str | None = None) -> Figure:
    """Similarity of every head with every other head, a panel a model, all on one scale.

    Lines part the layers; a head with itself is grey. Of models with more than 64 heads the mean over pairs of
    different heads is drawn for every two layers.

    Parameters
    ----------
    result : of `HeadSimilarity` or `HeadOutputCKA`.
    name : the quantity.
    tokens : choice of tokens; the first of the result when left out.

    Raises
    ------
    UnknownNameError
        what the result does not have.
    """
    names = own_models(result)
    asked = {"quantity": name} | ({"tokens": tokens} if tokens else {})
    found = {model: rows_of(result, model=model, **asked) for model in names}
    sizes = {model: _head_counts(frame[frame["head"].notna()]) for model, frame in found.items()}
    one_by_one = max(sum(counts.values()) for counts in sizes.values()) <= HEADS
    drawn = {m: f[f["head"].notna() == one_by_one] for m, f in found.items()}
    maps = [_heads(drawn[m], sizes[m], m) if one_by_one else _layers(drawn[m], m) for m in names]
    look = quantity(name)
    with use_style():
        width = 4.6 * len(maps) if len(maps) > 1 else 6.0
        fig, axes = new_axes(1, len(maps), width=width, height=4.4, squeeze=False)
        draw_maps(fig, axes[0], maps, look.label if one_by_one else f"mean {look.label}")
        for ax, model in zip(axes[0], names, strict=True) if one_by_one else ():
            _layer_lines(ax, sizes[model])
    whole = pd.concat(drawn.values())
    return finish(fig, whole, *_head_words(drawn, look, one_by_one))


def _heads(pairs: pd.DataFrame, sizes: Mapping[int, int], title: str) -> Map:
    at, at_b = (pairs[f"layer{s}"].astype(str) + "." + pairs[f"head{s}"].astype(str) for s in ("", "_b"))
    names = [f"{layer}.{head}" for layer, count in sizes.items() for head in range(count)]
    return _symmetric(pairs.assign(at=at, at_b=at_b), names, title)


def _layers(frame: pd.DataFrame, title: str) -> Map:
    numbers = sorted({int(n) for n in [*frame["layer"], *frame["layer_b"]]})
    return _symmetric(frame.assign(at=frame["layer"], at_b=frame["layer_b"]), numbers, title)


def _symmetric(frame: pd.DataFrame, names: list[Any], title: str) -> Map:
    """Cells from rows for the upper triangle, by their columns ``at`` and ``at_b``; NaN where there is no row."""
    half = shown(frame).pivot(index="at", columns="at_b", values="value").reindex(index=names, columns=names)
    return Map(half.fillna(half.T).to_numpy(float, na_value=np.nan), names, names, title)


def _head_counts(pairs: pd.DataFrame) -> dict[int, int]:
    """Heads per layer, in order of depth; the last head of a layer is always the second of some pair."""
    both = [pairs[[f"layer{s}", f"head{s}"]].set_axis(["layer", "head"], axis=1) for s in ("", "_b")]
    counts = pd.concat(both).groupby("layer")["head"].max() + 1
    return dict(zip(map(int, counts.index), map(int, counts), strict=True))


def _layer_lines(ax: Axes, sizes: Mapping[int, int]) -> None:
    """Lines between layers, and a tick in the middle of each."""
    edges = np.cumsum([0, *sizes.values()])
    for edge in edges[1:-1]:
        ax.axhline(edge, color="black", linewidth=0.4)
        ax.axvline(edge, color="black", linewidth=0.4)
    middles, step = (edges[:-1] + edges[1:]) / 2, -(-len(sizes) // 13)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(middles[::step], [str(layer) for layer in list(sizes)[::step]])
    counts = sorted(set(sizes.values()))
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    ax.set_xlabel(f"layer ({each} heads each)")


def _head_words(drawn: Mapping[str, pd.DataFrame], look: Quantity, one_by_one: bool) -> tuple[str, str]:
    tops = {model: frame.iloc[int(frame["value"].astype(float).argmax())] for model, frame in drawn.items()}
    each = "; ".join(f"`{model}` {_pair(row)}, {look.interval(row)}" for model, row in tops.items())
    row = next(iter(drawn.values())).iloc[0]
    what = "every two heads" if one_by_one else "every two layers, mean over pairs of different heads"
    grey = "Grey: a head with itself." if one_by_one else ""
    n = f"n = {plural(row['n'], row['unit'])}."
    null = f"Null: {null_kind(row)}, in the table."
    words = caption(f"{look.title} of {what}. Most alike: {each}.", grey, n, also=[null])
    return words, f"Heat map of {look.words} of {what}. Most alike: {each}."


def _pair(row: pd.Series) -> str:
    """The two heads (layer.head) or layers of a row."""
    if pd.isna(row["head"]):
        return f"layers {row['layer']} and {row['layer_b']}"
    return f"heads {row['layer']}.{row['head']} and {row['layer_b']}.{row['head_b']}"


# ------------------------------------------------------------------------------------------------ layers


def cka_map(results: Result | Sequence[Result]) -> Figure:
    """CKA of every layer with every layer, a panel per model (`LayerCKA`) or pair of models (`CrossLayerCKA`).

    Cells that are not beyond the null (p of the max statistic at or above 0.05) are marked: brackets around their
    number, or a cross where there are too many cells for numbers.
    """
    asked = [results] if isinstance(results, Result) else results
    whole = pd.concat([rows_of(result, quantity="cka_unbiased") for result in asked])
    frames = [frame for _, frame in whole.groupby(["model", "model_b"], sort=False, dropna=False)]
    drawn = [_cka(frame) for frame in frames]
    numbers = max(max(one.cells.shape) for one in drawn) <= ANNOTATED
    look = quantity("cka_unbiased")
    with use_style():
        across = min(2, len(drawn))
        down = -(-len(drawn) // across)
        fig, axes = new_axes(down, across, width=8.4 if across > 1 else 6.0, height=3.9 * down, squeeze=False)
        for ax in axes.flat[len(drawn) :]:
            ax.set_visible(False)
        label = f"{look.label} ({'brackets' if numbers else 'cross'}: within chance)"
        draw_maps(fig, axes.flat[: len(drawn)], drawn, label)
    return finish(fig, whole, *_cka_words(frames, drawn, look))


def _cka(frame: pd.DataFrame) -> Map:
    """Values, and which of them are not beyond the null."""
    rows, columns = (list(dict.fromkeys(frame[name])) for name in ("place", "place_b"))
    values, p = (
        frame.pivot(index="place", columns="place_b", values=name)
        .reindex(index=rows, columns=columns)
        .to_numpy(float, na_value=np.nan)
        for name in ("value", "p")
    )
    first, second = str(frame["model"].iloc[0]), frame["model_b"].iloc[0]
    alone = pd.isna(second)
    own = np.array([[a == b for b in columns] for a in rows]) & alone
    labels = [[_short(place) for place in side] for side in (rows, columns)]
    title = first if alone else f"between models{TWIN if first.endswith(TWIN) else ''}"
    words = ("layer", "layer") if alone else (f"layer of {first}", f"layer of {second}")
    marked = ~((p < ALPHA) | own) & ~np.isnan(values)
    return Map(values, labels[0], labels[1], title, marked, words[0], words[1])


def _short(place: str) -> str:
    """A layer's number, or the name of what comes before the layers."""
    parts = str(place).split(".")
    return parts[1] if len(parts) > 1 else parts[0][:1].upper()


def _cka_words(frames: Sequence[pd.DataFrame], drawn: Sequence[Map], look: Quantity) -> tuple[str, str]:
    parts = []
    for frame in frames:
        tested = frame[frame["p"].notna()]
        if len(tested) and not str(frame["model"].iloc[0]).endswith(TWIN):
            low, high = look.number(tested["value"].min()), look.number(tested["value"].max())
            second = frame["model_b"].iloc[0]
            who = f"`{frame['model'].iloc[0]}`" + ("" if pd.isna(second) else f" and `{second}`")
            parts.append(f"{who} {low} to {high}")
    row = frames[0].iloc[0]
    marked = sum(int(one.marked.sum()) for one in drawn if one.marked is not None)
    cells = sum(one.cells.size for one in drawn)
    sample = TOKENS.get(str(row["tokens"]), str(row["tokens"]))
    ranges = f"Two different layers: {'; '.join(parts)}." if parts else ""
    tested = pd.concat(frames).dropna(subset="p")
    null = f"Null: {null_kind(tested.iloc[0])}." if len(tested) else ""
    words = caption(
        f"{look.title}, of the {sample}. {ranges}", f"{marked} of {cells} cells within chance (p ≥ {ALPHA}).",
        f"n = {plural(row['n'], row['unit'])}.",
        untrained_words([one.title for one in drawn]).replace("Crosses", '"random"'), also=[null],
    )  # fmt: skip
    alt = f"Heat maps of CKA, layer by layer. {'; '.join(parts)}; {marked} of {cells} cells within chance."
    return words, alt
