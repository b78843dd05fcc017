"""How alike heads are, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._show import code
from ..quantities import quantity
from ..results import Result
from .template import Facts, kept, largest


def head_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on how alike the heads of a layer are, first those that answer the question.

    Parameters
    ----------
    results
        Of `HeadSimilarity` and `HeadOutputCKA` for the models and their untrained controls, and of their differences.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    return kept(
        *facts.claim("head-similarity"),
        facts.line("cosine_centred_last_minus_first"),
        facts.line("head_output_cka_last_minus_first", tokens="pooled"),
        *(_most_alike(facts, name) for name in facts.labels),
    )


def _most_alike(facts: Facts, label: str) -> str:
    """The two heads of one layer whose maps are most alike."""
    rows = facts.rows("cosine_centred", model=label)
    rows = rows[rows["head"].notna() & rows["head_b"].notna() & (rows["layer"] == rows["layer_b"])]
    if rows.empty:
        return ""
    top = largest(rows)
    about = quantity("cosine_centred")
    null = f", null {about.number(top['null'])}" * bool(top["null"] == top["null"])
    return (
        f"Most alike of the heads of one layer in {code(label)}: {top['layer']}.{top['head']} and "
        f"{top['layer_b']}.{top['head_b']}, {about.words} {about.interval(top)}{null}; the largest of {len(rows)} "
        "pairs, so somewhat less on new images."
    )


def head_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """What would change the verdicts; arguments as for `head_findings`."""
    return Facts(results, models).closing("head-similarity")
