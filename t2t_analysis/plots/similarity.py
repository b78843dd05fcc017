"""Maps of similarity: head by head, layer by layer, within a model and between two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.image import AxesImage

from ..errors import UnknownNameError
from ..results import Result
from .base import DIVERGING, SEQUENTIAL, Figure, finish, new_axes, title_block, use_style

__all__ = ["QUANTITIES", "Quantity", "cka_map", "head_map", "layer_map", "number", "rows_of"]

#: up to so many layers, cells carry their numbers
ANNOTATED = 12
ALPHA = 0.05


class Quantity(NamedTuple):
    """How a similarity is written and coloured: words, colour map and limits, which models share."""

    words: str
    label: str
    cmap: str
    low: float
    high: float


QUANTITIES = {
    "cosine_centred": Quantity("centred cosine of attention maps", "centred cosine", DIVERGING, -1, 1),
    "cosine_content": Quantity(
        "content similarity of attention maps", "content similarity", DIVERGING, -1, 1
    ),
    "cosine_raw": Quantity("raw cosine of attention maps", "raw cosine", SEQUENTIAL, 0, 1),
    "js_divergence": Quantity(
        "Jensen-Shannon divergence of attention maps", "divergence (nats)", SEQUENTIAL, 0, float(np.log(2))
    ),
    "head_output_cka": Quantity("CKA of head outputs", "unbiased CKA", SEQUENTIAL, 0, 1),
    "cka_unbiased": Quantity("CKA of layers", "unbiased CKA", SEQUENTIAL, 0, 1),
}

#: what one sample of a CKA was
_SAMPLES = {
    "pooled": "mean patch token of an image", "class": "class token of an image",
    "flattened": "all patch tokens of an image",
}  # fmt: skip


def rows_of(
    result: Result, quantity: str, model: str | None = None, tokens: str | None = None
) -> pd.DataFrame:
    """Rows of one quantity of one model, the first model and choice of tokens unless said otherwise.

    Raises
    ------
    UnknownNameError : the result has no such quantity, model or tokens.
    """
    frame = result.frame
    for column, wanted in (("quantity", quantity), ("model", model), ("tokens", tokens)):
        known = [str(name) for name in frame[column].dropna().unique()]
        wanted = known[0] if wanted is None and known else wanted
        if wanted not in known:
            raise UnknownNameError(column, wanted, known, hint=f"in the result of {result.measure}")
        frame = frame[frame[column] == wanted]
    return frame


def number(value: Any, digits: int = 2) -> str:
    """A number with a proper minus sign, two significant digits where it is small; a missing one is a dash.

    >>> number(-0.123), number(0.00142), number(None)
    ('−0.12', '0.0014', '–')
    """
    if pd.isna(value):
        return "–"
    value = float(value)
    if 0 < abs(value) < 0.5 * 10 ** (1 - digits):
        digits = min(1 - math.floor(math.log10(abs(value))), 4)
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def interval(row: Any, digits: int = 2) -> str:
    """Value with its interval, where there is one."""
    if pd.isna(row["low"]):
        return number(row["value"], digits)
    return f"{number(row['value'], digits)} [{number(row['low'], digits)}, {number(row['high'], digits)}]"


def _null(row: Any) -> str:
    """What the null is, without the remark on its interval."""
    return str(row["null_kind"]).split(";")[0]


def _units(n: Any, unit: Any) -> str:
    return f"{int(n)} {unit}{'' if int(n) == 1 else 's'}"


# ------------------------------------------------------------------------------------------------ drawing


def _square(ax: Axes, matrix: np.ndarray, look: Quantity) -> AxesImage:
    """Draw a matrix with row 0 at the top; what has no value is grey."""
    cmap = matplotlib.colormaps[look.cmap].with_extremes(bad="#c8c8c8")
    aspect: Literal["equal", "auto"] = "equal" if matrix.shape[0] == matrix.shape[1] else "auto"
    image = ax.imshow(
        matrix, cmap=cmap, vmin=look.low, vmax=look.high, interpolation="nearest", aspect=aspect
    )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return image


def _thinned(labels: Sequence[Any], most: int = 14) -> list[int]:
    """Positions of labels to draw, so that they do not touch."""
    return list(range(0, len(labels), -(-len(labels) // most)))


def _layer_ticks(ax: Axes, rows: Sequence[int], columns: Sequence[int]) -> None:
    for axis, numbers in ((ax.yaxis, rows), (ax.xaxis, columns)):
        shown = _thinned(numbers)
        axis.set_ticks(shown, [str(numbers[i]) for i in shown])


def _write_cells(ax: Axes, image: AxesImage, matrix: np.ndarray, faint: np.ndarray | None = None) -> None:
    """Numbers in cells, black or white by the cell's luminance; where ``faint``, in brackets."""
    size = 9 if max(matrix.shape) <= 8 else 7.5
    for (i, j), value in np.ndenumerate(matrix):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
        text = f"{value + 0.0:.2f}".replace("0.", ".", 1) if abs(value) >= 0.005 else ".00"
        text = text.replace("-", "−")
        text = f"({text})" if faint is not None and faint[i, j] else text
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")


def _symmetric(frame: pd.DataFrame, size: int, at: pd.Series, at_b: pd.Series) -> np.ndarray:
    """(size, size) from rows for the upper triangle; cells without a row are NaN."""
    matrix = np.full((size, size), np.nan)
    i, j = at.to_numpy(int), at_b.to_numpy(int)
    matrix[i, j] = matrix[j, i] = frame["value"].to_numpy(float)
    return matrix


# ------------------------------------------------------------------------------------------------ heads


def head_map(
    result: Result, quantity: str = "cosine_centred", model: str | None = None, tokens: str | None = None
) -> Figure:
    """Similarity of every head with every other head of a model, with lines between layers.

    ``result`` is of `HeadSimilarity`, `HeadDivergence` (within layers only) or `HeadOutputCKA`. The diagonal,
    a head with itself, is left grey. Raises UnknownNameError for a quantity, model or tokens that it does not
    have.
    """
    frame = rows_of(result, quantity, model, tokens)
    pairs, layers = frame[frame["head"].notna()], frame[frame["head"].isna()]
    sizes = _head_counts(pairs)
    look = QUANTITIES[quantity]
    across = bool((pairs["layer"] != pairs["layer_b"]).any())
    with use_style():
        fig = (_one_map if across else _one_map_a_layer)(pairs, sizes, look, _about(frame))
    return finish(fig, frame, _head_caption(pairs, layers, look), _head_alt(pairs, layers, look, sizes))


def _one_map(pairs: pd.DataFrame, sizes: dict[int, int], look: Quantity, about: str) -> MplFigure:
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    at, at_b = (pairs[f"layer{s}"].map(starts) + pairs[f"head{s}"] for s in ("", "_b"))
    fig, ax = new_axes(width=6.4, height=5.6)
    image = _square(ax, _symmetric(pairs, sum(sizes.values()), at, at_b), look)
    _layer_lines(ax, sizes)
    fig.colorbar(image, ax=ax, label=look.label, shrink=0.85)
    title_block(ax, f"{look.words[0].upper()}{look.words[1:]}", about)
    return fig


def _one_map_a_layer(pairs: pd.DataFrame, sizes: dict[int, int], look: Quantity, about: str) -> MplFigure:
    """A quantity that exists within layers only: one small map for each."""
    columns = min(6, len(sizes))
    rows = -(-len(sizes) // columns)
    fig, axes = new_axes(rows, columns, width=7.0, height=1.2 * rows + 0.9, squeeze=False)
    for ax in axes.flat[len(sizes) :]:
        ax.set_visible(False)
    for ax, (layer, heads) in zip(axes.flat, sizes.items(), strict=False):
        own = pairs[pairs["layer"] == layer]
        image = _square(ax, _symmetric(own, heads, own["head"], own["head_b"]), look)
        ax.set_title(f"layer {layer}", fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    fig.colorbar(image, ax=axes, label=look.label, shrink=0.85)
    fig.suptitle(f"{look.words[0].upper()}{look.words[1:]}: {about}\nrows and columns: heads", fontsize=10)
    return fig


def _head_counts(pairs: pd.DataFrame) -> dict[int, int]:
    """Heads per layer, in order of depth; the last head of a layer is always the second of some pair."""
    both = [pairs[[f"layer{s}", f"head{s}"]].set_axis(["layer", "head"], axis=1) for s in ("", "_b")]
    counts = pd.concat(both).groupby("layer")["head"].max() + 1
    return dict(zip(map(int, counts.index), map(int, counts), strict=True))


def _layer_lines(ax: Axes, sizes: dict[int, int]) -> None:
    """Boundaries between layers, and one tick in the middle of each (some, where there are many)."""
    edges = np.cumsum([0, *sizes.values()]) - 0.5
    for edge in edges[1:-1]:
        ax.axhline(edge, color="black", linewidth=0.4)
        ax.axvline(edge, color="black", linewidth=0.4)
    middles, names = (edges[:-1] + edges[1:]) / 2, list(sizes)
    shown = _thinned(names)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(middles[shown], [str(names[i]) for i in shown])
    heads = sorted(set(sizes.values()))
    each = f"{heads[0]} heads each" if len(heads) == 1 else f"{heads[0]} to {heads[-1]} heads each"
    ax.set_xlabel(f"layer ({each})")
    ax.set_ylabel("layer")


def _about(frame: pd.DataFrame) -> str:
    row = frame.iloc[0]
    sample = _SAMPLES.get(str(row["tokens"]))
    return f"{row['model']}, {_units(frame['n'].max(), row['unit'])}" + (f", {sample}" if sample else "")


def _most(pairs: pd.DataFrame, look: Quantity) -> pd.Series:
    """The most similar pair: for a divergence the smallest value."""
    order = pairs["value"].astype(float)
    return pairs.iloc[int(np.argmin(order) if "nats" in look.label else np.argmax(order))]


def _name(row: pd.Series) -> str:
    return f"L{row['layer']}H{row['head']} and L{row['layer_b']}H{row['head_b']}"


def _head_caption(pairs: pd.DataFrame, layers: pd.DataFrame, look: Quantity) -> str:
    row, most = pairs.iloc[0], _most(pairs, look)
    own = layers[layers["layer"] == layers["layer_b"]]
    within = own["value"].astype(float)
    text = (
        f"{look.words[0].upper()}{look.words[1:]} of `{row['model']}` between all {_span(pairs)}; layers run down and "
        f"to the right, the diagonal (a head with itself) is grey. Mean within layers {number(within.mean())}, from "
        f"{number(within.min())} to {number(within.max())}; null, {_null(row)}: "
        f"{number(own['null'].astype(float).mean())}. Most alike: {_name(most)}, {interval(most)}"
    )
    return f"{text}. n = {_units(row['n'], row['unit'])}; 95 % interval by {row['interval'] or 'none'}."


def _span(pairs: pd.DataFrame) -> str:
    across = (pairs["layer"] != pairs["layer_b"]).any()
    return "heads of all layers" if across else "heads of each layer"


def _head_alt(pairs: pd.DataFrame, layers: pd.DataFrame, look: Quantity, sizes: dict[int, int]) -> str:
    own = layers[layers["layer"] == layers["layer_b"]]["value"].astype(float)
    most = _most(pairs, look)
    return (
        f"Heat map, {sum(sizes.values())} heads in {len(sizes)} layers, {look.label} of {most['model']}: mean within "
        f"layers {number(own.mean())}, most alike {_name(most)} with {number(most['value'])}."
    )


# ------------------------------------------------------------------------------------------------ layers


def layer_map(
    result: Result, quantity: str = "cosine_centred", model: str | None = None, tokens: str | None = None
) -> Figure:
    """Mean similarity between the heads of every two layers, with numbers where there are at most 12 layers.

    Arguments and errors as for `head_map`. Within a layer the mean is over its different heads.
    """
    frame = rows_of(result, quantity, model, tokens)
    frame = frame[frame["head"].isna()]
    numbers = sorted({int(n) for n in [*frame["layer"], *frame["layer_b"]]})
    place = {n: i for i, n in enumerate(numbers)}
    matrix = _symmetric(frame, len(numbers), frame["layer"].map(place), frame["layer_b"].map(place))
    look = QUANTITIES[quantity]
    with use_style():
        fig, ax = new_axes(width=6.0, height=5.2)
        image = _square(ax, matrix, look)
        _layer_ticks(ax, numbers, numbers)
        if len(numbers) <= ANNOTATED:
            _write_cells(ax, image, matrix)
        ax.set_xlabel("layer")
        ax.set_ylabel("layer")
        fig.colorbar(image, ax=ax, label=f"mean {look.label} of different heads", shrink=0.85)
        title_block(ax, f"{look.words[0].upper()}{look.words[1:]}", _about(frame))
    return finish(fig, frame, _layer_caption(frame, look), _layer_alt(frame, look))


def _layer_caption(frame: pd.DataFrame, look: Quantity) -> str:
    row = frame.iloc[0]
    own, across = (frame[same] for same in (_same(frame), ~_same(frame)))
    most = _most(own, look) if len(own) else _most(across, look)
    text = (
        f"Mean {look.words} of `{row['model']}` over pairs of different heads, for every two layers. Within layers "
        f"{number(own['value'].astype(float).mean())} on average, between layers "
        f"{number(across['value'].astype(float).mean())}; null, {_null(row)}: "
        f"{number(own['null'].astype(float).mean())} within layers. Most alike within a layer: layer "
        f"{most['layer']}, {interval(most)}"
    )
    return f"{text}. n = {_units(row['n'], row['unit'])}; 95 % interval by {row['interval'] or 'none'}."


def _same(frame: pd.DataFrame) -> pd.Series:
    return (frame["layer"] == frame["layer_b"]).astype(bool)


def _layer_alt(frame: pd.DataFrame, look: Quantity) -> str:
    own = frame[_same(frame)]["value"].astype(float)
    across = frame[~_same(frame)]["value"].astype(float)
    return (
        f"Heat map of {look.label} by layer and layer, {frame.iloc[0]['model']}: {number(own.mean())} within layers "
        f"on average, {number(across.mean())} between layers."
    )


# ------------------------------------------------------------------------------------------------ CKA of layers


def cka_map(result: Result, model: str | None = None, quantity: str = "cka_unbiased") -> Figure:
    """CKA of every layer with every layer, of one model (`LayerCKA`) or of two (`CrossLayerCKA`).

    Cells that are not beyond the null (p of the max statistic at or above 0.05) are marked: brackets around
    their number, or a cross where there are too many cells for numbers. Raises UnknownNameError for a model
    that the result does not have.
    """
    frame = rows_of(result, quantity, model)
    cells, beyond, rows, columns = _cka_cells(frame)
    look = QUANTITIES["cka_unbiased"]
    first = frame.iloc[0]
    second = first["model"] if pd.isna(first["model_b"]) else first["model_b"]
    with use_style():
        fig, ax = new_axes(width=6.0, height=5.2)
        image = _square(ax, cells, look)
        _layer_ticks(ax, rows, columns)
        faint = ~beyond & ~np.isnan(cells)
        if max(cells.shape) <= ANNOTATED:
            _write_cells(ax, image, cells, faint)
        else:
            y, x = np.nonzero(faint)
            ax.scatter(x, y, marker="x", s=14, linewidth=0.9, color="white")
        ax.set_ylabel(f"layer of {first['model']}")
        ax.set_xlabel(f"layer of {second}")
        fig.colorbar(image, ax=ax, label=look.label, shrink=0.85, extend="min")
        mark = "in brackets" if max(cells.shape) <= ANNOTATED else "crossed"
        note = f"{_units(first['n'], first['unit'])}; {mark}: not beyond chance"
        title_block(ax, "CKA of layers", note)
    return finish(fig, frame, _cka_caption(frame, second, faint, mark), _cka_alt(frame, second, faint))


def _cka_cells(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[Any], list[Any]]:
    """Values, which of them are beyond the null, and the layer numbers of rows and columns."""
    rows, columns = (list(dict.fromkeys(frame[name])) for name in ("place", "place_b"))
    values, p = (
        frame.pivot(index="place", columns="place_b", values=name)
        .reindex(index=rows, columns=columns)
        .to_numpy(float, na_value=np.nan)
        for name in ("value", "p")
    )
    own = np.array([[a == b for b in columns] for a in rows]) & bool(frame["model_b"].isna().all())
    numbers = [[_layer_label(place) for place in side] for side in (rows, columns)]
    return values, (p < ALPHA) | own, numbers[0], numbers[1]


def _layer_label(place: str) -> str:
    parts = str(place).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _cka_caption(frame: pd.DataFrame, second: str, faint: np.ndarray, mark: str) -> str:
    row = frame.iloc[0]
    tested = frame[frame["p"].notna()]
    whom = (
        f"of `{row['model']}`"
        if second == row["model"]
        else f"of `{row['model']}` (down) and `{second}` (across)"
    )
    best = tested.iloc[int(np.argmax(tested["value"].astype(float)))]
    alone = "Two different layers" if second == row["model"] else "Layers"
    return (
        f"Unbiased linear CKA between layers {whom}; a sample is the {_SAMPLES.get(row['tokens'])}. {alone} agree "
        f"from {number(tested['value'].min())} to {number(best['value'])}; most in layers "
        f"{_layer_label(best['place'])} and {_layer_label(best['place_b'])}, {interval(best)}. Null, {_null(row)}: "
        f"mean {number(tested['null'].astype(float).mean())}, 97.5 % point up to "
        f"{number(tested['null_high'].astype(float).max())}; {int(faint.sum())} of {faint.size} cells are not beyond "
        f"it (max statistic, p ≥ {ALPHA}; {mark}). n = {_units(row['n'], row['unit'])}; 95 % interval by "
        f"{row['interval']}."
    )


def _cka_alt(frame: pd.DataFrame, second: str, faint: np.ndarray) -> str:
    tested = frame[frame["p"].notna()]["value"].astype(float)
    return (
        f"Heat map of CKA, layers of {frame.iloc[0]['model']} by layers of {second}: from {number(tested.min())} to "
        f"{number(tested.max())}; {int(faint.sum())} of {faint.size} cells not beyond chance."
    )
