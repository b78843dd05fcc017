"""What a claim is: words, and the effects that decide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UnknownNameError
from .rule import SMALLEST

__all__ = ["Claim", "Effect"]


@dataclass(frozen=True)
class Effect:
    """One number that speaks for or against a claim.

    Attributes
    ----------
    words : what is compared, as a table says it.
    controlled : name of the row in the evidence of the study's runs; a contrast of accuracies ("tokeniser_effect"), the
        same of a headline ("tokeniser_effect:edge_own"), or any other row of it. Empty if the study cannot say.
    pair : name of the row in the evidence of two given models, a headline. Empty if two models cannot say.
    direction : +1 or -1, what the claim says of the sign; 0 if it says that there is no effect.
    smallest : key of ``rule.SMALLEST``.
    deciding : whether the verdict rests on it; others are shown beside it.

    Raises ``UnknownNameError`` for a smallest effect that the rule does not know.
    """

    words: str
    smallest: str
    controlled: str = ""
    pair: str = ""
    direction: Literal[-1, 0, 1] = 1
    deciding: bool = True

    def __post_init__(self) -> None:
        if self.smallest not in SMALLEST:
            raise UnknownNameError("smallest effect", self.smallest, list(SMALLEST))


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    Attributes
    ----------
    name : short and stable, as it stands in tables.
    statement : the claim in one sentence, as its authors would sign it.
    said : where.
    effects : what it rests on; every deciding one must point the same way.
    change : what would change the verdict.
    notebook : the notebook whose figures show it.
    order : place in the ledger.
    """

    name: str
    statement: str
    said: str
    effects: tuple[Effect, ...]
    change: str
    notebook: str
    order: int = 100
