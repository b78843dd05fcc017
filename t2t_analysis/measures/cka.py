"""How alike are two representations of the same images? Centred kernel alignment, as pure functions.

Everything is computed in float64 on centred features, and nothing is clamped: the unbiased estimator is
negative half of the time for unrelated features, which is what makes a null test of it possible. Undefined
values (a representation that is the same for all images) are NaN.

What the number does and does not say: a few dominant images or principal components can make it (hence
`without_top_images`, `without_top_pcs` and the leave-one-out values of `gram_cka_leave_one_out`), and the
biased estimator nears 1 for unrelated features once there are more channels than images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

LEAST = 4  # images that HSIC_1 needs


def _check_count(n: int) -> None:
    if n < LEAST:
        raise DataError(f"{n} images are too few for CKA, whose unbiased HSIC needs at least {LEAST}")


def centred(x: Tensor) -> Tensor:
    """(..., n, p) in float64, less its mean over the images."""
    # Twice: the mean of values around 1000 is itself rounded.
    x = x.double() - x.double().mean(-2, keepdim=True)
    return x - x.mean(-2, keepdim=True)


def gram(x: Tensor) -> Tensor:
    """Gram matrix (..., n, n) of centred features (..., n, p)."""
    x = centred(x)
    return x @ x.mT


# ----------------------------------------------------------------------------------- unbiased, from Grams


def u_centred(k: Tensor) -> Tensor:
    """U-centred Gram matrices (Szekely & Rizzo 2014): (..., n, n) with zero diagonal and zero row sums.

    <U(K), U(L)> = n (n - 3) HSIC_1(K, L): the one product that values, jackknife and permutation null are
    made from.
    """
    n = k.shape[-1]
    _check_count(n)
    k = k.double().clone()
    k.diagonal(dim1=-2, dim2=-1).zero_()
    rows = k.sum(-1, keepdim=True) / (n - 2)
    total = rows.sum(-2, keepdim=True) / (n - 1)
    k -= rows
    k -= rows.mT
    k += total
    k.diagonal(dim1=-2, dim2=-1).zero_()
    return k


def ratio_of_means(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC values, or from their sums or means over batches; NaN where a side has no variance.

    Minibatch CKA is this ratio of means (Nguyen et al. 2021, eq. 3), not the mean of each batch's ratio. The
    denominators are sums of squares, never negative.
    """
    return xy / (xx * yy).sqrt()


# ------------------------------------------------------------------------------------------ many at once


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(La, n, n), (Lb, n, n) -> (La, Lb): inner products of matrices."""
    return a.flatten(1) @ b.flatten(1).T


def self_inner(a: Tensor) -> Tensor:
    """(L, n, n) -> (L,): squared Frobenius norms."""
    return a.flatten(1).square().sum(1)


def correlation(covariance: Tensor) -> Tensor:
    """(..., M, M) covariances, or sums of inner products, over the square roots of both variances."""
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))


def add_inner(state: Tensor, grams: Tensor, groups: Tensor) -> None:
    """Add inner products of U-centred Gram matrices (M, B, B) of one batch to ``state`` (G + 1, M, M), in place.

    To row g goes what leaving out the images of group g, ``groups`` (B,), takes away; the rest to the last one. So
    leaving out a group is leaving out a row, and the rows of all batches add up.
    """
    u = u_centred(grams)
    whole = inner(u, u)
    state[-1] += whole
    for group in groups.unique().tolist():
        left = torch.nonzero(groups != group).flatten().to(grams.device)
        taken = whole
        if len(left) >= LEAST:  # fewer images than the estimator needs weigh nothing
            u = u_centred(grams[:, left][:, :, left])
            taken = whole - inner(u, u)
        state[group] += taken
        state[-1] -= taken


def gram_cka(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased CKA of every layer of one side with every layer of the other.

    ``a`` (La, n, n) and ``b`` (Lb, n, n) are U-centred Gram matrices; the result is (La, Lb).
    """
    return ratio_of_means(inner(a, b), self_inner(a)[:, None], self_inner(b)[None])


def gram_cka_leave_one_out(a: Tensor, b: Tensor) -> Tensor:
    """The same map without each image in turn, (n, La, Lb), in closed form.

    Row sums of U-centred matrices vanish, so without image i only w_i = sum_j U(K)_ij U(L)_ij is taken away:
    HSIC_1 is proportional to sum_j w_j - 2 w_i - 2 w_i / (n - 3). O(n^2) per pair of layers.
    """
    n = a.shape[-1]
    _check_count(n - 1)
    cross = torch.stack([a[:, i] @ b[:, i].T for i in range(n)])  # (n, La, Lb), w of every pair
    own_a, own_b = a.square().sum(-1).T, b.square().sum(-1).T  # (n, L)

    def without(w: Tensor) -> Tensor:
        return w.sum(0) - (2 + 2 / (n - 3)) * w

    return ratio_of_means(without(cross), without(own_a)[:, :, None], without(own_b)[:, None])


def permutations(n: int, count: int, *key: int) -> Tensor:
    """``count`` random permutations of n images, (count, n), the same for the same ``key`` everywhere."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, n, generator=generator, dtype=torch.float64).argsort(1)


def gram_cka_null(a: Tensor, b: Tensor, perms: Tensor) -> Tensor:
    """Maps (K, La, Lb) with the images of the second side permuted: what is left when nothing is shared.

    Each permutation is used for all cells, so that the largest cell of each map is a draw of the max
    statistic.
    """
    return permuted_inner(a, b, perms) / (self_inner(a)[:, None] * self_inner(b)[None]).sqrt()


def permuted_inner(a: Tensor, b: Tensor, perms: Tensor) -> Tensor:
    """(K, La, Lb): inner products of U-centred matrices, images of ``b`` permuted by each of ``perms``."""
    n = a.shape[-1]
    # Symmetric with zero diagonal: one triangle will do, all layers of an entry side by side in memory.
    row, column = torch.triu_indices(n, n, 1, device=a.device)
    upper = 2 * a[:, row, column]
    entries = b.permute(1, 2, 0).reshape(n * n, -1)
    return torch.stack([upper @ entries[p[row] * n + p[column]] for p in perms.to(a.device)])


# ----------------------------------------------------------------------------------- what carries the value


def without_top_images(*sides: Tensor, count: int = 1) -> Tensor:
    """Which of n images to keep, (n - count,): those of largest norm in any of the ``sides`` are left out.

    Norms are those of the centred features (n, p), relative to their mean. Compare CKA with and without: one
    shared outlier can make unrelated features alike (Davari et al. 2023; Nguyen et al. 2022).
    """
    norms = torch.stack([centred(x).norm(dim=1) for x in sides])  # (sides, n)
    largest = (norms / norms.mean(1, keepdim=True)).amax(0)
    return largest.argsort(stable=True)[: len(largest) - count].sort().values


def without_top_pcs(x: Tensor, count: int = 1) -> Tensor:
    """Centred features (n, p) less their ``count`` largest principal components."""
    x = centred(x)
    _, _, directions = torch.linalg.svd(x, full_matrices=False)
    top = directions[:count]
    return x - (x @ top.T) @ top
