"""cnn-designs, Table 6."""

from ..base import Claim, Effect, Printed

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
            "top-1 accuracy, more heads (ResNeXt): 12 in place of 4, in the paper 32 in place of 6",
            smallest="accuracy",
            controlled="resnext_effect_performer",
            direction=0,
        ),
    ),
    change="More seeds: neutrality to within half a point needs a narrow interval.",
    notebook="training_from_scratch",
    printed=(
        Printed(0.1, "Table 6: T2T-ViT-SE 81.6, T2T-ViT-14 81.5"),
        Printed(-0.9, "Table 6: T2T-ViT-Dense 80.6, where 1.1 is printed"),
        Printed(-2.0, "Table 6: T2T-ViT-Ghost 79.5, fewer parameters"),
        Printed(0.0, "Table 6: T2T-ViT-ResNeXt 81.5"),
    ),
    order=90,
)
