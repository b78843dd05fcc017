"""deep-narrow, section 3.2, Table 7."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="deep-narrow",
    statement="A deep and narrow backbone has richer features than a shallow and wide one of the same size.",
    said="section 3.2, Table 7",
    effects=(
        Effect(
            "top-1 accuracy",
            smallest="backbone_accuracy",
            controlled="backbone_effect",
        ),
        Effect(
            "effective rank over its Gaussian null, image level",
            smallest="similarity",
            controlled="backbone_effect:rank_pooled",
        ),
        Effect(
            "centred cosine of heads, change over depth",
            smallest="similarity",
            controlled="backbone_effect:head_cosine_change",
            direction=-1,
        ),
    ),
    change="Longer training: deep networks may start slower and pass the shallow ones later.",
    notebook="training_from_scratch",
    order=50,
)
