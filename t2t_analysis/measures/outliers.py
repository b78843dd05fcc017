"""Outliers: which activations, channels and tokens are far larger than the rest of their layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import capture
from ..results import Result
from .base import MeasureBatch, View, add_by_group
from .channels import MIXED, ChannelSums, mixed, positions
from .grouped import Estimate

__all__ = [
    "OUTLIER_TOKEN", "ChannelOutliers", "kurtosis", "massive_activations", "outlier_tokens", "peak_to_median",
    "shuffled_tokens",
]  # fmt: skip

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
    x = tokens.double() - tokens.double().mean(-1, keepdim=True)
    second, fourth = x.square().mean(-1), x.pow(4).mean(-1)
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


class ChannelOutliers(ChannelSums):
    """Massive activations, outlier tokens, kurtosis and peak-to-median ratio of every place.

    Means over images, with jackknife intervals, of ``massive_activations`` (a count per image),
    ``outlier_tokens`` (fraction of patch tokens over k x the median norm, as a curve over k; the row without
    ``at`` is k = 3), ``kurtosis`` (over channels) and ``peak_to_median`` (channel root mean squares). See the
    functions of these names for formulas and sources.

    Nulls: for outlier tokens, every channel shuffled over tokens, so that large values do not meet in one token;
    for peak to median, values shuffled over tokens and channels; for kurtosis and massive activations, normal
    values in closed form. For random weights, measure a `random_twin` beside the model.
    """

    name: ClassVar[str] = "channel_outliers"
    invariances: ClassVar[frozenset[str]] = frozenset({"permute_channels", "permute_images"})

    def bind(self, views: Sequence[View]) -> None:
        """Make the states."""
        places = self.add_places(views[0])
        self.channels = [self.num_channels(views[0], name) for name in self.names]
        self.add_sum("numbers", self.groups, places, 4)
        self.add_sum("curve", self.groups, places, 2, len(OUTLIER_TOKEN))

    def reduce(self, obs: capture.Observation) -> tuple[Tensor, Tensor]:
        """Numbers (B, 4), and curves of values and null (B, 2, T)."""
        x = positions(obs).double()
        everything = obs.value.double() if obs.value.ndim == 3 else x
        peaks = [peak_to_median(x), peak_to_median(mixed(x))]
        numbers = torch.stack([massive_activations(everything), kurtosis(x), *peaks], dim=-1)
        curves = torch.stack([outlier_tokens(x), outlier_tokens(shuffled_tokens(x))], dim=1)
        return numbers, curves

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch."""
        for i, (numbers, curves) in self.present(batch):
            add_by_group(self.numbers[:, i], self.group(batch), numbers)
            add_by_group(self.curve[:, i], self.group(batch), curves)

    def compute(self) -> Result:
        """Rows of every place."""
        return Result(self.name, [*self._numbers(), *self._tokens()])  # type: ignore[arg-type]

    def _numbers(self) -> Iterator[dict[str, Any]]:
        value = self.mean(self.numbers)  # (L, 4): massive, kurtosis, peak to median and its null
        self.note(value.note)
        for i, place in enumerate(self.names):
            words: dict[str, Any] = {"estimator": "mean over images", "value_unit": "none", "tokens": "patch"}
            yield self.row(place, **words, **value.at(i, 1), **self._of_normal_values("kurtosis", i))
            yield self.row(place, **words, **value.at(i, 2), **self._of_mixed_values(value, i))
            words |= {"value_unit": "activations per image", "tokens": "all"}
            yield self.row(
                place, **words, **value.at(i, 0), **self._of_normal_values("massive_activations", i)
            )

    def _of_normal_values(self, quantity: str, i: int) -> dict[str, Any]:
        """Quantity with its null in closed form."""
        if quantity == "kurtosis":
            c = self.channels[i]
            null, kind = 3 * (c - 1) / (c + 1), "normally distributed channels, closed form"
        else:
            null, kind = 0.0, "normal values: 1,000 medians are 674 standard deviations"
        return {"quantity": quantity, "null": null, "null_kind": kind}

    def _of_mixed_values(self, value: Estimate, i: int) -> dict[str, Any]:
        parts = {"null": value.value, "null_low": value.low, "null_high": value.high}
        null = {name: float(part[i, 3]) for name, part in parts.items()}
        return {"quantity": "peak_to_median", **null, "null_kind": MIXED}

    def _tokens(self) -> Iterator[dict[str, Any]]:
        value = self.mean(self.curve)  # (L, 2, T)
        for i, place in enumerate(self.names):
            for t, k in enumerate(OUTLIER_TOKEN):
                row = self.row(
                    place, quantity="outlier_tokens", tokens="patch", value_unit="fraction of tokens",
                    estimator="mean over images", **value.at(i, 0, t),
                    null=float(value.value[i, 1, t]), null_low=float(value.low[i, 1, t]),
                    null_high=float(value.high[i, 1, t]), null_kind="every channel shuffled over tokens",
                )  # fmt: skip
                if k == HEADLINE:
                    yield row | {"estimator": f"mean over images, norm over {k:g} x the median"}
                yield row | {"at": k, "at_unit": "threshold k, multiples of the median norm"}
