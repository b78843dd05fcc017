"""Queries, keys and values of the attention modules that are known here, rebuilt beside the model.

The module runs as it always does, with fused attention; what entered the product is put together again from
the output of its projections. A class counts as known when its own ``forward`` is one that was read for this
file: modules that merely look alike (windows, talking heads) would give wrong numbers without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import timm.layers
import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.blocks import GhostAttention, SEAttention

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass
class Call:
    """One run of an attention module: its arguments, and what its projections put out."""

    module: Any
    arguments: dict[str, Any]
    projected: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Bind positional arguments to their names in the module's signature."""
        names = [p.name for p in inspect.signature(module.forward).parameters.values()]
        return cls(module, dict(zip(names, args, strict=False)) | kwargs)

    @property
    def x(self) -> Tensor:
        """Input tokens (B, N, D)."""
        return self.arguments["x"]


@dataclass(frozen=True)
class Attention:
    """What has to be known about one attention module to observe it.

    Parameters
    ----------
    module : the module whose call brackets the attention.
    projections : the modules inside it whose outputs ``read`` needs, by name.
    read : rebuilds q, k and v, each (B, H, N, d), as they enter the product.
    z : the module whose input is the joined head outputs (B, N, H d), before any norm or gate.
    proj : the output projection.
    num_heads : H.
    scale : factor of q k' inside the softmax; ``None`` where there is no softmax over keys.
    """

    module: nn.Module
    projections: dict[str, nn.Module]
    read: Callable[[Call], Triple]
    z: nn.Module
    proj: nn.Module
    num_heads: int
    scale: float | None


@dataclass
class Heads:
    """What enters the product in one call; every tensor is made when it is first asked for."""

    attention: Attention
    call: Call

    @cached_property
    def qkv(self) -> Triple:
        """Queries, keys and values, each (B, H, N, d), after q/k norm and rotary embedding."""
        return self.attention.read(self.call)

    @property
    def pattern(self) -> Tensor:
        """softmax(scale q k' + bias) over keys, (B, H, N, N), in float32 or, for float64, in float64."""
        assert self.attention.scale is not None
        q, k, _ = self.qkv
        dtype = torch.promote_types(q.dtype, torch.float32)
        # Autocast would put the product back into half precision.
        with torch.autocast(q.device.type, enabled=False):
            q, k = (x.to(dtype).contiguous() for x in (q, k))  # products of views are slow
            logits = (q * self.attention.scale) @ k.transpose(-2, -1)  # (B, H, N, N)
            return _with_bias(logits, self.call).softmax(dim=-1)


def _with_bias(logits: Tensor, call: Call) -> Tensor:
    """Add what the module adds to its logits: relative positions and masks."""
    if getattr(call.module, "relative_position_bias_table", None) is not None:
        logits = logits + call.module._get_rel_pos_bias()
    if (shared := call.arguments.get("shared_rel_pos_bias")) is not None:
        logits = logits + shared
    if call.arguments.get("is_causal"):
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        return logits.masked_fill(future, float("-inf"))
    mask = call.arguments.get("attn_mask")
    if mask is None:
        return logits
    return logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _split(qkv: Tensor, num_heads: int, order: str = "qkv") -> Triple:
    """(B, N, 3 H d) -> q, k and v, each (B, H, N, d), whatever order they were projected in."""
    parts = dict(zip(order, qkv.chunk(3, dim=-1), strict=True))
    q, k, v = (_heads(parts[letter], num_heads) for letter in "qkv")
    return q, k, v


def _project(call: Call) -> Triple:
    """Queries, keys and values as projected, before norm and rotary embedding."""
    attn = call.module
    if getattr(attn, "qkv", None) is None:
        kv_heads = getattr(attn, "num_kv_heads", attn.num_heads)
        counts = {"q_proj": attn.num_heads, "k_proj": kv_heads, "v_proj": kv_heads}
        q, k, v = (_heads(call.projected[name], heads) for name, heads in counts.items())
        return q, k, v
    if getattr(attn, "q_bias", None) is not None:
        # EVA and BEiT apply the weight of `qkv` without calling it, with a bias put together on the spot.
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        return _split(F.linear(call.x, attn.qkv.weight, bias), attn.num_heads)
    return _split(call.projected["qkv"], attn.num_heads)


def _rotate(x: Tensor, rope: Tensor | None, attn: Any, like: Tensor) -> Tensor:
    """Turn the patch tokens of (B, H, N, d) by their positions; prefix tokens have none."""
    if rope is None:
        return x
    prefix, patches = x[:, :, : attn.num_prefix_tokens], x[:, :, attn.num_prefix_tokens :]
    turned = apply_rot_embed_cat(patches, rope, half=getattr(attn, "rotate_half", False))
    return torch.cat((prefix, turned), dim=2).type_as(like)


def _read_timm(call: Call) -> Triple:
    """Project, normalise, rotate and share keys in groups, as far as each of timm's kinds does."""
    attn = call.module
    q, k, v = _project(call)
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    rope = call.arguments.get("rope")
    q, k = _rotate(q, rope, attn, v), _rotate(k, rope, attn, v)
    if (groups := getattr(attn, "num_kv_groups", 1)) > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return q, k, v


_TIMM_KINDS = (timm.layers.Attention, AttentionRope, EvaAttention, BeitAttention)
_TIMM_FORWARDS = {kind.forward for kind in (*_TIMM_KINDS, SEAttention)}


def _timm_attention(attn: Any) -> Attention:
    names = ("qkv", "q_proj", "k_proj", "v_proj")
    found = {name: getattr(attn, name, None) for name in names}
    projections = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    # A norm and a gate may sit between the head outputs and their projection.
    z = attn.norm if isinstance(getattr(attn, "norm", None), nn.Module) else attn.proj
    return Attention(attn, projections, _read_timm, z, attn.proj, attn.num_heads, float(attn.scale))


def _hooked_attention(module: Any, attn: Any, num_heads: int) -> Attention:
    """One of ours, whose projections pass through an identity, in the order that ``qkv_order`` tells."""

    def read(call: Call) -> Triple:
        return _split(call.projected["hook_qkv"], num_heads, module.qkv_order)

    projections = {"hook_qkv": module.hook_qkv}
    scale = getattr(attn, "scale", None)
    return Attention(module, projections, read, attn.proj, attn.proj, num_heads, scale)


def backbone_attention(attn: Any) -> Attention | None:
    """How to observe the attention of a block, or ``None`` where it is of no known kind."""
    if isinstance(attn, GhostAttention):
        return _hooked_attention(attn, attn, attn.num_heads)
    return _timm_attention(attn) if type(attn).forward in _TIMM_FORWARDS else None


def stage_attention(stage: nn.Module) -> Attention:
    """How to observe one token transformer of a T2T module; a Performer has no logits and so no scale."""
    return _hooked_attention(stage, getattr(stage, "attn", stage), num_heads=1)
