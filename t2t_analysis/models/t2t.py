"""T2T-ViT (Yuan et al., ICCV 2021, arXiv 2101.11986) and its variants, in timm's registry.

A T2T-ViT is timm's VisionTransformer with another tokeniser in front, a fixed sinusoidal position table, and block
variants. State-dict keys, shapes, order, and which entries train are those of the authors' release.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Attention,
    Mlp,
    calculate_drop_path_rates,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_function
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import T2TError
from .blocks import DenseBlock, GhostAttention, GhostMlp, SEAttention, Transition
from .checkpoint import find_state, resize_positions
from .releases import PUBLISHED, RELEASES
from .tokens import WINDOWS, T2TModule, Window


def sinusoid_table(num_tokens: int, dim: int) -> Tensor:
    """Fixed 1-D position table (Vaswani et al., 2017), sine and cosine interleaved: (1, num_tokens, dim), float32.

    Entry 2i of row p is sin(p / 10000^(2i / dim)), entry 2i + 1 the cosine of the same angle; row 0 is the class
    token's.

    >>> sinusoid_table(2, 4)[0, 1].tolist()[:2]
    [0.8414709568023682, 0.5403022766113281]
    """
    position = torch.arange(num_tokens, dtype=torch.float64).unsqueeze(1)
    angle = position / 10000 ** (2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos()).float().unsqueeze(0)


@torch.fx.wrap
@register_notrace_function
def _on_grid(tokens: Tensor, images: Tensor, windows: Sequence[Window]) -> Tensor:
    """(B, N, D) to (B, h, w, D); a function of its own, which fx takes as one step."""
    grid = (images.shape[-2], images.shape[-1])
    for window in windows:
        grid = window.grid(*grid)
    return tokens.unflatten(1, grid)


class _GridTokens:
    """The tokeniser as timm's VisionTransformer wants it when image sizes vary: (B, C, H, W) to (B, h, w, D)."""

    def __init__(self, tokeniser: T2TModule) -> None:
        self.tokeniser = tokeniser
        self.grid_size, self.num_patches = tokeniser.grid_size, tokeniser.num_patches
        self.img_size = tokeniser.img_size
        self.patch_size = to_2tuple(tokeniser.patch_size)

    def __call__(self, x: Tensor) -> Tensor:
        return _on_grid(self.tokeniser(x), x, self.tokeniser.windows)

    def dynamic_feat_size(self, img_size: Sequence[int]) -> tuple[int, int]:
        return self.tokeniser.grids(*img_size)[-1]


class T2T_ViT(VisionTransformer):  # noqa: N801 - the authors' name
    """Tokens-to-Token ViT; takes images of any size and shape from 32 px up, whatever ``img_size`` was built for.

    The grid is tracked through the splits, and the position table is resized (bicubic, class token kept) where the
    grid differs from the one of ``img_size``.

    Parameters
    ----------
    img_size : size of the image (or height, width) that the position table is made for.
    tokens_type : see ``tokens.T2TModule``.
    drop_rate : dropout after the position table, after each projection and in each MLP, as in the authors' code
        (timm's ViT applies it before the head only). The Performer tokeniser drops at 0.1 whatever is given here.
    qk_scale : scale of the backbone's attention; default head_dim ** -0.5. Another value turns fused attention off.
    token_dim, windows : width and sliding windows of the T2T module.
    attn_layer, mlp_layer : parts of the backbone's blocks.
    """

    # Set here for the methods that are inherited; timm's own annotations are narrower than what it assigns.
    pos_embed: nn.Parameter
    cls_token: nn.Parameter
    patch_drop: Any
    norm_pre: Any
    global_pool: Any
    num_prefix_tokens, num_reg_tokens, has_class_token = 1, 0, True
    no_embed_class, pool_include_prefix, grad_checkpointing = False, False, False
    reg_token: Any = None
    attn_pool: Any = None
    dynamic_img_size = True  # type: ignore[misc]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        tokens_type: str = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Any = None,
        token_dim: int = 64,
        windows: Sequence[Window] = WINDOWS,
        attn_layer: type[nn.Module] = Attention,
        mlp_layer: type[nn.Module] = Mlp,
        global_pool: str = "token",
    ) -> None:
        nn.Module.__init__(self)  # timm's constructor would make its own patch embedding and a learned table
        self.tokens_config: dict[str, Any] = {"tokens_type": tokens_type, "token_dim": token_dim}
        self.tokens_config["windows"] = windows
        self.num_classes, self.in_chans, self.embed_dim = num_classes, in_chans, embed_dim
        self.global_pool = global_pool
        norm: Any = norm_layer or partial(nn.LayerNorm, eps=1e-5)
        block: partial[Any] = partial(
            Block, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, proj_drop=drop_rate,
            attn_drop=attn_drop_rate, norm_layer=norm, attn_layer=attn_layer, mlp_layer=mlp_layer,
        )  # fmt: skip
        sizes: dict[str, Any] = {"in_chans": in_chans, "embed_dim": embed_dim}
        tokeniser = T2TModule(to_2tuple(img_size), **sizes, **self.tokens_config)
        self.cls_token = nn.Parameter(trunc_normal_(torch.zeros(1, 1, embed_dim), std=0.02))
        self.pos_embed = nn.Parameter(sinusoid_table(tokeniser.num_patches + 1, embed_dim), False)
        self.tokens_to_token = tokeniser
        self.pos_drop = nn.Dropout(drop_rate)
        self.patch_drop, self.norm_pre = nn.Identity(), nn.Identity()
        self.blocks, widths = self._make_blocks(block, depth, drop_path_rate)
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = norm(self.num_features)
        self.fc_norm, self.head_drop = nn.Identity(), nn.Dropout(0.0)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        about = {"reduction": tokeniser.patch_size}
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": w, **about} for i, w in enumerate(widths)]
        self.apply(_init_linear)
        if qk_scale is not None:
            for module in self.blocks.modules():
                if isinstance(module, Attention | GhostAttention):
                    module.scale, module.fused_attn = qk_scale, False  # type: ignore[misc]

    def _make_blocks(
        self, block: partial[Any], depth: int, drop_path_rate: float
    ) -> tuple[nn.Sequential, list[int]]:
        """The backbone and the width after each of its entries."""
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = nn.Sequential(*(block(self.embed_dim, drop_path=rate) for rate in rates))
        return blocks, [self.embed_dim] * depth

    @property
    def patch_embed(self) -> _GridTokens:
        """The tokeniser under the name and interface of timm's patch embedding."""
        return _GridTokens(self.tokens_to_token)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into layers (for layer decay)."""
        return {
            "stem": r"^cls_token|pos_embed|tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh head for ``num_classes`` (0: none) on ``num_features`` channels."""
        if global_pool is not None:
            if global_pool not in ("", "token", "avg", "max", "avgmax"):
                raise T2TError(f"global_pool={global_pool!r}: expected '', 'token', 'avg', 'max' or 'avgmax'")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.cls_token
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.apply(_init_linear).to(device=like.device, dtype=like.dtype).train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make ``img_size`` the native size: the position table is resized once instead of in every forward."""
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(self.tokens_to_token.patch_size):
            raise T2TError(f"the patch size of a T2T-ViT is fixed at {self.tokens_to_token.patch_size}")
        if img_size is None:
            return
        old = self.tokens_to_token.grid_size
        self.tokens_to_token.set_img_size(to_2tuple(img_size))
        new = self.tokens_to_token.grid_size
        table = resample_abs_pos_embed(self.pos_embed, new_size=list(new), old_size=list(old))
        self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)


class T2T_ViT_Dense(T2T_ViT):  # noqa: N801
    """DenseNet-like backbone: every layer appends ``growth`` channels, transitions halve the width between stages."""

    stages: tuple[int, ...] = (3, 6, 6, 4)
    growth = 64

    def _make_blocks(
        self, block: partial[Any], depth: int, drop_path_rate: float
    ) -> tuple[nn.Sequential, list[int]]:
        # The authors index a schedule of length 12 by the stage, not by the layer; kept, since training depends on it.
        rates = calculate_drop_path_rates(drop_path_rate, 12)
        layers: list[nn.Module] = []
        widths: list[int] = []
        width = self.embed_dim
        for stage, num_layers in enumerate(self.stages):
            for _ in range(num_layers):
                layers.append(DenseBlock(width, self.growth, drop_path=rates[stage], **block.keywords))
                widths.append(width := width + self.growth)
            if stage + 1 < len(self.stages):
                layers.append(Transition(width))
                widths.append(width := width // 2)
        return nn.Sequential(*layers), widths

    def forward_intermediates(self, x: Tensor, indices: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """As timm's, but the final norm fits the last width only, so it cannot be applied to earlier layers."""
        if kwargs.get("norm"):
            raise T2TError(
                "norm=True: layers of a dense model have different widths, and its norm fits the last"
            )
        if not kwargs.get("intermediates_only"):
            kwargs["stop_early"] = False  # the features after the norm need all layers
        return super().forward_intermediates(x, indices, **kwargs)


def _init_linear(module: nn.Module) -> None:
    """Truncated normal with standard deviation 0.02, biases zero; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: T2T_ViT) -> dict[str, Tensor]:
    """Unwrap a checkpoint of the authors (``state_dict_ema`` first) and fit its position table to ``model``."""
    _, state = find_state(state_dict, "the checkpoint")
    resize_positions(model, state)
    return state


def _cfg(name: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": RELEASES + PUBLISHED[name][""].file if name in PUBLISHED else "", "license": "BSD-3-Clause-Clear",
        "num_classes": 1000, "input_size": (3, 224, 224), "fixed_input_size": False, "pool_size": None,
        "crop_pct": 0.9, "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        # The first convolution is inside the soft split; timm adapts no input channels for it.
        "first_conv": (), "classifier": "head",
    } | kwargs  # fmt: skip


def _backbone(dim: int, depth: int, num_heads: int, mlp_ratio: float = 3.0, **more: Any) -> dict[str, Any]:
    return dict(embed_dim=dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, **more)


#: Registered name -> arguments of `T2T_ViT`; millions of parameters and, at 224 px, billions of multiply-accumulates.
VARIANTS: dict[str, dict[str, Any]] = {
    "t2t_vit_7": _backbone(256, 7, 4, 2.0),  # 4.3, 1.15
    "t2t_vit_10": _backbone(256, 10, 4, 2.0),  # 5.9, 1.5
    "t2t_vit_12": _backbone(256, 12, 4, 2.0),  # 6.9, 1.8
    "t2t_vit_14": _backbone(384, 14, 6),  # 21.5, 4.8
    "t2t_vit_19": _backbone(448, 19, 7),  # 39.2, 8.5
    "t2t_vit_24": _backbone(512, 24, 8),  # 64.1, 13.7
    "t2t_vit_t_14": _backbone(384, 14, 6, tokens_type="transformer"),  # 21.5, 6.1
    "t2t_vit_t_19": _backbone(448, 19, 7, tokens_type="transformer"),  # 39.2, 9.8
    "t2t_vit_t_24": _backbone(512, 24, 8, tokens_type="transformer"),  # 64.1, 15.0
    "t2t_vit_14_resnext": _backbone(384, 14, 32),  # heads of width 12
    # The paper's Table 6 prints depth 14, its parameter count says 4.
    "t2t_vit_14_wide": _backbone(768, 4, 12),
    "t2t_vit_14_se": _backbone(384, 14, 6, attn_layer=SEAttention),  # a channel gate after each attention
    "t2t_vit_dense": _backbone(128, 19, 8, 2.0, model_cls=T2T_ViT_Dense),  # width 128 growing to 584
    # Half of every query, key and value and two thirds of every hidden layer are rescaled copies.
    "t2t_vit_16_ghost": _backbone(384, 16, 6, attn_layer=GhostAttention, mlp_layer=GhostMlp),
    # Three convolutions, chained with nothing between them: the paper's T2T-ViT_c-14.
    "t2t_vit_c_14": _backbone(384, 14, 6, tokens_type="convolution"),
}
_cfgs: dict[str, Any] = {name: _cfg(name) for name in VARIANTS}
_cfgs["t2t_vit_c_14"] = _cfg(first_conv="tokens_to_token.soft_split0")
default_cfgs = generate_default_cfgs(_cfgs)


def create_t2t_vit(
    variant: str,
    pretrained: bool,
    model_cls: type[T2T_ViT] = T2T_ViT,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build ``variant`` through timm, which handles weights, ``features_only`` and the rest."""
    with torch.device(device) if device is not None else contextlib.nullcontext():
        model: nn.Module = build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **kwargs,
        )
    return model.to(dtype=dtype)


def register(name: str, arguments: dict[str, Any], module: str) -> None:
    """Register `T2T_ViT` with these arguments with timm, as a model of ``module``, which configures it."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_t2t_vit(name, pretrained, **arguments | kwargs)

    entrypoint.__name__, entrypoint.__module__ = name, module
    setattr(sys.modules[module], name, register_model(entrypoint))


for _name, _arguments in VARIANTS.items():
    register(_name, _arguments, __name__)
