"""Which channels are invalid: zero, flat, dead or too large, at every place of a model, for every threshold."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_max

from .. import capture
from ..capture.places import OutOf, Place, Places
from ..errors import UnknownNameError
from ..results import Result
from .base import Measure, MeasureBatch, View, add_by_group, grouped_estimate
from .differences import key_of, paired_difference
from .feature_maps import (
    EPS,
    TOO_LARGE,
    Ratios,
    area_above,
    area_below,
    channel_ratios,
    fraction_above,
    fraction_below,
)
from .grouped import Estimate
from .head_summary import Replicates, replicates, with_p

__all__ = ["FeatureMapView", "InvalidChannels", "feature_map_curves", "invalid_difference"]

#: Where channels are looked at, as far as a model has such places.
PLACES = (
    "embed", "tokens.*.out", "blocks.*.resid_post", "blocks.*.norm1", "blocks.*.norm2", "blocks.*.mlp.hidden",
    "norm",
)  # fmt: skip
KINDS = ("zero", "flat", "dead", "too_large")
AREAS = (*(f"{kind}_area" for kind in KINDS), "invalid_area")
EPS_UNIT, LARGE_UNIT = "threshold eps, fraction of the layer's level", "threshold k, multiples of the level"
MIXED = "the layer's own values shuffled over tokens and channels"
EVERYWHERE = "_in_every_image"


def stacked_curves(ratios: Ratios) -> Tensor:
    """Curves of all kinds side by side: (B, C) each -> (B, T), T = 3 len(EPS) + len(TOO_LARGE)."""
    return torch.cat([*(fraction_below(r) for r in ratios), fraction_above(ratios.peak)], dim=-1)


def stacked_areas(ratios: Ratios) -> Tensor:
    """Area of every kind and channel: (..., C) each -> (..., 5, C), in the order of AREAS."""
    small = [area_below(r) for r in ratios]
    large = area_above(ratios.peak)
    return torch.stack([*small, large, small[0] + large], dim=-2)


def curve_points() -> Iterator[tuple[str, float, str]]:
    """Kind, threshold and its unit of every element of `stacked_curves`."""
    for kind in KINDS[:3]:
        yield from ((kind, eps, EPS_UNIT) for eps in EPS)
    yield from (("too_large", k, LARGE_UNIT) for k in TOO_LARGE)


def positions(obs: capture.Observation) -> Tensor:
    """(B, N, C) patch tokens, or (B, C, h, w) feature maps -> (B, positions, C)."""
    if obs.value.ndim == 4:
        return obs.value.flatten(2).transpose(1, 2)
    return obs.value[:, 0 if obs.layout is None else obs.layout.prefix :]


@functools.lru_cache(maxsize=16)
def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def mixed(x: Tensor, seed: int = 0) -> Tensor:
    """Shuffle the values of each image over positions and channels, in one order for all: (B, N, C) -> (B, N, C)."""
    return x.flatten(1)[:, _order(x[0].numel(), seed).to(x.device)].view_as(x)


def place_kind(place: str) -> str:
    """Name of a place for all layers together.

    >>> place_kind("blocks.11.mlp.hidden"), place_kind("tokens.0.out")
    ('blocks.*.mlp.hidden', 'tokens.0.out')
    """
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", place)


class ChannelSums(Measure):
    """Which places, and one row of sums for each of them."""

    def __init__(self, places: str | Sequence[str] | None = None, *, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.places = places

    def wants(self, view: View) -> list[str]:
        """The places asked for; by default all usual ones that the model has."""
        if self.places is not None:
            return view.select(self.places)
        if isinstance(view, FeatureMapView):
            return view.names
        patterns = [p for p in PLACES if any(re.fullmatch(p.replace("*", r"\d+"), n) for n in view.names)]
        return view.select(patterns)

    def add_places(self, view: View) -> int:
        """Remember the places, and count images for each."""
        self.names = self.wants(view)
        self.add_sum("count", self.groups, len(self.names))
        return len(self.names)

    @staticmethod
    def num_channels(view: View, name: str) -> int:
        """Channels of one place, whether it holds tokens (N, C) or feature maps (C, h, w)."""
        shape = view.shape_of(name)
        return shape[0] if len(shape) == 3 else shape[-1]

    def present(self, batch: MeasureBatch) -> Iterator[tuple[int, Any]]:
        """Count the images of every finite place; its number and what was made of it."""
        for i, name in enumerate(self.names):
            if name in batch.seen[0]:
                add_by_group(self.count[:, i], self.group(batch), torch.ones(len(batch.index)))
                yield i, batch.seen[0][name]

    def mean(self, state: Tensor) -> Estimate:
        """Mean over images of a state (G, L, ...)."""
        count = self.count.reshape(*self.count.shape, *(1,) * (state.ndim - 2))
        return grouped_estimate(lambda s, n: s / n, (state, count), count)


class InvalidChannels(ChannelSums):
    """Fraction of channels that are zero, flat, dead or too large, as curves over the threshold.

    For image i and channel c at one place, over patch positions: peak p = max |x|, spread s = standard deviation;
    level r = median over channels (that are not exactly 0) of the root mean square. Then

        zero(eps): p <= eps r,   flat(eps): s <= eps r,   dead(eps): s <= eps median(s),   too_large(k): p > k r.

    The T2T-ViT paper (Yuan et al. 2021, figure 2) speaks of "zero or too large values" and gives no threshold;
    this definition is ours. Headlines ``zero_area``, ``flat_area``, ``dead_area``: area under the curve in
    log eps between 1e-3 and 1e-1 over the width of that range, that is the fraction averaged over thresholds;
    ``too_large_area`` for k between 10 and 1,000; ``invalid_area`` = zero_area + too_large_area.

    Quantities without suffix are means over images (interval: jackknife over images). ``..._in_every_image`` is
    the fraction of channels for which it holds in all images; these are counts of channels, so their interval is
    Wilson's over channels. ``exact_zero``: fraction of values that are exactly 0. Each is given for every place,
    headlines also as mean over layers (``blocks.*.resid_post``).

    Null: the layer's own values shuffled over tokens and channels (fixed seed). Shuffling over tokens alone
    changes none of these numbers, since they do not depend on where in the map a value is. For random weights,
    measure a `random_twin` beside the model.

    Parameters
    ----------
    places : names or patterns; by default patch embedding, T2T stages, residual stream, after the norms, and
        MLP hidden, as far as the model has them.
    """

    name: ClassVar[str] = "invalid_channels"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "permute_channels", "permute_images"})

    def bind(self, views: Sequence[View]) -> None:
        """Make a row of states for every place."""
        places = self.add_places(views[0])
        self.widths = [self.num_channels(views[0], name) for name in self.names]
        self.add_sum("area", self.groups, places, 2, len(AREAS))
        self.add_sum("curve", self.groups, places, 2, len(list(curve_points())))
        self.add_sum("exact", self.groups, places)
        # Largest ratio that a channel ever reached, and for "too large" minus the smallest peak.
        empty = torch.full((places, 2, len(KINDS), max(self.widths)), -torch.inf, dtype=torch.float64)
        self.add_state("extreme", empty, dist_reduce_fx=dim_zero_max, persistent=True)

    def reduce(self, obs: capture.Observation) -> dict[str, Tensor]:
        """Areas (B, 2, 5), curves (B, 2, T) and extremes (2, 4, C) of values and null; zeros (B,)."""
        x = positions(obs).double()
        real, null = channel_ratios(x), channel_ratios(mixed(x))
        return {
            "area": torch.stack([stacked_areas(r).mean(-1) for r in (real, null)], dim=1),
            "curve": torch.stack([stacked_curves(r) for r in (real, null)], dim=1),
            "exact": (x == 0).double().mean((-2, -1)),
            "extreme": torch.stack([torch.stack([*r, -r.peak], dim=1).amax(0) for r in (real, null)]),
        }

    def update(self, batch: MeasureBatch) -> None:
        """Add areas, curves and zeros; keep extremes."""
        for i, seen in self.present(batch):
            for state in ("area", "curve", "exact"):
                add_by_group(getattr(self, state)[:, i], self.group(batch), seen[state])
            kept = self.extreme[i, ..., : self.widths[i]]
            torch.maximum(kept, seen["extreme"].to(kept.device), out=kept)

    def compute(self) -> Result:
        """Headlines first, then curves, for places and for means over layers."""
        rows = [
            *self._headlines(),
            *self._layer_means(),
            *self._exact(),
            *self._curves(),
            *self._everywhere(),
        ]
        return Result(self.name, rows, {"replicates": {self.views[0].label: self._replicates()}})  # type: ignore[arg-type]

    def _start(self, place: str, **columns: Any) -> dict[str, Any]:
        return self.row(place, tokens="patch", value_unit="fraction of channels", **columns)

    def _headlines(self) -> Iterator[dict[str, Any]]:
        value = self.mean(self.area)  # (L, 2, 5)
        self.note(value.note)
        estimator = "area under the curve in log threshold over two decades, normalised"
        for i, place in enumerate(self.names):
            for q, quantity in enumerate(AREAS):
                null = self._null(value, i, q)
                yield self._start(place, quantity=quantity, estimator=estimator, **value.at(i, 0, q), **null)

    @staticmethod
    def _null(value: Estimate, i: int, q: int) -> dict[str, Any]:
        null = {"null": value.value, "null_low": value.low, "null_high": value.high}
        return {k: float(v[i, 1, q]) for k, v in null.items()} | {"null_kind": MIXED}

    def _kinds_of_place(self) -> dict[str, list[int]]:
        kinds: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            kinds.setdefault(place_kind(name), []).append(i)
        return kinds

    def _means_over(self, where: list[int], version: int) -> dict[str, Replicates]:
        """Replicates of every area, mean over several places; version 0 the values, 1 their null."""
        sums, count = self.area[:, where, version], self.count[:, where, None]

        def one(q: int) -> Replicates:
            return replicates(
                lambda s, n: (s / n).nanmean(1)[:, 0], (sums[..., q : q + 1], count), count[:, 0, 0]
            )

        return {quantity: one(q) for q, quantity in enumerate(AREAS)}

    def _layer_means(self) -> Iterator[dict[str, Any]]:
        for kind, where in self._kinds_of_place().items():
            if "*" not in kind:
                continue
            value, null = self._means_over(where, 0), self._means_over(where, 1)
            for quantity in AREAS:
                columns = {k: v for k, v in with_p(value[quantity]).items() if k != "p"}
                band = with_p(null[quantity])
                columns |= {"null": band["value"], "null_low": band["low"], "null_high": band["high"]}
                yield self._start(
                    kind,
                    quantity=quantity,
                    estimator="normalised area under the curve, mean over layers",
                    null_kind=MIXED,
                    **columns,
                )

    def _replicates(self) -> dict[str, Replicates]:
        """For paired differences between models: area and place -> replicates."""
        return {
            key_of(quantity, "patch", kind): kept
            for kind, where in self._kinds_of_place().items()
            for quantity, kept in self._means_over(where, 0).items()
        }

    def _exact(self) -> Iterator[dict[str, Any]]:
        value = self.mean(self.exact)
        for i, place in enumerate(self.names):
            row = self._start(place, quantity="exact_zero", estimator="mean over images", **value.at(i))
            null = {"null": 0.0, "null_kind": "continuous values, never exactly 0"}
            yield row | null | {"value_unit": "fraction of values"}

    def _curves(self) -> Iterator[dict[str, Any]]:
        value = self.mean(self.curve)  # (L, 2, T)
        for i, place in enumerate(self.names):
            for t, (kind, at, unit) in enumerate(curve_points()):
                row = self._start(place, quantity=kind, at=at, at_unit=unit, estimator="mean over images")
                yield row | value.at(i, 0, t) | self._null(value, i, t)

    def _everywhere(self) -> Iterator[dict[str, Any]]:
        for i, place in enumerate(self.names):
            images = int(self.count[:, i].sum())
            if not images:
                continue
            words = f"holds in each of {images} images"
            extreme = self.extreme[i, ..., : self.widths[i]].cpu()  # (2, 4, C)
            areas, curves = areas_everywhere(extreme), curves_everywhere(extreme)
            for quantity, pair in zip(AREAS, areas.tolist(), strict=True):
                yield self._counted(place, quantity, pair, f"normalised area under the curve, {words}")
            for (kind, at, unit), pair in zip(curve_points(), curves.tolist(), strict=True):
                yield self._counted(place, kind, pair, words) | {"at": at, "at_unit": unit}

    def _counted(self, place: str, quantity: str, pair: list[float], estimator: str) -> dict[str, Any]:
        value, null = pair
        n = self.widths[self.names.index(place)]
        (low, high), (null_low, null_high) = wilson(value, n), wilson(null, n)
        numbers = {"value": value, "low": low, "high": high, "interval": "Wilson", "n": n, "unit": "channel"}
        numbers |= {"null": null, "null_low": null_low, "null_high": null_high, "null_kind": MIXED}
        return self._start(place, quantity=quantity + EVERYWHERE, estimator=estimator, **numbers)


def areas_everywhere(extreme: Tensor) -> Tensor:
    """Areas of what holds in every image, from extremes (2, 4, C) over images: (5, 2)."""
    small, large = area_below(extreme[:, :3]), area_above(-extreme[:, 3:])  # (2, 3, C), (2, 1, C)
    return torch.cat([small, large, small[:, :1] + large], dim=1).mean(-1).T


def curves_everywhere(extreme: Tensor) -> Tensor:
    """Curves of what holds in every image, from extremes (2, 4, C) over images: (T, 2)."""
    small = fraction_below(extreme[:, :3]).flatten(1)  # (2, 3 len(EPS))
    return torch.cat([small, fraction_above(-extreme[:, 3])], dim=1).T


def wilson(mean: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) of a proportion.

    For the mean of values between 0 and 1 that are not all 0 or 1 it is conservative, since their variance is at
    most that of a coin with the same mean.

    >>> [round(x, 4) for x in wilson(0.8, 10)]
    [0.4902, 0.9433]
    """
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    centre, half = mean + z2 / (2 * n), np.sqrt(z2 * mean * (1 - mean) / n + (z2 / (2 * n)) ** 2)
    return float((centre - half) / (1 + z2 / n)), float((centre + half) / (1 + z2 / n))


# ------------------------------------------------------------------------------------------ two models


def invalid_difference(
    result: Result, model: str, model_b: str, place: str = "blocks.*.resid_post", place_b: str | None = None
) -> Result:
    """How many more channels of ``model`` are invalid than of ``model_b``: headlines, paired over images.

    Parameters
    ----------
    result : of `InvalidChannels` for both models, from one pass over the images.
    model, model_b : labels as in the result's ``model`` column.
    place, place_b : where, for example "embed" or, for the mean over layers, "blocks.*.mlp.hidden".

    Rows: the difference with interval, p and null 0, of each of the five headlines (see `paired_difference`).

    Raises
    ------
    UnknownNameError : a label or a place that the result does not have.
    T2TError : the models were measured on different images.
    """
    words = "difference of normalised areas under the curve, first model minus second"
    return paired_difference(
        result, model, model_b, place, place_b, estimator=words, value_unit="fraction of channels"
    )


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


def feature_map_curves(
    model: nn.Module, loader: Any, layers: Sequence[str] | None = None, *, label: str | None = None,
    progress: bool = True,
) -> Result:  # fmt: skip
    """`InvalidChannels` of the feature maps of a convolutional network, from its real forward pass.

    The released notebook for ResNet-50 chains the convolutions alone, without norm, activation, pooling and
    shortcuts; what comes out are no activations of the trained network. Here the network runs as it is. To
    have it beside transformers in one pass, give `measure` a `FeatureMapView` of it.

    Parameters
    ----------
    model, layers : see `FeatureMapView`.
    loader : as for `measure`; images preprocessed as the network wants them.

    Raises UnknownNameError for a layer that the network does not have.
    """
    from .engine import measure

    return measure(FeatureMapView(model, layers, label), loader, InvalidChannels(), progress=progress)[
        InvalidChannels.name
    ]
