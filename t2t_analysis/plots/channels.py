"""Invalid channels: curves over the threshold, headlines by layer, and the feature maps themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from ..errors import T2TError, UnknownNameError
from ..measures.feature_maps import ChannelMaps
from ..results import Result, tidy
from .base import PALETTE, Figure, finish, new_axes, role, title_block, use_style

__all__ = ["SCALES", "area_by_layer", "channel_curves", "feature_map_grid"]

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


def channel_curves(result: Result, quantity: str = "zero", places: Sequence[str] = ("embed",)) -> Figure:
    """Fraction of channels that are invalid, over the threshold: a panel for each place, a line for each model.

    Parameters
    ----------
    result : of `InvalidChannels`, one or several models.
    quantity : "zero", "flat", "dead" or "too_large", also with "_in_every_image".
    places : up to four; models without such a place are left out of its panel.

    Raises UnknownNameError for a quantity or place that the result does not have.
    """
    frame = _rows(result, quantity, curve=True)
    shown = [_of_place(frame, place) for place in places]
    models = list(dict.fromkeys(frame.model))
    with use_style():
        width = 3.4 if len(places) == 1 else 2.5 * len(places)
        fig, axes = new_axes(1, len(places), width=max(width, 4.4), height=3.1, sharey=True, squeeze=False)
        for ax, part, place in zip(axes[0], shown, places, strict=True):
            _curves(ax, part, models)
            title_block(ax, place)
        fig.supxlabel(_threshold(shown[0]), fontsize=10)
        axes[0, 0].set_ylabel(f"fraction of channels,\n{quantity.replace('_', ' ')}")
        axes[0, 0].set_ylim(-0.02, max(0.1, 1.05 * max(float(p.high.max()) for p in shown)))
        axes[0, 0].legend(loc="upper left")
    used = pd.concat(shown)
    return finish(fig, used, _curve_caption(used, quantity), _curve_alt(shown, quantity))


def _threshold(part: pd.DataFrame) -> str:
    return "threshold k (levels of the layer)" if "k" in part.at_unit.iloc[0].split(",")[0].split() else (
        "threshold ε (fraction of the level)"
    )  # fmt: skip


def _curves(ax: Axes, part: pd.DataFrame, models: list[str]) -> None:
    for model, rows in part.groupby("model", sort=False):
        look = role(models.index(str(model)))
        rows = rows.sort_values("at")
        x, low, high = (rows[c].to_numpy(float) for c in ("at", "low", "high"))
        ax.fill_between(x, low, high, color=look.color, alpha=0.18, lw=0)
        ax.plot(x, rows.value.to_numpy(float), label=str(model), **look.style())
        ax.plot(x, rows.null.to_numpy(float), color=look.color, lw=0.9, ls=":")
    ax.set_xscale("log")


def _curve_caption(used: pd.DataFrame, quantity: str) -> str:
    n, unit = int(used.n.max()), used.unit.iloc[0]
    return (
        f"Fraction of channels that are {quantity.replace('_', ' ')} at every threshold. Bands: 95 % interval "
        f"({used.interval.iloc[0]}; n = {n} {unit}s). Dotted: {used.null_kind.iloc[0]}."
    )


def _curve_alt(shown: Sequence[pd.DataFrame], quantity: str) -> str:
    parts = []
    for part in shown:
        middle = part[np.isclose(part["at"].astype(float), _middle(part))]
        pairs = zip(middle.model, middle.value.astype(float), strict=True)
        values = ", ".join(f"{model} {value:.3f}" for model, value in pairs)
        parts.append(f"{part.place.iloc[0]}: {values}")
    words, at = quantity.replace("_", " "), _middle(shown[0])
    return f"Lines: fraction of {words} channels over the threshold; at {at:.2g}, " + "; ".join(parts)


def _middle(part: pd.DataFrame) -> float:
    """The threshold that is quoted: the one closest to the middle, in the logarithm, of the headline's range."""
    x = np.sort(part["at"].astype(float).unique())
    target = 1e-2 if x[-1] <= 1 else 1e2
    return float(x[np.abs(np.log(x / target)).argmin()])


def area_by_layer(result: Result, quantity: str = "invalid_area", kind: str = "resid_post") -> Figure:
    """Headline by layer, a line for each model: fraction of channels, averaged over thresholds.

    ``kind`` is the last part of a place, as in "blocks.3.resid_post". Raises UnknownNameError for a quantity or
    kind that the result does not have.
    """
    frame = _rows(result, quantity, curve=False)
    part = frame[frame.layer.notna() & frame.place.str.fullmatch(rf"blocks\.\d+\.{kind}")]
    if part.empty:
        kinds = frame.place[frame.layer.notna()].str.split(".", n=2).str[2]
        raise UnknownNameError("kind of place", kind, list(dict.fromkeys(kinds)))
    models = list(dict.fromkeys(part.model))
    with use_style():
        fig, ax = new_axes(width=6.4, height=3.2)
        for i, (model, rows) in enumerate(part.groupby("model", sort=False)):
            x, y, low, high = (rows[c].to_numpy(float) for c in ("layer", "value", "low", "high"))
            ax.fill_between(x, low, high, color=role(i).color, alpha=0.18, lw=0)
            ax.plot(x, y, label=str(model), **role(i).style())
            ax.plot(x, rows.null.to_numpy(float), color=role(i).color, lw=0.9, ls=":")
        ax.set_xlabel("layer")
        ax.set_ylabel("fraction of channels,\nmean over thresholds")
        ax.xaxis.get_major_locator().set_params(integer=True)
        title_block(ax, f"{quantity.removesuffix('_area').replace('_', ' ').capitalize()} channels, {kind}")
        ax.legend()
    caption = (
        f"{quantity.replace('_', ' ')} of {kind} by layer: area under the curve in log threshold, normalised. Bands: "
        f"95 % interval ({part.interval.iloc[0]}; n = {int(part.n.max())}). Dotted: {part.null_kind.iloc[0]}."
    )
    most = [f"{m} {float(part[part.model == m].value.max()):.4f}" for m in models]
    return finish(
        fig, part, caption, f"Lines by layer: {quantity.replace('_', ' ')}; largest " + ", ".join(most)
    )


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
