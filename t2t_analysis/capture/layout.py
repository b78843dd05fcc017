"""How the tokens of a place are laid out: how many prefix tokens, then which grid of patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CaptureError


class TokenLayout(NamedTuple):
    """Prefix tokens (class, distillation, registers) come first; the rest fills ``grid`` row by row.

    >>> TokenLayout(prefix=1, grid=(14, 14)).num_tokens
    197
    """

    prefix: int
    grid: tuple[int, int]

    @property
    def num_patches(self) -> int:
        """Tokens on the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """All tokens, prefix tokens included."""
        return self.prefix + self.num_patches


def tokeniser(model: nn.Module) -> nn.Module | None:
    """The module that turns an image into patch tokens, if the model has one that is known here."""
    for name in ("tokens_to_token", "patch_embed"):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def _is_nchw(patch_embed: nn.Module) -> bool:
    """Whether a four-axis output of this patch embedding has its channels second."""
    return str(getattr(patch_embed, "output_fmt", "NHWC")).upper().endswith("NCHW")


def flatten_patches(patch_embed: nn.Module, output: Any) -> Any:
    """Patch tokens as (B, N, D); with dynamic image sizes they come as a picture. Others pass through."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return output
    return output.flatten(2).transpose(1, 2) if _is_nchw(patch_embed) else output.flatten(1, 2)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


class Grids:
    """The grids of the forward pass that is under way, for each group of tokens.

    Groups are ``"embed"`` (patch tokens alone), ``"blocks"`` (with prefix tokens) and ``"tokens.S"`` (stage S
    of a T2T module). Before any image has passed, the model's own default size is used.
    """

    def __init__(self, model: nn.Module) -> None:
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.module = tokeniser(model)
        self.staged = callable(getattr(self.module, "grids", None))  # a T2T module: one grid after each split
        default = getattr(self.module, "grid_size", None)
        self.grids: list[tuple[int, int]] = [] if default is None else [_pair(default)]
        if self.staged and (img_size := getattr(self.module, "img_size", None)) is not None:
            self._follow_t2t(self.module, (torch.empty(0, *img_size, device="meta"),))

    def attach(self) -> list[RemovableHandle]:
        """Follow the size of every image that passes."""
        if self.module is None:
            return []
        if self.staged:
            return [self.module.register_forward_pre_hook(self._follow_t2t)]
        return [self.module.register_forward_hook(self._follow_patches)]

    def _follow_t2t(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self.grids = [_pair(grid) for grid in module.grids(*args[0].shape[-2:])]

    def _follow_patches(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            self.grids = [_pair(output.shape[2:4] if _is_nchw(module) else output.shape[1:3])]
        elif callable(size := getattr(module, "dynamic_feat_size", None)):
            self.grids = [_pair(size(tuple(args[0].shape[-2:])))]

    def grid(self, group: str) -> tuple[int, int] | None:
        """Grid (rows, columns) of a group of tokens, ``None`` where the model does not tell."""
        stage = int(group.removeprefix("tokens.")) if group.startswith("tokens.") else -1
        return self.grids[stage] if self.grids else None

    def layout(self, group: str) -> TokenLayout | None:
        """Layout of a group of tokens, ``None`` where the model does not tell its grid."""
        grid = self.grid(group)
        return None if grid is None else TokenLayout(self.prefix if group == "blocks" else 0, grid)

    def checked(self, name: str, group: str, value: Tensor) -> TokenLayout:
        """Layout of ``value``, whose second last axis counts tokens; CaptureError if it does not add up."""
        layout = self.layout(group)
        num_tokens = value.shape[-2]
        if layout is None:
            raise CaptureError(f"{name} holds {num_tokens} tokens, and the model tells no grid (grid_size)")
        if layout.num_tokens != num_tokens:
            rows, columns = layout.grid
            raise CaptureError(
                f"{name} holds {num_tokens} tokens, but {layout.prefix} prefix tokens and a {rows}x{columns} "
                f"grid make {layout.num_tokens}; patches that are dropped (patch dropout in training) or "
                "merged have no layout"
            )
        return layout
