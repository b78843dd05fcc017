"""Pairs of heads and skipped blocks in words."""

from __future__ import annotations

from .._show import code
from ..errors import T2TError
from ..measures.head_pairs import similar_pairs_stand_in, skips_beside_cka
from ..quantities import p_words, plural, quantity
from ..results import Result


def pair_findings(pairs: Result, similarity: Result, cka: Result, *models: str) -> list[str]:
    """Whether similar heads stand in for each other, and whether alike layers can be skipped, a sentence each.

    Parameters
    ----------
    pairs : of `HeadPairs`. similarity : of `HeadSimilarity`. cka : of `LayerCKA`.
    models : labels in all of them.
    """
    said = ((_pairs(pairs, similarity, model), _skips(pairs, cka, model)) for model in models)
    return [sentence for both in said for sentence in both]


def _pairs(pairs: Result, similarity: Result, model: str) -> str:
    try:
        found = similar_pairs_stand_in(pairs, similarity, model)
    except T2TError as error:
        return f"Pairs of heads are not compared: {error}."
    row = found.where(quantity="pair_interaction_contrast").frame.iloc[0]
    words = quantity("pair_interaction_contrast")
    stand = "stand in for each other more than dissimilar ones" if row["low"] > 0 else (
        "stand in for each other less than dissimilar ones" if row["high"] < 0 else
        "stand in for each other neither clearly more nor clearly less than dissimilar ones"
    )  # fmt: skip
    return (
        f"In {code(model)} similar heads of a layer {stand}: the loss without both, less that without each, differs "
        f"by {words.interval(row)} ({p_words(row['p'])}, n = {plural(row['n'], row['unit'])})."
    )


def _skips(pairs: Result, cka: Result, model: str) -> str:
    skipped = pairs.where(model=model, quantity="layer_skip_kl").frame.sort_values("value")
    cheap, dear = skipped.iloc[0], skipped.iloc[-1]
    loss = quantity("layer_skip_kl")
    first = (
        f"Of the blocks of {code(model)}, skipping {cheap['layer']} costs least, {loss.interval(cheap)}, skipping "
        f"{dear['layer']} most, {loss.interval(dear)}"
    )
    try:
        row = skips_beside_cka(pairs, cka, model).frame.iloc[0]
    except T2TError:
        return f"{first}."
    return (
        f"{first}; the rank correlation with the CKA across the block is {quantity('skip_cka_spearman').interval(row)} "
        f"over {row['n']} blocks."
    )
