"""Small matched models: one factor differs, everything else, size included, stays the same.

Tokeniser {hard 4x4 split, soft split with performer, soft split with transformer, convolutions} crossed with backbone
{deep-narrow, shallow-wide}: 32x32 images, 8x8 tokens. A tokeniser that has more parameters leaves fewer to the MLPs,
so that all eight have the same number within 1 %. The soft splits use kernels 3, 3, 3 with strides 1, 2, 2, which
gives the hard split's grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .t2t import _cfg, create_t2t_vit
from .tokens import Window

__all__ = ["SMALL_BACKBONES", "SMALL_MODELS", "SMALL_TOKENISERS"]

SMALL_WINDOWS = (Window(3, 1, 1), Window(3, 2, 1), Window(3, 2, 1))
SMALL_TOKEN_DIM = 32
#: Parameters of tokeniser and blocks together, the same for all.
SMALL_BUDGET = 800_000


class Backbone(NamedTuple):
    """Depth, width and heads; the MLP width follows from the budget."""

    depth: int
    embed_dim: int
    num_heads: int


SMALL_BACKBONES = {"deep": Backbone(10, 96, 4), "wide": Backbone(3, 192, 8)}
SMALL_TOKENISERS = {
    "hard": "hard",
    "performer": "performer",
    "transformer": "transformer",
    "conv": "convolution",
}
SMALL_MODELS = tuple(f"small_{tokens}_{shape}" for tokens in SMALL_TOKENISERS for shape in SMALL_BACKBONES)


def _tokeniser_parameters(tokens_type: str, dim: int, d: int = SMALL_TOKEN_DIM) -> int:
    """Trainable parameters of the tokeniser for RGB images and 3x3 windows, counted by hand (a test recounts)."""

    def mixer(dim_in: int) -> int:
        bias = 3 * d if tokens_type == "performer" else 0
        return 2 * dim_in + dim_in * 3 * d + bias + (d * d + d) + 2 * d + 2 * (d * d + d)

    if tokens_type == "hard":
        return 3 * 16 * dim + dim
    if tokens_type == "convolution":
        return (27 * d + d) + (9 * d * d + d) + (9 * d * dim + dim)
    return mixer(27) + mixer(9 * d) + (9 * d * dim + dim)


def mlp_ratio(tokens_type: str, backbone: Backbone) -> float:
    """MLP ratio at which tokeniser and blocks hold ``SMALL_BUDGET`` parameters."""
    depth, dim, _ = backbone
    per_block = 4 * dim * dim + 2 * dim + 4 * dim  # qkv and proj, biases of proj and fc2, two norms
    left = SMALL_BUDGET - _tokeniser_parameters(tokens_type, dim) - depth * per_block
    hidden = round(left / (depth * (2 * dim + 1)))
    return (hidden + 0.5) / dim  # timm truncates ratio * width to a whole number


_MEAN, _STD = (
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
)  # channel statistics of CIFAR-10's training set
default_cfgs = generate_default_cfgs(
    {
        name: _cfg(
            num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=_MEAN, std=_STD, license="bsd-3-clause"
        )
        for name in SMALL_MODELS
    }
)


def _create(tokens: str, shape: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    backbone, tokens_type = SMALL_BACKBONES[shape], SMALL_TOKENISERS[tokens]
    config: dict[str, Any] = backbone._asdict() | {
        "img_size": 32,
        "num_classes": 10,
        "tokens_type": tokens_type,
        "token_dim": SMALL_TOKEN_DIM,
        "windows": SMALL_WINDOWS,
        "mlp_ratio": mlp_ratio(tokens_type, backbone),
    }
    return create_t2t_vit(f"small_{tokens}_{shape}", pretrained, **config | kwargs)


@register_model
def small_hard_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hard 4x4 split, deep-narrow: a plain ViT."""
    return _create("hard", "deep", pretrained, kwargs)


@register_model
def small_hard_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Hard 4x4 split, shallow-wide."""
    return _create("hard", "wide", pretrained, kwargs)


@register_model
def small_performer_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Soft split with performer, deep-narrow: a small T2T-ViT."""
    return _create("performer", "deep", pretrained, kwargs)


@register_model
def small_performer_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Soft split with performer, shallow-wide."""
    return _create("performer", "wide", pretrained, kwargs)


@register_model
def small_transformer_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Soft split with transformer, deep-narrow."""
    return _create("transformer", "deep", pretrained, kwargs)


@register_model
def small_transformer_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Soft split with transformer, shallow-wide."""
    return _create("transformer", "wide", pretrained, kwargs)


@register_model
def small_conv_deep(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Three convolutions, deep-narrow."""
    return _create("conv", "deep", pretrained, kwargs)


@register_model
def small_conv_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Three convolutions, shallow-wide."""
    return _create("conv", "wide", pretrained, kwargs)
