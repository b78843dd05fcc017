"""Soft splits in plain words, which the package's own form is held against: in time here, in numbers by the tests."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from t2t_analysis.models.tokens import T2TModule, Window


def split(x: Tensor, window: Window) -> Tensor:
    """Flatten overlapping windows: (B, C, H, W) to (B, N, C*k*k), channel first, then kernel row, then column."""
    return F.unfold(x, window.kernel, padding=window.padding, stride=window.stride).transpose(1, 2)


def plain_split(x: Tensor, norm: nn.Module, linear: nn.Module, window: Window) -> Tensor:
    """Unfold, norm and linear layer one after the other: (B, C, H, W) to (B, N, out)."""
    return linear(norm(split(x, window)))


def _project(stage: Any, x: Tensor, norm: nn.Module, linear: nn.Module) -> Tensor:
    return stage.hook_qkv(plain_split(x, norm, linear, stage.window))


def _last_split(module: Any, x: Tensor) -> Tensor:
    return module.project(split(x, module.windows[-1]))


def plain_splits(module: T2TModule) -> T2TModule:
    """Change the module to plain words, in place; the numbers are the same."""
    changed: Any = module
    for stage in (changed.attention1, changed.attention2):
        stage._project = MethodType(_project, stage)
    changed._last_split = MethodType(_last_split, module)
    return module
