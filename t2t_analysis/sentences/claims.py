"""The ledger in words and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..claims.ledger import claim_named, overall, summary
from ..claims.likeness import OPEN as NOT_CLEAR
from ..claims.rule import NOT_TESTABLE, NOT_TESTED, OPEN, SMALLEST, VERDICTS
from ..quantities import listed, plural, quantity


def claim_findings(frame: pd.DataFrame, about: str) -> list[str]:
    """Which claims got which verdict; the numbers that decide are in `effects_table`.

    Parameters
    ----------
    frame
        Of `claims.ledger.ledger`.
    about
        What the verdicts hold for, in words.
    """
    verdicts = summary(frame[frame["effect"] != ""])  # of the others this kind of evidence cannot speak
    rest = frame["claim"].nunique() - len(verdicts)
    other = f" To {rest} others it cannot speak." if rest else ""
    of = {str(verdict): rows for verdict, rows in verdicts.groupby("verdict")}
    parts = [_which(verdict, of[verdict]) for verdict in VERDICTS if verdict in of]
    return [f"{len(verdicts)} claims. {' '.join(parts)} This rests on {about}.{other}"]


def _which(verdict: str, rows: pd.DataFrame) -> str:
    """The claims of one verdict: in words where it settles them, else by name."""
    if verdict in (OPEN, NOT_TESTABLE, NOT_TESTED):
        return f"**{verdict.capitalize()}**: {listed(rows['claim'])}."
    each = [f"{row['statement'].removesuffix('.')} ({row['claim']})" for _, row in rows.iterrows()]
    return f"**{verdict.capitalize()}**: {'; '.join(each)}."


def _rows(frame: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in frame.iterrows()]


def effect_words(row: pd.Series, judged: bool = True) -> str:
    """One effect of a ledger: what is compared, value with interval, what it is held against, verdict if not said."""
    words = str(row["effect"])
    words = words[0].upper() + words[1:]
    if row["verdict"] == "not tested":
        return f"{words}: not tested, {row['reason']}."
    both = " minus " in row["compared"] or " over " in row["compared"]
    compared = f", {row['compared']}" if both else ""
    end = ", ".join(filter(None, (row["verdict"] * judged, row["reason"])))
    n = _units(row) if row["unit"] == "model" else f"n = {_units(row)}"
    return f"{words}{compared}: {_shown(row)} ({n}; {_against(row)}){': ' * bool(end)}{end}."


def _against(row: pd.Series) -> str:
    """What the effect is held against."""
    about = quantity(row["quantity"])
    if row["bound"]:
        return f"bound {about.number(row['bound'])}"
    return f"smallest that counts {about.number(row['smallest'])}"


def _units(row: pd.Series) -> str:
    return "counted" if row["unit"] == "model" else plural(row["n"], row["unit"])


def _p(p: float) -> str:
    return "none" if pd.isna(p) else "<\xa00.001" if p < 0.001 else f"{p:.3f}"


def decisive(frame: pd.DataFrame) -> pd.Series:
    """Which effects of a ledger were tested and decide a verdict."""
    return frame["deciding"] & (frame["verdict"] != "not tested")


def effects_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Effects with their numbers, for the eye: a row an effect, verdicts that decide nothing in brackets."""
    return pd.DataFrame([_cells(row) for _, row in frame.iterrows() if row["effect"]])


def _cells(row: pd.Series) -> dict[str, str]:
    """An effect of a ledger as a line of a table."""
    said = row["verdict"] if row["verdict"] == NOT_TESTABLE else _with_reason(row)  # the rule has its reason
    return {
        "claim": row["claim"],
        "effect": f"{row['effect']}{': ' * bool(row['compared'])}{row['compared']}",
        "verdict": said if row["deciding"] else f"({said})",
        "claimed": _claimed(row),
        "value [95 %], n": "" if pd.isna(row["value"]) else f"{_shown(row)}, {_units(row)}",
        "p; by Holm; of equality": ""
        if pd.isna(row["p"])
        else "; ".join(map(_p, row[["p", "p_holm", "p_same"]])),
    }


def verdict_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a claim that this kind of evidence can speak to: what it says, its verdict, and by which number first."""
    rows = verdict_rows(frame[frame["effect"] != ""])
    return pd.DataFrame(
        [[row[name] for name in ("claim", "statement", "verdict")] + [_first(row)] for row in rows],
        columns=["claim", "what it says", "verdict", "first number that decides"],
    )


def _first(row: Mapping[str, Any]) -> str:
    """The first number that decides, and why the verdict is another one; or what is lacking."""
    return "; ".join(filter(None, (row["size"], row["why"])))


def _with_reason(row: pd.Series) -> str:
    return f"{row['verdict']}{': ' * bool(row['reason'])}{row['reason']}"


def _claimed(row: pd.Series) -> str:
    """What the claim says of the number, in terms of the smallest effect that counts."""
    number = quantity(row["quantity"]).number
    if not row["direction"]:
        return f"within ±{number(row['smallest'])}"
    return f"{'above' if row['direction'] > 0 else 'below'} {number(row['bound'] + row['direction'] * row['smallest'])}"


def seed_table(ledgers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Deciding effects between seeds of one cell, a column a cell: difference with interval, and verdict."""
    columns = {}
    for cell, frame in ledgers.items():
        rows = frame[decisive(frame)]
        names = [f"{row['claim']}: {row['effect']}" for row in _rows(rows)]
        columns[cell] = pd.Series([f"{_shown(row)}, {row['verdict']}" for row in _rows(rows)], index=names)
    return pd.DataFrame(columns).rename_axis("effect").reset_index()


def printed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What the paper's tables say to each claim, in points of accuracy."""
    rows = [(name, *said) for name in dict.fromkeys(frame["claim"]) for said in claim_named(name).printed]
    return pd.DataFrame(
        [(name, f"{points:+.1f}".replace("-", "−"), where) for name, points, where in rows],
        columns=["claim", "points", "where"],
    )


def _shown(row: pd.Series) -> str:
    about = quantity(row["quantity"])
    return about.number(row["value"]) if row["low"] == row["high"] else about.interval(row)


def verdict_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a claim for the index of the reports.

    Keys claim, statement, said, kind and basis of the evidence, verdict, size (the first deciding number in words),
    compared (what it is of), why (a reason that goes with the verdict, or what is lacking where there is no number),
    numbers (a line an effect, with its reason), notebook.
    """
    said = ["claim", "statement", "said", "kind", "basis", "verdict", "notebook"]
    return [
        {name: str(row[name]) for name in said}
        | _numbers(frame[(frame["claim"] == row["claim"]) & frame["deciding"]], row["votes"])
        for row in _rows(summary(frame))
    ]


def side_by_side(ledgers: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """One entry a claim, with what every kind of evidence says of it; never mixed.

    Parameters
    ----------
    ledgers
        What the evidence is about, in words -> its ledger. The first gives the order and the claim's own verdict.

    Returns
    -------
    list of dict
        As of `verdict_rows` for the first ledger, with ``evidence``: for each ledger that can speak to the claim a dict
        with about, kind, basis, statement, verdict, size, compared, why and numbers.
    """
    entries = [(about, {row["claim"]: row for row in verdict_rows(one)}) for about, one in ledgers.items()]
    spoken = {  # evidence that can speak to a claim at all
        name: [{"about": about} | rows[name] for about, rows in entries if rows.get(name, {}).get("numbers")]
        for name in entries[0][1]
    }
    return [row | {"evidence": spoken[name]} for name, row in entries[0][1].items()]


def side_by_side_tables(rows: list[dict[str, Any]], besides: str) -> dict[str, pd.DataFrame]:
    """What each kind of evidence says, by what it rests on: a line for what each claim was asked of.

    A line holds the verdict and the first number that decides it. Evidence about ``besides`` has a table of its own.
    """
    said = [row | one for row in rows for one in row["evidence"] if one["about"] != besides]
    tables: dict[str, pd.DataFrame] = {}
    for basis in dict.fromkeys(str(one["basis"]) for one in said):
        own = pd.DataFrame([one for one in said if one["basis"] == basis])
        # once, above those that it was asked of
        asked = own["statement"].where(~own["statement"].duplicated(), "")
        tables[basis] = pd.DataFrame({
            "claim": own["claim"], "what is asked": asked, "of": own["about"], "verdict": own["verdict"],
            "first number": own["size"],
        })  # fmt: skip
    return tables


def _numbers(effects: pd.DataFrame, votes: str) -> dict[str, Any]:
    """The deciding effects of a claim; why one was not tested is in the report itself."""
    rows = [row for row in _rows(effects) if row["effect"]]
    tested = [row for row in rows if row["verdict"] != "not tested"]
    reasons = list(dict.fromkeys(str(row["reason"]) for row in tested or _rows(effects)))
    if len({row["verdict"] for row in tested}) > 1:  # the first number alone would mislead
        reasons = [f"effects: {votes}"]
    elif len(reasons) > 1:
        reasons = [reasons[0], "" if tested else f"{len(reasons) - 1} more of the kind"]
    because = dict.fromkeys(str(row["because"]) for row in _rows(effects))
    why = [said for said in (*because, *reasons) if said not in ("", NOT_CLEAR, NOT_TESTED)]
    return {
        "size": f"{_shown(tested[0])}, {_units(tested[0])}" if tested else "",
        "compared": str(rows[0]["compared"]) if rows else "",
        "why": "; ".join(why),
        "numbers": [
            f"{row['effect']}: not tested"
            if row["verdict"] == "not tested"
            else f"{row['effect']}, {row['compared']}: {_shown(row)}, {_with_reason(row)}"
            for row in rows
        ],
    }


def rule_table() -> pd.DataFrame:
    """The smallest effects that count, as the rule has them."""
    each = [(name.replace("_", " "), f"{size:g}") for name, size in SMALLEST.items() if size]
    return pd.DataFrame(each, columns=["effect on", "smallest that counts"])


def seed_sentences(ledgers: dict[str, pd.DataFrame]) -> list[str]:
    """What the rule says when both sides are seeds of one cell, where every verdict is a false alarm.

    Parameters
    ----------
    ledgers
        Cell -> ledger of its `claims.evidence.seed_evidence`.
    """
    if not ledgers:
        return ["No cell of the study has four seeds: the rule was not tried on seeds of one architecture."]
    deciding = [frame[decisive(frame)] for frame in ledgers.values()]
    tested = [row for frame in deciding for row in _rows(frame)]
    alarms = [row for row in tested if row["verdict"] in ("supported", "contradicted")]
    claims = [overall(list(group["verdict"])) for frame in deciding for _, group in frame.groupby("claim")]
    false = sum(verdict in ("supported", "contradicted") for verdict in claims)
    named = f": {listed(dict.fromkeys(str(row['claim']) for row in alarms))}" if alarms else ""
    care = "So the rule raises false alarms: read a verdict of that kind with care."
    judgement = care if false else "No claim raises a false alarm."
    return [
        f"With seeds of one architecture on both sides, {len(alarms)} of {len(tested)} deciding effects and {false} of "
        f"{len(claims)} claims came out supported or contradicted, over {len(ledgers)} cells{named}. {judgement}"
    ]


def what_would_change(frame: pd.DataFrame) -> pd.DataFrame:
    """For every claim what would change its verdict."""
    return summary(frame)[["claim", "verdict", "change"]].rename(columns={"change": "what would change it"})
