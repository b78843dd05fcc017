"""Why the heads of late layers are alike: by attention sinks, in content, or not at all. One rule, fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping

from .rule import CONTRADICTED, SUPPORTED

#: Mean centred cosine above which heads count as alike.
ALIKE = 0.5
BY_SINKS, IN_CONTENT, NOT_ALIKE, OPEN, NOT_TESTED = (
    "alike by sinks", "alike in content", "not alike", "open", "not tested",
)  # fmt: skip
#: Cosine over patch keys, the same without the sinks, and what the sinks make of it beyond random columns.
ENDPOINTS = ("late_cosine", "late_cosine_without_sinks", "late_cosine_by_sinks")


def why_alike(verdicts: Mapping[str, str]) -> str:
    """Why the heads of the last third of the layers are alike, if they are.

    "not alike": the centred cosine over patch keys lies below `ALIKE`. "alike in content": it lies above, and so it
    does without the sinks. "alike by sinks": it lies above, without the sinks below, and taking them out costs more
    than random columns by the smallest difference that counts. Else "open", or "not tested".

    Parameters
    ----------
    verdicts : of the rule on each of `ENDPOINTS`, "supported" where it lies above its bound.

    >>> why_alike(dict(zip(ENDPOINTS, ("supported", "contradicted", "supported"))))
    'alike by sinks'
    >>> why_alike({"late_cosine": "contradicted"}), why_alike({"late_cosine": "supported"}), why_alike({})
    ('not alike', 'open', 'not tested')
    """
    whole, without, by_sinks = (verdicts.get(name, NOT_TESTED) for name in ENDPOINTS)
    if whole == CONTRADICTED:
        return NOT_ALIKE
    if whole == without == SUPPORTED:
        return IN_CONTENT
    if (whole, without, by_sinks) == (SUPPORTED, CONTRADICTED, SUPPORTED):
        return BY_SINKS
    return NOT_TESTED if whole == NOT_TESTED else OPEN


#: what a claim's ``because`` names
WHY = {"why_alike": why_alike}
