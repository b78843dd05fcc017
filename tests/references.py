"""What the package is held against: definitions written down, for data that fit in memory."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from t2t_analysis.measures.cka import centred, gram, gram_cka, u_centred
from t2t_analysis.measures.feature_maps import area_above, area_below, channel_ratios
from t2t_analysis.measures.head_maps import cosine_sums, entropy, unit_rows
from t2t_analysis.measures.rank import effective_rank
from t2t_analysis.measures.ridge import held_out_errors, moments, pair_half
from t2t_analysis.measures.rollout import rollout_step
from t2t_analysis.measures.token_pixels import shares_of, split_windows


def hsic1_from_grams(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased HSIC_1 (Song et al. 2012) of Gram matrices (..., n, n)."""
    n = a.shape[-1]
    return (u_centred(a) * u_centred(b)).sum((-2, -1)) / (n * (n - 3))


def hsic1(x: Tensor, y: Tensor) -> Tensor:
    """The same of features (n, p) and (n, q)."""
    return hsic1_from_grams(gram(x), gram(y))


def cka_unbiased(x: Tensor, y: Tensor) -> Tensor:
    """CKA of features (n, p) and (n, q) from unbiased HSIC_1, as the maps of layers have it."""
    return gram_cka(u_centred(gram(x))[None], u_centred(gram(y))[None])[0, 0]


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA, the biased estimator (Kornblith et al. 2019): ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F), both centred."""
    x, y = centred(x), centred(y)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def effective_rank_of(x: Tensor, *, centred: bool = True) -> Tensor:
    """Effective rank of a sample x (..., n, d); ``centred`` removes the mean of every column first."""
    x = x.double()
    return effective_rank(torch.linalg.svdvals(x - x.mean(-2, keepdim=True) if centred else x))


def invalid_areas(maps: Tensor) -> Tensor:
    """Areas zero, flat, dead, too large, invalid (zero or too large): (..., N, C) -> (..., 5)."""
    ratios = channel_ratios(maps)
    zero, flat, dead = (area_below(r).mean(-1) for r in ratios)
    large = area_above(ratios.peak).mean(-1)
    return torch.stack([zero, flat, dead, large, zero + large], dim=-1)  # no channel is both


def rollout(patterns: Iterable[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020) of maps (B, H, N, N), first layer first: (B, N, N)."""
    rolled = None
    for pattern in patterns:
        rolled = rollout_step(rolled, pattern)
    return rolled


def token_to_pixel_weights(model: nn.Module, img_size: tuple[int, int]) -> Tensor:
    """Share of every pixel in every token of a model: (N, H, W), each token's weights sum to 1."""
    windows, grid = split_windows(model), img_size
    for window in windows:
        grid = window.grid(*grid)
    one_hot = torch.eye(grid[0] * grid[1], dtype=torch.float64).unflatten(1, grid)
    return shares_of(one_hot, windows, img_size)


def column_cosine(a: Tensor, b: Tensor | None = None, centred: bool = False) -> Tensor:
    """Cosine of columns of maps (M, Q, K) and (M', Q, K), mean over columns (Zhou et al. 2021): (M, M')."""
    units = unit_rows(a.mT, centred)
    total, count = cosine_sums(units, units if b is None else unit_rows(b.mT, centred))
    return torch.where(count > 0, total / count, torch.nan)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last axis (Lin 1991): H((P+Q)/2) - (H(P)+H(Q))/2, 0 to ln 2 nats."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def decodability(x: Tensor, y: Tensor) -> Tensor:
    """R^2 with which targets (n, T, q) are read from features (n, T, k), each half from the other; or without T."""
    x, y = (a.unsqueeze(1) if a.ndim == 2 else a for a in (x, y))
    half = pair_half(torch.arange(len(x)))
    products, squares = (
        torch.stack([sums[half == h].sum(0) for h in (0, 1)]).unsqueeze(0) for sums in moments(x, y)
    )
    errors, total = held_out_errors(products, squares, [slice(0, y.shape[-1])])
    return torch.where(total > 0, 1 - errors / total, torch.nan)[0]
