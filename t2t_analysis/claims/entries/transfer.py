"""transfer, Table 5."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="transfer",
    statement="The features of T2T-ViT transfer better than those of ViT.",
    said="Table 5",
    effects=(
        Effect(
            "accuracy of a linear probe on digits, pretrained on the crops",
            smallest="accuracy",
            controlled="transfer_probe:tokeniser_effect",
        ),
        Effect(
            "accuracy after fine-tuning on digits, pretrained on the crops",
            smallest="accuracy",
            controlled="transfer_finetune:tokeniser_effect",
        ),
    ),
    change="Pretraining on natural images; a target that is harder than digits.",
    notebook="training_from_scratch",
    order=120,
)
