"""What heads do to the output, and whether similar ones are redundant, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .._show import code
from ..claims.rule import SMALLEST
from ..errors import T2TError
from ..measures.head_pairs import similar_pairs_stand_in, skips_beside_cka
from ..quantities import listed, p_words, plural, quantity
from ..results import Result
from .template import Facts, beyond, kept

#: KL divergence in nats below which no event changes its probability by more than SMALLEST["accuracy"], on average over
#: images: by Pinsker's inequality a total variation of v needs a divergence of 2 v^2 at least.
DEAD = 2 * SMALLEST["accuracy"] ** 2


def ablation_findings(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """Sentences on heads and what they do, first those that answer the question.

    Parameters
    ----------
    results
        Of `HeadAblation`, `similarity_is_redundancy` and `PruningCurves` for the models.
    models
        Label -> model.
    """
    facts = _facts(results, models)
    return kept(
        *facts.claim("similarity-is-redundancy"),
        *(_single(facts, label) for label in facts.labels),
        *(_removable(facts, label) for label in facts.labels),
    )


def _facts(results: Iterable[Result | None], models: Mapping[str, Any]) -> Facts:
    """Facts whose verdicts say on how many of which images heads were taken out: what counts there is heads."""
    given = [result for result in results if result is not None]
    removed = next((result for result in given if result.measure == "head_ablation"), None)
    if removed is None or not removed.meta.get("data"):
        return Facts(given, models)
    n = removed.frame.loc[removed.frame["unit"] == "image", "n"].max()
    return Facts(given, models, over=f"{n} images of {removed.meta['data']['name']}")


def _heads(facts: Facts, name: str, label: str) -> pd.DataFrame:
    """Rows of single heads, of the kind of ablation that comes first."""
    rows = facts.rows(name, model=label)
    rows = rows[rows["head"].notna()]
    several = len(rows) and rows["variant"].notna().any()
    return rows[rows["variant"] == rows["variant"].iloc[0]] if several else rows


def _single(facts: Facts, label: str) -> str:
    """What heads do one by one, and how many are dead weight by a strict bound."""
    rows = _heads(facts, "kl", label).astype({"value": float, "high": float}).sort_values("value")
    if rows.empty:
        none = "no KL divergence was measured: it has no classifier, or no image was finite"
        return f"For {code(label)} {none}."
    last, top, kl = rows.iloc[0], rows.iloc[-1], quantity("kl")
    bound = np.format_float_positional(DEAD, trim="-")
    dead = int((rows["high"] < DEAD).sum())
    return (
        f"Taken out one by one, heads of {code(label)} change the output by a KL divergence of {kl.interval(last)} "
        f"(layer {last['layer']}, head {last['head']}) to {kl.interval(top)} (layer {top['layer']}, head "
        f"{top['head']}); random subspaces of their size by at most {kl.number(rows['null'].astype(float).max())}. "
        f"{dead or 'None'} of {len(rows)} are dead weight: below {bound} nats with their whole interval, "
        f"n = {top['n']} images."
    )


def _removable(facts: Facts, label: str) -> str:
    """How many heads can go, by each order of removal."""
    rows = facts.rows("removable_by_kl", model=label)
    if rows.empty:
        return ""
    about, first = quantity("removable_by_kl"), rows.iloc[0]
    each = listed(f"{about.interval(row)} by {row['variant']}" for _, row in rows.iterrows())
    return (
        f"{about.title}, {code(label)}: {each}; in random order {about.number(first['null'])} "
        f"[{about.number(first['null_low'], unit=False)}, {about.number(first['null_high'], unit=False)}], "
        f"n = {first['n']} images."
    )


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
    more = {1: "more", -1: "less", 0: "neither clearly more nor clearly less"}[beyond(row)]
    return (
        f"In {code(model)} similar heads of a layer stand in for each other {more} than dissimilar ones: the loss "
        f"without both, less that without each, differs by {words.interval(row)} ({p_words(row['p'])}, n = "
        f"{plural(row['n'], row['unit'])})."
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


def ablation_conclusions(results: Iterable[Result | None], models: Mapping[str, Any]) -> list[str]:
    """What whole layers add, and what would change the verdicts; arguments as for `ablation_findings`."""
    facts = _facts(results, models)
    layers = (_layers(facts, label) for label in facts.labels)
    return kept(*layers, *facts.closing("similarity-is-redundancy"))


def _layers(facts: Facts, label: str) -> str:
    """The layer without whose heads most is lost, beside the sum over its heads one by one."""
    top = facts.most("kl_layer", label, model_b=None)
    if top is None:
        return ""
    about = quantity("kl_layer")
    return (
        f"Without all heads of a layer {code(label)} loses most in layer {top['layer']}: {about.interval(top)}; its "
        f"heads one by one add up to {about.number(top['null'])}."
    )
