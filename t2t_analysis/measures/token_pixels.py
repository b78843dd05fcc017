"""Which pixels does a token stand for? Shares of pixels in tokens, through hard and overlapping splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..capture.layout import tokeniser
from ..errors import CaptureError, DataError
from ..models.tokens import Window


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
