"""Whether tokens keep edges and lines, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..results import Result
from .template import Facts, kept

_GIVEN = "The architecture gives it, so that it decides nothing."
_EARLY = {"place": "first third of blocks"}
_LINEAR, _RECTIFIED = {"measure": "edge_decodability"}, {"measure": "rectified_edge_decodability"}


def local_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on what tokens tell of edges, first those that answer the question.

    Parameters
    ----------
    results
        Of the measures of the notebook for the models, and of their differences.
    models
        Label -> model.
    """
    facts = Facts(results, models)
    absolute = "Absolute values are given to the readout."
    return kept(
        [
            *facts.claim("local-structure"),
            facts.line("edge_r2_own", **_LINEAR, **_EARLY, place_b=None),
            facts.line("edge_r2_neighbour", **_LINEAR, **_EARLY, place_b=None),
            facts.line("edge_r2_own", **_RECTIFIED, **_EARLY, place_b=None, note=absolute),
            facts.line(
                "edge_r2_own_over_reference", **_RECTIFIED, place_b="pixels.cell",
                note="The reference is the pixels of that cell, read in the same way.",
            ),
            facts.line("gradient_outside", place="embed", at=0.0, note=_GIVEN),
            facts.line("high_frequency_share", place="embed"),
            facts.line("shift_dip", place="embed"),
        ]
    )  # fmt: skip


def local_conclusions(
    results: Iterable[Result | None], models: Mapping[str, Any], untrained: Iterable[Result] = ()
) -> list[str]:
    """What needs no training, the verdicts in short, and what would change them.

    Parameters
    ----------
    results, models
        As for `local_findings`.
    untrained
        The same measures of the untrained controls that are not among the models.
    """
    facts = Facts(results, models)
    with_controls = Facts([*facts.results, *untrained], models)
    return [
        *filter(None, [with_controls.line("edge_r2_own", **_LINEAR, **_EARLY, place_b=None)]),
        *facts.closing("local-structure"),
    ]
