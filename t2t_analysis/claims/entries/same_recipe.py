"""same-recipe, objection of readers."""

from ..base import Claim, Effect, Printed

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="same-recipe",
    statement="The gain over ViT is the architecture's, not the recipe's.",
    said="objection of readers",
    effects=(
        Effect("top-1 accuracy under one recipe", smallest="accuracy", controlled="t2t_minus_vit"),
        Effect(
            "under AdamW, the paper's optimiser, in place of Muon",
            smallest="accuracy",
            controlled="t2t_minus_vit_adamw",
            deciding=False,
        ),
    ),
    change="A recipe tuned for each side with the same budget, or another length of training.",
    notebook="training_from_scratch",
    printed=(
        Printed(3.4, "Table 2: T2T-ViT-14 81.5, ViT-S/16 78.1, each under its own recipe"),
        Printed(1.6, "Table 2: T2T-ViT-14 81.5, DeiT-small 79.9, a stronger recipe for ViT"),
    ),
    order=110,
)
