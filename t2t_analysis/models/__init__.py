"""The networks and their weights; importing this registers the T2T-ViT family with timm."""

from .cards import bundled_weights, save_weights
from .provenance import Accuracy, Provenance
from .releases import PUBLISHED
from .small import SMALL_MODELS, SMALL_PARTS, SMALL_VARIANTS
from .t2t import T2T_ViT
from .tokens import T2TModule, TokenPerformer, TokenTransformer
from .vit import vit_small_paper_patch16_224
from .weights import available_weights, load_model

#: The authors' registered names.
T2T_MODELS = (
    "t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "t2t_vit_14", "t2t_vit_19", "t2t_vit_24",
    "t2t_vit_t_14", "t2t_vit_t_19", "t2t_vit_t_24",
    "t2t_vit_14_resnext", "t2t_vit_14_wide", "t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_16_ghost",
)  # fmt: skip
#: Every name that this package registers.
MODELS = (
    *T2T_MODELS, "t2t_vit_c_14", "vit_small_paper_patch16_224", *SMALL_MODELS, *SMALL_PARTS, *SMALL_VARIANTS,
)  # fmt: skip

__all__ = [
    "MODELS",
    "PUBLISHED",
    "SMALL_MODELS",
    "SMALL_PARTS",
    "SMALL_VARIANTS",
    "T2T_MODELS",
    "Accuracy",
    "Provenance",
    "T2TModule",
    "T2T_ViT",
    "TokenPerformer",
    "TokenTransformer",
    "available_weights",
    "bundled_weights",
    "load_model",
    "save_weights",
    "vit_small_paper_patch16_224",
]
