"""Which pixels does one token stand for? The footprint of the central token of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .token_pixels import split_windows, tokens_to_pixels

__all__ = ["Footprint", "footprints"]


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
    """

    label: str
    shares: Tensor
    cell: tuple[int, int, int, int]
    outside: float
    offset: tuple[float, float]

    @property
    def pixels(self) -> int:
        """How many pixels have a share."""
        return int((self.shares > 0).sum())


def footprints(models: Mapping[str, nn.Module], img_size: tuple[int, int]) -> list[Footprint]:
    """Lay the central token of every model (label -> model) back on an image of ``img_size``.

    >>> from t2t_analysis import load_model
    >>> names = ("small_hard_deep", "small_performer_deep")
    >>> found = footprints({name: load_model(name, "random") for name in names}, (32, 32))
    >>> [(foot.pixels, round(foot.outside, 2), foot.offset) for foot in found]
    [(16, 0.0, (0.0, 0.0)), (81, 0.69, (-1.5, -1.5))]
    """
    return [_footprint(label, model, img_size) for label, model in models.items()]


def _footprint(label: str, model: nn.Module, img_size: tuple[int, int]) -> Footprint:
    grid = img_size
    for window in split_windows(model):
        grid = window.grid(*grid)
    height, width = img_size[0] // grid[0], img_size[1] // grid[1]
    row, column = grid[0] // 2, grid[1] // 2
    token = torch.zeros(1, *grid, dtype=torch.float64)
    token[0, row, column] = 1
    shares = tokens_to_pixels(model, token, img_size)[0]
    top, left = row * height, column * width
    inside = shares[top : top + height, left : left + width].sum()
    offset = (
        _centre(shares.sum(1)) - (top + (height - 1) / 2),
        _centre(shares.sum(0)) - (left + (width - 1) / 2),
    )
    return Footprint(label, shares, (top, left, height, width), float(1 - inside), offset)


def _centre(profile: Tensor) -> float:
    """Centre of mass of shares along one axis, (n,), in pixels; rounded, since it is exact to a fraction."""
    return round(float(profile @ torch.arange(len(profile), dtype=profile.dtype)), 6)
