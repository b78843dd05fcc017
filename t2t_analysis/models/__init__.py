"""The networks and their weights; importing this registers the T2T-ViT family with timm."""

from .._paths import bundled_weights
from .cards import save_weights
from .provenance import Accuracy, Provenance
from .releases import PUBLISHED
from .small import SMALL_MODELS
from .t2t import VARIANTS, T2T_ViT
from .tokens import T2TModule, TokenPerformer, TokenTransformer
from .vit import vit_small_paper_patch16_224
from .weights import available_weights, load_model

#: Every name that this package registers.
MODELS = (*VARIANTS, "vit_small_paper_patch16_224", *SMALL_MODELS)

__all__ = [
    "MODELS", "PUBLISHED", "SMALL_MODELS", "Accuracy",
    "Provenance", "T2TModule", "T2T_ViT", "TokenPerformer", "TokenTransformer", "available_weights",
    "bundled_weights", "load_model", "save_weights", "vit_small_paper_patch16_224",
]  # fmt: skip
