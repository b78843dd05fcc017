"""Channels as pictures: how large, how varied and how edge-like each feature map of a layer is.

Figure 2 of the T2T-ViT paper frames "invalid" maps ("zero or too large values") without giving a threshold. Here
every channel gets two numbers relative to the level of its layer, so that any threshold can be applied to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError
from ..models.tokens import Window
from .token_pixels import pixels_to_tokens, windows_to

#: thresholds of the curves, three to a decade, and for "too large" four to two decades
EPS: tuple[float, ...] = tuple(10 ** (i / 3) for i in range(-12, 1))
TOO_LARGE: tuple[float, ...] = (3.0, *(10 ** (i / 2) for i in range(2, 7)))
#: the headline is the area under the curve between these eps; for "too large" between their reciprocals
AREA = (1e-3, 1e-1)
#: values looked at five times in a row, some images at a time: what a processor's cache holds
_CHUNK = 2**19


class Ratios(NamedTuple):
    """Of every channel, (..., C): peak and spread over the layer's level, spread over the layer's spread."""

    peak: Tensor
    flat: Tensor
    dead: Tensor


def _median_of_live(x: Tensor) -> Tensor:
    """Median over the last axis of what is not exactly 0: (..., C) -> (..., 1); 0 where all is.

    Channels that are exactly zero must not move the yardstick by which the others are judged; else a layer with
    more than half of them would have level 0, and no channel in it would count as small.
    """
    live = torch.where(x > 0, x, math.nan)
    return live.nanquantile(0.5, dim=-1, keepdim=True).nan_to_num(0.0)


def _over(x: Tensor, level: Tensor) -> Tensor:
    return torch.where(level > 0, x / level, 0.0)


def channel_ratios(maps: Tensor) -> Ratios:
    """Peak and spread of every channel against the level of the layer, for each image by itself.

    With p = max |x| and s = standard deviation of a channel over positions, and r = median over channels of the
    root mean square: p / r, s / r, and s / (median of s). Medians leave out channels that are 0 everywhere.

    Parameters
    ----------
    maps : (..., N, C), N positions of C channels; prefix tokens removed.

    >>> x = torch.tensor([[1.0, 0.0, 3.0], [-1.0, 0.0, 3.0]])
    >>> channel_ratios(x).peak.tolist(), channel_ratios(x).flat.tolist()
    ([0.5, 0.0, 1.5], [0.5, 0.0, 0.0])
    """
    return ratios_of(channel_moments(maps))


def channel_moments(maps: Tensor) -> Tensor:
    """Peak, standard deviation and root mean square of every channel over positions: (..., N, C) -> (..., 3, C).

    Half precision is made single.
    """
    x = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return by_parts(_moments, x.reshape(-1, *x.shape[-2:])).view(*x.shape[:-2], 3, x.shape[-1])


def by_parts(fn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``fn`` of images (B, N, C), as many at a time as a processor's cache holds."""
    some = max(1, _CHUNK // max(1, images.shape[-2] * images.shape[-1]))
    return torch.cat([fn(part) for part in images.split(some)])


def _moments(x: Tensor) -> Tensor:
    peak = torch.maximum(x.amin(-2).abs(), x.amax(-2).abs())  # four times as fast as aminmax, or as abs first
    mean = x.mean(-2, keepdim=True)
    variance = (x - mean).square_().mean(-2)
    return torch.stack([peak, variance.sqrt(), (variance + mean.squeeze(-2).square()).sqrt()], dim=-2)


def ratios_of(moments: Tensor) -> Ratios:
    """What `channel_ratios` says, from what `channel_moments` found: (..., 3, C)."""
    peak, spread, size = moments.unbind(-2)
    level = _median_of_live(size)
    return Ratios(_over(peak, level), _over(spread, level), _over(spread, _median_of_live(spread)))


def fraction_below(ratio: Tensor, eps: Sequence[float] = EPS) -> Tensor:
    """Fraction of channels at or below each threshold: (..., C) -> (..., T). Exact zeros always count."""
    return (ratio.unsqueeze(-2) <= ratio.new_tensor(eps).unsqueeze(-1)).double().mean(-1)


def fraction_above(ratio: Tensor, k: Sequence[float] = TOO_LARGE) -> Tensor:
    """Fraction of channels above each threshold: (..., C) -> (..., T)."""
    return (ratio.unsqueeze(-2) > ratio.new_tensor(k).unsqueeze(-1)).double().mean(-1)


def area_below(ratio: Tensor, ends: tuple[float, float] = AREA) -> Tensor:
    """Mean over log eps between ``ends`` of "ratio <= eps", for every channel: (..., C) -> (..., C) in [0, 1].

    Its mean over channels is the area under the curve of `fraction_below` in log eps, over the width of the
    range: the fraction of small channels, averaged over thresholds. It needs no grid.

    >>> area_below(torch.tensor([0.0, 1e-4, 1e-2, 1.0], dtype=torch.float64)).tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    low, high = map(math.log10, ends)
    return ((high - ratio.double().log10()) / (high - low)).clamp(0, 1)


def area_above(ratio: Tensor, ends: tuple[float, float] = AREA) -> Tensor:
    """Mean over log k between the reciprocals of ``ends`` of "ratio > k": (..., C) -> (..., C) in [0, 1].

    >>> area_above(torch.tensor([0.0, 1.0, 100.0, 1e4], dtype=torch.float64)).tolist()
    [0.0, 0.0, 0.5, 1.0]
    """
    return area_below(1 / ratio, ends)


# ------------------------------------------------------------------------------------------ edges


def gradient_size(x: Tensor) -> Tensor:
    """Size of the gradient by central differences: (..., h, w) -> (..., h, w)."""
    down, across = torch.gradient(x, dim=(-2, -1))
    return (down.square() + across.square()).sqrt()


def correlation(a: Tensor, b: Tensor, constant: float = 0.0) -> Tensor:
    """Pearson's correlation over the last axis, in [-1, 1]: (..., N) twice -> (...); ``constant`` where one of them is.

    >>> x = torch.tensor([1.0, 2.0, 4.0])
    >>> correlation(torch.stack([x, -x, x * 0 + 3]), x).round(decimals=6).tolist()
    [1.0, -1.0, 0.0]
    """
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    scale = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(scale > 0, (a * b).sum(-1) / scale, constant).clamp(-1, 1)


def edge_strength(maps: Tensor, image: Tensor, windows: Sequence[Window] = ()) -> Tensor:
    """Correlation over positions of |gradient of the map| with |gradient of the image|, in [-1, 1].

    Parameters
    ----------
    maps : (C, h, w), at least 2x2.
    image : (3, H, W) or (1, H, W); its channels are averaged, its gradient over the pixels of each token.
    windows : that lead from the image to the maps, as `windows_to` gives them; without, each token is its cell.

    Returns
    -------
    (C,): 1 where a map is steep exactly where the image is; 0 for maps (or images) without any gradient.

    Raises
    ------
    T2TError : maps of a single row or column, which have no gradient.

    >>> image = torch.zeros(1, 8, 8); image[..., 3:] = 1
    >>> edge_strength(torch.stack([-2 * image[0], 0 * image[0]]), image).tolist()
    [1.0, 0.0]
    """
    if min(maps.shape[-2:]) < 2:
        raise T2TError(f"edges need maps of at least 2x2 positions, got shape {tuple(maps.shape)}")
    height, width = maps.shape[-2:]
    steep = gradient_size(image.double().mean(0, keepdim=True))
    target = pixels_to_tokens(steep, (height, width), windows)
    return correlation(gradient_size(maps.double()).flatten(1), target.flatten(1))


# ------------------------------------------------------------------------------------------ one image, one layer


@dataclass(frozen=True, eq=False)
class ChannelMaps:
    """The feature maps of one image at one place, with what the measure says about each channel.

    Attributes
    ----------
    maps : (C, h, w) patch tokens on their grid.
    prefix : (C, P) what the prefix tokens hold in the same channels; P is 0 without any.
    image : (3, H, W) the image, stretched to values 0 to 1.
    ratios : of every channel, against the level of this layer and image.
    edges : (C,) see `edge_strength`.
    """

    model: str
    weights: str
    place: str
    maps: Tensor
    prefix: Tensor
    image: Tensor
    ratios: Ratios
    edges: Tensor

    def invalid(self, eps: float = 1e-2, k: float = 100.0) -> Tensor:
        """(C,) bool: zero (peak at most eps x level) or too large (peak over k x level)."""
        return (self.ratios.peak <= eps) | (self.ratios.peak > k)

    def strongest(self, n: int = 5, among: Sequence[int] | None = None) -> list[int]:
        """The ``n`` valid channels that follow the image's edges most closely, best first."""
        order = self.edges.masked_fill(self.invalid(), -math.inf).argsort(descending=True).tolist()
        chosen = set(range(len(self.edges)) if among is None else among)
        return [c for c in order if c in chosen and self.edges[c] > 0][:n]


def channel_maps(model: nn.Module, image: Tensor, place: str, *, label: str | None = None) -> ChannelMaps:
    """Feature maps of one image at one place of the real forward pass.

    Parameters
    ----------
    model : a vision transformer, or a view of any model (`feature_map_view` for convolutional networks).
    image : (3, H, W), preprocessed as the model wants it.
    place : name of a place, for example "blocks.1.resid_post".
    """
    from .view import View

    seen = model if isinstance(model, capture.ModelView) else View(model, label)
    with torch.no_grad(), capture.capture(seen, place) as captured:
        seen.model(image.unsqueeze(0))
    layout = captured.layout(place)
    value = captured[place][0]
    weights = getattr(seen, "weights", "unknown weights")
    windows = windows_to(seen.model, place) if layout is not None else ()
    return picture(value, layout, stretched(image), (seen.label, weights, place), windows)


def picture(
    value: Tensor, layout: capture.TokenLayout | None, image: Tensor, words: tuple[str, str, str],
    windows: Sequence[Window] = (),
) -> ChannelMaps:  # fmt: skip
    """`ChannelMaps` of tokens (N, C) with their layout, or of maps (C, h, w); ``words``: model, weights, place."""
    if layout is None:
        maps, prefix = value, value.new_zeros(len(value), 0)
    else:
        maps = value[layout.prefix :].T.unflatten(1, layout.grid)  # (C, h, w)
        prefix = value[: layout.prefix].T
    ratios = channel_ratios(maps.flatten(1).T)
    return ChannelMaps(*words, maps, prefix, image, ratios, edge_strength(maps, image, windows))


def stretched(images: Tensor) -> Tensor:
    """Each image (..., C, H, W) with its own smallest value at 0 and its largest at 1; a flat one becomes 0."""
    low, high = images.amin((-3, -2, -1), keepdim=True), images.amax((-3, -2, -1), keepdim=True)
    return _over(images - low, high - low)
