"""Which edges lie in and around each cell of an image, and which pixels could tell of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import T2TError

if TYPE_CHECKING:
    from .token_pixels import Footprint

ORIENTATIONS = 8
#: Where the edges are that a token is asked for.
TARGETS = ("own", "before", "after", "boundary")
#: What the tokens are compared with, see `reference_windows`.
REFERENCES = ("pixels.cell", "pixels.field", "edges.cell")
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


def moved(maps: Tensor, offset: tuple[float, float]) -> Tensor:
    """Maps (..., H, W) read ``offset`` pixels further down and right, between pixels by halves; 0 beyond the image.

    >>> moved(torch.tensor([[1.0, 2.0, 4.0]]), (0.0, -0.5))
    tensor([[0.5000, 1.5000, 3.0000]])
    """
    for axis, step in ((-2, offset[0]), (-1, offset[1])):
        whole = math.floor(step)
        parts = [(whole, 1 - (step - whole)), (whole + 1, step - whole)]
        maps = sum(_shifted(maps, by, axis) * share for by, share in parts if share)  # type: ignore[assignment]
    return maps


def _shifted(maps: Tensor, by: int, axis: int) -> Tensor:
    """The value ``by`` places further along an axis; 0 beyond its ends."""
    if not by:
        return maps
    size = maps.shape[axis]
    kept = maps.narrow(axis, max(by, 0), max(size - abs(by), 0))
    gap = maps.new_zeros(*maps.shape[:axis], min(abs(by), size), *maps.shape[axis:][1:])
    return torch.cat([kept, gap] if by > 0 else [gap, kept], axis)


def _by_cell(grey: Tensor, grid: tuple[int, int], offset: tuple[float, float] = (0, 0)) -> Tensor:
    """(B, O, H - 1, W - 1) gradients to (B, O, h, ph, w, pw); the last row and column of a cell straddle its border.

    The gradients that would straddle the image's own border are zero. Pixels beyond the last whole cell are dropped.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    gradients = moved(F.pad(oriented_gradients(grey), (0, 1, 0, 1)), offset)[:, :, : h * ph, : w * pw]
    return gradients.unflatten(3, (w, pw)).unflatten(2, (h, ph))


def edge_energy(grey: Tensor, grid: tuple[int, int], offset: tuple[float, float] = (0, 0)) -> Tensor:
    """Edge energy inside every cell: log1p of the mean gradient magnitude by orientation, (B, h, w, 8).

    ``grey`` (B, H, W) is in grey levels, so that the logarithm begins to bend at one level per pixel. Only gradients
    whose four pixels lie inside the cell count: a token that sees its own cell alone knows nothing of its neighbours'.
    ``offset`` moves all cells, in pixels down and right. A histogram of oriented gradients (Dalal & Triggs 2005)
    without block normalisation.
    """
    inside = _by_cell(grey, grid, offset)[:, :, :, :-1, :, :-1].mean((3, 5))
    return torch.log1p(inside).movedim(1, -1)


def _across(grey: Tensor, grid: tuple[int, int], offset: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Sums of gradient magnitude across each cell's right and its lower border, (B, h, w, 8) each."""
    cells = _by_cell(grey, grid, offset)
    return cells[:, :, :, :-1, :, -1].sum(3).movedim(1, -1), cells[:, :, :, -1, :, :-1].sum(4).movedim(1, -1)


def edge_targets(grey: Tensor, grid: tuple[int, int], offset: tuple[float, float] = (0, 0)) -> Tensor:
    """What the token of each inner cell is asked for: (B, H, W) to (B, (h - 2)(w - 2), 4 x 8).

    In the order of `TARGETS`, 8 orientations each: edges inside its own cell; in the cells before it (mean of the
    left and the upper one); after it (right and lower one); and across its four borders. The outermost cells, which
    lack neighbours, are left out. ``offset`` moves all cells to where the tokens look: soft splits lie askew, and a
    token that is asked about pixels beside the centre of its field loses by geometry alone.
    """
    own = edge_energy(grey, grid, offset)
    right, below = _across(grey, grid, offset)
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


class ImageBefore:
    """The image that came before the first one of each batch, to be paired with it as a null."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor | None:
        """(1, ...), for the first batch its own last image; None for a first image that comes alone."""
        before = images[-1:] if self._last is None else self._last.to(images)
        alone = self._last is None and len(images) == 1
        self._last = images[-1:].clone()
        return None if alone else before


# --------------------------------------------------------------------------------------- the predictors


def inner_tokens(tokens: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Features of every inner cell of ``onto``: (B, N, d) on ``grid``, prefix removed, to (B, (h-2)(w-2), d).

    The finer grids of T2T stages are averaged over each cell.
    """
    maps = tokens.mT.unflatten(2, grid)
    if grid != onto:
        maps = F.adaptive_avg_pool2d(maps, onto)
    return maps[:, :, 1:-1, 1:-1].flatten(2).mT


def pixel_windows(
    grey: Tensor, grid: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Raw luminance in a window around every inner cell, (B, (h-2)(w-2), pixels); 0 beyond the image.

    ``box`` holds its first row and column and those after its last, counted from the first pixel of the cell
    (`Footprint.field`); by default the cell itself.
    """
    (ph, pw), (h, w) = cell_size(grey.shape[-2:], grid), grid
    top, left, bottom, right = box or (0, 0, ph, pw)
    margin = max(0, -top - ph, -left - pw, bottom - 2 * ph, right - 2 * pw)
    padded = F.pad(grey, [margin] * 4)[:, margin + ph + top :, margin + pw + left :]
    windows = padded.unfold(1, bottom - top, ph).unfold(2, right - left, pw)
    return windows[:, : h - 2, : w - 2].flatten(3).flatten(1, 2)


def reference_windows(grey: Tensor, grid: tuple[int, int], foot: Footprint) -> dict[str, Tensor]:
    """Pixels of each token's aligned cell and of its whole field, and the cell's edges: (B, T, width) each."""
    return {
        "pixels.cell": pixel_windows(grey, grid, foot.aligned_cell),
        "pixels.field": pixel_windows(grey, grid, foot.field),
        "edges.cell": edge_targets(grey, grid, foot.offset)[..., :ORIENTATIONS],
    }


def pink_noise(n: int, shape: Sequence[int], seed: int) -> Tensor:
    """(n, C, H, W) random images whose amplitude falls as 1/f, as in photographs; mean 0, standard deviation 1.

    >>> noise = pink_noise(2, (3, 16, 16), seed=0)
    >>> bool((noise[:, 0] == noise[:, 2]).all()), noise.mean((1, 2, 3)).abs().max().item() < 1e-6
    (True, True)
    """
    channels, *size = shape
    white = torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    frequency = torch.hypot(rows.expand(-1, len(columns)), columns.expand(len(rows), -1)).double()
    frequency[0, 0] = torch.inf  # no mean
    images = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=size)
    return (images / images.std((-2, -1), keepdim=True)).expand(-1, channels, -1, -1).float()
