"""How many directions a representation really uses: effective rank by layer, against Gaussian noise of its shape.

Two levels: an image's mean patch token as one sample ("pooled"), and every patch token as one sample ("patch").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from scipy import stats as sps
from torch import Tensor

from .. import capture
from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result
from .base import Measure, MeasureBatch, View, add_by_group
from .channels import place_kind
from .differences import key_of, paired_difference
from .grouped import TOO_FEW
from .head_summary import Replicates, with_p

__all__ = [
    "EffectiveRank", "GaussianNull", "effective_rank", "effective_rank_of", "gaussian_null", "marchenko_pastur_rank",
    "participation_ratio", "rank_difference", "spectrum",
]  # fmt: skip

Level = Literal["pooled", "patch"]
LEVELS: tuple[Level, ...] = ("pooled", "patch")
#: bytes of covariances that are held for the jackknife; wide models get fewer groups, never fewer than LEAST
BUDGET, LEAST = 2**28, 8
QUANTITIES = ("effective_rank", "participation_ratio")

INVARIANCES = {
    "effective_rank_of": ("orthogonal", "scale", "translation", "permute_channels", "permute_images")
}


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


def participation_ratio(singular_values: Tensor) -> Tensor:
    """(sum s^2)^2 / sum s^4, the effective number of equal variances: (..., k) -> (...); another quantity.

    >>> participation_ratio(torch.tensor([2.0, 2.0, 0.0])).item()
    2.0
    """
    variance = singular_values.double().square()
    return variance.sum(-1).square() / variance.square().sum(-1)


def effective_rank_of(x: Tensor, *, centred: bool = True) -> Tensor:
    """Effective rank of a sample x (..., n, d); ``centred`` removes the mean of every column first.

    An uncentred mean vector collapses it: it becomes the one large singular value.

    >>> x = torch.eye(4, dtype=torch.float64)
    >>> round(effective_rank_of(x, centred=False).item(), 6), round(effective_rank_of(x).item(), 6)
    (4.0, 3.0)
    """
    x = x.double()
    return effective_rank(torch.linalg.svdvals(x - x.mean(-2, keepdim=True) if centred else x))


def spectrum(cross: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Singular values of a centred sample from sums over it, largest last.

    Parameters
    ----------
    cross : (..., d, d), sum of x x'.
    total : (..., d), sum of x.
    count : (...), number of samples.

    Returns
    -------
    (..., d): the square roots of the eigenvalues of the scatter matrix; those below its rounding error are 0,
    since a root would turn an eigenvalue of 1e-16 into a singular value of 1e-8.
    """
    scatter = cross - total.unsqueeze(-1) * total.unsqueeze(-2) / count[..., None, None]
    values = torch.linalg.eigvalsh(scatter)
    noise = values.amax(-1, keepdim=True) * values.shape[-1] * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0.0).sqrt()


# ------------------------------------------------------------------------------------------ the null


class GaussianNull(NamedTuple):
    """Mean of each quantity over draws of normal values, and where 95 % of further draws would fall."""

    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    draws: int


@functools.lru_cache(maxsize=512)
def gaussian_null(n: int, d: int, *, centred: bool = True, seed: int = 0) -> GaussianNull:
    """Effective rank and participation ratio of n samples of d independent standard normal channels.

    Drawn exactly without drawing the samples: their singular values are those of a small triangular matrix
    (Bartlett 1933), so that 100,000 tokens cost no more than d of them. Removing the mean costs one degree of
    freedom. Larger matrices vary less and are drawn less often (60 down to 6 times).

    >>> round(gaussian_null(1000, 192).mean["effective_rank"], 1)
    187.1
    """
    freedom = n - 1 if centred else n
    if freedom < 1 or d < 1:
        raise DataError(f"{n} samples of {d} channels have no spectrum")
    small, large = min(freedom, d), max(freedom, d)
    draws = int(np.clip(4e7 / small**3, 6, 60))
    rng = np.random.default_rng(seed)
    s = torch.stack([torch.linalg.svdvals(_bartlett(small, large, rng)) for _ in range(draws)])
    found = {q: f(s).numpy() for q, f in zip(QUANTITIES, (effective_rank, participation_ratio), strict=True)}
    mean = {q: float(v.mean()) for q, v in found.items()}
    # where one more draw would fall: quantiles of few draws would be too narrow
    half = float(sps.t.ppf(0.975, draws - 1)) * math.sqrt(1 + 1 / draws)
    margin = {q: half * float(v.std(ddof=1)) for q, v in found.items()}
    low, high = ({q: mean[q] + sign * margin[q] for q in mean} for sign in (-1, 1))
    return GaussianNull(mean, low, high, draws)


def _bartlett(small: int, large: int, rng: np.random.Generator) -> Tensor:
    """Lower triangular (k, k) whose product with its transpose is Wishart with ``large`` degrees of freedom."""
    lower = np.tril(rng.standard_normal((small, small)), -1)
    lower[np.diag_indices(small)] = np.sqrt(rng.chisquare(np.arange(large, large - small, -1)))
    return torch.from_numpy(lower)


def marchenko_pastur_rank(n: int, d: int, points: int = 4001) -> float:
    """Effective rank of n x d standard normal values in the limit of large n and d at their ratio.

    From the density of Marchenko & Pastur (1967) by quadrature: with k = min(n, d) singular values s distributed as
    f, it is k E[s] exp(-E[s ln s] / E[s]). A check of `gaussian_null` that draws nothing.

    >>> round(marchenko_pastur_rank(10_000, 192), 1)
    191.5
    """
    k, ratio = min(n, d), min(n, d) / max(n, d)
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # eigenvalue = middle - half cos(t): the square roots at both ends become smooth
    t = (np.arange(points) + 0.5) * math.pi / points
    value = (low + high) / 2 - (high - low) / 2 * np.cos(t)
    weight = ((high - low) / 2 * np.sin(t)) ** 2 / value
    weight /= weight.sum()
    s = np.sqrt(value)
    mean = (weight * s).sum()
    return float(k * mean * math.exp(-(weight * s * np.log(s)).sum() / mean))


# ------------------------------------------------------------------------------------------ the measure


class EffectiveRank(Measure):
    """Effective rank of every layer at image and at token level, over its Gaussian null.

    The covariance of pooled patch tokens (one sample per image) and of patch tokens (one sample per token) is
    summed up in float64, centred, and its spectrum gives ``effective_rank`` (Roy & Vetterli 2007, from singular
    values) and ``participation_ratio`` (from variances, named apart since it is another quantity). Both depend on
    the number of samples: 192 independent channels show 60 with 64 samples and 191.5 with 10,000. So each comes
    with the null of Gaussian noise at the same n and d, and divided by it: ``effective_rank_over_null``.

    Intervals are jackknives over image groups. At token level n in the null counts tokens, while the unit of the
    interval is the image, since tokens of one image are not independent. One channel scaled by 100 takes the
    effective rank of noise from 187 to 58: it is not invariant to the scale of single channels.

    Parameters
    ----------
    places : names or patterns; all layers' residual stream by default.
    levels : "pooled", "patch" or both.
    groups : at most so many image groups; fewer (8 at least) where the covariances of wide models would need more
        than 256 MB.
    """

    name: ClassVar[str] = "effective_rank"
    invariances: ClassVar[frozenset[str]] = frozenset(
        {"orthogonal", "scale", "translation", "permute_images", "permute_channels"}
    )

    def __init__(
        self, places: str | Sequence[str] = ("embed", "blocks.*.resid_post"), *,
        levels: Sequence[Level] = LEVELS, groups: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(groups=groups)
        if unknown := [level for level in levels if level not in LEVELS]:
            raise UnknownNameError("level", unknown[0], LEVELS)
        if not levels:
            raise T2TError(f"levels=() leaves nothing to measure; choose from {list(LEVELS)}")
        self.places, self.levels = places, tuple(levels)

    def wants(self, view: View) -> list[str]:
        """The places asked for."""
        return view.select(self.places)

    def bind(self, views: Sequence[View]) -> None:
        """Make room for one covariance per place, level and group."""
        self.names = self.wants(views[0])
        self.widths = [views[0].shape_of(name)[-1] for name in self.names]
        self.groups = groups_within_budget(self.groups, self.widths, len(self.levels))
        self.add_sum("images", self.groups, len(self.names))
        for i, width in enumerate(self.widths):
            for level in self.levels:
                self.add_sum(f"count_{level}_{i}", self.groups)
                self.add_sum(f"total_{level}_{i}", self.groups, width)
                self.add_sum(f"cross_{level}_{i}", self.groups, width, width)

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Patch tokens in float64, (B, N, d)."""
        return obs.value[:, 0 if obs.layout is None else obs.layout.prefix :].double()

    def update(self, batch: MeasureBatch) -> None:
        """Add samples, sums and products to their groups."""
        group = self.group(batch)
        for i, name in enumerate(self.names):
            if name not in batch.seen[0]:
                continue
            add_by_group(self.images[:, i], group, torch.ones(len(group)))
            x = batch.seen[0][name]
            for level in self.levels:
                self._add(f"{level}_{i}", group, x.mean(1, keepdim=True) if level == "pooled" else x)

    def _add(self, key: str, group: Tensor, x: Tensor) -> None:
        """Add samples x (B, n, d) under their image's group, one product for each group."""
        count, total, cross = (getattr(self, f"{state}_{key}") for state in ("count", "total", "cross"))
        for g in group.unique().tolist():
            rows = x[(group == g).to(x.device)].flatten(0, 1)  # (n, d)
            count[g] += len(rows)
            total[g] += rows.sum(0).to(total.device)
            cross[g] += (rows.T @ rows).to(cross.device)

    def compute(self) -> Result:
        """Rows of every level and place, and of the mean over layers."""
        places = [i for i in range(len(self.names)) if int(self.images[:, i].sum()) >= 2]
        if not places:
            raise DataError("effective rank needs at least 2 images with finite features")
        kept: dict[str, Replicates] = {}
        rows = [row for level in self.levels for i in places for row in self._rows(level, i, kept)]
        rows += [row for level in self.levels for row in self._mean_rows(level, places, kept)]
        meta = {"groups": self.groups, "levels": list(self.levels), "replicates": {self.views[0].label: kept}}
        return Result(self.name, rows, meta)  # type: ignore[arg-type]

    def _rows(self, level: Level, i: int, kept: dict[str, Replicates]) -> Iterator[dict[str, Any]]:
        samples = int(getattr(self, f"count_{level}_{i}").sum())
        null = gaussian_null(samples, self.widths[i])
        kind = f"Gaussian noise, {samples} samples of {self.widths[i]} channels, {null.draws} draws"
        values = self._leave_one_out(level, i)  # (1 + G, 2)
        for q, quantity in enumerate(QUANTITIES):
            mean, low, high = (part[quantity] for part in null[:3])
            for suffix, unit, over in (("", "dimensions", 1.0), ("_over_null", "none", mean)):
                found = self._replicates(values[:, q] / over, i)
                if suffix:
                    kept[key_of(quantity + suffix, level, self.names[i])] = found
                yield self.row(
                    self.names[i], tokens=level, quantity=quantity + suffix, value_unit=unit, **self._columns(found),
                    null=mean / over, null_low=low / over, null_high=high / over, null_kind=kind,
                    estimator="from singular values" if q == 0 else "from variances",
                )  # fmt: skip

    def _columns(self, found: Replicates) -> dict[str, Any]:
        """Value and interval; without the p of "it is 0", which nobody asks."""
        columns = with_p(found)
        del columns["p"]
        if columns["interval"] is None:
            self.note(TOO_FEW)
        return columns

    def _leave_one_out(self, level: Level, i: int) -> Tensor:
        """Both quantities of all images, then without each group: (1 + G, 2).

        Nothing changes without a group that has no images, so no spectrum is taken for it.
        """
        used = self.images[:, i] > 0
        sums = [getattr(self, f"{s}_{level}_{i}")[used] for s in ("count", "total", "cross")]
        rest = [torch.cat([(total := s.sum(0, keepdim=True)), total - s]) for s in sums]
        found = torch.stack([_both(*(r[k] for r in rest)) for k in range(len(rest[0]))]).cpu()
        out = found[:1].repeat(1 + self.groups, 1)
        out[1:][used.cpu()] = found[1:]
        return out

    def _replicates(self, values: Tensor, i: int) -> Replicates:
        plain = [None if math.isnan(v) else v for v in values.tolist()]
        sizes = self.images[:, i].long().tolist()
        return {"value": plain[0], "leave_out": plain[1:], "sizes": sizes, "unit": "image"}

    def _mean_rows(
        self, level: Level, places: Sequence[int], kept: dict[str, Replicates]
    ) -> Iterator[dict[str, Any]]:
        """Quantities over their nulls, mean over the layers that were finite for all images."""
        whole = [i for i in places if torch.equal(self.images[:, i].cpu(), self.images.amax(1).cpu())]
        kinds = dict.fromkeys(place_kind(self.names[i]) for i in whole if "blocks." in self.names[i])
        for kind in kinds:
            where = [i for i in whole if place_kind(self.names[i]) == kind]
            for quantity in (f"{q}_over_null" for q in QUANTITIES):
                found = _mean_of([kept[key_of(quantity, level, self.names[i])] for i in where])
                kept[key_of(quantity, level, kind)] = found
                yield self.row(
                    kind, tokens=level, quantity=quantity, value_unit="none", **self._columns(found), null=1.0,
                    null_kind="Gaussian noise of each layer's shape", estimator=f"mean over {len(where)} layers",
                )  # fmt: skip


def _both(count: Tensor, total: Tensor, cross: Tensor) -> Tensor:
    s = spectrum(cross, total, count)
    return torch.stack([effective_rank(s), participation_ratio(s)])


def _mean_of(several: Sequence[Replicates]) -> Replicates:
    """Replicates of the mean of several estimates over the same images; undefined where one of them is."""

    def mean(values: Sequence[Any]) -> float | None:
        return None if None in values else sum(values) / len(values)

    left = [mean(v) for v in zip(*(one["leave_out"] for one in several), strict=True)]
    return several[0] | {"value": mean([one["value"] for one in several]), "leave_out": left}


def rank_difference(
    result: Result, model: str, model_b: str, place: str = "blocks.*.resid_post", place_b: str | None = None
) -> Result:
    """How much richer the features of ``model`` are than those of ``model_b``, each over its own Gaussian null.

    Dividing by the null of the same shape makes models of different widths comparable. Paired over images; see
    `paired_difference` for interval, p and errors. ``place``: "blocks.*.resid_post" is the mean over layers.
    """
    words = "difference of ratios to the Gaussian null, first model minus second"
    return paired_difference(result, model, model_b, place, place_b, estimator=words, value_unit="none")


def groups_within_budget(groups: int, widths: Sequence[int], levels: int, budget: int = BUDGET) -> int:
    """As many image groups as the covariances leave room for, between ``LEAST`` and ``groups``.

    >>> groups_within_budget(32, [192] * 12, 2), groups_within_budget(32, [768] * 12, 2)
    (32, 8)
    """
    per_group = 8 * levels * sum(width**2 for width in widths)
    return min(groups, max(LEAST, budget // per_group))
