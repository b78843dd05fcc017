"""similarity-is-redundancy, taken for granted by readers."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="similarity-is-redundancy",
    statement="A head that resembles another one of its layer can be removed at little loss.",
    said="taken for granted where heads are called redundant because they are alike",
    premise="A head of this model that resembles another one of its layer can be removed at little loss.",
    effects=(
        Effect(
            "rank correlation, within layers, of a head's likeness with the loss of removing it",
            smallest="rank_correlation",
            controlled="mean:similar_is_redundant",
            premise="similar_is_redundant",
            direction=-1,
        ),
    ),
    change=(
        "More heads per layer: with four, a rank within a layer says little; removing sets of "
        "heads in place of single ones."
    ),
    notebook="head_ablation",
    order=40,
)
