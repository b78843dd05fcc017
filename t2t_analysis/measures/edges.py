"""Which edges lie in and around each cell of an image, and which pixels could tell of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import T2TError

__all__ = [
    "ORIENTATIONS", "TARGETS",
    "cell_size", "edge_energy", "edge_targets", "inner_tokens", "luminance", "oriented_gradients", "pixel_windows",
    "strength_and_orientation",
]  # fmt: skip

ORIENTATIONS = 8
#: Where the edges are that a token is asked for.
TARGETS = ("own", "before", "after", "boundary")
_REC601 = (0.299, 0.587, 0.114)


# ------------------------------------------------------------------------------------------- the targets


def luminance(images: Tensor, std: Sequence[float] | None = None) -> Tensor:
    """Luminance in grey levels (of 255), up to a constant: (B, C, H, W) normalised images to (B, H, W).

    255 sum_c w_c std_c x_c with the weights of ITU-R 601 for three channels, equal ones otherwise. The mean that
    normalising took away is not put back: gradients do not see it.
    """
    channels = images.shape[1]
    weights = images.new_tensor(_REC601 if channels == 3 else [1 / channels] * channels)
    scale = images.new_tensor([1.0] * channels if std is None else list(std))
    if len(scale) != channels:
        raise T2TError(
            f"std has {len(scale)} numbers for images of {channels} channels: {tuple(scale.tolist())}"
        )
    return 255 * torch.einsum("bchw,c->bhw", images, weights * scale)


def oriented_gradients(grey: Tensor, orientations: int = ORIENTATIONS) -> Tensor:
    """Magnitude of the gradient, sorted by its orientation: (B, H, W) to (B, O, H - 1, W - 1).

    One gradient per 2x2 square of pixels (Roberts 1963), so that it belongs to these four and to no others. Bin o
    holds directions from o to o + 1 times 180/O degrees, a direction and its opposite being the same; 0 is a
    gradient along the rows, that is an upright edge.
    """
    a, b, c, d = grey[:, :-1, :-1], grey[:, :-1, 1:], grey[:, 1:, :-1], grey[:, 1:, 1:]
    gx, gy = (b + d - a - c) / 2, (c + d - a - b) / 2
    angle = torch.atan2(gy, gx) % math.pi  # rounding can give pi itself
    place = (angle * (orientations / math.pi)).long() % orientations
    out = grey.new_zeros(grey.shape[0], orientations, *gx.shape[1:])
    return out.scatter_(1, place.unsqueeze(1), torch.hypot(gx, gy).unsqueeze(1))


def cell_size(size: Sequence[int], grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the cells of ``grid`` in an image of ``size``; at least 2 each.

    >>> cell_size((225, 224), (14, 14))
    (16, 16)
    """
    cell = size[0] // grid[0], size[1] // grid[1]
    if min(cell) < 2:
        raise T2TError(
            f"cells of {cell[0]}x{cell[1]} px hold no gradient; a {grid} grid needs a larger image than {tuple(size)}"
        )
    return cell


def _by_cell(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, O, H - 1, W - 1) gradients to (B, O, h, ph, w, pw); the last row and column of a cell straddle its border.

    The gradients that would straddle the image's own border are zero. Pixels beyond the last whole cell are dropped.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    gradients = F.pad(oriented_gradients(grey), (0, 1, 0, 1))[:, :, : h * ph, : w * pw]
    return gradients.unflatten(3, (w, pw)).unflatten(2, (h, ph))


def edge_energy(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """Edge energy inside every cell: log1p of the mean gradient magnitude by orientation, (B, h, w, 8).

    ``grey`` (B, H, W) is in grey levels, so that the logarithm begins to bend at one level per pixel. Only gradients
    whose four pixels lie inside the cell count: a token that sees its own cell alone knows nothing of its neighbours'.
    A histogram of oriented gradients (Dalal & Triggs 2005) without block normalisation.
    """
    inside = _by_cell(grey, grid)[:, :, :, :-1, :, :-1].mean((3, 5))
    return torch.log1p(inside).movedim(1, -1)


def _across(grey: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sums of gradient magnitude across each cell's right and its lower border, (B, h, w, 8) each."""
    cells = _by_cell(grey, grid)
    return cells[:, :, :, :-1, :, -1].sum(3).movedim(1, -1), cells[:, :, :, -1, :, :-1].sum(4).movedim(1, -1)


def edge_targets(grey: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the token of each inner cell is asked for: (B, H, W) to (B, (h - 2)(w - 2), 4 x 8).

    In the order of `TARGETS`, 8 orientations each: edges inside its own cell; in the cells before it (mean of the
    left and the upper one); after it (right and lower one); and across its four borders. Before and after are kept
    apart since soft splits lie askew: the field of T2T-ViT's token begins 14 pixels before its 16-pixel cell and ends 1
    pixel after it. The outermost cells, which lack neighbours, are left out.
    """
    own = edge_energy(grey, grid)
    right, below = _across(grey, grid)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    left, upper = own[:, 1:-1, :-2], own[:, :-2, 1:-1]
    next_, lower = own[:, 1:-1, 2:], own[:, 2:, 1:-1]
    ph, pw = cell_size(grey.shape[-2:], grid)
    around = right[inner] + right[:, 1:-1, :-2] + below[inner] + below[:, :-2, 1:-1]
    boundary = torch.log1p(around / (2 * (ph - 1) + 2 * (pw - 1)))
    return torch.cat([own[inner], (left + upper) / 2, (next_ + lower) / 2, boundary], -1).flatten(1, 2)


def strength_and_orientation() -> Tensor:
    """Orthonormal (8, 8) float64 matrix: eight orientations to their mean (column 0) and how they differ (1 to 7).

    A cosine transform. The first tells how strong the edges are, the others which way they run: a layer norm over the
    window, as in T2T-ViT's first split, takes the contrast away and with it the first, but not the others.

    >>> basis = strength_and_orientation()
    >>> torch.allclose(basis.T @ basis, torch.eye(8).double()), basis[:, 0].std().item() < 1e-12
    (True, True)
    """
    n = torch.arange(ORIENTATIONS, dtype=torch.float64)
    basis = torch.cos(math.pi / ORIENTATIONS * (n[:, None] + 0.5) * n)
    return basis / basis.norm(dim=0)


# --------------------------------------------------------------------------------------- the predictors


def inner_tokens(tokens: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Features of every inner cell of ``onto``: (B, N, d) on ``grid``, prefix removed, to (B, (h-2)(w-2), d).

    The finer grids of T2T stages are averaged over each cell.
    """
    maps = tokens.mT.unflatten(2, grid)
    if grid != onto:
        maps = F.adaptive_avg_pool2d(maps, onto)
    return maps[:, :, 1:-1, 1:-1].flatten(2).mT


def pixel_windows(grey: Tensor, grid: tuple[int, int], wide: bool = False) -> Tensor:
    """Raw luminance in the window of every inner cell, (B, (h-2)(w-2), pixels).

    The cell itself, or with ``wide`` also as much before it as the cell is large and one pixel after it: at least
    what the token of a soft split sees, in the paper's sizes and in the small models'.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    top, left, size = (0, 0, (2 * ph + 1, 2 * pw + 1)) if wide else (ph, pw, (ph, pw))
    windows = grey[:, top:, left:].unfold(1, size[0], ph).unfold(2, size[1], pw)
    return windows[:, : h - 2, : w - 2].flatten(3).flatten(1, 2)
