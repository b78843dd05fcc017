"""How many directions a representation really uses: effective rank by layer, against Gaussian noise of its shape.

Two levels: an image's mean patch token as one sample ("pooled"), and every patch token as one sample ("patch").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy import stats as sps
from torch import Tensor

from .. import capture
from ..errors import DataError
from ..results import Result
from .base import Estimate, Measure, MeasureBatch, View, add_by_group, left_out
from .view import place_kind

LEVELS = ("pooled", "patch")
#: bytes of covariances that are held for the jackknife; wide models get fewer groups, never fewer than LEAST
BUDGET, LEAST = 2**28, 8

# ------------------------------------------------------------------------------------------ the numbers


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli 2007): (..., k) -> (...).

    exp(-sum p ln p) with p = s / sum s; the singular values themselves, not their squares. Between 1 and the
    number of values that are not 0; NaN if all are 0.

    >>> effective_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    s = singular_values.double()
    p = s / s.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()


def spectrum(cross: Tensor, total: Tensor, count: Tensor, noise: Tensor | None = None) -> Tensor:
    """Singular values of a centred sample from sums over it, largest last.

    Parameters
    ----------
    cross : (..., d, d), sum of x x'.
    total : (..., d), sum of x.
    count : (...), number of samples.
    noise : (...), `rounding` of the sums, if not of ``cross`` itself.

    Returns
    -------
    (..., d): the square roots of the eigenvalues of the scatter matrix; those below its rounding error are 0,
    since a root would turn an eigenvalue of 1e-16 into a singular value of 1e-8.
    """
    scatter = cross - total.unsqueeze(-1) * total.unsqueeze(-2) / count[..., None, None]
    values = torch.linalg.eigvalsh(scatter)
    noise = rounding(cross) if noise is None else noise
    return torch.where(values > noise.unsqueeze(-1), values, 0.0).sqrt()


def rounding(cross: Tensor) -> Tensor:
    """Rounding error of eigenvalues of a scatter matrix: (..., d, d) sums of x x' -> (...).

    Relative to the sums before the mean is taken off: equal samples have no spectrum, whatever their size.
    """
    return cross.diagonal(dim1=-2, dim2=-1).sum(-1) * cross.shape[-1] * torch.finfo(cross.dtype).eps


def in_span(sums: Tensor) -> Tensor:
    """The same sums (G, 1 + d, 1 + d) of [1, x]' [1, x] with x in coordinates of what all samples span.

    A rotation, so no spectrum changes; with few samples the span is narrow, and so is each matrix that is taken
    apart afterwards.
    """
    whole = sums.sum(0)
    if 2 * (count := int(whole[0, 0])) > whole.shape[0]:
        return sums
    axes = torch.linalg.eigh(whole[1:, 1:]).eigenvectors[:, -count:]
    to_span = torch.block_diag(torch.ones_like(axes[:1, :1]), axes)
    return to_span.T @ sums @ to_span


# ------------------------------------------------------------------------------------------ the null


class GaussianNull(NamedTuple):
    """Mean effective rank over draws of normal values, and where 95 % of further draws would fall."""

    mean: float
    low: float
    high: float
    draws: int


@functools.lru_cache(maxsize=512)
def gaussian_null(n: int, d: int) -> GaussianNull:
    """Effective rank of n samples of d independent standard normal channels.

    Drawn exactly without drawing the samples: their singular values are those of a small triangular matrix
    (Bartlett 1933), so that 100,000 tokens cost no more than d of them. Removing the mean costs one degree of
    freedom. Larger matrices vary less and are drawn less often (60 down to 6 times).

    >>> round(gaussian_null(1000, 192).mean, 1)
    187.1
    """
    freedom = n - 1
    if freedom < 1 or d < 1:
        raise DataError(f"{n} samples of {d} channels have no spectrum")
    small, large = min(freedom, d), max(freedom, d)
    draws = int(np.clip(4e7 / small**3, 6, 60))
    rng = np.random.default_rng(0)
    found = [float(effective_rank(torch.linalg.svdvals(_bartlett(small, large, rng)))) for _ in range(draws)]
    mean = float(np.mean(found))
    # where one more draw would fall: quantiles of few draws would be too narrow
    half = float(sps.t.ppf(0.975, draws - 1)) * math.sqrt(1 + 1 / draws) * float(np.std(found, ddof=1))
    return GaussianNull(mean, mean - half, mean + half, draws)


def _bartlett(small: int, large: int, rng: np.random.Generator) -> Tensor:
    """Lower triangular (k, k) whose product with its transpose is Wishart with ``large`` degrees of freedom."""
    lower = np.tril(rng.standard_normal((small, small)), -1)
    lower[np.diag_indices(small)] = np.sqrt(rng.chisquare(np.arange(large, large - small, -1)))
    return torch.from_numpy(lower)


# ------------------------------------------------------------------------------------------ the measure


class EffectiveRank(Measure):
    """Effective rank of every layer at image and at token level, over its Gaussian null.

    The covariance of pooled patch tokens (one sample per image) and of patch tokens (one sample per token) is
    summed up in float64, centred, and its spectrum gives ``effective_rank`` (Roy & Vetterli 2007, from singular
    values, not from variances). It depends on the number of samples: 192 independent channels show 60 with 64
    samples and 191.5 with 10,000. So it comes with the null of Gaussian noise at the same n and d, and divided by it:
    ``effective_rank_over_null``.

    Intervals are jackknives over image groups. At token level n in the null counts tokens, while the unit of the
    interval is the image, since tokens of one image are not independent. One channel scaled by 100 takes the
    effective rank of noise from 187 to 58: it is not invariant to the scale of single channels.

    Parameters
    ----------
    places : names or patterns; all layers' residual stream by default.
    groups : at most so many image groups; fewer (8 at least) where the covariances of wide models would need more
        than 256 MB.
    """

    name: ClassVar[str] = "effective_rank"
    invariances: ClassVar[frozenset[str]] = frozenset(
        {"orthogonal", "scale", "translation", "permute_images", "permute_channels"}
    )

    def __init__(
        self, places: str | Sequence[str] = ("embed", "blocks.*.resid_post"), *, groups: int = 32
    ) -> None:
        super().__init__(groups=groups)
        self.places = places

    def bind(self, views: Sequence[View]) -> None:
        """Make room for one covariance per place, level and group."""
        self.names = views[0].select(self.places)
        self.widths = [views[0].shape_of(name)[-1] for name in self.names]
        self.groups = groups_within_budget(self.groups, self.widths)
        self.add_sum("images", self.groups, len(self.names))
        for i, width in enumerate(self.widths):
            for level in LEVELS:
                self.add_sum(f"{level}_{i}", self.groups, 1 + width, 1 + width)  # sums of [1, x]' [1, x]

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Patch tokens in float64, (B, N, d)."""
        return obs.patches.double()

    def update(self, batch: MeasureBatch) -> None:
        """Add samples, sums and products to their groups."""
        group = self.group(batch)
        for i, name in enumerate(self.names):
            if name not in batch.seen[0]:
                continue
            add_by_group(self.images[:, i], group, torch.ones(len(group)))
            x = batch.seen[0][name]
            for level in LEVELS:
                samples = x.mean(1, keepdim=True) if level == "pooled" else x
                self._add(getattr(self, f"{level}_{i}"), group, samples)

    @staticmethod
    def _add(state: Tensor, group: Tensor, x: Tensor) -> None:
        """Add samples x (B, n, d) under their image's group, one product for each group."""
        x = torch.cat([torch.ones_like(x[..., :1]), x], -1)
        for g in group.unique().tolist():
            rows = x[(group == g).to(x.device)].flatten(0, 1)  # (n, 1 + d)
            state[g] += (rows.T @ rows).to(state.device)

    def compute(self) -> Result:
        """Rows of every level and place, and of the mean over layers."""
        places = [i for i in range(len(self.names)) if int(self.images[:, i].sum()) >= 2]
        if not places:
            raise DataError("effective rank needs at least 2 images with finite features")
        found = {(level, i): self._estimate(level, i) for level in LEVELS for i in places}
        rows = [row for (level, i), rank in found.items() for row in self._rows(level, i, rank)]
        rows += [row for level in LEVELS for row in self._mean_rows(level, places, found)]
        return self.result(rows, groups=self.groups, levels=list(LEVELS))

    def _null(self, level: str, i: int) -> GaussianNull:
        return gaussian_null(self._samples(level, i), self.widths[i])

    def _samples(self, level: str, i: int) -> int:
        return int(getattr(self, f"{level}_{i}")[:, 0, 0].sum())

    def _rows(self, level: str, i: int, rank: Estimate) -> Iterator[dict[str, Any]]:
        null, samples = self._null(level, i), self._samples(level, i)
        if not np.isfinite(rank.value):
            self.note(
                f"{self.views[0].label}: {self.names[i]} is the same for all images, so it has no rank ({level})"
            )
        kind = f"Gaussian noise, {samples} samples of {self.widths[i]} channels, {null.draws} draws"
        for suffix, unit, over in (("", "dimensions", 1.0), ("_over_null", "none", null.mean)):
            yield self.row(
                self.names[i], tokens=level, quantity=f"effective_rank{suffix}", value_unit=unit, estimate=rank / over,
                null=null.mean / over, null_low=null.low / over, null_high=null.high / over, null_kind=kind,
                estimator="from singular values",
            )  # fmt: skip

    def _estimate(self, level: str, i: int) -> Estimate:
        """Effective rank of one place, ().

        Nothing changes without a group that has no images, so no spectrum is taken for it.
        """
        sizes = self.images[:, i].cpu()
        used = sizes > 0
        sums = getattr(self, f"{level}_{i}")[used]
        noise = rounding(left_out(sums)[:, 1:, 1:])
        rest = zip(left_out(in_span(sums)), noise, strict=True)
        found = torch.stack(
            [effective_rank(spectrum(s[1:, 1:], s[0, 1:], s[0, 0], n)) for s, n in rest]
        ).cpu()
        out = found[:1].repeat(self.groups)
        out[used] = found[1:]
        return Estimate(found[0].numpy(), out.numpy(), sizes.numpy())

    def _mean_rows(
        self, level: str, places: Sequence[int], found: dict[tuple[str, int], Estimate]
    ) -> Iterator[dict[str, Any]]:
        """Ranks over their nulls, mean over the layers that were finite for all images."""
        whole = [i for i in places if torch.equal(self.images[:, i].cpu(), self.images.amax(1).cpu())]
        for kind in dict.fromkeys(place_kind(self.names[i]) for i in whole if "blocks." in self.names[i]):
            ratios = [
                found[level, i] / self._null(level, i).mean
                for i in whole
                if place_kind(self.names[i]) == kind
            ]
            yield self.row(
                kind, tokens=level, quantity="effective_rank_over_null", value_unit="none", null=1.0,
                estimate=Estimate.concatenate(ratios).mean(), estimator=f"mean over {len(ratios)} layers",
                null_kind="Gaussian noise of each layer's shape",
            )  # fmt: skip


def groups_within_budget(groups: int, widths: Sequence[int]) -> int:
    """As many image groups as the covariances leave room for, between ``LEAST`` and ``groups``.

    >>> groups_within_budget(32, [192] * 12), groups_within_budget(32, [768] * 12)
    (32, 8)
    """
    per_group = 8 * len(LEVELS) * sum(width**2 for width in widths)
    return min(groups, max(LEAST, BUDGET // per_group))
