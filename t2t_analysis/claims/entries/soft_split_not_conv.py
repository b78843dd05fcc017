"""soft-split-not-conv, Table 7."""

from ..base import Claim, Effect, Printed

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="soft-split-not-conv",
    statement="A soft split with attention beats plain convolutions.",
    said="Table 7",
    effects=(
        Effect(
            "top-1 accuracy, over both backbones",
            smallest="convolution_accuracy",
            controlled="performer_minus_convolution",
        ),
        Effect(
            "top-1 accuracy, deep backbone",
            smallest="convolution_accuracy",
            controlled="performer_minus_convolution_deep",
            deciding=False,
        ),
    ),
    change="More seeds, if the interval reaches across; convolutions with a norm and an activation; other data.",
    notebook="training_from_scratch",
    printed=(
        Printed(0.7, "Table 7: T2T-ViT-14 81.5, with three convolutions, and nothing between them, 80.8"),
    ),
    order=70,
)
