"""How much layers repeat each other, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from .._names import TWIN
from .._show import code
from ..claims.base import Effect
from ..quantities import plural, quantity
from ..results import Result
from .template import Facts, kept

#: Differences that the conclusions rest on: CKA, attention columns, effective rank.
HEADLINES = ("cka_mean", "column_cosine_matched_centred_neighbours", "effective_rank_over_null")
#: no claim of the ledger; the direction is that of "T2T-ViT repeats itself less"
_EFFECTS: tuple[tuple[Effect, dict[str, str]], ...] = (
    (Effect("mean CKA of two different layers", "similarity", pair=HEADLINES[0], direction=-1), {}),
    (Effect("attention of neighbouring layers, centred cosine of columns", "similarity", pair=HEADLINES[1],
            direction=-1), {}),
    (Effect("effective rank over its Gaussian null, of images", "similarity", pair=HEADLINES[2]), {"tokens": "pooled"}),
    (Effect("effective rank over its Gaussian null, of tokens", "similarity", pair=HEADLINES[2]), {"tokens": "patch"}),
)  # fmt: skip


def layer_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on how much layers repeat each other, first those that answer the question.

    Parameters
    ----------
    results
        Of `LayerCKA`, `LayerCollapse`, `EffectiveRank` and `CrossLayerCKA` for the models and their untrained controls,
        and of their differences.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    rank = {"place": "blocks.*.resid_post"}
    within = {"measure": "layer_cka"}
    none = "Whether layers repeat each other cannot be said: too few images, or no two layers with finite features."
    return kept(
        *(facts.no_verdict or _judged(facts)[:1]),
        facts.line("cka_mean", **within),
        facts.of_rows("cka", _ends(facts), note="Of the first layer and the last."),
        _between(facts),
        facts.line(HEADLINES[1]),
        facts.line(HEADLINES[2], tokens="pooled", **rank, note="Of an image's mean token."),
        facts.line(HEADLINES[2], tokens="patch", **rank, note="Of patch tokens."),
    ) or [none]


def _judged(facts: Facts) -> list[str]:
    return [said for effect, where in _EFFECTS for said in facts.judged([effect], **where)]


def _ends(facts: Facts) -> Any:
    def row(label: str) -> pd.Series | None:
        rows = facts.rows("cka_unbiased", model=label, model_b=None)
        rows = rows[(rows["layer"] == rows["layer"].min()) & (rows["layer_b"] == rows["layer_b"].max())]
        return rows.iloc[0] if len(rows) == 1 else None

    return row


def _between(facts: Facts) -> str:
    """Agreement across the two models, beside that of their untrained controls."""
    if len(facts.labels) < 2:
        return ""
    first, second = facts.labels
    where = {"measure": "cross_layer_cka"}
    row = facts.row("cka_mean", first, model_b=second, **where)
    random = facts.row("cka_mean", first + TWIN, model_b=second + TWIN, **where)
    if row is None:
        return ""
    about = quantity("cka_mean")
    beside = "" if random is None else f", untrained {about.interval(random)}"
    return (
        f"A layer of {code(first)} and one of {code(second)}: mean CKA {about.interval(row)} (null "
        f"{about.number(row['null'])}{beside}), n = {plural(row['n'], row['unit'])}."
    )


def layer_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Every difference, judged by the rule; arguments as for `layer_findings`."""
    facts = Facts(results, models)
    if facts.untrained:
        return facts.no_verdict
    alone = "One model alone has no difference to judge; its untrained control stands beside it."
    return _judged(facts) or [alone]
