"""How well do features predict targets on images that the fit never saw? Ridge regression from streamed sums.

Images are in two halves; each half is predicted from the other. All that is kept of the data are sums over
tokens, so nothing grows with the number of images, and leaving out a group of images is a subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Candidate penalties, in units of the mean eigenvalue of the features' covariance.
PENALTIES = torch.logspace(-8, 2, 31, dtype=torch.float64)


def random_projection(dim: int, onto: int, draws: int, seed: int = 0) -> Tensor:
    """(draws, dim, onto) with orthonormal columns, Haar distributed; the identity alone where dim <= onto.

    >>> p = random_projection(6, 2, draws=3)
    >>> tuple(p.shape), torch.allclose(p[0].T @ p[0], torch.eye(2))
    ((3, 6, 2), True)
    >>> tuple(random_projection(2, 6, draws=3).shape)
    (1, 2, 2)
    """
    if dim <= onto:
        return torch.eye(dim).unsqueeze(0)
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(draws, dim, onto, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).float()


def pair_half(index: Tensor) -> Tensor:
    """Half (0 or 1) of each image by its number (B,): one of images 2i and 2i + 1, by a coin that i tosses.

    Not by parity: where classes take turns, that would part the classes.

    >>> half = pair_half(torch.arange(2000)).view(-1, 2)
    >>> bool((half.sum(1) == 1).all()), 450 < int(half[:, 0].sum()) < 550
    (True, True)
    """
    pair = index.long() // 2
    mixed = (pair * 2654435761) % 2**32  # Knuth's multiplicative hash
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) % 2**32
    return (index.long() & 1) ^ ((mixed >> 16) & 1)


def moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over tokens of products, per image: all that a ridge regression needs.

    Parameters
    ----------
    x : (..., T, k) features of T tokens. y : (..., T, q) their targets.

    Returns
    -------
    [1, x]' [1, x, y], (..., 1 + k, 1 + k + q), and y'y of each target, (..., q); float64.
    """
    x, y = x.double(), y.double()
    x = torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
    return x.mT @ torch.cat([x, y.expand(*x.shape[:-1], -1)], dim=-1), y.square().sum(-2)


class _Centred(NamedTuple):
    """Means and centred sums of products of one half; leading axes as the moments."""

    n: Tensor  # (..., 1)
    x: Tensor  # (..., k) mean
    y: Tensor  # (..., q) mean
    xx: Tensor  # (..., k, k)
    xy: Tensor  # (..., k, q)
    yy: Tensor  # (..., q)

    def other_half(self) -> _Centred:
        return _Centred(*(part.flip(1) for part in self))


def _centred(products: Tensor, squares: Tensor) -> _Centred:
    k1 = products.shape[-2]
    n = products[..., 0, :1]
    x, y = products[..., 0, 1:k1] / n, products[..., 0, k1:] / n
    xx = products[..., 1:, 1:k1] - n.unsqueeze(-1) * x.unsqueeze(-1) * x.unsqueeze(-2)
    xy = products[..., 1:, k1:] - n.unsqueeze(-1) * x.unsqueeze(-1) * y.unsqueeze(-2)
    return _Centred(n, x, y, xx, xy, squares - n * y.square())


def held_out_errors(products: Tensor, squares: Tensor, blocks: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Squared errors on held-out images, each half predicted by the ridge fitted to the other, and their reference.

    R^2 = 1 - errors / total, over one target or summed over several; below 0 where the prediction is worse than the
    half's own mean. The penalty is chosen by generalised cross-validation (Golub, Heath & Wahba 1979) once per block of
    targets and half, on replicate 0.

    Parameters
    ----------
    products : (R, 2, ..., 1 + k, 1 + k + q), sums of `moments` over the images of each half; R replicates, the first of
        all images, the others without some.
    squares : (R, 2, ..., q).
    blocks : targets that share a penalty.

    Returns
    -------
    errors, total : (R, ..., q), sums over both halves of squared errors, and of squared deviations from the half's
        mean; NaN for a half without images.
    """
    train = _centred(products, squares)
    s, v = _eigh(train.xx)
    z = v.mT @ train.xy  # (R, 2, ..., k, q)
    first = _Centred(*(part[:1] for part in train))
    penalty = _gcv_penalty(s[:1], z[:1], first, blocks)  # (1, 2, ..., q), per token
    w = v @ (z / (s.unsqueeze(-1) + (train.n * penalty).unsqueeze(-2)))
    test = train.other_half()
    shift = test.y - train.y - ((test.x - train.x).unsqueeze(-2) @ w).squeeze(-2)
    errors = test.yy - 2 * (w * test.xy).sum(-2) + (w * (test.xx @ w)).sum(-2) + test.n * shift.square()
    return errors.sum(1), test.yy.sum(1)


def _eigh(xx: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not below 0, and eigenvectors; NaN where a half has no images."""
    known = torch.isfinite(xx).all(-1).all(-1)[..., None]
    s, v = torch.linalg.eigh(torch.where(known[..., None], xx, torch.zeros_like(xx)))
    return torch.where(known, s.clamp_min(0.0), torch.nan), v


def _gcv_penalty(s: Tensor, z: Tensor, fit: _Centred, blocks: Sequence[slice]) -> Tensor:
    """Penalty per token of each target, (..., q): the candidate with the least n RSS / (n - df)^2.

    ``s`` (..., k) are eigenvalues of the centred x'x, ``z`` (..., k, q) is x'y in their basis. Every target
    of a block counts alike, whatever its variance.
    """
    scale = s.mean(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    ridge = PENALTIES.to(s) * scale  # (..., P), times n already since s is a sum
    bent = (s.unsqueeze(-2) + 2 * ridge.unsqueeze(-1)) / (s.unsqueeze(-2) + ridge.unsqueeze(-1)).square()
    rss = fit.yy.unsqueeze(-2) - bent @ z.square()  # (..., P, q)
    df = 1 + (s.unsqueeze(-2) / (s.unsqueeze(-2) + ridge.unsqueeze(-1))).sum(-1)
    left = (fit.n - df).clamp_min(0.0).square().unsqueeze(-1)
    score = (rss / fit.yy.unsqueeze(-2)).nan_to_num(0.0) / left
    penalty = torch.empty_like(fit.yy)
    for block in blocks:
        best = score[..., block].mean(-1).nan_to_num(torch.inf).argmin(-1, keepdim=True)
        penalty[..., block] = ridge.gather(-1, best) / fit.n
    return penalty
