"""Whether tokens keep edges and lines, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from .._show import code
from ..quantities import plural, quantity
from ..results import Result
from .template import Facts, kept
from .words import listed

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
    )  # fmt: skip


#: distortion -> the strength that a sentence speaks of, and what it does to an image
_DISTORTED = {
    "low-pass": (1.0, "blurred over a patch"),
    "high-pass": (4.0, "without all that is wider than a quarter of a patch"),
    "edges": (1.0, "as drawings of their edges"),
    "shuffle": (1.0, "with the pixels of every patch in random order"),
    "shift": (0.5, "moved by half a patch"),
}


def behaviour_findings(result: Result, models: Iterable[str]) -> list[str]:
    """A sentence a model: how often it is right about images as they are, and about distorted ones.

    Where labels are not the model's classes, how far its predictions move.

    Parameters
    ----------
    result
        Of `behaviour`.
    models
        Labels in it.
    """
    return [_behaves(result.where(model=model).frame, model) for model in models]


def _behaves(frame: pd.DataFrame, model: str) -> str:
    labelled = "behaviour_accuracy" in set(frame["quantity"])
    about = quantity("behaviour_accuracy" if labelled else "behaviour_kl")
    own = frame[frame["quantity"] == about.name]
    at = {
        kind: own[(own["variant"] == kind) & (own["at"] == strength)].iloc[0]
        for kind, (strength, _) in _DISTORTED.items()
        if kind in set(own["variant"])
    }
    distorted = listed(f"{about.interval(row)} {_DISTORTED[kind][1]}" for kind, row in at.items())
    intact = own[own["variant"] == "none"].iloc[0]
    count = plural(intact["n"], intact["unit"])
    if labelled:
        null = about.number(intact["null"])
        return (
            f"{code(model)} is right about {about.interval(intact)} of the images as they are (n = {count}; labels of "
            f"other images {null}), and about {distorted}."
        )
    return (
        f"The labels are not the classes of {code(model)}, so only its predictions are followed. {about.title} "
        f"(n = {count}): {distorted}."
    )


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
    line = with_controls.line("edge_r2_own", **_LINEAR, **_EARLY, place_b=None)
    return kept(line, *facts.closing("local-structure"))
