"""Small matched models: one factor differs, everything else, size included, stays the same; see ``small.csv``.

Tokeniser {hard 4x4 split, soft split with performer, soft split with transformer, convolutions} crossed with backbone
{deep-narrow, shallow-wide}: 32x32 images, 8x8 tokens. A tokeniser that has more parameters leaves fewer to the MLPs, by
their ratio, so that tokeniser and blocks together have 800,000 within 1 %. Soft splits and convolutions use kernels
3, 3, 3 with strides 2, 2, 1: the reduction first, as in the paper, and the hard split's grid.

On the wide backbone, three tokenisers that have one part of the T2T module each, to tell which part helps: the hard
split with the layer norm over each window (``hardnorm``), the soft splits without attention (``mlp``), and the
convolutions with norm and GELU between them (``convgelu``); overlap alone is the linear ``conv``.

Beside them, the deep-narrow backbone with ideas from convolutional networks (the paper's section 3.2), on the hard and
on the soft-performer tokeniser, of the same size: channel gates (SE) and dense connections take it from the MLPs,
ResNeXt's many heads (of width 8 in place of 24; the paper: 32 of width 12 in place of six of 64) cost nothing, and the
ghost blocks, whose MLP width is fixed, become more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs

from .._files import csv_rows
from .blocks import GhostAttention, GhostMlp, SEAttention
from .t2t import T2T_ViT_Dense, _cfg, register
from .tokens import Window

SMALL_WINDOWS = (Window(3, 2, 1), Window(3, 2, 1), Window(3, 1, 1))


class T2T_ViT_SmallDense(T2T_ViT_Dense):  # noqa: N801
    """Ten layers in three stages, 56 wide growing to 152; every width divides by the four heads."""

    stages = (3, 4, 3)
    growth = 24


_IDEAS: dict[str, dict[str, Any]] = {
    "se": {"attn_layer": SEAttention},
    "dense": {"model_cls": T2T_ViT_SmallDense},
    "ghost": {"attn_layer": GhostAttention, "mlp_layer": GhostMlp},
}


def _arguments(row: dict[str, str]) -> dict[str, Any]:
    common: dict[str, Any] = {"img_size": 32, "num_classes": 10, "token_dim": 32, "windows": SMALL_WINDOWS}
    common |= {"mlp_ratio": float(row["mlp_ratio"]), "tokens_type": row["tokens_type"]}
    sizes = {key: int(row[key]) for key in ("depth", "embed_dim", "num_heads")}
    return common | sizes | _IDEAS.get(row["idea"], {})


#: Registered name -> arguments of `T2T_ViT`.
SMALL_MODELS = {row["name"]: _arguments(row) for row in csv_rows(Path(__file__).with_suffix(".csv"))}

# Channel statistics of CIFAR-10's training set.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_SMALL = _cfg(
    num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=_MEAN, std=_STD, license="bsd-3-clause"
)
default_cfgs = generate_default_cfgs(dict.fromkeys(SMALL_MODELS, _SMALL))


for _name, _given in SMALL_MODELS.items():
    register(_name, _given, __name__)
