"""How far and how widely attention looks, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ..results import Result
from .template import Facts, kept

_LAYERS: dict[str, Any] = {"place": "blocks.*.attn", "head": None}


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
        facts.line("attention_distance", tokens="patch", **_LAYERS, note="Null: uniform attention."),
        facts.line("attention_distance_last_minus_first", tokens="patch"),
        facts.line("attention_entropy", tokens="patch", **_LAYERS),
        facts.line("attention_entropy", tokens="class", **_LAYERS, note="Of the class token."),
        facts.line("class_mass", tokens="patch", **_LAYERS),
        facts.line("sink_mass", tokens="patch", **_LAYERS),
        _last(facts, "rollout_between_images", "Of all layers."),
        _last(facts, "token_cosine", "In the last layer."),
    ) or ["How far attention looks cannot be said: no layer with finite attention maps."]


def _last(facts: Facts, name: str, note: str) -> str:
    """A quantity in the last layer of each model."""

    def row(label: str) -> pd.Series | None:
        rows = facts.rows(name, model=label, model_b=None, head=None)
        rows = rows[rows["layer"].notna()].sort_values("layer")
        return rows.iloc[-1] if len(rows) else None

    return facts.of_rows(name, row, note=note)


def geometry_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Why this page ends in no verdict, and what training changed."""
    facts = Facts(results, models)
    none = "The paper makes no claim about these numbers and no smallest difference was fixed, so there is no verdict."
    return kept(facts.line("attention_distance", tokens="patch", **_LAYERS), none)
