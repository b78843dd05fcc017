"""soft-split-not-conv, Table 7: +0.7 points."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="soft-split-not-conv",
    statement="A soft split with attention beats plain convolutions.",
    said="Table 7: +0.7 points",
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
    change="More seeds, if the interval reaches across; other data otherwise.",
    notebook="training_from_scratch",
    order=70,
)
