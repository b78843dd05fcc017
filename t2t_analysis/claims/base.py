"""What a claim is: words, and the effects that decide it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._repr import Shown
from ..errors import T2TError, UnknownNameError
from ..training.effects import printed
from .likeness import WHY
from .rule import SMALLEST

#: Where evidence comes from; never mixed. The words say what a verdict from it rests on.
KINDS = {
    "premise": "one model alone, over images",
    "controlled": "models that differ in one factor, over training seeds",
    "pair": "two models as they are, over images",
}
Kind = Literal["premise", "controlled", "pair"]


@dataclass(frozen=True)
class Effect:
    """One number that speaks for or against a claim.

    Parameters
    ----------
    words
        What is compared, as a table says it.
    smallest
        Key of ``quantities.SMALLEST``.
    controlled
        Name of its row in the evidence of the study's runs: a contrast of accuracies ("tokeniser_effect"), the same of
        a headline ("tokeniser_effect:edge_own"), or any other row of it. Empty if the study cannot say.
    pair
        Name of its row in the evidence of two given models, a headline. Empty if two models cannot say.
    premise
        Name of its row in the evidence of one model, see ``premise.ENDPOINTS``. Empty if one model cannot say.
    direction
        +1 or -1, what the claim says of the sign; 0 if it says that there is no effect.
    bound
        What the value is measured from, for effects that ask whether it lies above or below a bound.
    deciding
        Whether the verdict rests on it; others are shown beside it.

    Raises
    ------
    UnknownNameError
        For a smallest effect that the rule does not know.
    """

    words: str
    smallest: str
    controlled: str = ""
    pair: str = ""
    premise: str = ""
    direction: Literal[-1, 0, 1] = 1
    bound: float = 0.0
    deciding: bool = True

    def __post_init__(self) -> None:
        if self.smallest not in SMALLEST:
            raise UnknownNameError("smallest effect", self.smallest, list(SMALLEST))


@dataclass(frozen=True, repr=False)
class Claim(Shown):
    """One entry of the ledger.

    Parameters
    ----------
    name
        Short and stable, as it stands in tables.
    statement
        The claim in one sentence, as its authors would sign it.
    said
        Where.
    effects
        What it rests on; every deciding one of a kind of evidence must point the same way.
    change
        What would change the verdict.
    notebook
        The notebook whose figures show it.
    premise
        What it takes for granted of a single model, in one sentence; empty if nothing.
    because
        Key of `likeness.WHY`: says in a few words why a single model is as the premise has it, or is not, from the
        verdicts on the premise's effects. Empty where the claim does not ask why.
    order
        Place in the ledger.
    """

    name: str
    statement: str
    said: str
    effects: tuple[Effect, ...]
    change: str
    notebook: str
    premise: str = ""
    because: str = ""
    order: int = 100

    def __post_init__(self) -> None:
        if self.because not in ("", *WHY):
            raise UnknownNameError("because", self.because, WHY)

    @classmethod
    def read(cls, path: str | Path) -> Claim:
        """The claim in a TOML file, which has the names above; each effect is a table ``[[effects]]``.

        Raises
        ------
        T2TError
            With the file and what is wrong in it: no TOML, a name that is unknown or missing.
        """
        try:
            said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            effects = tuple(Effect(**about) for about in said.pop("effects", ()))
            return cls(effects=effects, **said)
        except (tomllib.TOMLDecodeError, TypeError, UnknownNameError) as error:
            raise T2TError(f"{path}: {error}") from error

    @property
    def printed(self) -> list[tuple[float, str]]:
        """What the paper's tables say to it, in points of accuracy, and where."""
        rows = [row for row in printed() if row["claim"] == self.name]
        return [(100 * float(row["difference"]), row["where"]) for row in rows]

    def _line(self) -> str:
        return f"{self.name}: {self.statement}"

    def _facts(self) -> dict[str, Any]:
        return {
            "said": self.said, "rests on": "; ".join(effect.words for effect in self.effects), "change": self.change,
            "premise": self.premise, "notebook": self.notebook,
        }  # fmt: skip

    def of_kind(self, kind: Kind) -> tuple[Effect, ...]:
        """Effects that evidence of a kind can speak to."""
        return tuple(effect for effect in self.effects if getattr(effect, kind))
