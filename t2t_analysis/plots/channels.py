"""Invalid channels as curves over the threshold, and the feature maps themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from .._names import TWIN
from ..errors import T2TError, UnknownNameError
from ..measures.feature_maps import AREA, ChannelMaps
from ..results import Result, tidy
from .base import PALETTE, Figure, estimated, finish, new_axes, role, title_block, use_style

__all__ = ["SCALES", "channel_curves", "feature_map_grid"]

Scale = Literal["common", "channel", "prefix"]
SCALES: dict[Scale, str] = {
    "common": "one scale for all",
    "channel": "own scale each",
    "prefix": "own scale, prefix kept in",
}
#: frames: colour and line, told apart without colour too
INVALID, EDGES = {"color": PALETTE["vermillion"], "ls": "-"}, {"color": PALETTE["green"], "ls": "--"}


def _rows(result: Result, quantity: str, curve: bool) -> pd.DataFrame:
    """Rows of one quantity with (a curve) or without abscissa; UnknownNameError if there are none."""
    frame = result.frame[result.frame["at"].notna() == curve]
    if quantity not in set(frame.quantity):
        raise UnknownNameError("quantity", quantity, frame.quantity.unique(), f"in {result.measure}")
    return frame[frame.quantity == quantity]


def _of_place(frame: pd.DataFrame, place: str) -> pd.DataFrame:
    if place not in set(frame.place):
        raise UnknownNameError("place", place, frame.place.unique())
    return frame[frame.place == place]


# ------------------------------------------------------------------------------------------ curves


def channel_curves(
    result: Result, quantities: str | Sequence[str] = "zero", places: Sequence[str] = ("embed",)
) -> Figure:
    """Fraction of channels that are invalid, over the threshold: a row a kind, a column a place, a line a model.

    The thresholds over which the headline is averaged are shaded; a random twin is a thin line in its model's colour.

    Parameters
    ----------
    result : of `InvalidChannels`, one or several models.
    quantities : "zero", "flat", "dead" or "too_large", also with "_in_every_image"; one or several.
    places : up to four; models without such a place are left out of its panel.

    Raises UnknownNameError for a quantity or place that the result does not have.
    """
    kinds = [quantities] if isinstance(quantities, str) else list(quantities)
    shown = {
        (kind, place): _of_place(_rows(result, kind, curve=True), place) for kind in kinds for place in places
    }
    models = [str(name) for name in result.frame["model"].unique()]
    names = [name for name in models if not name.endswith(TWIN)]
    with use_style():
        size = {"width": max(2.6 * len(places), 4.4), "height": 0.9 + 2.2 * len(kinds)}
        fig, axes = new_axes(len(kinds), len(places), **size, sharey="row", squeeze=False)
        for (kind, place), part in shown.items():
            ax = axes[kinds.index(kind), list(places).index(place)]
            ax.axvspan(*_headline(part), color=PALETTE["grey"], alpha=0.15, linewidth=0)
            _curves(ax, part, names)
            ax.set_xlabel(_threshold(part))
        for ax, kind in zip(axes[:, 0], kinds, strict=True):
            ax.set_ylabel(f"fraction of channels,\n{kind.replace('_', ' ')}")
            tops = [shown[kind, place][["high", "null"]].to_numpy(float).max() for place in places]
            ax.set_ylim(-0.02, max(0.1, 1.05 * max(tops)))
        for ax, place in zip(axes[0], places, strict=True):
            title_block(ax, place)
        known = {k: v for ax in np.ravel(axes) for v, k in zip(*ax.get_legend_handles_labels(), strict=True)}
        fig.legend(known.values(), known.keys(), loc="outside lower center", ncols=2)
    own = {key: part[part["model"].isin(names)] for key, part in shown.items()}
    used = pd.concat(own.values())
    return finish(fig, used, _curve_caption(own), _curve_alt(own))


def _headline(part: pd.DataFrame) -> tuple[float, float]:
    """Thresholds between which the headline is the area."""
    low, high = AREA
    return (low, high) if float(part["at"].max()) <= 1 else (1 / high, 1 / low)


def _threshold(part: pd.DataFrame) -> str:
    return "threshold k (levels of the layer)" if "k" in part.at_unit.iloc[0].split(",")[0].split() else (
        "threshold ε (fraction of the level)"
    )  # fmt: skip


def _curves(ax: Axes, part: pd.DataFrame, names: list[str]) -> None:
    for model, rows in part.groupby("model", sort=False):
        rows = rows.sort_values("at")
        x, value, low, high = (rows[c].to_numpy(float) for c in ("at", "value", "low", "high"))
        owner = str(model).removesuffix(TWIN)
        look = role(names.index(owner) if owner in names else len(names))
        if owner != model:
            ax.plot(x, value, color=look.color, linestyle="-.", linewidth=0.9, label=str(model))
            continue
        ax.fill_between(x, low, high, color=look.color, alpha=0.18, lw=0)
        ax.plot(x, value, label=str(model), **look.style())
        ax.plot(x, rows.null.to_numpy(float), color=look.color, lw=0.9, ls=":")
    ax.set_xscale("log")


Shown = Mapping[tuple[str, str], pd.DataFrame]


def _curve_caption(shown: Shown) -> str:
    kinds = list(dict.fromkeys(kind for kind, _ in shown))
    row = next(iter(shown.values())).iloc[0]
    first = [_first_any(kind, [part for (k, _), part in shown.items() if k == kind]) for kind in kinds]
    return (
        f"Fraction of channels that are {' or '.join(kind.replace('_', ' ') for kind in kinds)}, at every threshold. "
        f"{' '.join(first)} Bands: 95 % interval ({estimated(row)}; n = {int(row['n'])} "
        f"{row['unit']}s). Dotted: {row['null_kind']}. Shaded: the thresholds over which the headline is averaged."
    )


def _first_any(kind: str, parts: Sequence[pd.DataFrame]) -> str:
    """From which threshold on any channel counts at all (for what is too large: up to which), at any place drawn."""
    rows = pd.concat(parts)
    large = float(rows["at"].max()) > 1
    words = []
    for model, own in rows.groupby("model", sort=False):
        some = own[own["value"] > 0]
        if some.empty:
            words.append(f"`{model}` none")
            continue
        at = some["at"].astype(float)
        edge = some.iloc[int(at.argmax() if large else at.argmin())]
        words.append(f"`{model}` {float(edge['at']):.2g} (at {edge['place']})")
    end = "Largest" if large else "Smallest"
    return f"{end} threshold drawn at which any channel is {kind.replace('_', ' ')}: {', '.join(words)}."


def _curve_alt(shown: Shown) -> str:
    (kind, place), part = next(iter(shown.items()))
    middle = part[np.isclose(part["at"].astype(float), _middle(part))]
    pairs = zip(middle.model, middle.value.astype(float), strict=True)
    values = ", ".join(f"{model} {value:.3f}" for model, value in pairs)
    kinds = ", ".join(dict.fromkeys(kind.replace("_", " ") for kind, _ in shown))
    return (
        f"Lines: fraction of channels that are invalid ({kinds}) over the threshold. At {_middle(part):.2g}, "
        f"{kind.replace('_', ' ')} at {place}: {values}."
    )


def _middle(part: pd.DataFrame) -> float:
    """The threshold that is quoted: the one closest to the middle, in the logarithm, of the headline's range."""
    x = np.sort(part["at"].astype(float).unique())
    target = 1e-2 if x[-1] <= 1 else 1e2
    return float(x[np.abs(np.log(x / target)).argmin()])


# ------------------------------------------------------------------------------------------ the maps


def feature_map_grid(
    maps: ChannelMaps | Sequence[ChannelMaps], scales: Sequence[Scale] = ("common", "channel", "prefix"), *,
    channels: int | Sequence[int] = 36, best: int = 5,
) -> Figure:  # fmt: skip
    """Feature maps of one image at one place, once for each scale, beside the image; a row for each network.

    Grey values run from smallest to largest: of all drawn channels ("common"), of each channel by itself
    ("channel", as the released notebook did), or of each channel with its prefix tokens, which are drawn as a row
    above the map ("prefix": one outlying class token squeezes the patches into one grey). Invalid channels have a
    solid red frame, the ``best`` that follow the image's edges most closely a dashed green one; both are what the
    measure says of the channel, whatever the scale.

    ``channels`` is how many to draw, at even distances over all of them (the first of a network need not be typical:
    a sinusoidal position table keeps its finest waves there), or their numbers.

    Raises UnknownNameError for another scale, and T2TError for less than one channel.
    """
    if unknown := [s for s in scales if s not in SCALES]:
        raise UnknownNameError("scale", unknown[0], SCALES)
    several = [maps] if isinstance(maps, ChannelMaps) else list(maps)
    chosen = [_chosen(one, channels) for one in several]
    panels = len(scales) + 1
    with use_style():
        fig = MplFigure(figsize=(2.0 * panels, 2.45 * len(several)), layout="constrained")
        parts = fig.subfigures(len(several), 1, squeeze=False)[:, 0]
        for part, one, which in zip(parts, several, chosen, strict=True):
            part.suptitle(f"{one.model}, {one.place}", x=0.01, ha="left", fontsize=10, fontweight="bold")
            axes = part.subplots(1, panels)
            _image(axes[0], one)
            for ax, scale in zip(axes[1:], scales, strict=True):
                _grid(ax, one, scale, which, best)
    how = (
        "at even distances over all of a network, so not chosen" if isinstance(channels, int) else "by number"
    )
    return _with_words(fig, several, chosen, best, f"{len(chosen[0])} channels {how}", scales)


def _chosen(maps: ChannelMaps, channels: int | Sequence[int]) -> list[int]:
    """Numbers of the channels that are drawn."""
    if not isinstance(channels, int):
        return list(channels)
    if channels < 1:
        raise T2TError(f"channels={channels}: a grid needs at least one")
    count = min(channels, len(maps.maps))
    return [i * len(maps.maps) // count for i in range(count)]


def _grid(ax: Axes, maps: ChannelMaps, scale: Scale, chosen: list[int], best: int) -> None:
    """All drawn channels of one network on one scale, framed by what the measure says of them."""
    frames: dict[int, dict[str, Any]] = dict.fromkeys(maps.strongest(best, among=chosen), EDGES)
    frames |= dict.fromkeys(maps.invalid().nonzero().flatten().tolist(), INVALID)
    mosaic, cell = _mosaic(maps, chosen, scale)
    ax.imshow(mosaic, cmap="gray", vmin=0, vmax=1)
    ax.set_anchor("N")
    shown = {chosen.index(channel): look for channel, look in frames.items() if channel in chosen}
    _frame(ax, shown, cell, _columns(len(chosen)))
    _note(ax, SCALES[scale] if scale != "prefix" or maps.prefix.shape[1] else "own scale (no prefix)")


def _note(ax: Axes, words: str) -> None:
    """Say in grey above a picture how it was drawn."""
    ax.text(0, 1.03, words, transform=ax.transAxes, color=PALETTE["grey"], fontsize=9, va="bottom")
    ax.axis("off")


def _image(ax: Axes, maps: ChannelMaps) -> None:
    ax.imshow(maps.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
    ax.set_anchor("N")
    _note(ax, "image")


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _scaled(maps: ChannelMaps, chosen: list[int], scale: Scale) -> np.ndarray:
    """Channels as pictures with values 0 to 1, (count, rows, columns); NaN where nothing is."""
    x = maps.maps[chosen].double().cpu().numpy()
    prefix, count = maps.prefix[chosen].double().cpu().numpy(), len(chosen)
    if scale == "prefix" and prefix.shape[1]:
        top = np.full((count, 1 + (prefix.shape[1] - 1) // x.shape[2], x.shape[2]), np.nan)
        top.reshape(count, -1)[:, : prefix.shape[1]] = prefix
        x = np.concatenate([top, x], axis=1)
    axes = None if scale == "common" else (1, 2)
    low, high = np.nanmin(x, axis=axes, keepdims=True), np.nanmax(x, axis=axes, keepdims=True)
    steady = np.where(high > low, high - low, 1.0)  # a constant channel is black
    return (x - low) / steady


def _mosaic(maps: ChannelMaps, chosen: list[int], scale: Scale) -> tuple[np.ndarray, tuple[int, int]]:
    """All pictures side by side with a white gap, and the rows and columns that each takes with its gap."""
    pictures, count = _scaled(maps, chosen, scale), len(chosen)
    gap = max(1, pictures.shape[2] // 8)
    columns = _columns(count)
    rows, (h, w) = math.ceil(count / columns), pictures.shape[1:]
    cell = (h + gap, w + gap)
    out = np.full((rows * cell[0], columns * cell[1]), np.nan)
    for i, one in enumerate(pictures):
        y, x = (i // columns) * cell[0], (i % columns) * cell[1]
        out[y : y + h, x : x + w] = one
    return out, cell


def _frame(ax: Axes, frames: dict[int, dict[str, Any]], cell: tuple[int, int], columns: int) -> None:
    gap = max(1, cell[1] // 9)
    for i, look in frames.items():
        corner = ((i % columns) * cell[1] - 0.5 - gap / 2, (i // columns) * cell[0] - 0.5 - gap / 2)
        ax.add_patch(Rectangle(corner, cell[1], cell[0], fill=False, lw=1.8, clip_on=False, **look))


def _with_words(
    fig: Any, several: Sequence[ChannelMaps], chosen: Sequence[list[int]], best: int, which: str,
    scales: Sequence[Scale],
) -> Figure:  # fmt: skip
    frames = [_frames_in_words(one, drawn, best) for one, drawn in zip(several, chosen, strict=True)]
    caption = (
        f"Feature maps of one image: {which}; drawn with {', '.join(SCALES[s] for s in scales)}. "
        f"{' '.join(frames)} Solid red frame: invalid (peak at most 0.01 or over 100 levels of the layer). Dashed "
        "green frame: gradient of the map most correlated with the image's, among those drawn. One image: no interval."
    )
    alt = f"Image and feature maps in grey, {len(scales)} scales: " + "; ".join(
        f"{one.model} {int(one.invalid()[drawn].sum())} framed as invalid, highest correlation with image edges "
        f"{float(one.edges[drawn].max()):.2f}"
        for one, drawn in zip(several, chosen, strict=True)
    )
    weights = tidy([{"model": one.model, "weights": one.weights} for one in several])
    return finish(fig, weights, caption, f"{alt}.")


def _frames_in_words(maps: ChannelMaps, drawn: list[int], best: int) -> str:
    found = [f"{float(maps.edges[c]):.2f}" for c in maps.strongest(best, among=drawn)]
    edges = f"green frames {', '.join(found)}" if found else "none follows the image's edges"
    return (
        f"`{maps.model}` at {maps.place}: {int(maps.invalid()[drawn].sum())} of the {len(drawn)} drawn and "
        f"{int(maps.invalid().sum())} of all {len(maps.maps)} invalid; {edges}."
    )
