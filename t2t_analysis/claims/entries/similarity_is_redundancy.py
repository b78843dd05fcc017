"""similarity-is-redundancy, assumed throughout."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="similarity-is-redundancy",
    statement="A head that resembles another one of its layer can be removed at little loss.",
    said="assumed throughout",
    effects=(
        Effect(
            "rank correlation, within layers, of a head's likeness with the loss of removing it",
            smallest="rank_correlation",
            controlled="hard:similar_is_redundant",
            pair="similar_is_redundant:baseline",
            direction=-1,
        ),
        Effect(
            "rank correlation, within layers, of a head's likeness with the loss of removing it",
            smallest="rank_correlation",
            controlled="performer:similar_is_redundant",
            pair="similar_is_redundant:model",
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
