"""Squared input gradients of tokens: how they are drawn, and how far from the token they lie.

A gradient of token features along random directions v gives, on average over v, the squared Frobenius norm of the
Jacobian by pixel (Hutchinson 1989): E_v |J' v|^2 = |J|_F^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def distance_to_cell(size: tuple[int, int], grid: tuple[int, int], token: Tensor) -> Tensor:
    """Chebyshev distance in pixels of every pixel to the cell of a token: 0 inside, 1 right beside it.

    Parameters
    ----------
    size : image height and width. grid : rows and columns of cells. token : (...) numbers, row by row.

    Returns
    -------
    (..., H, W), integers.

    >>> distance_to_cell((4, 6), (2, 3), torch.tensor(1))[0].tolist()
    [2, 1, 0, 0, 1, 2]
    """
    y, x = (
        _outside(size[a], grid[a], position) for a, position in enumerate((token // grid[1], token % grid[1]))
    )
    return torch.maximum(y.unsqueeze(-1), x.unsqueeze(-2))


def _outside(size: int, cells: int, position: Tensor) -> Tensor:
    """Distance of every pixel of an axis to cell number ``position`` (...), (..., size)."""
    cell = size // cells
    pixel, start = torch.arange(size, device=position.device), position.unsqueeze(-1) * cell
    return torch.maximum(start - pixel, pixel - (start + cell - 1)).clamp_min(0)


def pixel_energy(
    tokens: Tensor, images: Tensor, chosen: Tensor, generator: Callable[[int], torch.Generator]
) -> Tensor:
    """Squared gradient of one token per image along a random direction, summed over colours: (B, H, W) float64.

    Parameters
    ----------
    tokens : (B, N, D) with a graph back to ``images`` (B, C, H, W).
    chosen : (B,) number of the token.
    generator : of the direction of image b.
    """
    batch, _, width = tokens.shape
    direction = torch.stack([torch.randn(width, generator=generator(b)) for b in range(batch)]).to(tokens)
    picked = tokens[torch.arange(batch, device=tokens.device), chosen.to(tokens.device)]
    (gradient,) = torch.autograd.grad((picked * direction).sum(), images, retain_graph=True)
    return gradient.double().square().sum(1)


def energy_radius(profile: Tensor, share: float) -> Tensor:
    """Radius that holds ``share`` of the energy: (..., R) energy in rings [r, r + 1) to (...), in pixels.

    Linear inside the ring in which the share is reached; NaN without any energy.

    >>> energy_radius(torch.tensor([1.0, 1.0, 2.0]), 0.75)
    tensor(2.5000)
    """
    cumulative = profile.cumsum(-1)
    wanted = share * cumulative[..., -1:]
    ring = (cumulative < wanted).sum(-1, keepdim=True).clamp_max(profile.shape[-1] - 1)
    here = profile.gather(-1, ring)
    radius = ring + 1 - (cumulative.gather(-1, ring) - wanted) / here
    return torch.where(cumulative[..., -1] > 0, radius.squeeze(-1), torch.nan)


def radius_interval(low: np.ndarray, high: np.ndarray, share: float) -> tuple[float, float]:
    """Interval of `energy_radius` from the interval of the cumulative curve, both (R,), after ring 0, 1, ...

    The radii at which its upper and its lower end reach ``share`` (Woodruff 1952). A jackknife of the radius itself
    breaks down where the curve is flat and a small change of it moves the radius far.

    >>> radius_interval(np.array([0.1, 0.5, 1.0]), np.array([0.3, 0.7, 1.0]), 0.5)
    (1.5, 2.0)
    """
    if np.isnan(low).any() or np.isnan(high).any():
        return math.nan, math.nan
    edges = np.arange(len(low) + 1.0)
    ends = (np.interp(share, np.r_[0.0, np.maximum.accumulate(curve)], edges) for curve in (high, low))
    first, last = (float(end) for end in ends)
    return first, last


def rings(size: tuple[int, int], centre: tuple[float, float]) -> Tensor:
    """Number of the one-pixel ring around ``centre`` (row, column) that every pixel lies in: (H, W)."""
    y, x = (torch.arange(n, dtype=torch.float64) - c for n, c in zip(size, centre, strict=True))
    return torch.hypot(y[:, None], x[None, :]).floor().long()


def seeded(seed: int, index: Tensor, what: int) -> Callable[[int], torch.Generator]:
    """A generator per image that depends on its number, not on its batch."""
    return lambda b: torch.Generator().manual_seed((seed * 1009 + what) * 1_000_003 + int(index[b]))


def energy_share(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Energy (B, H, W) over its total, and which images have a finite one above 0, (B,)."""
    total = energy.sum((1, 2))
    ok = torch.isfinite(total) & (total > 0)
    return torch.where(ok[:, None, None], energy / total[:, None, None], 0.0), ok
