"""How far and how widely attention looks, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from .._show import code
from ..quantities import listed
from ..results import Result
from .template import Facts, beyond, kept

_LAYERS: dict[str, Any] = {"place": "blocks.*.attn", "head": None}
#: on which side of uniform attention the interval of a distance lies -> how far attention looks
_REACH = {1: "farther than", -1: "nearer than", 0: "neither clearly nearer nor clearly farther than"}


def geometry_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on how far attention looks and how spread it is, first the one that answers the question.

    Parameters
    ----------
    results
        Of `AttentionGeometry`, `AttentionRollout` and `Redundancy` for the models and their untrained controls, and of
        their differences.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    return kept(
        *facts.no_verdict,
        _reach(facts),
        facts.line("attention_distance_last_minus_first", tokens="patch"),
        facts.line("attention_entropy", tokens="patch", **_LAYERS),
        facts.line("attention_entropy", tokens="class", **_LAYERS, note="Of the class token."),
        facts.line("class_mass", tokens="patch", **_LAYERS),
        facts.line("sink_mass", tokens="patch", **_LAYERS),
        _last(facts, "rollout_between_images", "Of all layers."),
        _last(facts, "token_cosine", "In the last layer."),
    ) or ["How far attention looks cannot be said: no layer with finite attention maps."]


def _reach(facts: Facts) -> str:
    """Whether attention looks farther than if it were uniform, in each model, and the numbers."""
    found: dict[str, list[str]] = {}
    for label in facts.labels:
        row = facts.row("attention_distance", label, tokens="patch", **_LAYERS)
        if row is not None and pd.notna(row["null"]):
            found.setdefault(_REACH[beyond(row, row["null"])], []).append(code(label))
    said = listed(f"{words} uniform attention would in {listed(labels)}" for words, labels in found.items())
    line = facts.line("attention_distance", tokens="patch", **_LAYERS)
    return f"On average attention looks {said}. {line}" if said else line


def _last(facts: Facts, name: str, note: str) -> str:
    """A quantity in the last layer of each model."""
    where = {"model_b": None, "head": None}
    return facts.of_rows(name, lambda label: facts.most(name, label, "layer", **where), note=note)


def geometry_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Why this page ends in no verdict, and what training changed."""
    facts = Facts(results, models)
    none = "The paper makes no claim about these numbers and no smallest difference was fixed, so there is no verdict."
    return kept(facts.line("attention_distance", tokens="patch", **_LAYERS), none)
