"""How alike heads are, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._show import code
from ..claims.ledger import claim_named, ledger
from ..claims.likeness import ALIKE, BY_SINKS, IN_CONTENT, NOT_ALIKE, NOT_TESTED
from ..claims.premise import endpoint_rows
from ..measures.sinks import LAST_THIRD
from ..quantities import quantity
from ..results import Result
from .template import Facts, kept, largest

_ANSWERS = {
    BY_SINKS: "are alike by attention sinks: all look at the same few patches",
    IN_CONTENT: "are alike in content: they stay alike without attention sinks",
    NOT_ALIKE: "are not alike",
    NOT_TESTED: "have random weights, so nothing was learned that could be explained",
}


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


def sink_findings(results: Mapping[str, Result], models: Mapping[str, Any]) -> list[str]:
    """Two sentences a model: why the heads of its late layers are alike, as the ledger has it, and what the sinks are.

    Parameters
    ----------
    results : of `HeadSimilarity` and `Sinks`, by the name of the measure.
    models : label in them -> model.
    """
    return [sentence for label, model in models.items() for sentence in _of_model(results, label, model)]


def _of_model(results: Mapping[str, Result], model: str, network: Any) -> list[str]:
    late = results["sinks"].where(model=model, place=LAST_THIRD)
    cosine = quantity("cosine_centred")
    patch, without, random = (
        late.where(quantity="cosine_centred", variant=variant).frame.iloc[0]
        for variant in ("patch keys", "without sinks", "without random columns")
    )
    evidence = Result.of_rows("evidence", endpoint_rows(model, network, results), {"kind": "premise"})
    verdict = str(ledger(evidence, claims=[claim_named("head-similarity")])["because"].iloc[0])
    unclear = f"are neither clearly above {ALIKE:g} nor below, with or without attention sinks"
    answer = _ANSWERS.get(verdict, unclear)
    first = (
        f"The heads of the last third of the layers of {code(model)} {answer}. Centred cosine "
        f"{cosine.interval(patch)}, without the sinks {cosine.interval(without)}, without as many random columns "
        f"{cosine.number(random['value'])}; between heads on different images {cosine.number(patch['null'])} and, "
        f"without the sinks, {cosine.number(without['null'])}."
    )
    count, share, ratio = (
        late.where(quantity=name).frame.iloc[0]
        for name in ("sink_columns", "sink_attention", "sink_value_ratio")
    )
    if not count["value"] > 0:
        return [first, f"No patch of {code(model)} stands apart as a sink there."]
    wrote = quantity("sink_value_ratio").interval(ratio)
    writes = f" and write {wrote} of what other patches write" if ratio["n"] else ""
    quiet = verdict == BY_SINKS and ratio["n"] and ratio["high"] < 0.5
    so = " So heads look at next to nothing together, rather than doing the same." if quiet else ""
    return [
        first,
        f"Per image and layer {quantity('sink_columns').number(count['value'], unit=False)} patches stand apart there, "
        f"which get {quantity('sink_attention').interval(share)} of the attention (random columns "
        f"{quantity('sink_attention').number(share['null'])}){writes}.{so}",
    ]


def head_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """What would change the verdicts; arguments as for `head_findings`."""
    return Facts(results, models).closing("head-similarity")
