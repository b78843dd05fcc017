"""Photographs beside what models make of them: rollout, attribution, principal components, receptive fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import ArrayLike

from .._names import TWIN
from ..errors import DataError
from ..quantities import number, quantity
from ..results import Result, tidy
from .base import DIVERGING, SEQUENTIAL, Figure, finish, new_axes, use_style
from .series import caption, models_of, rows_of, untrained_words

if TYPE_CHECKING:
    from torch import Tensor

    from ..measures.attribution import Explained
    from ..measures.token_components import TokenPCA


class Tile(NamedTuple):
    """One picture: values (h, w) with colours and scale, or (h, w, 3)."""

    values: Any
    cmap: str | None = None
    norm: Normalize | None = None


def tiles(
    rows: Sequence[Sequence[Tile | None]], down: Sequence[str], across: Sequence[str], *, bar: str = "",
    side: float = 1.5, **colorbar: Any,
) -> Any:  # fmt: skip
    """Pictures in rows with names at their left and titles above; ``bar`` labels a colour bar of the last one."""
    columns = max(map(len, rows))
    side = min(side, 7.6 / columns)
    size = {"width": side * columns + 1.1, "height": side * len(rows) + 0.5 + 0.7 * bool(bar)}
    fig, axes = new_axes(len(rows), columns, squeeze=False, **size)
    drawn = None
    for line, tiles_of_row, name in zip(axes, rows, down, strict=True):
        for ax, tile in zip(line, [*tiles_of_row, *[None] * (columns - len(tiles_of_row))], strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if tile is not None:
                image = ax.imshow(tile.values, cmap=tile.cmap, norm=tile.norm)
                drawn = image if tile.cmap else drawn
        line[0].set_ylabel(_broken(name, 12), fontsize=9, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], across, strict=False):
        ax.set_title(_broken(title, int(11 * side)), fontsize=9)
    if bar and drawn is not None:
        scale = fig.colorbar(drawn, ax=axes, label=bar, shrink=0.5, aspect=30, location="bottom", **colorbar)
        scale.ax.xaxis.set_minor_formatter("")
    return fig


def _broken(text: str, width: int) -> str:
    """A text in lines of ``width`` letters, broken after spaces, dots and underscores.

    >>> _broken("vit_tiny_patch16_224: image", 12).split("\\n")
    ['vit_tiny_', 'patch16_224:', 'image']
    """
    lines = [""]
    for word in re.findall(r"[^_ .]*[_ .]?", text):
        if len((lines[-1] + word).rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def picture(image: Tensor) -> np.ndarray:
    """Show a normalised image (C, H, W) as (H, W, 3) between 0 and 1, stretched to its own range.

    >>> import torch
    >>> picture(torch.tensor([[[-1.0, 3.0]]])).tolist()
    [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """
    low, high = float(image.min()), float(image.max())
    scaled = ((image - low) / max(high - low, 1e-12)).permute(1, 2, 0).numpy()
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def _weights(pairs: Mapping[str, str]) -> pd.DataFrame:
    """Rows without numbers that say whose weights a picture rests on."""
    return tidy([{"model": name, "weights": weights} for name, weights in pairs.items()])


# ------------------------------------------------------------------------------------------------ rollout


def rollout_examples(
    photographs: ArrayLike, maps: Mapping[str, ArrayLike], *, weights: Mapping[str, str] | None = None
) -> Figure:
    """Photographs, and beside them the rollout of each model; one logarithmic scale for all maps, white at uniform.

    The scale spans a factor of 1.5 at least: maps that are nearly uniform, or that do not depend on the image, look so.

    Parameters
    ----------
    photographs : (n, 3, H, W), numbers from 0 to 1.
    maps : model -> (n, h, w) from `rollout_maps`, each summing to 1.
    weights : model -> where its weights came from, for the warning about untrained ones.

    Raises
    ------
    DataError
        the numbers of photographs and maps differ.
    """
    pictures = np.clip(np.moveaxis(np.asarray(photographs, dtype=float), 1, -1), 0, 1)
    shares = {name: np.asarray(m, dtype=float) * np.asarray(m)[0].size for name, m in maps.items()}
    for name, grid in shares.items():
        if len(grid) != len(pictures):
            raise DataError(f"{len(pictures)} photographs, but {len(grid)} maps of {name!r}")
    largest = max(float(np.abs(np.log(s[s > 0])).max(initial=math.log(1.5))) for s in shares.values())
    norm = LogNorm(math.exp(-largest), math.exp(largest))
    with use_style():
        beside = [[Tile(s[i], DIVERGING, norm) for s in shares.values()] for i in range(len(pictures))]
        rows = [[Tile(one), *more] for one, more in zip(pictures, beside, strict=True)]
        titles = ["image", *(name.replace(TWIN, "\n(untrained)") for name in shares)]
        at = np.exp(largest * np.array([-1, -0.5, 0, 0.5, 1]))
        fig = tiles(rows, [""] * len(rows), titles, bar="attention over uniform attention (logarithmic)",
                    ticks=list(at), format=lambda x, _: number(x, 1))  # fmt: skip
    ranges = "; ".join(f"`{name}` {number(s.min(), 2)} to {number(s.max(), 2)}" for name, s in shares.items())
    words = caption(
        f"Attention rollout to the class token (or the mean patch) over uniform attention: {ranges}.",
        f"Examples, n = {len(pictures)}, no interval; whether maps depend on the image is measured, not judged here.",
        untrained_words(shares).replace("Crosses", '"random"'),
    )
    alt = f"{len(pictures)} images, each beside its rollout by {', '.join(shares)}."
    return finish(fig, _weights({name: (weights or {}).get(name, "unknown") for name in shares}), words, alt)


# ------------------------------------------------------------------------------------------------ attribution


def attribution_panels(explained: Explained | Sequence[Explained], images: Sequence[int] = (0, 1)) -> Figure:
    """A row for each image: as each model saw it, with the maps of every method beside it.

    Maps run from blue (against the class) over white to red (for it), every map on its own scale up to the 99 % point
    of its absolute values.
    """
    from ..measures.attribution import METHODS

    several = list(explained) if isinstance(explained, Sequence) else [explained]
    chosen = list(several[0].maps)
    across = ["image", *(METHODS[method].words for method in chosen)]
    with use_style():
        rows: list[list[Tile | None]] = [[] for _ in images]
        for row, i in zip(rows, images, strict=True):
            for one in several:
                row += [
                    Tile(picture(one.images[i])),
                    *(_signed(one.maps[method][i].numpy()) for method in chosen),
                ]
        titles = [f"{one.label}: {words}" for one in several for words in across]
        fig = tiles(rows, [""] * len(rows), titles, ticks=[-1, 0, 1],
                    bar="against the class … for it (each map's own scale)")  # fmt: skip
    kinds = {"predicted": "the class that each model answers", "label": "the labelled class"}
    each = dict.fromkeys(", ".join(dict.fromkeys(_class(one, i) for one in several)) for i in images)
    words = caption(
        f"Attribution of {kinds[several[0].target_kind]}: {'; '.join(each)}.",
        "Single images show no rule: checks of the maps of all images follow.",
    )
    names = " and ".join(one.label for one in several)
    alt = f"{len(images)} images with {len(chosen)} attribution maps each, for {names}."
    return finish(fig, _weights({one.label: one.weights for one in several}), words, alt)


def _signed(values: np.ndarray) -> Tile:
    """A map on its own scale; grey where it is not finite."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(np.quantile(finite, 0.99)) or float(finite.max()) if finite.size else 1.0
    return Tile(values / (top or 1.0), DIVERGING, Normalize(-1, 1))


def _class(one: Explained, index: int) -> str:
    """Name of a class where the data's classes are the model's, else its number."""
    target = int(one.target[index])
    known = (one.meta.get("data") or {}).get("classes") or ()
    return str(known[target]) if len(known) == getattr(one.model, "num_classes", 0) else f"class {target}"


# ------------------------------------------------------------------------------------------------ tokens


def pca_maps(several: Sequence[TokenPCA], result: Result) -> Figure:
    """Paint patch tokens by their first three principal components: images on top, a row for each model.

    ``result`` is that of `pca_result` for the same models.

    Raises
    ------
    DataError
        a model that the result does not have.
    """
    if missing := [one.label for one in several if one.label not in set(result.frame["model"])]:
        raise DataError(f"the result of pca_result holds no rows of {missing}")
    chosen = range(min(6, len(several[0].images)))
    with use_style():
        top = [Tile(picture(several[0].images[i])) for i in chosen]
        fig = tiles([top, *([Tile(one.rgb[i]) for i in chosen] for one in several)],
                    ["image", *(one.label for one in several)], [])  # fmt: skip
    own = {one.label: result.frame[result.frame["model"] == one.label] for one in several}
    shares = "; ".join(_explained(rows, label) for label, rows in own.items())
    words = caption(
        "Patch tokens by their first three principal components as red, green and blue; colours of different models "
        f"do not correspond. Variance explained by the three: {shares}.",
        f"n = {len(several[0].images)} images, {several[0].place}.",
    )
    names = " and ".join(one.label for one in several)
    alt = f"{len(chosen)} images and their tokens for {names}, by three components."
    return finish(fig, result.frame, words, alt)


def _explained(rows: pd.DataFrame, label: str) -> str:
    first = rows.sort_values("at").head(3)
    look = quantity(str(first["quantity"].iloc[0]))
    total, null = (float(first[name].astype(float).sum()) for name in ("value", "null"))
    return f"`{label}` {look.number(total)} (channels shuffled: {look.number(null)})"


def receptive_field_map(result: Result) -> Figure:
    """Mean squared input gradient of the central token as pictures, a row per model, a column per place: the embedding
    and the first, middle and last block.

    Logarithmic, each picture relative to its largest value. ``result`` is of `EffectiveReceptiveField`.
    """
    names = models_of(result)
    parts = [result.meta, *result.meta.get("parts", [])]
    maps = {label: found for part in parts for label, found in part.get("maps", {}).items()}
    chosen = {name: _four(list(maps[name])) for name in names}
    norm = LogNorm(1e-4, 1, clip=True)
    with use_style():
        drawn = {m: [np.maximum(np.array(maps[m][place]), 1e-12) for place in chosen[m]] for m in names}
        rows = [[Tile(one, SEQUENTIAL, norm) for one in drawn[m]] for m in names]
        titles = [name.removesuffix(".resid_post").replace("blocks.", "layer ") for name in chosen[names[0]]]
        how: Any = {"bar": "squared gradient (largest = 1)", "side": 1.75, "format": lambda x, _: f"{x:g}"}
        fig = tiles(rows, names, titles, **how)
    frame = pd.concat([rows_of(result, quantity="erf_radius_50", model=name) for name in names])
    words = caption(
        "Where the central token looks: its squared input gradient along random directions, mean of shares over "
        f"{int(frame['n'].iloc[0])} images, each picture on its own logarithmic scale.",
    )
    alt = f"Heat maps: squared input gradient of the central token for {', '.join(names)}."
    return finish(fig, frame, words, alt)


def _four(places: list[str]) -> list[str]:
    """The embedding and the first, middle and last block."""
    blocks = [place for place in places if place.startswith("blocks.")]
    picked = [blocks[i] for i in sorted({0, len(blocks) // 2, len(blocks) - 1})] if blocks else []
    return [place for place in places if place == "embed"] + picked
