"""t2t-helps, Table 7: +2.0 points by its printed entries."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="t2t-helps",
    statement="The T2T module alone raises accuracy.",
    said="Table 7: +2.0 points by its printed entries",
    effects=(
        Effect(
            "top-1 accuracy, over both backbones",
            smallest="accuracy",
            controlled="tokeniser_effect",
        ),
        Effect(
            "top-1 accuracy, deep backbone",
            smallest="accuracy",
            controlled="tokeniser_effect_deep",
            deciding=False,
        ),
        Effect(
            "top-1 accuracy, wide backbone",
            smallest="accuracy",
            controlled="tokeniser_effect_wide",
            deciding=False,
        ),
    ),
    change="Other data: these are textures, in which local structure carries the label.",
    notebook="training_from_scratch",
    order=60,
)
