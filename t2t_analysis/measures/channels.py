"""Which channels are invalid (zero, flat, dead, too large), and which values stand far out, at every place."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_max

from .. import capture
from ..capture.places import OutOf, Place, Places
from ..errors import UnknownNameError
from ..estimates import Estimate
from ..results import Result
from .base import ImageMeans, MeasureBatch, View
from .feature_maps import (
    EPS,
    TOO_LARGE,
    Ratios,
    area_above,
    area_below,
    by_parts,
    channel_moments,
    fraction_above,
    fraction_below,
    ratios_of,
)
from .head_measure import nanmean
from .view import place_kind

#: Where channels are looked at, as far as a model has such places.
PLACES = (
    "embed", "tokens.*.out", "blocks.*.resid_post", "blocks.*.norm1", "blocks.*.norm2", "blocks.*.mlp.hidden",
    "norm",
)  # fmt: skip
KINDS = ("zero", "flat", "dead", "too_large")
AREAS = (*(f"{kind}_area" for kind in KINDS), "invalid_area")
EPS_UNIT, LARGE_UNIT = "threshold eps, fraction of the layer's level", "threshold k, multiples of the level"
#: of so many images of a batch one is shuffled for the null, see `InvalidChannels`
EVERY = 8
MIXED = f"the layer's own values shuffled over tokens and channels, in 1 of {EVERY} images"
EVERYWHERE = "_in_every_image"


def stacked_curves(ratios: Ratios) -> Tensor:
    """Curves of all kinds side by side: (B, C) each -> (B, T), T = 3 len(EPS) + len(TOO_LARGE)."""
    return torch.cat([*(fraction_below(r) for r in ratios), fraction_above(ratios.peak)], dim=-1)


def stacked_areas(ratios: Ratios) -> Tensor:
    """Area of every kind and channel: (..., C) each -> (..., 5, C), in the order of AREAS."""
    small = [area_below(r) for r in ratios]
    large = area_above(ratios.peak)
    return torch.stack([*small, large, small[0] + large], dim=-2)


def curve_points() -> dict[str, np.ndarray]:
    """Columns quantity, at and at_unit of every element of `stacked_curves`, (T,) each."""
    points = [(kind, eps, EPS_UNIT) for kind in KINDS[:3] for eps in EPS]
    points += [("too_large", k, LARGE_UNIT) for k in TOO_LARGE]
    kinds, at, units = zip(*points, strict=True)
    return {"quantity": _objects(kinds), "at": np.array(at), "at_unit": _objects(units)}


def _objects(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)


def positions(obs: capture.Observation) -> Tensor:
    """(B, N, C) patch tokens, or (B, C, h, w) feature maps -> (B, positions, C)."""
    if obs.value.ndim == 4:
        return obs.value.flatten(2).transpose(1, 2)
    return obs.patches


@functools.lru_cache(maxsize=16)
def _order(n: int, seed: int, device: torch.device) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)


def mixed(x: Tensor, seed: int = 0) -> Tensor:
    """Shuffle the values of each image over positions and channels, in one order for all: (B, N, C) -> (B, N, C)."""
    order = _order(x[0].numel(), seed, x.device)
    return x.flatten(1).gather(1, order.expand(len(x), -1)).view_as(x)  # eight times as fast as an index


def channel_places(view: View, places: str | Sequence[str] | None = None) -> list[str]:
    """The places asked for; by default all usual ones that the model has."""
    if places is not None:
        return view.select(places)
    if isinstance(view, FeatureMapView):
        return view.names
    return view.offered(PLACES)


def num_channels(view: View, name: str) -> int:
    """Channels of one place, whether it holds tokens (N, C) or feature maps (C, h, w)."""
    shape = view.shape_of(name)
    return shape[0] if len(shape) == 3 else shape[-1]


class InvalidChannels(ImageMeans):
    """Fraction of channels that are zero, flat, dead or too large, as curves over the threshold.

    For image i and channel c at one place, over patch positions: peak p = max |x|, spread s = standard deviation;
    level r = median over channels (that are not exactly 0) of the root mean square. Then

        zero(eps): p <= eps r,   flat(eps): s <= eps r,   dead(eps): s <= eps median(s),   too_large(k): p > k r.

    The T2T-ViT paper (Yuan et al. 2021, figure 2) speaks of "zero or too large values" and gives no threshold;
    this definition is ours. Headlines ``zero_area``, ``flat_area``, ``dead_area``: area under the curve in
    log eps between 1e-3 and 1e-1 over the width of that range, that is the fraction averaged over thresholds;
    ``too_large_area`` for k between 10 and 1,000; ``invalid_area`` = zero_area + too_large_area.

    Quantities without suffix are means over images (interval: jackknife over images). ``..._area_in_every_image`` is
    that of channels for which it holds in all images; these are counts of channels, so their interval is Wilson's over
    channels. ``exact_zero``: fraction of values that are exactly 0. Each is given for every place,
    headlines also as mean over layers (``blocks.*.resid_post``).

    Null: the layer's own values shuffled over tokens and channels (fixed seed), for every eighth image of a batch.
    Shuffled, each channel is a draw of tokens x channels values, so the null hardly differs from image to image.
    Shuffling over tokens alone changes none of these numbers, since they do not depend on where in the map a value is.
    For random weights, measure a `random_twin` beside the model.

    Parameters
    ----------
    places : names or patterns; by default patch embedding, T2T stages, residual stream, after the norms, and
        MLP hidden, as far as the model has them.
    """

    name: ClassVar[str] = "invalid_channels"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "permute_channels", "permute_images"})

    def __init__(self, places: str | Sequence[str] | None = None, *, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.places = places

    def bind(self, views: Sequence[View]) -> None:
        """For values and their null: areas, curves and exact zeros of every place; and extremes."""
        names = channel_places(views[0], self.places)
        views[0].probe(names)  # all of them in one forward pass
        self.widths = [num_channels(views[0], name) for name in names]
        self.add_means(names, 2, len(AREAS) + len(curve_points()["at"]) + 1)
        # Largest ratio that a channel ever reached, and for "too large" minus the smallest peak.
        empty = torch.full((len(names), 2, len(KINDS), max(self.widths)), -torch.inf, dtype=torch.float64)
        self.add_state("extreme", empty, dist_reduce_fx=dim_zero_max, persistent=True)

    def reduce(self, obs: capture.Observation) -> tuple[Tensor, Tensor]:
        """Numbers of each image and of its shuffled values (B, 2, 5 + T + 1); extremes over images (2, 4, C)."""
        x, images = positions(obs), len(obs.value)
        moments = torch.cat([channel_moments(x), channel_moments(mixed(x[::EVERY]))])
        ratios = Ratios(*(ratio.double() for ratio in ratios_of(moments)))  # (B + b, C) each
        numbers = moments.new_full((images, *self.total.shape[2:]), torch.nan, dtype=torch.float64)
        means = torch.cat([stacked_areas(ratios).mean(-1), stacked_curves(ratios)], dim=-1)
        numbers[:, 0, :-1], numbers[::EVERY, 1, :-1] = means[:images], means[images:]
        numbers[:, 0, -1] = 1 - torch.stack([image.count_nonzero() for image in x]).double() / x[0].numel()
        extremes = torch.stack([*ratios, -ratios.peak], dim=1)  # (B + b, 4, C)
        return numbers, torch.stack([extremes[:images].amax(0), extremes[images:].amax(0)])

    def update(self, batch: MeasureBatch) -> None:
        """Add the numbers of every finite place; keep extremes."""
        for i, (name, width) in enumerate(zip(self.names, self.widths, strict=True)):
            if name in batch.seen[0]:
                numbers, largest = batch.seen[0][name]
                self.add(i, self.group(batch), numbers)
                self.extreme[i, ..., :width] = self.extreme[i, ..., :width].maximum(largest.to(self.extreme))

    def compute(self) -> Result:
        """Headlines first, then zeros, curves and what holds in every image; for places and for means over layers."""
        found = self.means()  # (L, 2, 5 + T + 1)
        places = np.array(self.names, dtype=object)[:, None]
        row = self.row(
            places, tokens="patch", value_unit="fraction of channels", estimator="mean over images"
        )
        areas, curves = found[..., : len(AREAS)], found[..., len(AREAS) : -1]
        rows = [
            row | _against_null(areas) | {"quantity": _objects(AREAS), "estimator": f"{_AREA}, normalised"},
            *self._layer_means(areas),
            row | {
                "quantity": "exact_zero", "estimate": found[:, 0, [-1]], "null": 0.0,
                "null_kind": "continuous values, never exactly 0", "value_unit": "fraction of values",
            },
            row | _against_null(curves) | curve_points(),
            *(self._everywhere(i) for i in np.flatnonzero(found.n[:, 0, 0]).tolist()),
        ]  # fmt: skip
        return self.result(rows)

    def _layer_means(self, areas: Estimate) -> Iterator[dict[str, Any]]:
        """Areas as means over the layers of one kind."""
        for kind in dict.fromkeys(map(place_kind, self.names)):
            if "*" in kind:
                where = [i for i, name in enumerate(self.names) if place_kind(name) == kind]
                chosen = areas[where]  # (layers, 2, 5)
                mean = chosen.map(lambda x: nanmean(np.moveaxis(x, 1, -1)), chosen.sizes.max(1))
                words = {"estimator": "normalised area under the curve, mean over layers"}
                row = self.row(
                    kind, tokens="patch", value_unit="fraction of channels", quantity=_objects(AREAS)
                )
                yield row | words | _against_null(mean[None])

    def _everywhere(self, i: int) -> dict[str, Any]:
        """What holds in all images of one place: counts of channels."""
        images, shuffled = (int(n) for n in self.count[:, i, :, 0].sum(0))
        shares = (
            areas_everywhere(self.extreme[i, ..., : self.widths[i]].cpu()).numpy().T
        )  # (2, 5), the null last
        low, high = proportion_confint(shares * self.widths[i], self.widths[i], method="wilson")
        return self.row(
            self.names[i], tokens="patch", value_unit="fraction of channels", interval="Wilson", n=self.widths[i],
            unit="channel", quantity=_objects([area + EVERYWHERE for area in AREAS]), value=shares[0], low=low[0],
            high=high[0], estimator=f"{_AREA}, holds in each of {images} images", null=shares[1], null_low=low[1],
            null_high=high[1], null_kind=f"{MIXED}, in each of {shuffled} images",
        )  # fmt: skip


_AREA = "area under the curve in log threshold over two decades"


def _against_null(found: Estimate) -> dict[str, Any]:
    """Columns of values (..., 0, T) beside their null (..., 1, T)."""
    return {"estimate": found[..., 0, :], "null": found[..., 1, :], "null_kind": MIXED}


def areas_everywhere(extreme: Tensor) -> Tensor:
    """Areas of what holds in every image, from extremes (2, 4, C) over images: (5, 2)."""
    small, large = area_below(extreme[:, :3]), area_above(-extreme[:, 3:])  # (2, 3, C), (2, 1, C)
    return torch.cat([small, large, small[:, :1] + large], dim=1).mean(-1).T


# ------------------------------------------------------------------------------------------ other networks


class FeatureMapView(View):
    """A view of modules whose output is a feature map (B, C, h, w), in any network, on its real forward pass.

    Parameters
    ----------
    layers : names of modules as in ``model.named_modules()``; by default those of timm's and torchvision's
        ResNets that end the stem and the four stages.

    >>> import timm
    >>> FeatureMapView(timm.create_model("resnet18")).names
    ['act1', 'layer1', 'layer2', 'layer3', 'layer4']
    """

    RESNET = ("act1", "relu", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None = None, label: str | None = None,
        example: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.layers = layers
        super().__init__(model, label, example)

    def find_places(self, model: nn.Module) -> Places:
        """The modules asked for."""
        modules = dict(model.named_modules())
        chosen = [n for n in self.RESNET if n in modules] if self.layers is None else list(self.layers)
        for layer in chosen or ["layer1"]:
            if layer not in modules:
                raise UnknownNameError("layer", layer, [n for n in modules if n])
        return Places({n: Place(n, OutOf(modules[n]), ndim=4, tokens=None) for n in chosen})


# ------------------------------------------------------------------------------------------ outliers

#: thresholds of the curve of outlier tokens, multiples of the median norm; the headline is the fraction over 3
OUTLIER_TOKEN = (1.5, 2.0, 3.0, 5.0, 10.0)
HEADLINE = 3.0
MASSIVE, MASSIVE_OVER_MEDIAN = 100.0, 1000.0


def massive_activations(tokens: Tensor) -> Tensor:
    """Count of |x| > 100 that are also > 1,000 x median |x| of their image (Sun et al. 2024): (..., N, C) -> (...).

    Prefix tokens count too: the class token is where such activations often sit. Not scale invariant, by
    definition.

    >>> x = torch.ones(2, 3, 4); x[1, 2, 3] = -2000.0
    >>> massive_activations(x).tolist()
    [0.0, 1.0]
    """
    size = tokens.abs().flatten(-2)
    if float(size.max()) <= MASSIVE:  # the usual case, which needs no medians
        return size.new_zeros(size.shape[:-1], dtype=torch.float64)
    large = (size > MASSIVE) & (size > MASSIVE_OVER_MEDIAN * size.median(-1, keepdim=True).values)
    return large.double().sum(-1)


def outlier_tokens(tokens: Tensor, k: Sequence[float] = OUTLIER_TOKEN) -> Tensor:
    """Fraction of tokens whose norm is over k x the median norm of their image: (..., N, C) -> (..., T).

    Darcet et al. (2024) found such tokens by a fixed norm; a multiple of the median can be compared over layers.

    >>> x = torch.ones(4, 2); x[0] = 4.0
    >>> outlier_tokens(x, [2.0, 5.0]).tolist()
    [0.25, 0.0]
    """
    norm = tokens.double().norm(dim=-1)
    ratio = norm / norm.median(-1, keepdim=True).values
    return torch.stack([(ratio > t).double().mean(-1) for t in k], dim=-1)


def kurtosis(tokens: Tensor) -> Tensor:
    """Kurtosis over channels of each token, averaged over tokens: (..., N, C) -> (...).

    m4 / m2^2 about the token's mean; normally distributed channels give 3 (C - 1) / (C + 1) exactly on average,
    one lone channel gives nearly C. Tokens without any variance are left out.

    >>> round(kurtosis(torch.eye(1, 100)).item(), 2)
    98.01
    """
    tokens = tokens.double()
    square = (tokens - tokens.mean(-1, keepdim=True)).square_()
    second, fourth = square.mean(-1), square.square_().mean(-1)
    return torch.where(second > 0, fourth / second.square(), torch.nan).nanmean(-1)


def peak_to_median(tokens: Tensor) -> Tensor:
    """Largest over median root mean square of the channels: (..., N, C) -> (...).

    >>> peak_to_median(torch.tensor([[1.0, 1.0, 8.0], [-1.0, 1.0, 8.0]])).item()
    8.0
    """
    rms = tokens.double().square().mean(-2).sqrt()
    return rms.amax(-1) / rms.median(-1).values


@functools.lru_cache(maxsize=16)
def _orders(tokens: int, channels: int, seed: int) -> Tensor:
    """One random order of the tokens for each channel, (N, C)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, channels, generator=generator).argsort(0)


def shuffled_tokens(x: Tensor, seed: int = 0) -> Tensor:
    """Shuffle the values of every channel over tokens, each channel in its own way: (B, N, C) -> (B, N, C)."""
    order = _orders(x.shape[1], x.shape[2], seed).to(x.device)
    return x.gather(1, order.expand_as(x))


#: where the curve of outlier tokens stands among the numbers of an image
_VALUES = range(4, 4 + len(OUTLIER_TOKEN))


def _numbers(x: Tensor) -> Tensor:
    """Kurtosis, peak to median and outlier tokens of each image: (B, N, C) -> (B, 2 + T)."""
    x = x.double()
    return torch.cat([torch.stack([kurtosis(x), peak_to_median(x)], dim=-1), outlier_tokens(x)], dim=-1)


class ChannelOutliers(ImageMeans):
    """Massive activations, outlier tokens, kurtosis and peak-to-median ratio of every place.

    Means over images, with jackknife intervals, of ``massive_activations`` (a count per image),
    ``outlier_tokens`` (fraction of patch tokens over k x the median norm, as a curve over k; the row without
    ``at`` is k = 3), ``kurtosis`` (over channels) and ``peak_to_median`` (channel root mean squares). See the
    functions of these names for formulas and sources.

    Nulls: for outlier tokens, every channel shuffled over tokens, so that large values do not meet in one token;
    for peak to median, values shuffled over tokens and channels, both in one image of eight as in `InvalidChannels`;
    for kurtosis and massive activations, normal values in closed form. For random weights, measure a `random_twin`
    beside the model.
    """

    name: ClassVar[str] = "channel_outliers"
    invariances: ClassVar[frozenset[str]] = frozenset({"permute_channels", "permute_images"})

    def __init__(self, places: str | Sequence[str] | None = None, *, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.places = places

    def bind(self, views: Sequence[View]) -> None:
        """Four numbers, and the curve of outlier tokens with that of its null."""
        names = channel_places(views[0], self.places)
        self.channels = np.array([num_channels(views[0], name) for name in names])
        self.add_means(names, 4 + 2 * len(OUTLIER_TOKEN))

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Massive activations, kurtosis, peak to median and its null, outlier tokens and theirs: (B, 4 + 2 T)."""
        x = positions(obs)
        everything = obs.value if obs.value.ndim == 3 else x
        numbers = x.new_full((len(x), 4 + 2 * len(OUTLIER_TOKEN)), torch.nan, dtype=torch.float64)
        numbers[:, 0] = by_parts(massive_activations, everything)
        numbers[:, [1, 2, *_VALUES]] = by_parts(_numbers, x)
        some = x[::EVERY].double()
        numbers[::EVERY, 3] = peak_to_median(mixed(some))
        numbers[::EVERY, 4 + len(OUTLIER_TOKEN) :] = outlier_tokens(shuffled_tokens(some))
        return numbers

    def compute(self) -> Result:
        """Rows of every place."""
        found = self.means()
        row = self.row(np.array(self.names, dtype=object), estimator="mean over images", tokens="patch")
        rows = [
            row | about | {"estimate": found[:, i]}
            for i, about in ((1, self._kurtosis()), (2, _PEAK | {"null": found[:, 3]}), (0, _MASSIVE))
        ]
        return self.result([*rows, *self._tokens(found[:, 4:])])

    def _kurtosis(self) -> dict[str, Any]:
        null = 3 * (self.channels - 1) / (self.channels + 1)
        kind = "normally distributed channels, closed form"
        return {"quantity": "kurtosis", "value_unit": "none", "null": null, "null_kind": kind}

    def _tokens(self, found: Estimate) -> Iterator[dict[str, Any]]:
        value, null = found[:, : len(OUTLIER_TOKEN)], found[:, len(OUTLIER_TOKEN) :]
        row = self.row(
            np.array(self.names, dtype=object)[:, None], quantity="outlier_tokens", tokens="patch",
            value_unit="fraction of tokens", null_kind="every channel shuffled over tokens",
        )  # fmt: skip
        k = [OUTLIER_TOKEN.index(HEADLINE)]
        headline = f"mean over images, norm over {HEADLINE:g} x the median"
        yield row | {"estimate": value[:, k], "null": null[:, k], "estimator": headline}
        at = {"at": np.array(OUTLIER_TOKEN), "at_unit": "threshold k, multiples of the median norm"}
        yield row | at | {"estimate": value, "null": null, "estimator": "mean over images"}


_PEAK = {"quantity": "peak_to_median", "value_unit": "none", "null_kind": MIXED}
_MASSIVE = {
    "quantity": "massive_activations", "value_unit": "activations per image", "tokens": "all", "null": 0.0,
    "null_kind": "normal values: 1,000 medians are 674 standard deviations",
}  # fmt: skip
