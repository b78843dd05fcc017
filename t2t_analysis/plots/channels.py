"""Feature maps of one image, with frames around invalid channels and those that follow the image's edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle
from skimage.util import montage

from ..errors import T2TError, UnknownNameError
from ..measures.feature_maps import ChannelMaps
from ..results import tidy
from .base import PALETTE, Figure, finish, use_style
from .series import caption

Scale = Literal["common", "channel", "prefix"]
SCALES: dict[Scale, str] = {
    "common": "one scale for all",
    "channel": "own scale each",
    "prefix": "own scale, prefix kept in",
}
#: frames: colour and line, told apart without colour too
INVALID, EDGES = {"color": PALETTE["vermillion"], "ls": "-"}, {"color": PALETTE["green"], "ls": "--"}


def feature_map_grid(
    maps: ChannelMaps | Sequence[ChannelMaps], scales: Sequence[Scale] = ("common", "channel", "prefix"), *,
    channels: int | Sequence[int] = 16, best: int = 3,
) -> Figure:  # fmt: skip
    """Feature maps of one image at one place, once for each scale, beside the image; a row for each network.

    Grey values run from smallest to largest: of all drawn channels ("common"), of each channel by itself
    ("channel", as the released notebook did), or of each channel with its prefix tokens, which are drawn as a row
    above the map ("prefix": one outlying class token squeezes the patches into one grey). Invalid channels have a
    solid red frame, the ``best`` that follow the image's edges most closely a dashed green one; both are what the
    measure says of the channel, whatever the scale.

    ``channels`` is how many to draw, at even distances over all of them (the first of a network need not be typical:
    a sinusoidal position table keeps its finest waves there), or their numbers.

    Raises
    ------
    UnknownNameError
        another scale.
    T2TError
        less than one channel.
    """
    if unknown := [s for s in scales if s not in SCALES]:
        raise UnknownNameError("scale", unknown[0], SCALES)
    several = [maps] if isinstance(maps, ChannelMaps) else list(maps)
    chosen = [_chosen(one, channels) for one in several]
    panels = len(scales) + 1
    with use_style():
        fig = MplFigure(figsize=(2.3 * panels, 2.75 * len(several)), layout="constrained")
        parts = fig.subfigures(len(several), 1, squeeze=False)[:, 0]
        for part, one, which in zip(parts, several, chosen, strict=True):
            part.suptitle(f"{one.model}, {one.place}", x=0.01, ha="left", fontsize=10, fontweight="bold")
            axes = part.subplots(1, panels)
            axes[0].imshow(one.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
            _note(axes[0], "image")
            for ax, scale in zip(axes[1:], scales, strict=True):
                _grid(ax, one, scale, which, best)
    rows = tidy([{"model": one.model, "weights": one.weights} for one in several])
    return finish(fig, rows, *_words(several, chosen))


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
    shown = {chosen.index(channel): look for channel, look in frames.items() if channel in chosen}
    _frame(ax, shown, cell, _columns(len(chosen)))
    _note(ax, SCALES[scale] if scale != "prefix" or maps.prefix.shape[1] else "own scale (no prefix)")


def _note(ax: Axes, words: str) -> None:
    """Say in grey above a picture how it was drawn."""
    ax.set_anchor("N")
    ax.text(0, 1.03, words, transform=ax.transAxes, color=PALETTE["grey"], fontsize=9, va="bottom")
    ax.axis("off")


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
    pictures, columns = _scaled(maps, chosen, scale), _columns(len(chosen))
    height, width = pictures.shape[1:]
    gap, shape = max(1, width // 8), (math.ceil(len(chosen) / columns), columns)
    framed = montage(pictures, fill=np.nan, padding_width=gap, grid_shape=shape)
    return framed[gap:, gap:], (height + gap, width + gap)


def _frame(ax: Axes, frames: dict[int, dict[str, Any]], cell: tuple[int, int], columns: int) -> None:
    gap = max(1, cell[1] // 9)
    for i, look in frames.items():
        corner = ((i % columns) * cell[1] - 0.5 - gap / 2, (i // columns) * cell[0] - 0.5 - gap / 2)
        ax.add_patch(Rectangle(corner, cell[1], cell[0], fill=False, lw=1.8, clip_on=False, **look))


def _words(several: Sequence[ChannelMaps], chosen: Sequence[list[int]]) -> tuple[str, str]:
    counts = "; ".join(
        f"`{one.model}` {int(one.invalid()[drawn].sum())} of {len(drawn)} drawn invalid (of all {len(one.maps)}: "
        f"{int(one.invalid().sum())})"
        for one, drawn in zip(several, chosen, strict=True)
    )
    words = caption(
        "Feature maps of one image, channels at even distances or as asked. Solid red: invalid (peak at most 0.01, "
        "or over 100, levels of the layer). Dashed green: follows the image's edges most closely. One image: no "
        "interval.",
        also=[f"{counts}."],
    )  # fmt: skip
    return words, f"Image and feature maps in grey. {counts}."
