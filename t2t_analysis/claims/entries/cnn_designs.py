"""cnn-designs, Table 6."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="cnn-designs",
    statement=(
        "Squeeze-and-excitation helps a little, dense connections and ghost blocks hurt, more "
        "heads are neutral."
    ),
    said="Table 6",
    effects=(
        Effect(
            "top-1 accuracy, squeeze-and-excitation",
            smallest="accuracy",
            controlled="se_effect_performer",
        ),
        Effect(
            "top-1 accuracy, dense connections",
            smallest="accuracy",
            controlled="dense_effect_performer",
            direction=-1,
        ),
        Effect(
            "top-1 accuracy, ghost blocks",
            smallest="accuracy",
            controlled="ghost_effect_performer",
            direction=-1,
        ),
        Effect(
            "top-1 accuracy, twice the heads (ResNeXt)",
            smallest="accuracy",
            controlled="resnext_effect_performer",
            direction=0,
        ),
    ),
    change="More seeds: neutrality to within half a point needs a narrow interval.",
    notebook="training_from_scratch",
    order=90,
)
