"""What attribution maps are worth, in words: beside random orders, random weights and another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from .._show import code
from ..claims.base import Effect
from ..claims.ledger import effect_verdict
from ..claims.rule import CONTRADICTED, EXCLUDED, SAME, SUPPORTED
from ..measures.attribution import METHODS
from ..quantities import listed, quantity
from ..results import Result
from .template import Facts, kept

#: not in the ledger: the paper says nothing of attribution. The value is held against its null.
_RANKS = Effect("Maps rank first what the answer rests on", "threshold", deciding=False)
_OUTLIVES = Effect("Maps outlive the weights", "rank_correlation", deciding=False)
_AGREE = Effect("Two models look at the same pixels", "rank_correlation", deciding=False)
_FORGETS = (SAME, EXCLUDED, CONTRADICTED)


def attribution_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on the maps of each method, first whether to trust them.

    Parameters
    ----------
    results
        Of `check_attribution`.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    asked = [
        ("faithfulness", _RANKS, "Random orders of the pixels have 0."),
        ("spearman_abs", _OUTLIVES, "With all weights random; the null is maps of other images."),
    ]
    lines = [_line(facts, method, *question) for question in asked for method in METHODS]
    path = facts.line("completeness_error", note="The null is what maps of other images would miss.")
    worth = " ".join(attribution_conclusions(facts.results, models))
    return kept(worth, *lines, _agreement(facts), path)


def attribution_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Whether to trust each method in each model; arguments as for `attribution_findings`."""
    facts = Facts(results, models)
    if facts.untrained:
        return facts.no_verdict
    return [said for method in METHODS for said in _worth(facts, method)]


def _row(facts: Facts, name: str, method: str, label: str) -> pd.Series | None:
    """The number that decides: of a curve over randomised parts that with all of them."""
    rows = facts.rows(name, model=label, variant=method, model_b=None).sort_values("at")
    rows = rows[rows["null"].notna()]  # the original map beside itself has none
    return rows.iloc[-1] if len(rows) else None


def _verdict(effect: Effect, row: pd.Series) -> str:
    return effect_verdict(replace(effect, bound=float(row["null"])), "pair", row).verdict


def _line(facts: Facts, method: str, name: str, effect: Effect, note: str) -> str:
    """Verdicts and numbers of one method in all models; empty where it was not asked."""
    rows = {label: row for label in facts.labels if (row := _row(facts, name, method, label)) is not None}
    if not rows:
        return ""
    judged = "" if facts.untrained else ", ".join(
        f"**{_verdict(effect, row)}** for {code(label)}" for label, row in rows.items()
    )  # fmt: skip
    words = f"{effect.words} ({METHODS[method].words}){f': {judged}' if judged else ''}."
    return f"{words} {facts.of_rows(name, lambda label: rows.get(label), note=note)}"


def _agreement(facts: Facts) -> str:
    """Whether two models look at the same pixels, by each method."""
    rows = facts.rows("agreement")
    if rows.empty:
        return ""
    about, judged = quantity("agreement"), not facts.untrained
    each = listed(
        f"{f'**{_verdict(_AGREE, row)}** ' if judged else ''}by {row['estimator']}, {about.interval(row)} "
        f"(null {about.number(row['null'])})"
        for _, row in rows.iterrows()
    )
    first = rows.iloc[0]
    pair = f"{code(first['model'])} and {code(first['model_b'])}"
    return f"{_AGREE.words}: {each}, over the {first['n']} images that {pair} give the same class."


def _worth(facts: Facts, method: str) -> list[str]:
    """In which models a method is to be trusted, and why not in the others; nothing where it was not asked."""
    name, passed = METHODS[method].words, "both checks are passed. A single map can still be wrong"
    found: dict[str, list[str]] = {}
    for label in facts.labels:
        order, left = (_row(facts, name, method, label) for name in ("faithfulness", "spearman_abs"))
        if order is not None and left is not None:
            against = listed(_against(_verdict(_RANKS, order), _verdict(_OUTLIVES, left)))
            found.setdefault(against, []).append(code(label))
    return [
        f"Do not rest on {name} in {listed(labels)}: it {against}."
        if against
        else f"Trust {name} in {listed(labels)} over images: {passed}."
        for against, labels in found.items()
    ]


def _against(ranks: str, outlives: str) -> list[str]:
    """Which checks a method did not pass."""
    said = []
    if ranks != SUPPORTED:
        worse = "ranks pixels worse" if ranks == CONTRADICTED else "is not shown to rank pixels better"
        said.append(f"{worse} than random orders")
    if outlives not in _FORGETS:
        same = "draws much the same" if outlives == SUPPORTED else "may draw the same"
        said.append(f"{same} with random weights")
    return said
