"""The plain ViT that the paper compares with: 768 wide, 8 deep, 48.75 M parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from .t2t import _cfg

default_cfgs = generate_default_cfgs(
    {"vit_small_paper_patch16_224": _cfg(first_conv="patch_embed.proj", license=None)}
)


@register_model
def vit_small_paper_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The "ViT-S/16" of the T2T-ViT paper (its Table 2: 78.1 %, 48.6 M), an early timm model.

    Today's timm ``vit_small_patch16_224`` is another network (384 wide, 12 deep, 22 M parameters).
    """
    config: dict[str, Any] = {"patch_size": 16, "embed_dim": 768, "depth": 8, "num_heads": 8}
    config |= {"mlp_ratio": 3.0, "qkv_bias": False, "norm_layer": partial(nn.LayerNorm, eps=1e-5)}
    config |= {"pretrained": pretrained, "feature_cfg": {"out_indices": 3, "feature_cls": "getter"}} | kwargs
    name = "vit_small_paper_patch16_224"
    return build_model_with_cfg(VisionTransformer, name, pretrained_filter_fn=checkpoint_filter_fn, **config)
