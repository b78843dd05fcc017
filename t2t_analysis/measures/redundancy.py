"""Redundancy at three levels: tokens that grow alike, heads that attend alike, weights of low rank.

After Chen et al. 2022 ("The Principle of Diversity", arXiv 2203.06345), with the traps taken out: a token or a
head is not compared with itself (that alone puts a floor of 1/T or 1/H under the mean), tokens are also compared
after their mean is taken off (over-smoothing is mostly a shared mean), and ranks stand beside those of random
matrices of the same shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..capture.attention import backbone_attention
from ..results import Result
from ..stats import null_columns
from .base import Estimate, ImageMeans, View, at_first
from .head_maps import off_diagonal_mean, renormalised
from .head_measure import OTHER_IMAGE
from .rank import effective_rank

# ---------------------------------------------------------------------------------------- tokens


def token_cosine(tokens: Tensor, centred: bool = False) -> Tensor:
    """Mean cosine between every two different tokens of an image: (..., T, D) -> (...).

    With u_t = x_t / |x_t|: (|sum u|^2 - sum |u|^2) / (T (T - 1)). ``centred`` takes the image's mean token off
    first; then unrelated tokens give -1 / (T - 1).

    >>> token_cosine(torch.eye(4)).item(), round(token_cosine(torch.eye(4), centred=True).item(), 4)
    (0.0, -0.3333)
    """
    if centred:
        tokens = tokens - tokens.mean(-2, keepdim=True)
    unit = _unit(tokens)
    count = tokens.shape[-2]
    total = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return total / (count * (count - 1))


def mean_share(tokens: Tensor) -> Tensor:
    """|mean x|^2 / mean |x|^2 over the tokens of an image, (..., T, D) -> (...); 1/T for unrelated tokens."""
    return tokens.mean(-2).square().sum(-1) / tokens.square().sum(-1).mean(-1)


def dirichlet_energy(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of |x_s - x_t|^2 over neighbours on the grid, over twice the mean of |x|^2: (..., T, D) -> (...).

    0 when all tokens are equal, 1 for unrelated neighbours without a shared mean (a scale-free form of the
    Dirichlet energy by which Rusch et al. 2023 define over-smoothing). Tokens laid out at random would give
    (1 - `mean_share`) T / (T - 1). NaN on a 1 x 1 grid.

    >>> tokens = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> dirichlet_energy(tokens, (1, 4)).item(), dirichlet_energy(torch.ones(4, 1), (2, 2)).item()
    (2.0, 0.0)
    """
    maps = tokens.unflatten(-2, grid)  # (..., h, w, D)
    steps = [maps.diff(dim=axis).square().sum(-1).flatten(-2) for axis in (-3, -2)]
    return torch.cat(steps, dim=-1).mean(-1) / (2 * tokens.square().sum(-1).mean(-1))


def _unit(tokens: Tensor) -> Tensor:
    """Tokens of length 1; one of length 0 stays 0."""
    return torch.nn.functional.normalize(tokens, dim=-1, eps=torch.finfo(tokens.dtype).tiny)


# ---------------------------------------------------------------------------------------- heads


def flattened_cosine(maps: Tensor, other: Tensor | None = None, centred: bool = False) -> Tensor:
    """Mean cosine between the whole maps of every two different heads: (..., H, Q, K) -> (...).

    Maps are flattened, so that peaked queries weigh most (unlike `head_cosine`, which takes each query
    alike). ``centred`` takes 1/K off; ``other`` holds the maps of another image, of which head g is compared
    with head h of the first, h != g. NaN for one head.

    >>> flattened_cosine(torch.eye(4).reshape(2, 2, 4)).item()
    0.0
    """
    sides = [maps, maps if other is None else other]
    one, two = (_unit((m - 1 / m.shape[-1] if centred else m).flatten(-2)) for m in sides)
    return off_diagonal_mean(one @ two.mT)


# ---------------------------------------------------------------------------------------- weights


def _product_spectrum(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of left' right for (..., d, D) each, found in d dimensions: (..., d).

    NaN if any weight is not finite.
    """
    small = [torch.linalg.qr(w.mT, mode="r").R for w in (left, right)]  # w' = Q R
    product = small[0] @ small[1].mT
    if not product.isfinite().all():
        return product.new_full(product.shape[:-1], math.nan)
    return torch.linalg.svdvals(product)


def head_circuits(block: nn.Module) -> dict[str, Tensor] | None:
    """Singular values (H, d) of what each head computes: ``qk``, W_Q' W_K, and ``vo``, W_V and W_O.

    None where queries, keys and values do not come from plain projections that are known here. Norms before
    the projections, and norms of q and k, are not part of the product.
    """
    found = backbone_attention(getattr(block, "attn", block))
    weights = None if found is None else _projections(found.module)
    if found is None or weights is None:
        return None
    q, k, v = (w.detach().double().unflatten(0, (found.num_heads, -1)) for w in weights)  # (H, d, D)
    out: Any = found.proj.weight
    o = out.detach().double().T.unflatten(0, (found.num_heads, -1))  # (H, d, D)
    return {"qk": _product_spectrum(q, k), "vo": _product_spectrum(v, o)}


def _projections(attn: Any) -> Sequence[Tensor] | None:
    """Weights of q, k and v, (H d, D) each."""
    if isinstance(getattr(attn, "qkv", None), nn.Linear):
        return attn.qkv.weight.chunk(3)
    parts = [getattr(attn, f"{letter}_proj", None) for letter in "qkv"]
    if all(isinstance(p, nn.Linear) for p in parts) and len({p.weight.shape for p in parts if p}) == 1:
        return [p.weight for p in parts if p is not None]
    return None


def random_circuit_ranks(rank: int, width: int, *, draws: int = 40, seed: int = 0) -> np.ndarray:
    """Effective rank of products of two random normal matrices: (draws,).

    For circuits (width, rank) (rank, width) the spectrum has no simple closed form (that of one factor is
    Marchenko and Pastur's), so it is drawn; it does not depend on the scale of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(draws, rank, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return effective_rank(_product_spectrum(left, right)).numpy()


# ---------------------------------------------------------------------------------------- the measure

_TOKENS = ("token_cosine", "token_cosine_centred", "token_mean_share", "token_dirichlet_energy")
_HEADS = ("attention_cosine", "attention_cosine_centred")
#: Positions in the state, after those of `_TOKENS`, of comparisons across two images.
_OTHER = 4


class Redundancy(ImageMeans):
    """Redundancy of tokens, attention maps and weights, by layer.

    Tokens (patch tokens of ``embed``, ``tokens.S.out`` and ``blocks.L.resid_post``): ``token_cosine``, mean
    over pairs of different tokens, with tokens of two different images as null; ``token_cosine_centred`` after
    the image's mean token is taken off; ``token_mean_share`` = |mean|^2 / E|x|^2, which drives the raw cosine;
    ``token_dirichlet_energy`` over neighbours on the grid, with the same tokens in random places as null.

    Heads: ``attention_cosine`` of flattened maps between different heads of a layer (patch tokens,
    renormalised), ``attention_cosine_centred`` less 1/T; null: the other head taken from another image.

    Weights, per head and as mean over the heads of a layer, no images: ``effective_rank_qk`` of W_Q' W_K and
    ``effective_rank_vo`` of W_V W_O; null: products of random normal matrices of the same shape. As a fraction of the
    head width.

    Source: the three levels are Chen et al.'s (CVPR 2022); what is changed and why stands in the module.
    """

    name = "redundancy"
    invariances = frozenset({"permute_heads", "scale"})

    def bind(self, views: Sequence[View]) -> None:
        """Token places first, then maps; numbers of images, then of pairs of images."""
        (view,) = views
        self.token_places = view.offered(("embed", "tokens.?.out", "blocks.*.resid_post"))
        self.map_places = [name for name in view.names if re.match(r"blocks\..*\.attn\.pattern$", name)]
        view.probe(self.token_places)
        self.add_means([*self.token_places, *self.map_places], len(_TOKENS) + 1)

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Numbers of each image, and of each pair of neighbouring images at its first: (B, 5) or (B, 4)."""
        assert obs.layout is not None  # every place that is asked for has tokens
        own, across = _heads_alike(obs) if obs.name in self.map_places else _tokens_alike(obs)
        return torch.cat([own, at_first(across, len(own))], dim=-1)

    def compute(self) -> Result:
        """Rows for tokens by place, for maps by layer, for weights by head."""
        found, tokens = self.means(), len(self.token_places)
        rows = [*self._token_rows(found[:tokens]), *self._map_rows(found[tokens:]), *self._weight_rows()]
        return self.result(rows)

    def _token_rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        layouts = [self.views[0].layout_of(name) for name in self.token_places]
        patches = np.array([layout.num_patches if layout else 0 for layout in layouts])
        count = patches.clip(2)  # one token alone has no other
        nulls: list[tuple[Any, str]] = [
            (replace(found[:, _OTHER], unit="image pair"), "tokens of two different images"),
            (-1 / (count - 1), "unrelated tokens"),
            (1 / count, "unrelated tokens"),
            (
                found[:, 2].map(lambda share: (1 - share) * count / (count - 1)),
                "the same tokens in random places",
            ),
        ]
        for j, (quantity, (null, kind)) in enumerate(zip(_TOKENS, nulls, strict=True)):
            there = (found.n[:, j] > 0) & (patches > 1)
            yield self.row(
                np.array(self.token_places, dtype=object)[there], quantity=quantity, tokens="patch", value_unit="none",
                null=null[there], null_kind=kind, estimator=_ESTIMATORS[quantity], estimate=found[there, j],
            )  # fmt: skip

    def _map_rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        places = np.array([name.removesuffix(".pattern") for name in self.map_places], dtype=object)
        for j, quantity in enumerate(_HEADS):
            there = found.n[:, j] > 0
            yield self.row(
                places[there], quantity=quantity, tokens="patch", value_unit="none", estimate=found[there, j],
                estimator=_ESTIMATORS[quantity], null=found[there, j + len(_HEADS)], null_kind=OTHER_IMAGE, ceiling=1.0,
                ceiling_kind="a head with itself",
            )  # fmt: skip

    def _weight_rows(self) -> Iterator[dict[str, Any]]:
        (view,) = self.views
        drawn: dict[tuple[int, int], np.ndarray] = {}
        for layer, block in view.blocks.items():
            circuits = head_circuits(block)
            if circuits is None:
                kind = type(getattr(block, "attn", block)).__name__
                self.note(f"{view.label}: blocks.{layer}: projections of {kind} are not known here")
                continue
            if not all(singular.isfinite().all() for singular in circuits.values()):
                self.note(f"{view.label}: blocks.{layer}: weights are not finite, so they have no ranks")
                continue
            attn: Any = getattr(block, "attn", block)
            rank, width = circuits["qk"].shape[-1], int(attn.proj.weight.shape[0])
            if (rank, width) not in drawn:
                drawn[rank, width] = random_circuit_ranks(rank, width) / rank
            for circuit, singular in circuits.items():
                shares, how = effective_rank(singular).numpy() / rank, _ESTIMATORS["effective_rank"]
                null = null_columns(drawn[rank, width])
                row = self.row(
                    f"blocks.{layer}.attn", quantity=f"effective_rank_{circuit}", value_unit="fraction of head width",
                    interval="none: weights are no sample", n=1, unit="weight matrix", estimator=how,
                    null_kind=f"product of random normal matrices, {len(drawn[rank, width])} draws", ceiling=1.0,
                    ceiling_kind="orthogonal", null=null["null"],
                )  # fmt: skip
                yield row | null | {"head": np.arange(len(shares)), "value": shares}
                yield row | {"value": float(shares.mean()), "estimator": f"{how}; mean over heads"}


_ESTIMATORS = {
    "token_cosine": "mean over pairs of different patch tokens",
    "token_cosine_centred": "mean over pairs of different patch tokens, less the image's mean token",
    "token_mean_share": "|mean x|^2 / mean |x|^2",
    "token_dirichlet_energy": "mean |x_s - x_t|^2 of grid neighbours / (2 mean |x|^2)",
    "attention_cosine": "cosine of flattened maps, patch keys renormalised",
    "attention_cosine_centred": "cosine of flattened maps, patch keys renormalised, less 1/T",
    "effective_rank": "exp of the entropy of the singular values",
}


def _tokens_alike(obs: capture.Observation) -> tuple[Tensor, Tensor]:
    """Of images (B, 4), and of pairs (B // 2, 1): mean cosine of tokens of two images."""
    assert obs.layout is not None
    tokens = obs.patches.float()
    own = [token_cosine(tokens), token_cosine(tokens, centred=True), mean_share(tokens)]
    own.append(dirichlet_energy(tokens, obs.layout.grid))
    direction = _unit(tokens).mean(-2)  # (B, D)
    across = (direction[0 : len(direction) - 1 : 2] * direction[1::2]).sum(-1, keepdim=True)
    return torch.stack(own, dim=-1), across


def _heads_alike(obs: capture.Observation) -> tuple[Tensor, Tensor]:
    """Of images (B, 2), and of pairs (B // 2, 2): raw and centred cosine of flattened maps."""
    assert obs.layout is not None
    maps = renormalised(obs.value, obs.layout.prefix)  # (B, H, P, P)
    one, other = maps[0 : len(maps) - 1 : 2], maps[1::2]
    own = [flattened_cosine(maps, centred=c) for c in (False, True)]
    across = [flattened_cosine(one, other, centred=c) for c in (False, True)]
    return torch.stack(own, dim=-1), torch.stack(across, dim=-1)
