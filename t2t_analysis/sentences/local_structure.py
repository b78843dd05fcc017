"""Whether tokens keep edges and lines, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .._show import code
from ..measures.locality import FIRST_THIRD
from ..quantities import plural, quantity
from ..results import Result
from .template import Facts, kept

_GIVEN = "The architecture gives it, so that it decides nothing."
_EARLY = {"place": FIRST_THIRD}
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


def boundary_findings(result: Result, *models: str) -> list[str]:
    """A sentence a model: how well the tokens of its first third, and its best layer, tell drawn boundaries.

    Parameters
    ----------
    result : of `boundaries`.
    models : labels in it.
    """
    return [_told(result, model) for model in models]


def _told(result: Result, model: str) -> str:
    words = quantity("boundary_precision")
    rows = result.where(model=model, quantity="boundary_precision").frame
    blocks = rows[rows["layer"].notna()]
    best = blocks.iloc[int(np.argmax(blocks["value"]))]
    first, pixels = (rows[rows["place"] == place].iloc[0] for place in (FIRST_THIRD, "pixels.cell"))
    less = result.where(model=model, quantity="boundary_precision_over_reference", place_b="pixels.cell")
    over = less.frame.iloc[0]
    others = f", of what other annotators tell {words.number(best['ceiling'])}"
    people = "" if pd.isna(best["ceiling"]) else others
    return (
        f"Where people drew boundaries in {best['n']} photographs is told by tokens of the first third of "
        f"{code(model)} with an average precision of {words.interval(first)}, by raw pixels of the cell "
        f"{words.number(pixels['value'])} (difference {words.interval(over)}), by those of another photograph "
        f"{words.number(first['null'])}; the best layer is {best['layer']} with {words.interval(best)}{people}."
    )


def photograph_finding(by_photograph: Result, by_image: Result, *models: str) -> list[str]:
    """Whether edges are still read when no photograph lies in both halves; nothing where each image is its own.

    Parameters
    ----------
    by_photograph, by_image : of `EdgeDecodability`, with halves of photographs and of images.
    models : labels in both.
    """
    if "photographs" not in by_photograph.meta:
        return []
    words, parts = quantity("edge_r2_own"), []
    where = {"quantity": "edge_r2_own", "place": FIRST_THIRD}
    for model in models:
        one, other = (r.where(model=model, **where).frame for r in (by_photograph, by_image))
        if len(one) and len(other):
            apart = words.number(other.iloc[0]["value"])
            here = f"{words.interval(one.iloc[0])} in {code(model)}"
            parts.append(f"{here} (halves of images: {apart})")
    if not parts:
        return []
    return [
        f"Crops of one photograph never lie on both sides: R² of edges of the own cell {'; '.join(parts)}. The rest "
        "was knowledge of the photographs."
    ]


#: distortion -> the strength that the table has, and what it does to an image
_DISTORTED = {
    "none": (0.0, "as they are"),
    "low-pass": (1.0, "blurred over a patch"),
    "high-pass": (4.0, "without what is wider than a quarter of a patch"),
    "edges": (1.0, "as drawings of their edges"),
    "shuffle": (1.0, "pixels of every patch in random order"),
    "shift": (0.5, "moved by half a patch"),
}


def behaviour_quantity(result: Result) -> str:
    """What is drawn: how often a model is right or, where labels are not its classes, how far its predictions move."""
    own = result.frame.groupby("model")["quantity"].agg(set)
    labelled = all("behaviour_accuracy" in names for names in own)
    return "behaviour_accuracy" if labelled else "behaviour_kl"


def behaviour_table(result: Result, models: Iterable[str]) -> tuple[pd.DataFrame, str]:
    """What models make of distorted images, a column a model, and its caption.

    Parameters
    ----------
    result
        Of `behaviour`.
    models
        Labels in it.
    """
    about = quantity(behaviour_quantity(result))
    rows = result.where(quantity=about.name).frame
    frame = pd.DataFrame({"images": [words for _, words in _DISTORTED.values()]})
    for model in models:
        own = {(row["variant"], row["at"]): row for _, row in rows[rows["model"] == model].iterrows()}
        asked = (own.get((kind, strength)) for kind, (strength, _) in _DISTORTED.items())
        frame[model] = ["" if row is None else about.interval(row) for row in asked]
    first = rows.iloc[0]
    n = plural(first["n"], first["unit"])
    words = f"{about.title}, with 95 % intervals, n = {n}; nulls: dotted above"
    return frame[(frame.drop(columns="images") != "").any(axis=1)], words


def local_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """What would change the verdicts; arguments as for `local_findings`."""
    return Facts(results, models).closing("local-structure")
