"""What functions of the package are held against."""

import torch
from torch import Tensor, nn

from t2t_analysis.measures.token_pixels import shares_of, split_windows


def token_to_pixel_weights(model: nn.Module, img_size: tuple[int, int]) -> Tensor:
    """Share of every pixel in every token of a model: (N, H, W), each token's weights sum to 1."""
    windows, grid = split_windows(model), img_size
    for window in windows:
        grid = window.grid(*grid)
    one_hot = torch.eye(grid[0] * grid[1], dtype=torch.float64).unflatten(1, grid)
    return shares_of(one_hot, windows, img_size)
