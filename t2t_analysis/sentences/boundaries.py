"""Drawn boundaries in words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .._show import code
from ..measures.locality import FIRST_THIRD
from ..quantities import quantity
from ..results import Result


def boundary_findings(result: Result, *models: str) -> list[str]:
    """A sentence a model: how well the tokens of its first third, and its best layer, tell drawn boundaries.

    Parameters
    ----------
    result : of `boundaries`.
    models : labels in it.
    """
    return [_of_model(result, model) for model in models]


def _of_model(result: Result, model: str) -> str:
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
