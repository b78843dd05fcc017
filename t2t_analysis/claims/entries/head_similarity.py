"""head-similarity, introduction."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="head-similarity",
    statement="The heads of ViT's later layers are nearly identical, those of T2T-ViT less so.",
    said="introduction",
    effects=(
        Effect(
            "centred cosine of attention maps, change from the first to the last third",
            smallest="similarity",
            controlled="tokeniser_effect:head_cosine_change",
            pair="head_cosine_change",
            direction=-1,
        ),
        Effect(
            "CKA of head outputs, change from the first to the last third",
            smallest="similarity",
            controlled="tokeniser_effect:head_cka_change",
            pair="head_cka_change",
            direction=-1,
        ),
    ),
    change="Deeper or longer trained models, in which likeness may rise with depth.",
    notebook="head_redundancy",
    order=30,
)
