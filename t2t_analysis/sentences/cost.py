"""What models cost, in words. Weights play no part in it, so random ones get the same answers."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from .._show import code
from ..claims.base import Effect
from ..claims.evidence import cost_rows
from ..claims.ledger import claim_named, effect_verdict, ledger, summary
from ..measures.latency import machine_words
from ..measures.paper_costs import agreeing
from ..quantities import SMALLEST, listed, number, quantity
from ..results import Result
from .claims import effect_words
from .template import Facts, Models, kept

#: not in the ledger: times hold for one machine. The value is held against the ratio of multiply-accumulates.
_LONGER = Effect("takes longer than its multiply-accumulates say", "cost", deciding=False)
_COUNTS = {
    "parameters": "parameters",
    "macs_all": "multiply-accumulates, all products",
    "macs_linear": "multiply-accumulates, linear layers only",
}
#: whose costs the same tables put beside each other
_BESIDE = (
    ("Table 2: T2T-ViT-14", "Table 2: ViT-S/16"),
    ("Table 2: T2T-ViT-14", "Table 2: DeiT-small"),
    ("Table 3: T2T-ViT_t-14", "Table 2: ViT-S/16"),
)
_PASSES = {"inference": "a forward pass", "training": "a training step without optimiser"}


def cost_findings(printed: Result, counted: Result, timed: Result, step: Result, models: Models) -> list[str]:
    """Sentences on costs, first the verdict on the paper's claim.

    Parameters
    ----------
    printed
        Of `printed_costs`.
    counted
        Of `costs` for the models.
    timed, step
        Of `latencies`, of forward passes and of training steps.
    models
        Label -> model: the model in question, then the baseline.
    """
    facts = Facts([counted, timed, step], models)
    judged = _ledger()
    (claim,) = summary(judged).to_dict("records")
    verdict = f"**{str(claim['verdict']).capitalize()}** by the paper's models; those of this page are drawn"
    first, *rest = [effect_words(effect) for _, effect in judged[judged["deciding"]].iterrows()]
    return kept(
        f"{claim['statement']} {verdict}. {first}", f"Also asked of the paper's: {' '.join(rest)}",
        *(_count(facts, name) for name in ("parameters", "macs_all")),
        *(_time(facts, variant) for variant in _PASSES), _count(facts, "peak_training"),
        _halves(printed),
    )  # fmt: skip


def cost_conclusions(counted: Result, timed: Result, step: Result, models: Models) -> list[str]:
    """Whether counts foretell the clock, on which machine, and what would change the verdict; as `cost_findings`."""
    facts = Facts([counted, timed, step], models)
    foretold = [_against_counts(facts, variant) for variant in _PASSES]
    where = f"Timed on: {machine_words(timed.meta)}. Another machine has other ratios."
    return [*filter(None, foretold), where, f"What would change the verdict: {claim_named('cost').change}"]


def _ledger() -> pd.DataFrame:
    """The claim as the ledger has it: counts of the models that the paper's tables name."""
    evidence = Result("evidence", pd.DataFrame(list(cost_rows())), {"kind": "controlled"})
    return ledger(evidence, claims=[claim_named("cost")])


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"


def _count(facts: Facts, name: str) -> str:
    """A cost that was counted, which has no interval, and its share of the baseline's."""
    about = quantity(name)
    rows = {label: row for label in facts.labels if (row := facts.row(name, label)) is not None}
    each = listed(f"{about.number(row['value'])} in {code(label)}" for label, row in rows.items())
    values = [float(row["value"]) for row in rows.values()]
    share = f", {_percent(values[0] / values[1])} of it" if len(values) > 1 and values[1] else ""
    return f"{about.title}: {each}{share} (counted)." if rows else ""


def _largest_batch(facts: Facts, name: str, variant: str, label: str) -> pd.Series | None:
    rows = facts.rows(name, model=label, variant=variant).sort_values("at")
    if len(facts.labels) < 2:
        rows = rows.assign(null=None)  # of one model alone the null is the model itself
    return rows.iloc[-1] if len(rows) else None


def _time(facts: Facts, variant: str) -> str:
    """Time of a pass over that of the baseline, or by itself, for the largest batch."""
    name = "latency_ratio" if len(facts.labels) > 1 else "latency"
    row = _largest_batch(facts, name, variant, facts.labels[0])
    if row is None:
        return ""
    note = f"That is {_PASSES[variant]} of {int(row['at'])} images, median."
    return facts.of_rows(name, lambda label: _largest_batch(facts, name, variant, label), note=note)


def _against_counts(facts: Facts, variant: str) -> str:
    """Whether the clock says what the count says: the ratio of times against the ratio of counts."""
    if len(facts.labels) < 2:
        return ""
    first, second = facts.labels[:2]
    row = _largest_batch(facts, "latency_ratio", variant, first)
    ours, theirs = facts.row("macs_all", first), facts.row("macs_all", second)
    if row is None or ours is None or theirs is None:
        return ""
    macs = float(ours["value"] / theirs["value"])
    verdict = effect_verdict(replace(_LONGER, bound=macs), "pair", row).verdict
    what = _PASSES[variant]
    return (
        f"{what[:1].upper()}{what[1:]} of {code(first)} {_LONGER.words}: **{verdict}** on this machine. "
        f"{quantity('latency_ratio').interval(row)} times the time of {code(second)}, {number(macs)} times its "
        f"multiply-accumulates."
    )


def _values(printed: Result, name: str) -> pd.DataFrame:
    """Counted and printed numbers by line of a table, of one quantity."""
    rows = printed.frame[(printed.frame["quantity"] == name) & printed.frame["value"].notna()]
    return rows.set_index("place")[["value", "null"]].astype(float)


def _halves(printed: Result) -> str:
    """Shares of cost between lines of the tables, under each convention."""
    counts = {name: _values(printed, name)["value"] for name in _COUNTS}
    shares = []
    for first, second in _BESIDE:
        known = [_percent(c[first] / c[second]) for c in counts.values() if first in c and second in c]
        ours, theirs = (line.split(": ")[1] for line in (first, second))
        if known:
            shares.append(f"{ours} has {listed(known)} of {theirs}")
    return f"By the tables' models, {'; '.join(_COUNTS.values())}: {'; '.join(shares)}." if shares else ""


def printed_finding(printed: Result) -> str:
    """How often the print is right, by quantity; ``printed`` is of `printed_costs`."""
    agree = []
    for name, words in _COUNTS.items():
        rows = _values(printed, name).dropna()
        agree.append(f"{int(agreeing(rows, SMALLEST['cost']).sum())} of {len(rows)} lines ({words})")
    skipped = f" {len(printed.notes)} lines have no code to count." if printed.notes else ""
    within = f"to {number(100 * SMALLEST['cost'], 0)} % or their last digit"
    return f"Printed numbers agree with counts, {within}, on {listed(agree)}.{skipped}"
