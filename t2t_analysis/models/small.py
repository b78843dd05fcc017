"""Small matched models: one factor differs, everything else, size included, stays the same.

Tokeniser {hard 4x4 split, soft split with performer, soft split with transformer, convolutions} crossed with backbone
{deep-narrow, shallow-wide}: 32x32 images, 8x8 tokens. A tokeniser that has more parameters leaves fewer to the MLPs,
so that all have the same number within 1 %. Soft splits and convolutions use kernels 3, 3, 3 with strides 2, 2, 1:
the reduction first, as in the paper, and the hard split's grid.

On the wide backbone, three tokenisers that have one part of the T2T module each, to tell which part helps: the hard
split with the layer norm over each window (``hardnorm``), the soft splits without attention (``mlp``), and the
convolutions with norm and GELU between them (``convgelu``); overlap alone is the linear ``conv``.

Beside them, the deep-narrow backbone with ideas from convolutional networks (the paper's section 3.2), on the hard and
on the soft-performer tokeniser, of the same size: channel gates (SE) and dense connections take it from the MLPs,
ResNeXt's many heads cost nothing, and the ghost blocks, whose MLP width is fixed, become more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.models import generate_default_cfgs
from torch import nn

from .blocks import GhostAttention, GhostMlp, SEAttention
from .t2t import T2T_ViT_Dense, _cfg, create_t2t_vit, register
from .tokens import T2TModule, Window

SMALL_WINDOWS = (Window(3, 2, 1), Window(3, 2, 1), Window(3, 1, 1))
SMALL_TOKEN_DIM = 32
#: Parameters of tokeniser and blocks together, the same for all.
SMALL_BUDGET = 800_000


class Backbone(NamedTuple):
    """Depth, width and heads; the MLP width follows from the budget."""

    depth: int
    embed_dim: int
    num_heads: int


SMALL_BACKBONES = {"deep": Backbone(10, 96, 4), "wide": Backbone(3, 192, 8)}
#: what a tokeniser is called in a model's name -> its ``tokens_type``, where they differ
_TOKENISERS = {"conv": "convolution", "hardnorm": "hard_norm", "convgelu": "convolution_gelu"}
SMALL_MODELS = tuple(
    f"small_{tokens}_{shape}"
    for tokens in ("hard", "performer", "transformer", "conv")
    for shape in SMALL_BACKBONES
)
#: Shallow-wide with one part of the T2T module.
SMALL_PARTS = ("small_hardnorm_wide", "small_mlp_wide", "small_convgelu_wide")
#: Deep-narrow with an idea from convolutional networks, of the same size.
SMALL_VARIANTS = tuple(
    f"small_{tokens}_deep_{idea}"
    for tokens in ("hard", "performer")
    for idea in ("se", "dense", "resnext", "ghost")
)


def _tokeniser_parameters(tokens_type: str, dim: int) -> int:
    """Trainable parameters of the tokeniser for RGB images."""
    with torch.device("meta"):
        tokeniser = T2TModule((32, 32), tokens_type, 3, dim, SMALL_TOKEN_DIM, SMALL_WINDOWS)
    return sum(p.numel() for p in tokeniser.parameters() if p.requires_grad)


def mlp_ratio(tokens_type: str, backbone: Backbone, more: int = 0) -> float:
    """MLP ratio at which tokeniser and blocks hold ``SMALL_BUDGET`` parameters, ``more`` of them in other parts."""
    depth, dim, _ = backbone
    per_block = 4 * dim * dim + 2 * dim + 4 * dim + more  # qkv and proj, biases of proj and fc2, two norms
    left = SMALL_BUDGET - _tokeniser_parameters(tokens_type, dim) - depth * per_block
    hidden = round(left / (depth * (2 * dim + 1)))
    return (hidden + 0.5) / dim  # timm truncates ratio * width to a whole number


# Channel statistics of CIFAR-10's training set.
_LICENCE = "bsd-3-clause"
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_SMALL = _cfg(num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=_MEAN, std=_STD, license=_LICENCE)
_NAMES = (*SMALL_MODELS, *SMALL_PARTS, *SMALL_VARIANTS)
default_cfgs = generate_default_cfgs(dict.fromkeys(_NAMES, _SMALL))


class T2T_ViT_SmallDense(T2T_ViT_Dense):  # noqa: N801
    """Ten layers in three stages, 56 wide growing to 152; every width divides by the four heads."""

    stages = (3, 4, 3)
    growth = 24

    @classmethod
    def widths(cls, dim: int) -> tuple[list[int], list[int]]:
        """Width that each layer gets, and that each transition gets."""
        layers, transitions = [], []
        for stage, num_layers in enumerate(cls.stages):
            layers += [dim + i * cls.growth for i in range(num_layers)]
            dim += num_layers * cls.growth
            if stage + 1 < len(cls.stages):
                transitions.append(dim)
                dim //= 2
        return layers, transitions

    @classmethod
    def mlp_ratio(cls, tokens_type: str, dim: int) -> float:
        """MLP ratio at which tokeniser, layers and transitions hold about ``SMALL_BUDGET`` parameters."""
        layers, transitions = cls.widths(dim)
        fixed = sum(4 * w * w + 6 * w + (w + 1) * cls.growth for w in layers)
        fixed += sum((w + 1) * (w // 2) for w in transitions)
        left = SMALL_BUDGET - _tokeniser_parameters(tokens_type, dim) - fixed
        return left / sum(2 * w * w + w for w in layers)


def _backbone(tokens_type: str, shape: str, idea: str = "") -> dict[str, Any]:
    """Arguments of the backbone, with an idea from convolutional networks or without one, within the budget."""
    plain = SMALL_BACKBONES[shape]
    dim, half = plain.embed_dim, plain.embed_dim // 2
    if idea == "dense":  # ten layers that append 24 channels each
        ratio = T2T_ViT_SmallDense.mlp_ratio(tokens_type, dim=56)
        sizes = {"embed_dim": 56, "depth": 10, "num_heads": 4, "mlp_ratio": ratio}
        return sizes | {"model_cls": T2T_ViT_SmallDense}
    if idea == "ghost":
        # as many blocks as the budget buys: twelve on the soft tokeniser, thirteen on the hard
        per_block = 3 * (dim * half + half) + (dim + 1) * dim * 2 + (3 * dim + 1) * dim + 2 * dim + 4 * dim
        depth = round((SMALL_BUDGET - _tokeniser_parameters(tokens_type, dim)) / per_block)
        parts = {"mlp_ratio": 3.0, "attn_layer": GhostAttention, "mlp_layer": GhostMlp}
        return plain._replace(depth=depth)._asdict() | parts
    gate = 2 * dim * (dim // 16) if idea == "se" else 0  # after each attention, squeezed 16 times
    found = plain._asdict() | {"mlp_ratio": mlp_ratio(tokens_type, plain, gate)}
    if idea == "resnext":  # heads of width 8 in place of 24 (the paper: 32 of width 12 in place of six of 64)
        found["num_heads"] = 12
    return found | ({"attn_layer": SEAttention} if gate else {})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """``small_<tokeniser>_<backbone>``, or ``small_<tokeniser>_deep_<idea>``."""
    _, tokens, shape, *idea = name.split("_")
    tokens_type = _TOKENISERS.get(tokens, tokens)
    front: dict[str, Any] = {"img_size": 32, "num_classes": 10, "tokens_type": tokens_type}
    front |= {"token_dim": SMALL_TOKEN_DIM, "windows": SMALL_WINDOWS}
    parts = front | _backbone(tokens_type, shape, *idea)
    return create_t2t_vit(name, pretrained, **parts | kwargs)


for _name in _NAMES:
    register(_name, _create, __name__)
