"""head-similarity: heads repeat each other."""

from ..base import Claim, Effect
from ..likeness import ALIKE, why_alike

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="head-similarity",
    statement="The heads of ViT's later layers are nearly identical, those of T2T-ViT less so.",
    said="abstract, of a redundant attention backbone; the deep and narrow one is said to mend it",
    premise="The heads of this model's later layers are nearly identical.",
    effects=(
        *(
            Effect(
                f"{words}, change from the first to the last third{beside}",
                smallest="similarity",
                controlled=f"{contrast}:{headline}",
                pair=headline if contrast == "t2t_minus_vit" else "",
                direction=-1,
            )
            for contrast, beside in (("backbone_effect", ""), ("t2t_minus_vit", ", T2T against ViT"))
            for headline, words in (
                ("head_cosine_change", "centred cosine of attention maps"),
                ("head_cka_change", "CKA of head outputs"),
            )
        ),
        *(
            effect
            for endpoint, words in (
                ("late_cosine", "centred cosine of attention maps, last third"),
                ("late_cka", "CKA of head outputs, last third"),
            )
            for effect in (
                Effect(words, smallest="threshold", premise=endpoint, bound=ALIKE),
                Effect(
                    f"{words}, less the untrained control's",
                    smallest="similarity",
                    premise=f"{endpoint}_trained",
                ),
            )
        ),
        Effect(
            "centred cosine of attention maps without attention sinks, last third",
            smallest="threshold",
            premise="late_cosine_without_sinks",
            bound=ALIKE,
            deciding=False,
        ),
        Effect(
            "centred cosine of attention maps without random columns minus without sinks, last third",
            smallest="similarity",
            premise="late_cosine_by_sinks",
            deciding=False,
        ),
        Effect(
            "norm of what sinks write over that of other patches, last third",
            smallest="threshold",
            premise="late_sink_writes",
            direction=-1,
            bound=0.5,
            deciding=False,
        ),
    ),
    because=why_alike,
    change="Deeper or longer trained models, in which likeness may rise with depth.",
    notebook="head_redundancy",
    order=30,
)
