"""Why are the heads of a layer alike? Attention sinks: a few tokens that every head attends to, and what they give.

A softmax has to attend to something. A head with nothing to say attends to a token whose value is next to nothing;
if all heads of a layer choose the same tokens, their maps are alike although they do nothing together. So the most
attended columns are taken out of the maps, and the heads are compared again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..errors import T2TError
from ..estimates import Estimate
from ..results import Result
from .base import ImageMeans, MeasureBatch, View, at_first
from .head_maps import off_diagonal_mean, thirds
from .head_measure import OTHER_IMAGE, HeadIndex, with_mean
from .head_outputs import head_output_weights

#: Which columns of a map are compared.
KEYS = ("all keys", "patch keys", "without sinks", "without random columns")
#: The place of means over the last third of the layers.
LAST_THIRD = "last third of blocks"
#: Fesser et al. 2026: a sink takes half of the attention of nine queries in ten; it does nothing below this ratio of
#: value norms, and broadcasts above that one, with updates of next to one dimension.
EVENT, HALF, NOTHING, BROADCAST, ONE_DIMENSION = 0.9, 0.5, 0.2, 0.5, 1.5

_COSINES = ("cosine_centred", "cosine_raw")
#: Of a layer: cosines between its heads for all keys, on one image and on two, then what its columns say.
_LAYER: tuple[Any, ...] = (
    *product(_COSINES, KEYS), *product(_COSINES, KEYS, ("other",)),
    "sink_columns", "sink_attention", "random_attention", "sink_value_ratio", "random_value_ratio", "prefix_mass",
    "fall", "random fall", "difference",
)  # fmt: skip
_HEAD = (
    "dominant_mass", "dominant_queries", "column_peak", "dominant_prefix", "dominant_value_ratio",
    "update_stable_rank", "sink_events", "sinks_that_do_nothing", "sinks_that_broadcast", "dominant_same",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- pure functions


def upper_part(values: Tensor) -> Tensor:
    """Which of ``values`` (..., n) stand apart above the others: bool (..., n), none where nothing does.

    A mixture of two normal distributions with one variance, every value in one of them (classification likelihood,
    Celeux & Govaert 1992): of all splits of the sorted values the likeliest, its upper part less than half of them. It
    has to beat a single normal by ln n, the price of a mean and a weight (BIC).

    >>> upper_part(torch.tensor([0.0, 0.1, 0.2, 0.1, 0.0, 0.2, 0.1, 5.0])).tolist()[-2:]
    [False, True]
    >>> upper_part(torch.linspace(0, 1, 20)).any().item()
    False
    """
    x, order = values.double().sort(-1, descending=True)
    n = x.shape[-1]
    if n < 2:
        return torch.zeros_like(values, dtype=torch.bool)
    x = x - x.mean(-1, keepdim=True)
    above, squares = x.cumsum(-1)[..., :-1], x.square().sum(-1, keepdim=True)
    k = torch.arange(1, n, device=x.device, dtype=x.dtype)
    within = squares - above.square() / k - above.square() / (n - k)  # the upper k sum to -1 times the others
    share = k / n
    weights = share * share.log() + (1 - share) * (1 - share).log()
    tiny = torch.finfo(x.dtype).tiny
    gain = n * (weights - (within.clamp_min(tiny) / squares.clamp_min(tiny)).log() / 2)
    gain = gain[..., : max(1, (n - 1) // 2)]
    best, at = gain.max(-1)
    flat = (
        squares.squeeze(-1)
        <= n * (8 * torch.finfo(values.dtype).eps * values.abs().amax(-1).double()).square()
    )
    chosen = torch.where((best > math.log(n)) & ~flat, at + 1, 0)
    ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=x.device).expand_as(order))
    return ranks < chosen.unsqueeze(-1)


def columns_like(out: Tensor, ring: Tensor, scores: Tensor) -> Tensor:
    """As many other columns as ``out`` has, at random, as near to the border: bool (P,).

    Parameters
    ----------
    out : (P,) bool, the columns to be matched. ring : (P,) whole numbers, steps to the border of the grid.
    scores : (P,) uniform random numbers. A column is drawn with the weight that ``out`` has among those of its ring.
    """
    count = int(out.sum())
    wanted = torch.bincount(ring[out], minlength=int(ring.max()) + 1)
    there = torch.bincount(ring[~out], minlength=len(wanted))
    weight = (wanted / there.clamp_min(1))[ring] + 1e-6
    race = (-scores.clamp(1e-12, 1 - 1e-7).log() / weight).masked_fill(out, torch.inf)  # smallest first
    return torch.zeros_like(out).scatter_(0, race.argsort()[:count], True)


def value_ratio(norms: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``norms`` (..., N) over ``chosen`` (..., N) columns over the mean of the others; NaN without either."""
    inside = (norms * chosen).sum(-1) / chosen.sum(-1)
    return inside / ((norms * ~chosen).sum(-1) / (~chosen).sum(-1))


def masked_cosines(x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    """Mean cosine of different heads over some of the keys: centred for each choice, then raw, float64 (2 V,).

    As the mean of `head_cosine` off its diagonal, for many choices at once: sums over the kept keys are all it takes.

    Parameters
    ----------
    x, y : N a - 1 for maps a, (Q, H, N), of one image or of two. keep : (V, N) bool.
    """
    k = keep.to(x)
    n = k.sum(-1)[:, None, None]  # (V, 1, 1)
    (sx, xx), (sy, yy) = (((m @ k.T).permute(2, 0, 1), (m.square() @ k.T).permute(2, 0, 1)) for m in (x, y))
    dots = torch.stack([(x * row) @ y.mT for row in k])  # (V, Q, H, H)
    sizes = [square + 2 * total + n for total, square in ((sx, xx), (sy, yy))]  # |N a|^2
    spreads = [square - total.square() / n for total, square in ((sx, xx), (sy, yy))]
    flat = (8 * torch.finfo(x.dtype).eps) ** 2  # below it a row has no direction once centred
    spreads = [torch.where(v > flat * s, v, math.nan) for v, s in zip(spreads, sizes, strict=True)]
    centred = dots - sx.unsqueeze(-1) * sy.unsqueeze(-2) / n.unsqueeze(-1)
    raw = dots + sx.unsqueeze(-1) + sy.unsqueeze(-2) + n.unsqueeze(-1)
    found = [
        (product / (a.sqrt().unsqueeze(-1) * b.sqrt().unsqueeze(-2))).double().nanmean(1)
        for product, (a, b) in ((centred, spreads), (raw, sizes))
    ]
    return off_diagonal_mean(torch.cat(found))


def stable_rank_of_updates(z: Tensor, gram: Tensor) -> Tensor:
    """|U|_F^2 / sigma_1^2 of what each head writes, U_h = z_h W_O^h: (B, H, T, d) and W_O W_O' (H, d, d) to (B, H)."""
    s, v = torch.linalg.eigh(gram)
    root = v * s.clamp_min(0).sqrt().unsqueeze(-2)  # (H, d, d), root root' = gram
    y = z.to(root.dtype) @ root
    energy = torch.linalg.eigvalsh(y.mT @ y)
    return energy.sum(-1) / energy[..., -1]


def _dominant(mean: Tensor) -> Tensor:
    """Weights (..., N) of the most attended column, shared where several tie within rounding."""
    ties = mean >= mean.amax(-1, keepdim=True) * (1 - 1e-5)
    return ties / ties.sum(-1, keepdim=True)


# ------------------------------------------------------------------------------------------- the measure


class Sinks(ImageMeans):
    """Are the heads of a layer alike because they attend to the same few tokens? Similarity without attention sinks.

    The most attended patch columns of a layer, image by image: those whose column sums (mean over heads and patch
    queries, logarithm) stand apart from the others (`upper_part`), so none, or as many as the data say. By layer,
    ``sink_columns``, how many; ``sink_attention``, the attention on them (null: on as many random columns as near
    to the border); ``sink_value_ratio``, the norm of what they write, |u_j| with u_j = W_O^h v_j (LayerScale
    included), over that of the other patches (null: random columns); ``prefix_mass``, attention on class token and
    registers.

    ``cosine_centred`` and ``cosine_raw`` between different heads, per query as in `HeadSimilarity`, in four variants:
    over all keys, patch keys, without the sinks, and without random columns in their place; null: the other head on
    another image. ``sink_likeness`` is the fall from patch keys to without sinks, its null the fall without random
    columns, p against that null. Also as means over the last third of the layers.

    By head, over all keys, with s the column that has most: ``dominant_mass``; ``dominant_queries``, the share of
    queries that give it half or more; ``column_peak``, over the median column; ``dominant_value_ratio``, |u_s| over
    the mean of the others; ``update_stable_rank`` of U = A u; ``dominant_prefix``, how often it is a prefix token;
    ``dominant_same``, how often it is the same on another image; ``sink_events`` (nine queries in ten give half),
    of them ``sinks_that_do_nothing`` (value ratio up to 0.2) and ``sinks_that_broadcast`` (0.5 or more, stable rank
    up to 1.5). ``sink_position``: how often each patch is a sink of its layer.

    Why this threshold: a soft mixture (EM) pays nothing for a split and may cut through the bulk of the columns. In the
    last third of a real ViT-Ti/16 (8 photographs) scikit-learn's takes 4 to 120 columns of an image, this rule at most
    7. What is left differs little, for likeness falls with the fifth column and then stays: 0.84 without the most
    attended one, 0.30 without five, 0.28 without fourteen, 0.26 without thirty.

    Source: Fesser et al. 2026 (arXiv 2606.08105) for dominant columns and their classes; the rest is ours.

    Parameters
    ----------
    seed : of the random columns.
    """

    name = "sinks"
    invariances = frozenset({"permute_heads"})

    def __init__(self, *, seed: int = 0, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.seed = seed

    def bind(self, views: Sequence[View]) -> None:
        """Find maps, values and outputs of all layers, and how far each patch is from the border."""
        (view,) = views
        self.places = {int(name.split(".")[1]): name.removesuffix(".pattern")
                       for name in view.select("blocks.*.attn.pattern")}  # fmt: skip
        self.index = HeadIndex(tuple(self.places), tuple(view.num_heads(layer) for layer in self.places))
        self.grams = {layer: self._gram(view, layer) for layer in self.places}
        layout = view.layout_of(f"{next(iter(self.places.values()))}.pattern")
        assert layout is not None
        self.prefix, self.grid = layout.prefix, layout.grid
        rows, columns = (torch.arange(n).minimum(torch.arange(n).flip(0)) for n in layout.grid)
        self.ring = torch.minimum(rows[:, None], columns).flatten()
        # a layer's own numbers, those of each of its heads, and whether each patch is a sink
        self.parts = len(_LAYER), len(_LAYER) + len(_HEAD) * max(self.index.heads)
        self.add_means(list(self.places.values()), self.parts[1] + len(self.ring))

    def _gram(self, view: View, layer: int) -> Tensor | None:
        """W_O W_O' of every head, (H, d, d); None, with a note, where heads are mixed before the projection."""
        try:
            weights = head_output_weights(view, layer).float()
        except T2TError:
            return None
        return weights @ weights.mT

    def wants(self, view: View) -> list[str]:
        """Maps, values and head outputs."""
        return [f"{attn}.{what}" for attn in self.places.values() for what in ("pattern", "v", "z")]

    # -- during the pass

    def reduce(self, obs: capture.Observation) -> Any:
        """Of a map what the columns say; of values their norms; of outputs the stable rank."""
        layer = int(obs.name.split(".")[1])
        if obs.name.endswith(".pattern"):
            return self._columns(obs.value[:, :, self.prefix :], layer)
        gram = self.grams[layer]
        if gram is None:
            return None
        x, gram = obs.value.float(), gram.to(obs.value.device)
        if obs.name.endswith(".z"):
            return stable_rank_of_updates(x[:, :, self.prefix :], gram)
        return ((x @ gram) * x).sum(-1).clamp_min(0).sqrt()  # (B, H, N)

    def _columns(self, maps: Tensor, layer: int) -> dict[str, Any]:
        """All that a map (B, H, P, N) of patch queries says, image by image and pair by pair."""
        images, _, queries, _ = maps.shape
        device = maps.device
        patches = maps[..., self.prefix :]
        share = (patches / patches.sum(-1, keepdim=True)).mean((1, 2))  # (B, P)
        sinks = upper_part(share.clamp_min(1e-4 / share.shape[-1]).log())
        generator = torch.Generator().manual_seed(self.seed * 1009 + layer)
        scores = torch.rand(images, queries, generator=generator).to(device)
        ring = self.ring.to(device)
        others = torch.stack([columns_like(o, ring, s) for o, s in zip(sinks, scores, strict=True)])
        mean = maps.mean(2)  # (B, H, N)
        dominant = _dominant(mean)
        strong = torch.einsum("bhqn,bhn->bh", (maps >= HALF).to(dominant), dominant) / queries
        peak = mean.amax(-1) / mean.median(-1).values
        return {
            "sinks": sinks, "others": others, "dominant": dominant,
            "alike": self._alike(maps, sinks, others),
            "mass": torch.stack([(share * c).sum(-1) for c in (sinks, others)], -1),
            "prefix": mean[..., : self.prefix].sum(-1).mean(-1),
            "head": torch.stack(
                [mean.amax(-1), strong, peak, dominant[..., : self.prefix].sum(-1)], -1
            ),
        }  # fmt: skip

    def _alike(self, maps: Tensor, sinks: Tensor, others: Tensor) -> Tensor:
        """Mean cosines of different heads for all `KEYS`, of an image, and of two images at the first: (B, 16)."""
        keep = torch.ones(len(maps), len(KEYS), maps.shape[-1], dtype=torch.bool, device=maps.device)
        keep[:, 1:, : self.prefix] = False
        keep[:, 2, self.prefix :], keep[:, 3, self.prefix :] = ~sinks, ~others
        x = (maps * maps.shape[-1] - 1).transpose(1, 2).contiguous()  # (B, Q, H, N), 0 for uniform attention
        own = torch.stack([masked_cosines(a, a, k) for a, k in zip(x, keep, strict=True)])
        across = torch.full_like(own, math.nan)
        for i in range(0, len(x) - 1, 2):
            across[i] = masked_cosines(x[i], x[i + 1], keep[i] & keep[i + 1])
        return torch.cat([own, across], -1)

    def update(self, batch: MeasureBatch) -> None:
        """Put maps, values and outputs of each layer together, and add them up."""
        for i, name in enumerate(self.names):
            made, norms, rank = (batch.seen[0].get(f"{name}.{what}") for what in ("pattern", "v", "z"))
            if made is not None:
                heads = self._of_heads(made, norms, rank).flatten(1)
                room = heads.new_full((len(heads), self.parts[1] - self.parts[0] - heads.shape[1]), math.nan)
                layer = self._of_layer(made, norms)
                self.add(i, self.group(batch), torch.cat([layer, heads, room, made["sinks"].to(layer)], -1))

    def _of_layer(self, made: dict[str, Tensor], norms: Tensor | None) -> Tensor:
        """(B, 25) in the order of ``_LAYER``: last how far the cosine falls without either columns, and the rest."""
        count = made["sinks"].sum(-1)
        ratios = [torch.full_like(made["prefix"], math.nan)] * 2
        if norms is not None:
            patches = norms[..., self.prefix :]
            ratios = [value_ratio(patches, made[c].unsqueeze(1)).mean(-1) for c in ("sinks", "others")]
        patch, without, random = made["alike"][:, 1:4].unbind(-1)
        falls = [patch - without, patch - random, random - without]
        numbers = torch.stack([count, *made["mass"].unbind(-1), *ratios, made["prefix"], *falls], -1)
        return torch.cat([made["alike"], numbers], -1)

    def _of_heads(self, made: dict[str, Tensor], norms: Tensor | None, rank: Tensor | None) -> Tensor:
        """(B, H, 10) in the order of ``_HEAD``."""
        missing = torch.full_like(made["head"][..., 0], math.nan)
        ratio, rank = missing, missing if rank is None else rank
        if norms is not None:
            others = (norms.sum(-1, keepdim=True) - norms) / (norms.shape[-1] - 1)
            ratio = (made["dominant"] * norms / others).sum(-1)
        event = (made["head"][..., 1] >= EVENT).to(ratio)
        nothing = torch.where(ratio.isnan(), missing, event * (ratio <= NOTHING))
        broadcast = event * (ratio >= BROADCAST) * (rank <= ONE_DIMENSION)
        broadcast = torch.where(ratio.isnan() | rank.isnan(), missing, broadcast)
        dominant = made["dominant"]
        same = at_first((dominant[0 : len(dominant) - 1 : 2] * dominant[1::2]).sum(-1), len(dominant))
        numbers = torch.stack([ratio, rank, event, nothing, broadcast, same], -1)
        return torch.cat([made["head"], numbers], -1)

    # -- after the pass

    def compute(self) -> Result:
        """Rows by layer, for the last third of the layers, by head, and by patch."""
        if any(gram is None for gram in self.grams.values()):
            self.note(
                "heads are mixed before they are projected, so what one token's value adds is not defined"
            )
        found = self.means()
        rows = [
            *self._layer_rows(found[:, : self.parts[0]]),
            *self._head_rows(found),
            *self._position_rows(found),
        ]
        return self.result(rows, grids={self.views[0].label: list(self.grid)})

    def _layer_rows(self, layers: Estimate) -> Iterator[dict[str, Any]]:
        """Rows of all layers (L, 25), and of the mean over the last third of them."""
        of = with_mean(layers, list(thirds(len(self.names))[1]))
        places = np.array([*self.names, LAST_THIRD], dtype=object)
        shared = self.row(places, tokens="patch", value_unit="none")
        at = {name: of[:, i] for i, name in enumerate(_LAYER)}
        for quantity, variant in product(_COSINES, KEYS):
            yield shared | {
                "quantity": quantity, "variant": variant, "estimate": at[quantity, variant],
                "null": at[quantity, variant, "other"], "null_kind": OTHER_IMAGE, "ceiling": 1.0,
                "ceiling_kind": "a head with itself", "estimator": "cosine per query, keys renormalised",
            }  # fmt: skip
        yield shared | {
            "quantity": "sink_likeness", "estimate": at["fall"], "null": at["random fall"], "p": at["difference"],
            "null_kind": _RANDOM,
            "estimator": "centred cosine over patch keys minus without sinks; p: against the null",
        }  # fmt: skip
        uniform = self.prefix / (self.prefix + len(self.ring))
        nulls: dict[str, Any] = {"sink_columns": 0.0, "sink_attention": at["random_attention"],
                                 "sink_value_ratio": at["random_value_ratio"], "prefix_mass": uniform}  # fmt: skip
        kinds = {"sink_columns": "no column stands apart", "prefix_mass": "uniform attention"}
        for quantity, null in nulls.items():
            yield shared | {
                "quantity": quantity, "null": null, "estimate": _estimated(at[quantity], quantity),
                "null_kind": kinds.get(quantity, _RANDOM), "estimator": _ESTIMATORS[quantity],
                "value_unit": _UNITS.get(quantity, "none"),
            }  # fmt: skip

    def _head_rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        tokens = self.prefix + len(self.ring)
        nulls = {"dominant_mass": 1 / tokens, "column_peak": 1.0, "dominant_prefix": self.prefix / tokens,
                 "dominant_value_ratio": 1.0, "dominant_same": 1 / tokens}  # fmt: skip
        layer, head = HeadIndex(tuple(range(len(self.names))), self.index.heads).table.T
        place = np.array(self.names, dtype=object)[layer]
        for j, quantity in enumerate(_HEAD):
            own = found[layer, self.parts[0] + head * len(_HEAD) + j]
            known = own.n > 0
            own = own[known]
            yield self.row(
                place[known], head=head[known], quantity=quantity, tokens="all", estimate=_estimated(own, quantity),
                null=nulls.get(quantity, 0.0), null_kind="uniform attention, equal values",
                value_unit=_UNITS.get(quantity, "none"), estimator="patch queries, all keys",
            )  # fmt: skip

    def _position_rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        for i, place in enumerate(self.names):
            share = found[i, self.parts[1] :]
            at = np.flatnonzero(share.value > 0)
            yield self.row(
                place, quantity="sink_position", at=at, at_unit="patch, row by row", tokens="patch",
                value_unit="fraction of images", null=float(share.value.mean()), estimate=share[at],
                null_kind="sinks anywhere", estimator=_ESTIMATORS["sink_columns"],
            )  # fmt: skip


def _estimated(found: Estimate, quantity: str) -> Estimate:
    """Ratios of sizes are never below 0."""
    return found.positive() if quantity.endswith("value_ratio") else found


_RANDOM = "as many random columns, as near to the border; 95 % interval of their mean"
_ESTIMATORS = {
    "sink_columns": "columns that stand apart in the layer's log column sums, two-part mixture",
    "sink_attention": "share of patch queries' attention to patch keys",
    "sink_value_ratio": "mean |W_O v| of the sinks over that of other patches, mean over heads",
    "prefix_mass": "share of patch queries' attention to all keys",
}
_UNITS = {
    "sink_columns": "columns", "sink_attention": "fraction", "prefix_mass": "fraction", "dominant_mass": "fraction",
    "dominant_queries": "fraction of queries", "dominant_prefix": "fraction of images",
    "dominant_same": "fraction of image pairs", "sink_events": "fraction of images",
    "sinks_that_do_nothing": "fraction of images", "sinks_that_broadcast": "fraction of images",
}  # fmt: skip
