"""Backbone blocks borrowed from convolutional networks (the paper's section 3.2), on timm's transformer block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class _ChannelGate(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) over tokens, the class token included: (B, N, C) to the same."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = dim // reduction
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=1, keepdim=True))


class SEAttention(Attention):
    """Attention whose output is gated by channel."""

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        self.se_layer = _ChannelGate(dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.se_layer(super().forward(x, attn_mask, is_causal))


class DenseBlock(nn.Module):
    """A transformer block whose result, mapped to ``growth`` channels, is appended to its input (DenseNet).

    (B, N, C) to (B, N, C + growth). The new channels come after the old ones.
    """

    def __init__(self, dim: int, growth: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__()
        # The block's parts under their own names: no extra key prefix.
        for name, module in Block(dim, num_heads, **kwargs).named_children():
            self.add_module(name, module)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C + growth)."""
        new = Block.forward(self, x, attn_mask, is_causal)  # type: ignore[arg-type]
        return torch.cat((x, self.dense_linear(new)), dim=-1)


class Transition(nn.Module):
    """Halve the width between dense stages: linear, then GELU; (B, N, C) to (B, N, C // 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C // 2); masks are for attention, of which there is none here."""
        return F.gelu(self.linear(x))


def _cheap(dim: int) -> nn.Conv1d:
    """Ghost's "cheap operation" with kernel 1: one factor per channel."""
    return nn.Conv1d(dim, dim, kernel_size=1, groups=dim, bias=False)


def _per_channel(factor: nn.Conv1d, x: Tensor) -> Tensor:
    return factor(x.transpose(1, 2)).transpose(1, 2)


class GhostAttention(nn.Module):
    """Attention whose second half of every query, key and value is a rescaled copy of the first (GhostNet).

    So the second half of the heads repeats the first half up to per-channel factors.
    """

    qkv_order = "qkv"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__()
        half = dim // 2
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.q, self.k, self.v = (nn.Linear(dim, half, bias=qkv_bias) for _ in range(3))
        cheap = (_cheap(half) for _ in range(3))
        self.cheap_operation_q, self.cheap_operation_k, self.cheap_operation_v = cheap
        self.hook_qkv = nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        factors = (self.cheap_operation_q, self.cheap_operation_k, self.cheap_operation_v)
        pairs = zip((self.q, self.k, self.v), factors, strict=True)
        halves = [(linear(x), factor) for linear, factor in pairs]
        qkv = self.hook_qkv(torch.cat([part for h, f in halves for part in (h, _per_channel(f, h))], dim=-1))
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, d) each
        drop = self.attn_drop.p if self.training else 0.0
        z = F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal, scale=self.scale)
        return self.proj_drop(self.proj(z.transpose(1, 2).flatten(2)))


class GhostMlp(nn.Module):
    """MLP whose hidden layer is one computed part and two rescaled copies of it; only MLP ratio 3 fits."""

    def __init__(self, in_features: int, hidden_features: int, drop: float = 0.0, **_: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, in_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)
        self.cheap_operation2, self.cheap_operation3 = _cheap(in_features), _cheap(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = self.act(self.fc1(x))
        copies = [self.act(_per_channel(f, x)) for f in (self.cheap_operation2, self.cheap_operation3)]
        return self.drop(self.fc2(self.drop(torch.cat((x, *copies), dim=-1))))
