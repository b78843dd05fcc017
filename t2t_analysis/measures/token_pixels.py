"""Which pixels does a token stand for? Through hard and overlapping splits: shares of pixels, footprints."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import capture
from ..capture.layout import tokeniser
from ..errors import CaptureError, DataError
from ..models.tokens import Window
from .edges import pink_noise

#: First row and column, and those after the last.
Box = tuple[int, int, int, int]


def split_windows(model: nn.Module) -> tuple[Window, ...]:
    """Sliding windows that lead from pixels to the tokens of ``model``, in order; one for a hard split.

    Raises
    ------
    CaptureError : the tokeniser is neither a T2T module nor a patch embedding of square patches.

    >>> import timm
    >>> split_windows(timm.create_model("vit_tiny_patch16_224", depth=1))
    (Window(kernel=16, stride=16, padding=0),)
    """
    module: Any = tokeniser(model)
    if hasattr(module, "windows"):
        return tuple(module.windows)
    proj, patch = getattr(module, "proj", None), getattr(module, "patch_size", None)
    sides = {int(patch)} if isinstance(patch, int) else set(patch or ())
    simple = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride and set(proj.padding) == {0}
    if not simple or len(sides) != 1:
        raise CaptureError(
            f"the tokens of {type(model).__name__} cannot be placed on pixels: {type(module).__name__} is "
            "neither a T2T module nor one convolution over square patches that do not overlap"
        )
    side = int(sides.pop())
    return (Window(side, side, 0),)


def windows_to(model: nn.Module, place: str) -> tuple[Window, ...]:
    """Windows that lead from pixels to the tokens of one place; none where they are not known.

    >>> from t2t_analysis import load_model
    >>> model = load_model("small_performer_deep", "random")
    >>> [len(windows_to(model, place)) for place in ("tokens.0.out", "tokens.1.out", "blocks.3.resid_post")]
    [1, 2, 3]
    """
    try:
        windows = split_windows(model)
    except CaptureError:
        return ()
    stage = re.match(r"tokens\.(\d+)\.", place)
    return windows[: int(stage[1]) + 1] if stage else windows


def pixels_to_tokens(pixels: Tensor, grid: tuple[int, int], windows: Sequence[Window] = ()) -> Tensor:
    """Mean over the pixels that each token stands for: (B, H, W) -> (B, h, w).

    A token of a soft split is the mean over its window of means over theirs, so that it is compared with what
    it could see: its field lies askew of the cell at its place on the grid. What ``windows`` lead to is
    averaged onto ``grid`` where it is finer; without windows, or with too few of them, a token is its cell.

    >>> import torch
    >>> pixels_to_tokens(torch.arange(16.0).view(1, 4, 4), (2, 2)).tolist()
    [[[2.5, 4.5], [10.5, 12.5]]]
    >>> pixels_to_tokens(torch.arange(16.0).view(1, 4, 4), (2, 2), [Window(3, 2, 1)]).tolist()
    [[[2.5, 4.0], [8.5, 10.0]]]
    """
    x = pixels.unsqueeze(1)
    for kernel, stride, padding in windows:
        x = F.avg_pool2d(x, kernel, stride, padding, count_include_pad=False)
    if x.shape[-2] < grid[0] or x.shape[-1] < grid[1]:
        x = pixels.unsqueeze(1)
    return F.adaptive_avg_pool2d(x, grid).squeeze(1)


def shares_of(tokens: Tensor, windows: Sequence[Window], img_size: tuple[int, int]) -> Tensor:
    """Back through all splits: (B, h, w) to (B, H, W), every total kept.

    Raises
    ------
    DataError : ``tokens`` do not lie on the grid that ``windows`` make of ``img_size``.
    """
    sizes: list[tuple[int, ...]] = [tuple(img_size)]
    for window in windows:
        sizes.append(window.grid(*sizes[-1]))
    if tuple(tokens.shape[1:]) != sizes[-1]:
        raise DataError(
            f"tokens of shape {tuple(tokens.shape)}: an image of {img_size[0]}x{img_size[1]} px gives a grid "
            f"of {sizes[-1][0]}x{sizes[-1][1]}"
        )
    values = tokens[:, None]  # (B, 1, h, w)
    for window, size in zip(reversed(windows), reversed(sizes[:-1]), strict=True):
        values = _spread(values, window, size)
    return values[:, 0]


def _spread(values: Tensor, window: Window, size: tuple[int, ...]) -> Tensor:
    """Equal shares of (B, 1, h, w) to the positions of each window: (B, 1, *size)."""
    kernel, stride, padding = window
    inside = F.unfold(values.new_ones(1, 1, *size), kernel, padding=padding, stride=stride)  # (1, k*k, N)
    shares = inside / inside.sum(1, keepdim=True)
    return F.fold(values.flatten(2) * shares, size, kernel, padding=padding, stride=stride)


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
