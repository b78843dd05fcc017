"""Which pixels does one token stand for? The footprint of the central token of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import capture
from ..models.tokens import Window
from .edges import pink_noise
from .token_pixels import shares_of, windows_to

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Footprint:
    """Where on the pixels the central token of a model lies.

    Attributes
    ----------
    shares : (H, W), how much of the token each pixel has; they sum to 1.
    cell : top, left, height and width of the pixels that would be its own if the image were dealt out evenly.
    outside : share that lies outside that cell.
    offset : pixels down and right from the centre of that cell to the token's centre of mass. Padding of 1 on
        the far side of a window of 3 goes unused where a grid of even size is halved, so that every soft split
        moves the tokens up and to the left.
    measured : whether the shares are those of squared gradients on random images, where no geometry is known; the
        offset is then rounded to half a pixel.
    """

    shares: Tensor
    cell: tuple[int, int, int, int]
    outside: float
    offset: tuple[float, float]
    measured: bool = False

    @property
    def field(self) -> Box:
        """All pixels that have a share: first and last row and column, both counted from the cell's own first one."""
        rows, columns = (self.shares.sum(axis).nonzero().flatten() for axis in (1, 0))
        top, left = self.cell[:2]
        return (
            int(rows[0]) - top,
            int(columns[0]) - left,
            int(rows[-1]) + 1 - top,
            int(columns[-1]) + 1 - left,
        )

    @property
    def aligned_cell(self) -> Box:
        """The cell moved to the token's centre, as `field`, out to whole pixels."""
        (dy, dx), (height, width) = self.offset, self.cell[2:]
        return math.floor(dy), math.floor(dx), math.ceil(dy) + height, math.ceil(dx) + width


def token_footprint(
    view: capture.ModelView, place: str, img_size: tuple[int, int], grid: tuple[int, int], channels: int = 3
) -> Footprint:
    """What the tokens of ``place`` see of the pixels, where those of a cell of ``grid`` are averaged.

    From the geometry of the splits; where that is not known, from squared gradients of the embedding on random images.
    """
    windows = windows_to(view.model, place)
    if windows:
        return _of_windows(windows, img_size, grid)
    parameter = next(view.model.parameters())
    images = pink_noise(32, (channels, *img_size), seed=0).to(parameter).requires_grad_()
    with torch.enable_grad(), capture.capture(view, ["embed"], graph=True) as seen:
        view.model(images)
        layout = seen.layout("embed")
        assert layout is not None  # or nothing could be averaged over cells
        tokens = seen["embed"].mT.unflatten(2, layout.grid)
        central = _of_cell(grid, layout.grid).to(tokens) * tokens
        direction = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(0)).to(tokens)
        (gradient,) = torch.autograd.grad((central.sum((0, 2, 3)) * direction).sum(), images)
    energy = gradient.double().square().sum(1).cpu()
    shares = (energy / energy.sum((1, 2), keepdim=True)).nanmean(0)
    return _footprint(shares, img_size, grid, measured=True)


def _of_windows(windows: tuple[Window, ...], img_size: tuple[int, int], grid: tuple[int, int]) -> Footprint:
    fine = img_size
    for window in windows:
        fine = window.grid(*fine)
    token = _of_cell(grid, fine)[None].double()
    return _footprint(shares_of(token, windows, img_size)[0], img_size, grid)


def _of_cell(grid: tuple[int, int], fine: tuple[int, int]) -> Tensor:
    """Weights (h, w) of the tokens of a finer grid that are averaged over the central cell; they sum to 1."""
    rows, columns = (_pooled(n, m) for n, m in zip(grid, fine, strict=True))
    return rows[:, None] * columns


def _pooled(cells: int, fine: int) -> Tensor:
    """How adaptive pooling weighs the ``fine`` steps of an axis for the central one of ``cells``."""
    each = torch.nn.functional.adaptive_avg_pool1d(torch.eye(fine), cells)
    return each[:, cells // 2]


def _footprint(
    shares: Tensor, img_size: tuple[int, int], grid: tuple[int, int], measured: bool = False
) -> Footprint:
    height, width = img_size[0] // grid[0], img_size[1] // grid[1]
    top, left = grid[0] // 2 * height, grid[1] // 2 * width
    inside = shares[top : top + height, left : left + width].sum()
    dy = _centre(shares.sum(1)) - (top + (height - 1) / 2)
    dx = _centre(shares.sum(0)) - (left + (width - 1) / 2)
    offset = (round(2 * dy) / 2, round(2 * dx) / 2) if measured else (dy, dx)
    return Footprint(shares, (top, left, height, width), float(1 - inside), offset, measured)


def _centre(profile: Tensor) -> float:
    """Centre of mass of shares along one axis, (n,), in pixels; rounded, since it is exact to a fraction."""
    return round(float(profile @ torch.arange(len(profile), dtype=profile.dtype)), 6)
