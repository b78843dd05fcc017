"""The ledger in words and as tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..claims.ledger import VERDICTS, overall, summary
from ..claims.rule import SMALLEST
from .words import interval, listed, number

__all__ = [
    "claim_findings",
    "effects_table",
    "rule_sentences",
    "seed_sentences",
    "seed_table",
    "verdict_rows",
    "what_would_change",
]

_SAID = {
    "supported": "supported",
    "contradicted": "contradicted",
    "null": "null, that is, too small an effect to matter",
    "inconclusive": "inconclusive",
    "not tested": "not tested",
}


def claim_findings(frame: pd.DataFrame, about: str) -> list[str]:
    """How many claims got which verdict, then every claim that got one, with its deciding numbers.

    Parameters
    ----------
    frame : of `claims.ledger.ledger`.
    about : what the verdicts hold for, in words.
    """
    verdicts = summary(frame)
    counts = verdicts["verdict"].value_counts()
    parts = [f"{counts[v]} {_SAID[v]} ({listed(_names(verdicts, v))})" for v in VERDICTS if v in counts]
    first = f"Of {len(verdicts)} claims {'; '.join(parts)}. This holds for {about}."
    return [first, *(_claim(row, frame) for _, row in verdicts.iterrows() if row["verdict"] != "not tested")]


def _names(verdicts: pd.DataFrame, verdict: str) -> list[str]:
    return [str(name) for name in verdicts.loc[verdicts["verdict"] == verdict, "claim"]]


def _claim(row: pd.Series, frame: pd.DataFrame) -> str:
    effects = frame[(frame["claim"] == row["claim"]) & frame["deciding"]]
    disagree = " Its measures disagree." if {"supported", "contradicted"} <= set(effects["verdict"]) else ""
    return f"**{row['claim']}**: {row['verdict']}. {' '.join(map(_effect, _rows(effects)))}{disagree}"


def _rows(frame: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in frame.iterrows()]


def _effect(row: pd.Series) -> str:
    words = str(row["effect"])
    words = words[0].upper() + words[1:]
    if row["verdict"] == "not tested":
        return f"{words}: not tested, {row['reason']}."
    counted = (
        "counted" if pd.isna(row["p"]) else f"p {_p(row['p'])}, corrected {_p(row['p_holm'])}, {_units(row)}"
    )
    return (
        f"{words}, {row['compared']}: {_shown(row)} ({counted}; smallest effect that counts {row['smallest']:g}): "
        f"{row['verdict']}."
    )


def _units(row: pd.Series) -> str:
    return f"n = {row['n']} {row['unit']}s"


def _p(p: float) -> str:
    return "none" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def effects_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Every effect with its numbers, for the eye: one row an effect, verdicts that decide nothing in brackets."""
    return pd.DataFrame(
        {
            "claim": frame["claim"],
            "effect": [
                f"{row['effect']}{': ' * bool(row['compared'])}{row['compared']}" for row in _rows(frame)
            ],
            "claimed": [_claimed(row) for row in _rows(frame)],
            "value [95 %]": ["" if pd.isna(row["value"]) else _shown(row) for row in _rows(frame)],
            "null": [_number(x) for x in frame["null"]],
            "p (Holm)": [_both(row) for row in _rows(frame)],
            "n": [f"{n} {unit}s" if n else "" for n, unit in zip(frame["n"], frame["unit"], strict=True)],
            "verdict": [
                _with_reason(row) if row["deciding"] else f"({_with_reason(row)})" for row in _rows(frame)
            ],
        }
    )


def _claimed(row: pd.Series) -> str:
    """What the claim says of the number, in terms of the smallest effect that counts."""
    smallest = f"{row['smallest']:g}"
    return {1: f"above {smallest}", -1: f"below −{smallest}", 0: f"within ±{smallest}"}[int(row["direction"])]


def _both(row: pd.Series) -> str:
    if pd.isna(row["p"]):
        return ""
    return _p(row["p"]) if pd.isna(row["p_holm"]) else f"{_p(row['p'])} ({_p(row['p_holm'])})"


def seed_table(ledgers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Deciding effects between seeds of one cell, a column a cell: difference with interval, and verdict."""
    columns = {}
    for cell, frame in ledgers.items():
        rows = frame[frame["deciding"] & (frame["verdict"] != "not tested")]
        names = [f"{row['claim']}: {row['effect']}" for row in _rows(rows)]
        columns[cell] = pd.Series([f"{_shown(row)}, {row['verdict']}" for row in _rows(rows)], index=names)
    return pd.DataFrame(columns).rename_axis("effect").reset_index()


def _shown(row: pd.Series) -> str:
    return number(row["value"]) if row["low"] == row["high"] else interval(row)


def _number(x: float) -> str:
    return "" if pd.isna(x) else number(x)


def _with_reason(row: pd.Series) -> str:
    return f"{row['verdict']}: {row['reason']}" if row["reason"] else str(row["verdict"])


def verdict_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a claim for the index of the reports: statement, verdict, numbers, notebook."""
    return [
        {
            "claim": str(row["claim"]),
            "statement": str(row["statement"]),
            "said": str(row["said"]),
            "verdict": str(row["verdict"]),
            "numbers": _numbers(frame, str(row["claim"])),
            "notebook": str(row["notebook"]),
        }
        for row in _rows(summary(frame))
    ]


def _numbers(frame: pd.DataFrame, claim: str) -> list[str]:
    """The deciding effects of a claim, a line each; why one was not tested is in the report itself."""
    effects = frame[(frame["claim"] == claim) & frame["deciding"]]
    return [
        f"{row['effect']}: not tested"
        if row["verdict"] == "not tested"
        else f"{row['effect']}, {row['compared']}: {_shown(row)}, {row['verdict']}"
        for row in _rows(effects)
    ]


def rule_sentences() -> list[str]:
    """The smallest effects that count, as the rule has them."""
    each = ", ".join(f"{name.replace('_', ' ')} {size:g}" for name, size in SMALLEST.items())
    return [f"The smallest effects that count, fixed before the numbers were seen: {each}."]


def seed_sentences(ledgers: dict[str, pd.DataFrame]) -> list[str]:
    """What the rule says when both sides are seeds of one cell, where every verdict is a false alarm.

    Parameters
    ----------
    ledgers : cell -> ledger of its `claims.evidence.seed_evidence`.
    """
    if not ledgers:
        return [
            "No cell of the study has four seeds, so the rule was not tried on seeds of one architecture."
        ]
    deciding = [frame[frame["deciding"] & (frame["verdict"] != "not tested")] for frame in ledgers.values()]
    tested = [row for frame in deciding for row in _rows(frame)]
    alarms = [row for row in tested if row["verdict"] in ("supported", "contradicted")]
    claims = [overall(list(group["verdict"])) for frame in deciding for _, group in frame.groupby("claim")]
    false = sum(verdict in ("supported", "contradicted") for verdict in claims)
    named = f": {listed(dict.fromkeys(str(row['claim']) for row in alarms))}" if alarms else ""
    judgement = (
        "So the rule raises false alarms: read a verdict of that kind with care."
        if false
        else "No claim raises a false alarm."
    )
    return [
        f"With seeds of one architecture on both sides, {len(alarms)} of {len(tested)} deciding effects and {false} of "
        f"{len(claims)} claims came out supported or contradicted, over {len(ledgers)} cells{named}. {judgement}"
    ]


def what_would_change(frame: pd.DataFrame) -> list[str]:
    """For every claim what would change its verdict."""
    return [f"**{row['claim']}** ({row['verdict']}): {row['change']}" for row in _rows(summary(frame))]
