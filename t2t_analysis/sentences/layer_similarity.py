"""How much the layers of two models repeat each other, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from .._names import TWIN
from .._show import code
from ..claims.rule import SMALLEST, place
from ..results import Result
from .words import found, interval, listed, no_verdict, number, side, untrained_in

__all__ = ["HEADLINES", "layer_conclusions", "layer_findings"]

SMALLEST_EFFECT = SMALLEST["similarity"]
#: Differences that the conclusions rest on: CKA, attention columns, effective rank (two levels).
HEADLINES = ("cka_mean", "column_cosine_matched_centred_neighbours", "effective_rank_over_null")

_RANK_PLACE = "blocks.*.resid_post"
_LEVELS = {"pooled": "of an image's mean token", "patch": "of patch tokens"}
_NAMES = {
    "cka_mean": "Mean CKA of two different layers",
    "column_cosine_matched_centred_neighbours": "Centred cosine of the attention columns of neighbouring layers",
    "effective_rank_over_null": "Effective rank over that of Gaussian noise",
}


def layer_findings(
    layers: Result, between: Result, collapse: Result, rank: Result, differences: Sequence[Result],
    trained: Sequence[Result], model: str, baseline: str,
) -> list[str]:  # fmt: skip
    """Sentences on how much layers repeat each other, first the one that answers the question.

    Parameters
    ----------
    layers, collapse, rank : of `LayerCKA`, `LayerCollapse` and `EffectiveRank` for both models and their twins.
    between : of `CrossLayerCKA`, for the models and, where they are trained, for their twins.
    differences : of `difference`, model minus baseline.
    trained : of `difference`, each model minus its twin.
    """
    pair = (model, baseline)
    lines = [
        _answer(layers, _row(differences, "cka_mean"), model, baseline),
        _training(layers, trained),
        _without_largest(layers, pair),
        _between(between, model),
        _columns(collapse, pair),
        *(_rank(rank, differences, level, pair) for level in _LEVELS),
    ]
    return [line for line in lines if line]


def _row(differences: Iterable[Result], quantity: str, tokens: str | None = None) -> pd.Series | None:
    """The difference of one headline; of one choice of tokens where there are several."""
    where = {"quantity": f"{quantity}_difference"} | ({} if tokens is None else {"tokens": tokens})
    rows = [
        found(result.frame, **where)
        for result in differences
        if (result.frame["quantity"] == where["quantity"]).any()
    ]
    return next((row for row in rows if row is not None), None)


def _answer(layers: Result, row: pd.Series | None, model: str, baseline: str) -> str:
    """Which model's layers repeat each other more, by mean CKA."""
    if row is None:
        return "Whether layers repeat each other cannot be said: too few images, or no two layers with finite features."
    each = [found(layers.frame, quantity="cka_mean", model=name) for name in (model, baseline)]
    means = listed(
        f"{interval(r)} in {code(name)}"
        for name, r in zip((model, baseline), each, strict=True)
        if r is not None
    )
    nulls = listed(number(r["null"]) for r in each if r is not None)
    return (
        f"{_verdict(row, model, baseline)} The mean CKA of two different layers is {means} (on permuted images "
        f"{nulls}, a layer with itself 1); the difference is {interval(row)}, paired over {row['n']} images."
        f"{_ends(layers, (model, baseline))}"
    )


def _ends(layers: Result, models: Sequence[str]) -> str:
    """CKA of the first layer with the last, which does not depend on how many layers lie between."""
    maps = layers.frame[layers.frame["quantity"] == "cka_unbiased"]
    parts, depths = [], []
    for name in models:
        own = maps[maps["model"] == name]
        row = found(own, layer=own["layer"].min(), layer_b=own["layer_b"].max()) if len(own) else None
        if row is not None:
            parts.append(f"{interval(row)} in {code(name)}")
            depths.append(int(own["layer"].nunique()))
    if not parts:
        return ""
    uneven = (
        f" They have {listed(map(str, depths))} layers, so a mean over pairs of layers spans different depths."
        if len(set(depths)) > 1
        else ""
    )
    return f" First and last layer have a CKA of {listed(parts)}.{uneven}"


def _verdict(row: Any, model: str, baseline: str) -> str:
    if untrained_in(row.to_frame().T):
        return no_verdict(row.to_frame().T, words="No verdict: at least one of the two has random weights.")
    if pd.isna(row["low"]):
        return f"Not settled for {code(model)} and {code(baseline)}: so few images give no interval."
    where = place(row["low"], row["high"], SMALLEST_EFFECT)
    if where == "within":
        return (
            f"By CKA, layers repeat each other as much in {code(model)} as in {code(baseline)}, to within "
            f"{SMALLEST_EFFECT}."
        )
    if where == "across":
        return (
            f"Inconclusive by CKA whether layers repeat each other more in {code(model)} or in {code(baseline)}: the "
            f"interval reaches across {SMALLEST_EFFECT}, the smallest difference to count."
        )
    more, less = (model, baseline) if where == "above" else (baseline, model)
    return f"By CKA, layers repeat each other more in {code(more)} than in {code(less)}."


def _training(layers: Result, trained: Sequence[Result]) -> str:
    """What the architecture alone gives, and what training made of it."""
    rows = [row for result in trained if (row := _row([result], "cka_mean")) is not None]
    twins = [(row, found(layers.frame, quantity="cka_mean", model=row["model_b"])) for row in rows]
    parts = [
        f"{interval(twin)} for {code(row['model'])} (training changes it by {interval(row)}{_unclear(row)})"
        for row, twin in twins
        if twin is not None
    ]
    if not parts:
        return ""
    return f"With random weights the same mean is {listed(parts)}; trained minus random, paired over images."


def _unclear(row: Any) -> str:
    return "" if pd.notna(row["low"]) and (row["low"] > 0 or row["high"] < 0) else ", not told from 0"


def _without_largest(layers: Result, models: Sequence[str]) -> str:
    """Whether a few directions make the value."""
    frame = layers.frame[layers.frame["quantity"] == "cka_without_top_pcs_mean"]
    rows = {name: found(frame, model=name, at=frame["at"].max()) for name in models} if len(frame) else {}
    parts = [f"{interval(row)} in {code(name)}" for name, row in rows.items() if row is not None]
    if not parts:
        return ""
    count = int(frame["at"].max())
    return (
        f"Without the {count} largest principal components of each layer the mean is {listed(parts)}: so "
        "much does not rest on these few directions."
    )


def _between(between: Result, model: str) -> str:
    """Agreement across the two models, beside that of their untrained twins."""
    row, random = (found(between.frame, quantity="cka_mean", model=name) for name in (model, model + TWIN))
    if row is None:
        return ""
    text = (
        f"Between the two models, a layer of {code(row['model'])} and one of {code(row['model_b'])} have a mean CKA of "
        f"{interval(row)} (on permuted images {number(row['null'])})"
    )
    if random is None:
        return f"{text}."
    return f"{text}; the same two networks with random weights have {interval(random)}. {_more_than(row, random)}"


def _more_than(row: Any, random: Any) -> str:
    if pd.isna(row["low"]) or pd.isna(random["low"]):
        return "Without intervals the two cannot be compared."
    if row["low"] > random["high"]:
        return "So training made the two agree more than their architectures do."
    if row["high"] < random["low"]:
        return "So training made the two agree less than their architectures do."
    return "The intervals overlap, so this does not show that training made the two agree more."


def _columns(collapse: Result, models: Sequence[str]) -> str:
    """How alike attention is from layer to layer when the floor is taken off."""
    rows = {name: found(collapse.frame, quantity=HEADLINES[1], model=name) for name in models}
    parts = [
        f"{interval(row)} in {code(name)} (on different images {number(row['null'])})"
        for name, row in rows.items()
        if row is not None
    ]
    if not parts:
        return ""
    return (
        f"With each column's mean taken off and heads matched, the attention of neighbouring layers has a cosine of "
        f"{listed(parts)}; a layer with itself has 1."
    )


def _rank(rank: Result, differences: Sequence[Result], level: str, models: Sequence[str]) -> str:
    """Effective rank of one level, mean over layers, with the twins beside it."""
    where = {"quantity": HEADLINES[2], "tokens": level, "place": _RANK_PLACE}
    parts = []
    for name in models:
        row, twin = (found(rank.frame, **where, model=label) for label in (name, name + TWIN))
        if row is not None:
            parts.append(
                f"{interval(row)} in {code(name)}"
                + ("" if twin is None else f" (random weights {interval(twin)})")
            )
    row = _row(differences, HEADLINES[2], level)
    if not parts or row is None:
        return ""
    return (
        f"The effective rank {_LEVELS[level]}, mean over layers, is {listed(parts)} of that of Gaussian noise of the "
        f"same shape; difference {interval(row)}{_expected(row)}."
    )


def _expected(row: Any) -> str:
    """Whether that is what the paper says: it calls a deep-narrow backbone richer than a shallow-wide one."""
    names = str(row["model"]), str(row["model_b"])
    wide = ["_wide" in name for name in names]
    stems = {name.replace("_deep", "").replace("_wide", "") for name in names}
    if wide[0] == wide[1] or len(stems) > 1 or untrained_in(row.to_frame().T) or pd.isna(row["low"]):
        return ""
    where = place(row["low"], row["high"], SMALLEST_EFFECT)
    if where not in ("above", "below"):
        return ""
    as_claimed = (where == "above") == wide[1]
    return (
        ", as the paper claims of deep-narrow backbones" if as_claimed else ", contrary to the paper's claim"
    )


def layer_conclusions(differences: Sequence[Result], model: str, baseline: str) -> list[str]:
    """One sentence per headline, model minus baseline, then how many say what."""
    rows = [
        row
        for quantity in HEADLINES
        for level in (_LEVELS if quantity == HEADLINES[2] else (None,))
        if (row := _row(differences, quantity, level)) is not None
    ]
    if not rows:
        return ["Nothing can be concluded: none of the differences could be measured."]
    lines = [f"{_named(row)}: {interval(row)}, {_side(row)}; n = {row['n']} {row['unit']}s." for row in rows]
    if any(untrained_in(result.frame) for result in differences):
        return [*lines, no_verdict(*(result.frame for result in differences))]
    return [*lines, _count(rows, model, baseline)]


def _headline(row: Any) -> str:
    return str(row["quantity"]).removesuffix("_difference")


def _named(row: Any) -> str:
    level = f" {_LEVELS[row['tokens']]}" if _headline(row) == HEADLINES[2] else ""
    return _NAMES[_headline(row)].replace("rank", f"rank{level}")


def _side(row: Any) -> str:
    return "not settled" if pd.isna(row["low"]) else side(row["low"], row["high"], SMALLEST_EFFECT)


def _count(rows: Sequence[Any], model: str, baseline: str) -> str:
    """How many headlines say more repetition in the model; a larger rank means less."""
    flipped = {"above": "below", "below": "above"}
    sides = []
    for row in rows:
        where = place(row["low"], row["high"], SMALLEST_EFFECT)
        sides.append(flipped.get(where, where) if _headline(row) == HEADLINES[2] else where)
    words = {
        "above": f"that layers repeat each other more in {code(model)}",
        "below": f"that layers repeat each other more in {code(baseline)}",
        "within": f"that the two differ by less than {SMALLEST_EFFECT}",
    }
    said = [
        f"{n} {'says' if n == 1 else 'say'} {text}"
        for where, text in words.items()
        if (n := sides.count(where))
    ]
    if n := sides.count("across"):
        said.append(f"{n} {'settles' if n == 1 else 'settle'} nothing")
    return f"Of {len(sides)} ways to ask (a smaller rank taken as repetition), {listed(said)}."
