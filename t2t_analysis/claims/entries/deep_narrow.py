"""deep-narrow, section 3.2, Tables 6 and 7."""

from ..base import Claim, Effect, Printed

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="deep-narrow",
    statement="A deep and narrow backbone has richer features than a shallow and wide one of the same size.",
    said="section 3.2, Tables 6 and 7",
    effects=(
        Effect("top-1 accuracy", smallest="backbone_accuracy", controlled="backbone_effect"),
        *(
            Effect(
                words + beside,
                smallest="similarity",
                controlled=f"{contrast}:{headline}",
                pair=headline if contrast == "t2t_minus_vit" else "",
            )
            for contrast, beside in (("backbone_effect", ""), ("t2t_minus_vit", ", T2T against ViT"))
            for headline, words in (
                ("rank_pooled", "effective rank over its Gaussian null, of images"),
                ("rank_tokens", "effective rank over its Gaussian null, of tokens"),
            )
        ),
    ),
    change="Longer training: deep networks may start slower and pass the shallow ones later.",
    notebook="training_from_scratch",
    printed=(
        Printed(2.7, "Table 7: T2T-ViT-14 81.5, d768-4 78.8"),
        Printed(
            3.6,
            "Table 6: T2T-ViT-14 81.5, T2T-ViT-Wide 77.9, where 3.4 is printed; the same network as d768-4",
        ),
        Printed(9.1, "Table 6: ViT-DN 79.0, ViT-SW 69.9"),
        Printed(0.9, "Table 6: ViT-DN 79.0, ViT-S/16 78.1; half the parameters"),
    ),
    order=50,
)
