"""Do the heads of a vision transformer repeat each other? Attention maps compared within and across layers.

Patch queries and patch keys only: the columns of class token, distillation token and registers are dropped
and the rows renormalised (`head_maps` says why). A Performer has no attention map; only the blocks of the
backbone are asked.

Images are taken two by two in the order of their batch. Both give similarities of their own; the two together
give the null (a head on one image against another head on the other image: what the position alone brings
about) and the unbiased content similarity. Pairs share no image, so the jackknife over groups of images holds
for them as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..results import Result
from .base import MeasureBatch, View, add_by_group, grouped_estimate
from .cka import correlation
from .head_maps import (
    content_covariance,
    cosine_floor,
    logit_variance,
    pairwise_js_divergence,
    query_products,
    row_scales,
    scaled_sum,
)
from .head_measure import (
    OTHER_IMAGE,
    PairedImagesMeasure,
    head_rows,
    layer_rows,
    layer_table,
    mean_of,
)

#: Numbers in the attention maps of one image that are worked on at a time: what a processor's cache holds.
_CHUNK = 2**21


# -------------------------------------------------------------------------------------------- similarity


class HeadSimilarity(PairedImagesMeasure):
    """Cosine similarity of attention maps between all heads of a model, within and across layers.

    Per image and query, cos(A_h[q, :], A_g[q, :]) over the patch keys, averaged over queries and images
    ("cosine per query"):

    - ``cosine_raw``. Its floor for independent heads is exp(-s^2) at logit spread s: rows ``cosine_floor`` (per
      layer) and ``logit_spread`` (s, per head) stand beside it.
    - ``cosine_centred``: 1/T taken off each row, that is Pearson's correlation over keys; 0 for independent heads.
    - ``cosine_content``: the position-mean map (average over images) taken off too, without bias (see
      `content_covariance`): do two heads *change* alike from image to image?

    The null of the first two is the same with the two maps taken from different images: what position alone
    explains. Every quantity has rows for pairs of heads,
    for pairs of layers (mean over different heads) and, with ``_last_minus_first``, for the change from the
    first third of the layers to the last; ``_split_half`` correlates the within-layer pairs of one half of
    the images with those of the other.

    Source: cosine of attention maps after Zhou et al. 2021 (DeepViT, there over columns); the centring is
    ours.
    """

    name = "head_similarity"
    invariances = frozenset({"permute_heads", "permute_keys"})

    variance: Tensor  # (G, M) of the logits
    raw: Tensor  # (G, M, M) sums over images
    centred: Tensor
    raw_other: Tensor  # (G, M, M) sums over pairs of images
    centred_other: Tensor
    content: Tensor
    rows: Tensor  # (G, M, M) share of queries that have a centred cosine
    rows_other: Tensor

    def make_states(self, view: View, heads: int) -> None:
        """Sums by image group (G, M, M), and how many images, pairs of images and query rows are in them."""
        super().make_states(view, heads)
        self.add_sum("variance", self.groups, heads)
        for name in ("raw", "centred", "raw_other", "centred_other", "content"):
            self.add_sum(name, self.groups, heads, heads)
        for name in ("rows", "rows_other"):  # counts: single precision is plenty
            self.add_sum(name, self.groups, heads, heads, dtype=torch.float32)

    def update(self, batch: MeasureBatch) -> None:
        """Add the spread of the logits for all images at once, then what images say one by one and two by two."""
        for layer, where in self.index.slices:
            if tensors := self.tensors(batch.seen[0], layer):
                spread = self._logit_variance(layer, *tensors)
                add_by_group(self.variance[:, where], self.group(batch), spread)
        super().update(batch)

    def _logit_variance(self, layer: int, *tensors: Tensor) -> Tensor:
        """(B, H), from q and k, or from maps (B, H, Q, K), whose logarithm is the logits up to a constant per row."""
        if len(tensors) == 2:
            return logit_variance(*tensors, self.scales[layer])
        # A weight that underflowed to 0 had a logit at or below that of the smallest number.
        logits = tensors[0].clamp_min(torch.finfo(tensors[0].dtype).tiny).log()
        return logits.var(dim=-1, correction=0).mean(dim=-1)

    def add_images(self, seen: dict[str, Tensor], images: range, groups: list[int]) -> None:
        """Rebuild the maps some queries at a time, and add their similarities."""
        keys = next(iter(seen.values())).shape[2]
        there = (self.present(seen) @ self.index.member).to(next(iter(seen.values())))
        for rows in self._chunks(keys):
            maps = [self.maps(seen, image, rows).sub_(1 / keys) for image in images]
            products = [query_products(m, m) for m in maps]
            scales = [(raw * there, centred) for raw, centred in (row_scales(p, keys) for p in products)]
            for group, product, scale in zip(groups, products, scales, strict=True):
                self._add_cosines(group, "", product, scale, scale, keys)
            if len(maps) == 2:
                across = query_products(*maps)
                self._add_cosines(groups[0], "_other", across, scales[0], scales[1], keys)
                self.content[groups[0]] += content_covariance(products[0], products[1], across).to(
                    self.content
                )

    def _chunks(self, queries: int) -> Iterator[slice]:
        """Slices of the queries so that the maps of one image have about ``_CHUNK`` numbers."""
        step = max(1, _CHUNK // (self.index.total * queries))
        return (slice(start, min(start + step, queries)) for start in range(0, queries, step))

    def _add_cosines(self, group: int, suffix: str, products: Tensor, a: Any, b: Any, keys: int) -> None:
        """Add the cosines of two images' maps, the mean of both ways round where images differ."""
        (raw_a, centred_a), (raw_b, centred_b) = a, b
        values = {
            "raw": scaled_sum(products, raw_a, raw_b) + raw_a.T @ raw_b / keys,
            "centred": scaled_sum(products, centred_a, centred_b),
            "rows": (centred_a > 0).to(products).T @ (centred_b > 0).to(products),
        }
        for name, value in values.items():
            state = getattr(self, name + suffix)
            state[group] += ((value + value.T).double() / (2 * keys)).to(state)

    def compute(self) -> Result:
        """Rows for pairs of heads, pairs of layers, heads, and the change over depth."""
        self._add_notes()
        images, pairs = (self.index.spread(s) for s in (self.images, self.pairs))
        rows = self._spread_rows()
        sets = {
            "cosine_raw": ((self.raw, images), (self.raw_other, pairs)),
            "cosine_centred": (
                (self.centred, self.rows.double()),
                (self.centred_other, self.rows_other.double()),
            ),
        }
        for quantity, (sums, other) in sets.items():
            found = self.estimate_all(mean_of, sums, self.images)
            null = [{"null": part} for part in self.estimate_all(mean_of, other, self.pairs)]
            rows += self.report(found, null, null_kind=OTHER_IMAGE, **_cosine(quantity))
            rows += self._split_half(mean_of, sums, quantity)
        return self.result([*rows, *self._content_rows()])

    def _add_notes(self) -> None:
        if not self.pairs.any():
            self.note("every batch held one image: no null from permuted images and no content similarity")
        images = self.images.sum(0).diagonal()
        defined = self.rows.sum(0).diagonal().double() / self.index.spread(self.images.sum(0)).diagonal()
        worst = int(defined.nan_to_num(1.0).argmin())
        if images.any() and float(defined[worst]) < 1 - 1e-6:
            layer, head = self.index.table[worst]
            self.note(
                "uniform rows have no centred cosine and are left out, most of them in "
                f"layer {layer}, head {head}: {1 - float(defined[worst]):.1%}"
            )

    def _content_rows(self) -> list[dict[str, Any]]:
        sums = (self.content,)
        estimates = self.estimate_all(correlation, sums, self.pairs, unit="image pair")
        columns = _cosine("cosine_content") | {
            "estimator": "covariance over images from differences of two, over both deviations",
            "null_kind": "heads whose content is unrelated",
        }
        rows = self.report(estimates, [{"null": 0.0}] * 3, **columns)
        return rows + self._split_half(correlation, sums, "cosine_content")

    def _split_half(self, fn: Any, sums: Sequence[Tensor], quantity: str) -> list[dict[str, Any]]:
        """Correlation over within-layer pairs between two halves of the images; none where it is undefined."""
        # Pairs of images belong to the group of their first, so halves are made of groups two by two.
        half = ((torch.arange(self.groups, device=self.images.device) // 2) % 2).double()[:, None, None]
        split = [s * weight for weight in (1 - half, half) for s in sums]
        same = self.index.member.T @ self.index.member
        used = torch.triu(same, diagonal=1).bool().to(self.images.device)

        def agreement(*sums: Tensor) -> Tensor:
            one, other = (fn(*part)[:, used] for part in (sums[: len(sums) // 2], sums[len(sums) // 2 :]))
            return torch.stack([_pearson(a, b).atanh() for a, b in zip(one, other, strict=True)])

        z = grouped_estimate(agreement, split, self.images.amax((-2, -1)))
        ends = {name: np.tanh(getattr(z, name)) for name in ("value", "low", "high")}  # Fisher's z until here
        row = self.row(estimate=z) | _cosine(quantity) | ends | {"se": None, "df": None}
        row |= {"quantity": f"{quantity}_split_half", "ceiling_kind": "no noise", "null": 0.0}
        row |= {"null_kind": "nothing shared by the halves"}
        row["estimator"] = "Pearson's r of within-layer pairs in two halves of the images; Fisher's z"
        return [row] if np.isfinite(z.value) else []

    def _spread_rows(self) -> list[dict[str, Any]]:
        """Logit spread of every head, and the floor that it puts under the raw cosine of every layer."""
        images = self.index.spread(self.images).diagonal(dim1=-2, dim2=-1)
        spread = grouped_estimate(lambda s, n: (s / n).sqrt(), (self.variance, images), images)

        def raw(s: np.ndarray) -> np.ndarray:
            of = torch.from_numpy(s)
            return layer_table(cosine_floor(of[..., :, None], of[..., None, :]).numpy(), self.index)

        floor = spread.map(raw, self.images.cpu().numpy())
        row = self.row(tokens="patch", value_unit="none")
        return [
            head_rows(row, self.index, spread, quantity="logit_spread", null=0.0, null_kind="uniform attention",
                      estimator="root mean variance of logits over patch keys"),
            layer_rows(row, self.index, floor, quantity="cosine_floor", null=1.0,
                       null_kind="uniform attention: no spread of logits",
                       estimator="exp(-(s_h^2 + s_g^2) / 2): raw cosine of independent heads"),
        ]  # fmt: skip


def _cosine(quantity: str) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "tokens": "patch",
        "value_unit": "none",
        "estimator": "cosine per query, patch keys renormalised"
        + (", less 1/T" if quantity != "cosine_raw" else ""),
        "ceiling": 1.0,
        "ceiling_kind": "a head with itself",
    }


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    used = ~(a.isnan() | b.isnan())
    if int(used.sum()) < 3:
        return a.new_full((), float("nan"))
    return torch.corrcoef(torch.stack([a[used], b[used]]))[0, 1]


# -------------------------------------------------------------------------------------------- divergence


class HeadDivergence(PairedImagesMeasure):
    """Jensen-Shannon divergence between the attention maps of the heads of a layer, in nats.

    ``js_divergence`` = H((P+Q)/2) - (H(P)+H(Q))/2 for every two heads of a layer, 0 (equal) to ln 2 (disjoint),
    averaged over queries and images; patch keys only. Two diffuse heads are close whatever they attend to, so read it
    beside their entropy (`AttentionGeometry`).

    The null takes the two maps from different images. Unlike a cosine, a *small* value means alike.

    Source: Lin 1991; between attention heads, Clark et al. 2019.
    """

    name = "head_divergence"
    invariances = frozenset({"permute_heads", "permute_keys"})

    divergence: Tensor  # (G, M, M) sums over images
    divergence_other: Tensor  # over pairs of images

    def make_states(self, view: View, heads: int) -> None:
        """Sums by image group; across layers they stay empty."""
        super().make_states(view, heads)
        self.add_sum("divergence", self.groups, heads, heads)
        self.add_sum("divergence_other", self.groups, heads, heads)

    def add_images(self, seen: dict[str, Tensor], images: range, groups: list[int]) -> None:
        """Add divergences of one or two images, and across them, layer by layer."""
        maps = [self.maps(seen, image) for image in images]
        for layer, where in self.index.slices:
            if self.tensors(seen, layer):
                own = [m[where] for m in maps]
                for group, m in zip(groups, own, strict=True):
                    self.divergence[group, where, where] += pairwise_js_divergence(m).to(self.divergence)
                if len(own) == 2:
                    other = pairwise_js_divergence(*own)
                    self.divergence_other[groups[0], where, where] += other.to(self.divergence)

    def compute(self) -> Result:
        """Rows for pairs of heads within layers, layers, and the change over depth."""
        if not self.pairs.any():
            self.note("every batch held one image: no null from permuted images")
        columns = {"quantity": "js_divergence", "tokens": "patch", "value_unit": "nats",
                   "null_kind": OTHER_IMAGE,
                   "estimator": "Jensen-Shannon per query, patch keys renormalised",
                   "ceiling": float(np.log(2)), "ceiling_kind": "disjoint maps"}  # fmt: skip
        found, null = (
            self.estimate_all(mean_of, (sums, self.index.spread(own)), own)
            for sums, count in ((self.divergence, self.images), (self.divergence_other, self.pairs))
            for own in [count * torch.eye(count.shape[-1]).to(count)]  # within layers
        )
        return self.result(self.report(found, [{"null": part} for part in null], **columns))
