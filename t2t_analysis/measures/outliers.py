"""Outliers: which activations, channels and tokens are far larger than the rest of their layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..estimates import Estimate
from ..results import Result
from .base import ImageMeans, View
from .channels import EVERY, MIXED, channel_places, mixed, num_channels, positions
from .feature_maps import by_parts

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
