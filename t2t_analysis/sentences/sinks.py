"""Attention sinks in words: whether they are why heads are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._show import code
from ..claims.ledger import claim_named, ledger
from ..claims.likeness import ALIKE, BY_SINKS, IN_CONTENT, NOT_ALIKE, NOT_TESTED
from ..claims.premise import endpoint_rows
from ..measures.sinks import LAST_THIRD
from ..quantities import quantity
from ..results import Result

_ANSWERS = {
    BY_SINKS: "are alike by attention sinks: all look at the same few patches",
    IN_CONTENT: "are alike in content: they stay alike without attention sinks",
    NOT_ALIKE: "are not alike",
    NOT_TESTED: "have random weights, so nothing was learned that could be explained",
}


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
    second = (
        f"Per image and layer {quantity('sink_columns').number(count['value'], unit=False)} patches stand apart there, "
        f"which get {quantity('sink_attention').interval(share)} of the attention (random columns "
        f"{quantity('sink_attention').number(share['null'])})"
    )
    if ratio["n"] == 0:
        return [first, f"{second}."]
    writes = quantity("sink_value_ratio")
    third = f"{second} and write {writes.interval(ratio)} of what other patches write."
    return [first, f"{third}{_what(verdict, ratio)}"]


def _what(verdict: str, ratio: object) -> str:
    """What likeness by sinks that write little amounts to."""
    quiet = verdict == BY_SINKS and ratio["high"] < 0.5  # type: ignore[index]
    return " So heads look at next to nothing together, rather than doing the same." if quiet else ""
