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

from .._names import TWIN
from ..errors import UnknownNameError
from ..quantities import enough_digits
from ..results import Result
from .base import DIVERGING, SEQUENTIAL, Figure, estimated, finish, new_axes, title_block, use_style

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
    """Value with its interval, where there is one; small values with a digit more, and their ends as many.

    >>> interval({"value": -0.009, "low": -0.021, "high": 0.003})
    '−0.009 [−0.021, 0.003]'
    >>> interval({"value": 0.12, "low": 0.004, "high": 0.236})  # 0.00 would hide that 0 is left out
    '0.120 [0.004, 0.236]'
    """
    if pd.notna(row["value"]) and abs(float(row["value"])) < 0.095:
        digits = max(digits, 3)
    value = number(row["value"], digits)
    if any(pd.isna(row[name]) for name in ("value", "low", "high")):
        return value
    three = [float(row[name]) for name in ("value", "low", "high")]
    digits = max(digits, len(value.partition(".")[2]))
    digits = enough_digits(digits, *three)
    value, low, high = (f"{x:.{digits}f}" for x in three)
    value, low, high = (
        x.removeprefix("-") if float(x) == 0 else x.replace("-", "−") for x in (value, low, high)
    )
    return f"{value} [{low}, {high}]"


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
    return f"{text}. n = {_units(row['n'], row['unit'])}; 95 % interval by {estimated(row)}."


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
    return f"{text}. n = {_units(row['n'], row['unit'])}; 95 % interval by {estimated(row)}."


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


def cka_map(results: Result | Sequence[Result], models: str | Sequence[str] | None = None) -> Figure:
    """CKA of every layer with every layer: a panel per model (`LayerCKA`) or per pair of models (`CrossLayerCKA`).

    One scale for all panels. Cells that are not beyond the null (p of the max statistic at or above 0.05) are
    marked: brackets around their number, or a cross where there are too many cells for numbers.

    Parameters
    ----------
    results : one result or several.
    models : panels of these models (the first of a pair), in this order; all when left out.

    Raises UnknownNameError for a model that no result has.
    """
    several = [results] if isinstance(results, Result) else list(results)
    panels = _cka_panels(several, [models] if isinstance(models, str) else models)
    look, across = QUANTITIES["cka_unbiased"], min(2, len(panels))
    numbers = max(max(panel.cells.shape) for panel in panels) <= (ANNOTATED if across == 1 else 10)
    down = -(-len(panels) // across)
    size = (6.0, 5.2) if across == 1 else (8.4, 4.0 * down + 0.4)
    with use_style():
        fig, axes = new_axes(down, across, width=size[0], height=size[1], squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        images = [_draw_cka(ax, panel, numbers) for ax, panel in zip(axes.flat, panels, strict=False)]
        label = f"{look.label} ({'in brackets' if numbers else 'crossed'}: not beyond chance)"
        fig.colorbar(images[0], ax=axes, label=label, shrink=0.85 if down == 1 else 0.5, extend="min")
    shown = pd.concat([panel.frame for panel in panels])
    own = shown[~shown["model"].str.endswith(TWIN)]
    return finish(fig, own, _cka_caption(panels), _cka_alt(panels))


class _CKAPanel(NamedTuple):
    """One map: its rows, its mean (no row or one), cells, which of them are not beyond the null, layer labels."""

    frame: pd.DataFrame
    mean: pd.DataFrame
    cells: np.ndarray
    faint: np.ndarray
    rows: list[Any]
    columns: list[Any]

    @property
    def names(self) -> tuple[str, str]:
        """Whose layers run down, and whose across."""
        row = self.frame.iloc[0]
        return str(row["model"]), str(row["model"] if pd.isna(row["model_b"]) else row["model_b"])


def _cka_panels(results: Sequence[Result], models: Sequence[str] | None) -> list[_CKAPanel]:
    """Every map of the results, or those of ``models``, in that order."""
    found: dict[str, list[_CKAPanel]] = {}
    for result in results:
        for (name, *_), frame in result.frame.groupby(["model", "model_b"], sort=False, dropna=False):
            maps = frame[frame["quantity"] == "cka_unbiased"]
            cells, beyond, rows, columns = _cka_cells(maps)
            mean = frame[frame["quantity"] == "cka_mean"]
            panel = _CKAPanel(maps, mean, cells, ~beyond & ~np.isnan(cells), rows, columns)
            found.setdefault(str(name), []).append(panel)
    for name in models or ():
        if name not in found:
            raise UnknownNameError("model", name, list(found), hint=f"in the result of {results[0].measure}")
    return [panel for name in models or found for panel in found[name]]


def _draw_cka(ax: Axes, panel: _CKAPanel, numbers: bool) -> AxesImage:
    image = _square(ax, panel.cells, QUANTITIES["cka_unbiased"])
    _layer_ticks(ax, panel.rows, panel.columns)
    if numbers:
        _write_cells(ax, image, panel.cells, panel.faint)
    else:  # black on white, so that a cross is seen on every colour
        y, x = np.nonzero(panel.faint)
        ax.scatter(x, y, marker="x", s=14, linewidth=1.8, color="white")
        ax.scatter(x, y, marker="x", s=10, linewidth=0.8, color="black")
    first, second = panel.names
    ax.set_ylabel("layer" if first == second else f"layer of {first}")
    ax.set_xlabel("layer" if first == second else f"layer of {second}")
    row = panel.frame.iloc[0]
    between = f"Between models{TWIN if second.endswith(TWIN) else ''}"
    title_block(ax, first if first == second else between, _units(row["n"], row["unit"]))
    return image


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


def _cka_caption(panels: Sequence[_CKAPanel]) -> str:
    row = panels[0].frame.iloc[0]
    tested = panels[0].frame[panels[0].frame["p"].notna()]  # a layer with itself has another null
    null = _null(tested.iloc[0] if len(tested) else row)
    itself = ", a layer with itself is 1" if panels[0].names[0] == panels[0].names[1] else ""
    return (
        f"Unbiased linear CKA between layers; a sample is the {_SAMPLES.get(row['tokens'])}{itself}. "
        f"{' '.join(_cka_words(panel) for panel in panels)}{_about_twins(panels)} Null: {null}. Marked cells are not "
        f"beyond it (max statistic over the map, p ≥ {ALPHA}). n = {_units(row['n'], row['unit'])}; 95 % "
        f"intervals by {estimated(row)}."
    )


def _about_twins(panels: Sequence[_CKAPanel]) -> str:
    """What the random ones are, if there are any."""
    there = any(panel.names[0].endswith(TWIN) for panel in panels)
    return f" “{TWIN.strip(', ')}”: the same networks UNTRAINED, with random weights." if there else ""


def _cka_words(panel: _CKAPanel) -> str:
    """Range, mean, best cell and null of one map."""
    first, second = panel.names
    whom = (
        f"`{first}`, two different layers" if first == second else f"`{first}` (down) and `{second}` (across)"
    )
    tested = panel.frame[panel.frame["p"].notna()]
    if not len(tested):
        return f"{whom}: no two layers to compare."
    best = tested.iloc[int(np.argmax(tested["value"].astype(float)))]
    mean = "".join(f", mean {interval(row)}" for _, row in panel.mean.iterrows())
    return (
        f"{whom}: {number(tested['value'].min())} to {number(best['value'])}{mean}; most in layers "
        f"{_layer_label(best['place'])} and {_layer_label(best['place_b'])}, {interval(best)}; null "
        f"{number(tested['null'].astype(float).mean())}, its 97.5 % point up to "
        f"{number(tested['null_high'].astype(float).max())}; {int(panel.faint.sum())} of {panel.faint.size} cells are "
        "not beyond it."
    )


def _cka_alt(panels: Sequence[_CKAPanel]) -> str:
    each = []
    for panel in panels:
        values = panel.frame.loc[panel.frame["p"].notna(), "value"].astype(float)
        names = " and ".join(dict.fromkeys(panel.names))
        each.append(f"{names} {number(values.min())} to {number(values.max())}")
    return f"Heat maps of CKA, layer by layer: {'; '.join(each)}; {_marked(panels)} cells not beyond chance."


def _marked(panels: Sequence[_CKAPanel]) -> str:
    return f"{sum(int(p.faint.sum()) for p in panels)} of {sum(p.faint.size for p in panels)}"
