"""How far and how widely two models attend, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from .._names import TWIN
from .._show import code
from ..results import Result
from .words import found, interval, listed, no_verdict, number, percent, untrained_in

__all__ = ["geometry_conclusions", "geometry_findings"]

_LAYERS = "blocks.*.attn"
_CHANGE = "_last_minus_first"
#: (quantity, tokens) -> how the conclusions name it.
_HEADLINES = {
    ("attention_distance", "patch"): "Attention distance, fraction of the image side",
    ("attention_entropy", "patch"): "Entropy of patch queries, nats",
    ("attention_entropy", "class"): "Entropy of the class query, nats",
    ("class_mass", "patch"): "Share of attention that goes to the class token",
    ("sink_mass", "patch"): "Share that the most attended key gets",
}


def geometry_findings(
    geometry: Result, rollout: Result, redundancy: Result, difference: Result, trained: Sequence[Result],
    model: str, baseline: str,
) -> list[str]:  # fmt: skip
    """Sentences on how far attention looks and how spread it is, first the one that answers the question.

    Parameters
    ----------
    geometry, rollout, redundancy : of `AttentionGeometry`, `AttentionRollout`, `Redundancy` for both models and
        their twins.
    difference : of `difference`, model minus baseline.
    trained : of `difference`, each model minus its twin.
    """
    pair = (model, baseline)
    lines = [
        _distance(geometry, difference, pair),
        _with_depth(geometry, pair),
        _extreme_heads(geometry, pair),
        *(_entropy(geometry, difference, tokens, pair) for tokens in ("patch", "class")),
        _training(trained),
        _prefix(geometry, pair),
        _rolled(rollout, pair),
        *_redundant(redundancy, pair),
    ]
    return [line for line in lines if line]


def _mean(result: Result, quantity: str, model: str, tokens: str = "patch") -> pd.Series | None:
    """Mean over the layers and heads of the backbone."""
    return found(result.frame, quantity=quantity, tokens=tokens, model=model, place=_LAYERS)


def _each(models: Iterable[str], row: Callable[[str], pd.Series | None], words: Callable[[Any], str]) -> str:
    """What is said of every model that has the row: "1 in `a` and 2 in `b`"; empty if none has."""
    rows = {name: row(name) for name in models}
    parts = [f"{words(r)} in {code(name)}" for name, r in rows.items() if r is not None]
    return listed(parts) if parts else ""


def _of_pair(difference: Result, quantity: str, tokens: str = "patch") -> str:
    """The paired difference, as the end of a sentence."""
    row = found(difference.frame, quantity=f"{quantity}_difference", tokens=tokens)
    return "" if row is None else f"; difference {interval(row)}, paired over {row['n']} images"


def _distance(geometry: Result, difference: Result, models: Sequence[str]) -> str:
    """How far attention looks on average, against uniform attention."""
    rows = {name: _mean(geometry, "attention_distance", name) for name in models}
    there = {name: row for name, row in rows.items() if row is not None}
    if not there:
        return "How far attention looks cannot be said: no layer with finite attention maps."
    phrases = {name: _against_uniform(row) for name, row in there.items()}
    answer = listed(
        f"{listed(alike)} {'look' if len(alike) > 1 else 'looks'} {phrase}"
        for phrase in dict.fromkeys(phrases.values())
        if (alike := [code(name) for name in there if phrases[name] == phrase])
    )
    values = listed(interval(row) for row in there.values())
    nulls = listed(dict.fromkeys(number(row["null"]) for row in there.values()))
    return (
        f"{_caveat(geometry, models)}On average over layers and heads {answer}: {values} of the image side, where "
        f"uniform attention has {nulls}{_of_pair(difference, 'attention_distance')}."
    )


def _caveat(result: Result, models: Sequence[str]) -> str:
    frame = result.frame[result.frame["model"].isin(list(models))]
    words = "No verdict: at least one of the two has random weights. "
    return no_verdict(frame, words=words) if untrained_in(frame) else ""


def _against_uniform(row: Any) -> str:
    share = percent(abs(row["value"] / row["null"] - 1))
    if pd.isna(row["low"]):
        return f"at {percent(row['value'] / row['null'])} of the distance of uniform attention"
    if row["low"] > row["null"]:
        return f"{share} farther than uniform attention"
    if row["high"] < row["null"]:
        return f"{share} nearer than uniform attention"
    return "as far as uniform attention (within the interval)"


def _with_depth(geometry: Result, models: Sequence[str]) -> str:
    """Whether later layers look farther."""
    rows = {name: _mean(geometry, "attention_distance" + _CHANGE, name) for name in models}
    there = {name: row for name, row in rows.items() if row is not None}
    if not there:
        return ""
    words = {
        1: "Later layers look farther in",
        -1: "Later layers look nearer in",
        0: "No change with depth is told in",
    }
    sides = {
        name: 0 if pd.isna(row["low"]) else int(row["low"] > 0) - int(row["high"] < 0)
        for name, row in there.items()
    }
    said = [
        f"{words[side]} {listed(code(name) for name in there if sides[name] == side)}"
        for side in dict.fromkeys(sides.values())
    ]
    changes = _each(there, lambda name: there[name], interval)
    return f"{'; '.join(said)}: from the first to the last third the distance changes by {changes}."


def _extreme_heads(geometry: Result, models: Sequence[str]) -> str:
    """The heads that look nearest and farthest."""
    frame = geometry.frame[
        (geometry.frame["quantity"] == "attention_distance") & geometry.frame["head"].notna()
    ]
    frame = frame[frame["layer"].notna() & frame["value"].notna()]
    parts = []
    for name in models:
        heads = frame[frame["model"] == name].sort_values("value")
        if len(heads):
            near, far = heads.iloc[0], heads.iloc[-1]
            parts.append(f"{_head(near)} to {_head(far)} in {code(name)}")
    return f"Single heads range from {listed(parts)}." if parts else ""


def _head(row: Any) -> str:
    return f"{interval(row)} (layer {row['layer']}, head {row['head']})"


def _entropy(geometry: Result, difference: Result, tokens: str, models: Sequence[str]) -> str:
    """How spread attention is, in nats and as a number of patches."""
    rows = {name: _mean(geometry, "attention_entropy", name, tokens) for name in models}
    there = {name: row for name, row in rows.items() if row is not None}
    if not there:
        return ""
    nulls = dict.fromkeys(number(row["null"]) for row in there.values())
    whose = {"patch": "a patch query", "class": "the class query"}[tokens]
    comparable = (
        _of_pair(difference, "attention_entropy", tokens) if len(nulls) == 1 else "; the grids differ"
    )
    return (
        f"The attention of {whose} has an entropy, in nats, of {_each(models, rows.__getitem__, interval)} (uniform "
        f"{listed(nulls)}){comparable}. As many patches attended alike: {_each(models, rows.__getitem__, _patches)}."
    )


def _patches(row: Any) -> str:
    """Exponential of the entropy, of so many patches."""
    ends = "" if pd.isna(row["low"]) else f" [{math.exp(row['low']):.1f}, {math.exp(row['high']):.1f}]"
    return f"{math.exp(row['value']):.1f}{ends} of {math.exp(row['null']):.0f}"


def _training(trained: Sequence[Result]) -> str:
    """What training changed of both."""
    parts = []
    for result in trained:
        entropy, distance = (
            found(result.frame, quantity=f"{quantity}_difference", tokens="patch")
            for quantity in ("attention_entropy", "attention_distance")
        )
        if entropy is not None and distance is not None:
            changes = f"the entropy by {interval(entropy)} nats and the distance by {interval(distance)}"
            parts.append(f"{changes} in {code(entropy['model'])}")
    if not parts:
        return ""
    return f"Training, paired with a twin of random weights, changed {', and '.join(parts)}."


def _prefix(geometry: Result, models: Sequence[str]) -> str:
    """Attention to the class token and to the most attended key."""
    said = {
        "class_mass": ("Of the attention of patch queries the class token gets", "uniform"),
        "sink_mass": ("The most attended key of all gets", "uniform"),
        "sink_on_prefix": ("Over images and heads, that key is a prefix token in", "any key alike"),
    }
    lines = [
        f"{words} {each}."
        for quantity, (words, null) in said.items()
        if (each := _each(models, partial(_mean, geometry, quantity), partial(_against, null=null)))
    ]
    return " ".join(lines)


def _against(row: Any, null: str) -> str:
    return f"{_share(row)} ({null} {percent(row['null'], 2)})"


def _share(row: Any) -> str:
    """A share as percent, with its interval."""
    ends = "" if pd.isna(row["low"]) else f" [{percent(row['low'], 2)}, {percent(row['high'], 2)}]"
    return f"{percent(row['value'], 2)}{ends}"


def _with_null(row: Any) -> str:
    return f"{interval(row)} (uniform {number(row['null'])})"


def _rolled(rollout: Result, models: Sequence[str]) -> str:
    """What is left of the image in a rollout of all layers."""

    def last(quantity: str, name: str) -> pd.Series | None:
        frame = rollout.frame[(rollout.frame["quantity"] == quantity) & (rollout.frame["model"] == name)]
        return found(frame, layer=frame["layer"].max()) if len(frame) else None

    def alike(name: str) -> pd.Series | None:
        return last("rollout_between_images", name)

    pairs = _each(models, alike, interval)
    twins = {name: alike(name + TWIN) for name in models}
    random = listed(interval(row) for row in twins.values() if row is not None)
    beside = f" (with random weights {random})" if random else ""
    return (
        f"Rollouts of all layers of two different images correlate by {pairs}{beside}; 0 is unrelated, 1 a map that "
        "shows positions and no image."
        if pairs
        else ""
    )


def _redundant(redundancy: Result, models: Sequence[str]) -> list[str]:
    """Tokens, heads and weights of the last layer, each with its null."""
    frame = redundancy.frame
    frame = frame[frame["head"].isna() & frame["layer"].notna()]

    def of_last(quantity: str, null: str) -> str:
        def last(name: str) -> pd.Series | None:
            own = frame[(frame["quantity"] == quantity) & (frame["model"] == name)]
            return found(own, layer=own["layer"].max()) if len(own) else None

        return _each(models, last, lambda row: f"{_plain(row)} ({null} {number(row['null'])})")

    tokens = of_last("token_cosine", "of two images")
    heads = of_last("attention_cosine_centred", "on different images")
    weights = of_last("effective_rank_qk", "random")
    lines = [
        f"In the last layer two tokens of an image have a cosine of {tokens}." if tokens else "",
        f"Its heads have a centred cosine of {heads}." if heads else "",
        f"The effective rank of `W_Q' W_K` there, as a share of the head width, is {weights}."
        if weights
        else "",
    ]
    return [" ".join(line for line in lines if line)]


def _plain(row: Any) -> str:
    """Weights are no sample, so that they have no interval to miss."""
    return number(row["value"]) if str(row["interval"]).startswith("none") else interval(row)


def geometry_conclusions(difference: Result, model: str, baseline: str) -> list[str]:
    """The paired differences one by one, and why they end in no verdict."""
    lines = []
    for (quantity, tokens), words in _HEADLINES.items():
        mean, change = (
            found(difference.frame, quantity=f"{quantity}{end}_difference", tokens=tokens)
            for end in ("", _CHANGE)
        )
        if mean is not None:
            how = _share if quantity.endswith("mass") else interval
            later = "" if change is None else f"; its change from the first to the last third {how(change)}"
            lines.append(f"{words}: {how(mean)}{later}.")
    if not lines:
        return ["Nothing can be concluded: none of the differences could be measured."]
    if untrained_in(difference.frame):
        return [*lines, no_verdict(difference.frame)]
    why = "The paper makes no claim about them and no smallest difference was fixed, so there is no verdict."
    return [*lines, f"These say how {code(model)} and {code(baseline)} differ. {why}"]
