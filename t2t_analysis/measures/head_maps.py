"""How alike are two attention maps? Pure functions on patch-to-patch maps.

Two habits make attention heads look more alike than they are, and both are undone here. Softmax rows are
positive, so the cosine of two *independent* heads is about exp(-s^2) for a logit spread s: near-uniform heads
are "99 % redundant". And a column that every head attends to (class token, register) lifts every cosine. So
the prefix columns are dropped and the rows renormalised, and beside the raw cosine stands the centred one,
with 1/T taken off each row: Pearson's correlation over the keys, whose mean is 0 for independent heads at any
spread.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Below this many rounding errors of its row, what centring leaves of a row is noise without a direction.
_FLAT = 8.0


def patch_logits(q: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """Scaled logits of patch queries against patch keys.

    Softmax over them is the attention map without its prefix columns, renormalised, at full precision even
    where a prefix token takes almost all of the attention.

    Parameters
    ----------
    q, k : queries and keys of shape (..., N, d), prefix tokens first.
    prefix : number of prefix tokens (class, distillation, registers).
    scale : factor of the product, usually d^-0.5.

    Returns
    -------
    Logits of shape (..., P, P) with P = N - prefix, in at least float32.
    """
    q, k = (x[..., prefix:, :] for x in (q, k))
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()
    return (q * scale) @ k.transpose(-2, -1)


def renormalised(pattern: Tensor, prefix: int) -> Tensor:
    """Attention maps (..., N, N) without prefix rows and columns, rows summing to 1 again: (..., P, P).

    >>> renormalised(torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.1, 0.1], [0.0, 0.75, 0.25]]), prefix=1)
    tensor([[0.5000, 0.5000],
            [0.7500, 0.2500]])
    """
    patches = pattern[..., prefix:, prefix:]
    return patches / patches.sum(dim=-1, keepdim=True)


def logit_variance(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Variance over keys of the logits scale q k', averaged over queries: (..., Q, d), (..., K, d) -> (...,).

    scale^2 E_q[q' C q] = scale^2 <C, E_q[q q']> with C the covariance of the keys: no logit is made for it.
    """
    k = k - k.mean(-2, keepdim=True)
    return scale**2 * ((k.mT @ k) * (q.mT @ q)).sum((-2, -1)) / (k.shape[-2] * q.shape[-2])


def cosine_floor(s_a: Tensor | float, s_b: Tensor | float) -> Tensor:
    """Raw cosine that two *independent* heads with logit spreads ``s_a`` and ``s_b`` have in expectation.

    exp(-(s_a^2 + s_b^2) / 2), that is exp(-s^2) at equal spread: softmax rows of normal logits are log-normal
    up to a factor, E[x y] = E[x] E[y] for independent ones, and E[x^2] = E[x]^2 exp(s^2). For many keys; at T
    = 197 and s = 2 the expectation is 0.08 rather than 0.02.

    >>> round(float(cosine_floor(0.3, 0.3)), 3)
    0.914
    """
    return torch.exp(-(torch.as_tensor(s_a) ** 2 + torch.as_tensor(s_b) ** 2) / 2)


def unit_rows(maps: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Scale each query's row to length 1, after taking off its mean over the keys (1/T) if ``centred``.

    Parameters
    ----------
    maps : (M, Q, K), rows over keys.
    centred : whether to subtract each row's mean, which turns the cosine into Pearson's correlation over
        keys.

    Returns
    -------
    rows : (M, Q, K); a row without a direction (uniform, after centring) is all zeros.
    defined : (M, Q) bool, which rows have a direction.
    """
    size = maps.norm(dim=-1, keepdim=True)
    rows = maps - maps.mean(dim=-1, keepdim=True) if centred else maps
    length = rows.norm(dim=-1, keepdim=True)
    defined = length > _FLAT * torch.finfo(maps.dtype).eps * size
    return torch.where(defined, rows / length, 0.0), defined.squeeze(-1)


def cosine_sums(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over queries of the cosines between two sets of unit rows, and how many queries are in each sum.

    One matrix product for all pairs of maps: (M, Q, K), (M', Q, K) -> two of (M, M'), in float64.
    """
    (rows_a, defined_a), (rows_b, defined_b) = a, b
    total = rows_a.flatten(1) @ rows_b.flatten(1).T
    count = defined_a.to(rows_a.dtype) @ defined_b.to(rows_b.dtype).T
    return total.double(), count.double()


def head_cosine(a: Tensor, b: Tensor | None = None, centred: bool = True) -> Tensor:
    """Cosine per query: cos(A_h[q, :], A_g[q, :]) averaged over the queries.

    Not the cosine of the flattened maps, which weights queries by how peaked they are, nor DeepViT's over
    columns.

    Parameters
    ----------
    a, b : attention maps (M, Q, K) and (M', Q, K); ``b`` is ``a`` when left out.
    centred : subtract 1/K from each row first (Pearson over keys).

    Returns
    -------
    (M, M') in [-1, 1]; NaN where no query has a direction in both (uniform rows have none once centred).

    >>> eye = torch.eye(4).expand(2, 4, 4)
    >>> head_cosine(eye)
    tensor([[1., 1.],
            [1., 1.]], dtype=torch.float64)
    """
    units = unit_rows(a, centred)
    total, count = cosine_sums(units, units if b is None else unit_rows(b, centred))
    return torch.where(count > 0, total / count, math.nan)


def query_products(a: Tensor, b: Tensor) -> Tensor:
    """Products of all maps of two sets for each query by itself: (M, Q, K), (M', Q, K) -> (Q, M, M').

    From them follow cosines of both kinds and content, without a further look at the maps.
    """
    return a.transpose(0, 1) @ b.permute(1, 2, 0)


def row_scales(products: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """1 / length of the rows of maps whose mean 1/K was taken off: with that mean, and without it.

    Parameters
    ----------
    products : (Q, M, M), `query_products` of the centred maps with themselves.
    keys : K.

    Returns
    -------
    Two of (Q, M); the second is 0 for a row without a direction (uniform attention).
    """
    square = products.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    size = square + 1 / keys
    defined = square > (_FLAT * torch.finfo(square.dtype).eps) ** 2 * size
    return size.rsqrt(), torch.where(defined, square.rsqrt(), 0.0)


def scaled_sum(products: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sum over queries of products (Q, M, M') with rows scaled by ``a`` (Q, M) and ``b`` (Q, M'): (M, M')."""
    return (products * a.unsqueeze(-1)).mul_(b.unsqueeze(-2)).sum(0)


def content_covariance(own: Tensor, other: Tensor, across: Tensor) -> Tensor:
    """Unbiased estimate, from two images, of how the maps of two heads vary *together* from image to image.

    Write A_h(i) = M_h + C_h(i) with the position-mean map M_h = E_i A_h(i). For independent images i and j,
    E <A_h(i) - A_h(j), A_g(i) - A_g(j)> / 2 = E <C_h(i), C_g(i)>: the mean map cancels without ever being
    estimated or stored, so neither a bias from few images nor a second pass. Dividing the average over pairs
    by the square root of both variances (the diagonal) gives the content similarity.

    Parameters
    ----------
    own, other, across : `query_products` (Q, M, M) of the maps of image i, of image j, and of both.

    Returns
    -------
    (M, M) float64, symmetric.
    """
    both = across.sum(0)
    return (own.sum(0) + other.sum(0) - both - both.T).double() / 2


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last axis in nats; 0 ln 0 is exactly 0.

    >>> entropy(torch.tensor([1.0, 0.0])).item(), round(entropy(torch.tensor([0.5, 0.5])).item(), 4)
    (0.0, 0.6931)
    """
    # Several times faster than torch.special.entr; where p is 0 the logarithm is finite, so the product is 0.
    return 0 - p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p).sum(dim=-1)


def pairwise_js_divergence(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Jensen-Shannon divergence of every two different maps, averaged over the queries, in nats.

    Parameters
    ----------
    a : (M, Q, K), rows summing to 1.
    b : the same heads on another image: then map h of ``a`` is compared with map g of ``b``, for h < g.

    Returns
    -------
    (M, M) float64, symmetric, 0 on the diagonal.
    """
    other = a if b is None else b
    own, others = entropy(a), entropy(other)
    pairs = torch.zeros(len(a), len(a), dtype=torch.float64, device=a.device)
    for h in range(len(a) - 1):
        mixed = entropy((a[h] + other[h + 1 :]).div_(2))
        pairs[h, h + 1 :] = (mixed - (own[h] + others[h + 1 :]) / 2).mean(-1)
    return pairs + pairs.T


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """Mean over the pairs of different heads, (..., H, H) -> (...); NaN for a single head, which has no pair.

    >>> off_diagonal_mean(torch.tensor([[1.0, 0.25], [0.75, 1.0]])).item()
    0.5
    """
    other = ~torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    return matrix[..., other].mean(-1)


def thirds(depth: int) -> tuple[range, range]:
    """First and last third of the layers, rounded, so that models of different depth can be compared.

    >>> thirds(14)
    (range(0, 5), range(9, 14))
    """
    size = max(1, round(depth / 3))
    return range(size), range(depth - size, depth)
