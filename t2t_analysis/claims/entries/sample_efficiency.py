"""sample-efficiency, abstract."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="sample-efficiency",
    statement="The gap to ViT grows as the training data shrink.",
    said="abstract",
    effects=(
        Effect(
            "growth of the gap in top-1 accuracy per halving of the training images",
            smallest="accuracy",
            controlled="gap_growth_per_halving",
        ),
    ),
    change="Fractions of a larger set: here the number of steps stays the same while images repeat.",
    notebook="training_from_scratch",
    order=80,
)
