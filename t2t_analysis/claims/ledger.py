"""The ledger: evidence in, verdicts out, by one rule (`rule.judge`), for every kind of evidence by itself.

The number of effects that are judged together is known before anything is measured: all deciding effects that evidence
of this kind could speak to. So an effect gets the same verdict wherever it is shown, in the ledger or alone on the page
of its notebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from .. import stats
from ..results import Result
from ..training.design import horizons_of
from .base import KINDS, Claim, Effect, Kind
from .likeness import WHY
from .rule import NOT_TESTED, SMALLEST, VERDICTS, Judgement, Row, judge, number_in, overall

_CANNOT = {
    "premise": "one model alone cannot say",
    "controlled": "the study's runs cannot say",
    "pair": "two models cannot say: it takes training runs",
}
_NUMBERS = ("value", "low", "high", "se", "df", "null", "p")


@cache
def all_claims() -> tuple[Claim, ...]:
    """Every claim in ``entries/``, in the order of the ledger."""
    found = [Claim.read(path) for path in (Path(__file__).parent / "entries").glob("*.toml")]
    return tuple(sorted(found, key=lambda claim: (claim.order, claim.name)))


def claim_named(name: str) -> Claim:
    """The claim of a name; raises ``UnknownNameError`` for any other."""
    from ..errors import UnknownNameError

    known = {claim.name: claim for claim in all_claims()}
    if name not in known:
        raise UnknownNameError("claim", name, known)
    return known[name]


def family(kind: Kind) -> int:
    """How many effects evidence of a kind is asked for at once: the deciding ones of all claims."""
    return sum(effect.deciding for claim in all_claims() for effect in claim.of_kind(kind))


def effect_verdict(effect: Effect, kind: Kind, row: Row) -> Judgement:
    """Judge one effect as the ledger does; ``row`` has the columns of a result.

    Random weights get no verdict. An effect that decides nothing is judged by itself.
    """
    if "UNTRAINED" in str(row.get("weights")):
        return Judgement(NOT_TESTED, reason="random weights")
    less: dict[str, Any] = dict(row)
    less |= {name: number_in(row, name) - effect.bound for name in ("value", "low", "high")}
    size = family(kind) if effect.deciding else 1
    found = judge(less, direction=effect.direction, smallest=SMALLEST[effect.smallest], family=size)
    return replace(found, low=found.low + effect.bound, high=found.high + effect.bound)


def ledger(evidence: Result, kind: Kind | None = None, claims: Iterable[Claim] | None = None) -> pd.DataFrame:
    """One row per effect of every claim.

    Parameters
    ----------
    evidence
        Of `controlled_evidence`, `pair_evidence`, `seed_evidence` or `premise_evidence`.
    kind
        The names by which effects ask for their rows; by default the evidence's own, else those of the study.
    claims
        Instead of all.

    Returns
    -------
    DataFrame
        Columns claim, statement, said, kind, basis (what the verdict rests on), effect, deciding, compared, value, low,
        high (95 %), low_all, high_all (for all effects at once), null, bound, p (of the minimal-effect null), p_holm
        (corrected over the deciding effects), p_same (of equivalence), n, unit, direction, smallest, quantity (see
        `quantities`), verdict, reason (what an unsettled effect lacks), because (why the premise holds or does not,
        where the claim asks), notebook, change.
    """
    kind = kind or evidence.meta.get("kind", "controlled")
    rows, short = [], _too_short(evidence, kind)
    for claim in all_claims() if claims is None else claims:
        effects = claim.of_kind(kind) or (Effect("", next(iter(SMALLEST))),)
        own = [_about(claim, effect, kind) | _judged(evidence, effect, kind, short) for effect in effects]
        verdicts = {str(row["quantity"]): str(row["verdict"]) for row in own}
        because = WHY[claim.because](verdicts) if claim.because and kind == "premise" else ""
        rows += [row | {"because": because} for row in own]
    frame = pd.DataFrame(rows)
    counted = frame["deciding"] & frame["p"].notna()
    frame["p_holm"] = math.nan
    frame.loc[counted, "p_holm"] = stats.holm(frame.loc[counted, "p"].to_numpy(dtype=float))
    return frame


def _about(claim: Claim, effect: Effect, kind: Kind) -> dict[str, Any]:
    return {
        "claim": claim.name, "statement": claim.premise if kind == "premise" and claim.premise else claim.statement,
        "said": claim.said, "kind": kind, "basis": KINDS[kind], "effect": effect.words,
        "deciding": effect.deciding, "direction": effect.direction, "smallest": SMALLEST[effect.smallest],
        "bound": effect.bound, "quantity": _quantity(effect, kind), "notebook": claim.notebook, "change": claim.change,
    }  # fmt: skip


def _quantity(effect: Effect, kind: Kind) -> str:
    """Name by which the value is described and written."""
    name = str(getattr(effect, kind))
    return f"{name}_difference" if kind == "pair" and not name.startswith("cost:") else name


def _too_short(evidence: Result, kind: Kind) -> str:
    """Why runs of this length are not judged; empty for those of the last length of the design."""
    if kind != "controlled" or "epochs" not in evidence.meta:
        return ""
    epochs, last = evidence.meta["epochs"], horizons_of(evidence.meta["data"])[-1]
    return f"runs of {epochs} epochs, and those of {last} are judged" * (epochs < last)


def _judged(evidence: Result, effect: Effect, kind: Kind, short: str = "") -> dict[str, Any]:
    """Numbers of the effect's row in the evidence, and the verdict; or why there are none."""
    row = _found(evidence, getattr(effect, kind))
    if isinstance(row, str):
        empty = dict.fromkeys(_NUMBERS, math.nan) | {"n": 0, "unit": "", "compared": "", "weights": ""}
        why = row.partition(" not estimated: ")[2] or row  # which effect it is the row says already
        return empty | _columns(Judgement(NOT_TESTED, reason=why if effect.words else _CANNOT[kind]))
    found = effect_verdict(effect, kind, row)
    sides = [str(row[name]) for name in ("model", "model_b") if pd.notna(row[name])]
    unit = "" if pd.isna(row["unit"]) else str(row["unit"])
    n = 0 if pd.isna(row["n"]) else int(row["n"])
    if found.reason == "no interval":
        said = str(row["interval"])
        few = f"no interval from {n} {unit}{'s' * (n != 1)}"
        found = replace(found, reason=said[6:] if said.startswith("none: ") else few)
    if short and unit in ("run", "seed"):
        found = Judgement(NOT_TESTED, reason=short)
    joined = " over " if unit == "model" else " minus "  # costs are ratios
    return {name: number_in(row, name) for name in _NUMBERS} | _columns(found) | {
        "n": n, "unit": unit,
        "compared": joined.join(sides), "weights": str(row["weights"]),
    }  # fmt: skip


def _columns(found: Judgement) -> dict[str, Any]:
    said = asdict(found)
    return said | {"low_all": said.pop("low"), "high_all": said.pop("high")}


def _found(evidence: Result, quantity: str) -> pd.Series | str:
    """The one row of a name, or why there is none."""
    rows = evidence.frame[evidence.frame["quantity"] == quantity]
    if len(rows) == 1 and pd.notna(rows.iloc[0]["value"]):
        return rows.iloc[0]
    contrast, _, of = quantity.partition(":")
    starts = [f"{contrast} of {of} not", f"{contrast} not"]
    starts += ["random weights", "no runs", "both models split alike"]
    said = [note for start in starts for note in evidence.notes if note.startswith(start)]
    said += [note for note in evidence.notes if of and f" of {of} not" in note]  # of another contrast of it
    return said[0] if said else "no such number in the evidence"


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per claim: its verdict, and how many of its deciding effects say what."""
    rows = []
    for claim, effects in frame.groupby("claim", sort=False):
        deciding = effects[effects["deciding"]]
        counts = deciding["verdict"].value_counts()
        votes = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)
        told = ["statement", "said", "kind", "basis", "because", "notebook", "change"]
        first = effects.iloc[0][told].to_dict()
        rows.append({"claim": claim, "verdict": overall(list(deciding["verdict"])), "votes": votes} | first)
    return pd.DataFrame(rows)
