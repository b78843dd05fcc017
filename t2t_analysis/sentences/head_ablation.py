"""What heads do to the output, and whether similar ones are redundant, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._show import code
from ..claims.rule import SMALLEST, place
from ..quantities import p_words
from ..results import Result
from ..stats import holm, proportion_ci
from .words import interval, listed, no_verdict, number, percent, side, untrained_in

__all__ = ["DEAD", "ablation_conclusions", "ablation_findings"]

SMALLEST_EFFECT = SMALLEST["rank_correlation"]
#: KL divergence in nats below which no event changes its probability by more than SMALLEST["accuracy"], on average over
#: images: by Pinsker's inequality a total variation of v needs a divergence of 2 v^2 at least.
DEAD = 2 * SMALLEST["accuracy"] ** 2
ALPHA = 0.05

_WITHIN = "similarity_effect_spearman_within_layers"
_OVERALL = "similarity_effect_spearman"


def ablation_findings(
    ablation: Result,
    association: Result,
    pruning: Result,
    model: str,
    baseline: str,
) -> list[str]:
    """Sentences on heads and what they do, first the one that answers the question.

    Parameters
    ----------
    ablation : of `HeadAblation`, of one or more kinds; the first is the one that counts.
    association : of `similarity_is_redundancy` for both models.
    pruning : of `PruningCurves` for both models.
    """
    frame, kinds = _by_kind(ablation)
    names = (model, baseline)
    main = frame[frame["kind"] == kinds[0]] if kinds else frame
    return [
        _answer(association, main, names),
        *(_correlation(association, name) for name in names),
        *(_single(main, name) for name in names),
        *(_predictions(main, name) for name in names),
        *(_removable(pruning, name) for name in names),
    ]


def ablation_conclusions(
    ablation: Result,
    association: Result,
    pruning: Result,
    model: str,
    baseline: str,
) -> list[str]:
    """Whether kinds of ablation agree, what layers add, what the orders of removal are worth, the sum."""
    frame, kinds = _by_kind(ablation)
    names = (model, baseline)
    return [
        *(_kinds(frame, kinds, name) for name in names),
        *(_layers(frame, kinds, name) for name in names),
        *(line for name in names for line in _areas(pruning, name)),
        _sum(association, pruning, names),
    ]


# ------------------------------------------------------------------------------------------ looking up


def _by_kind(ablation: Result) -> tuple[pd.DataFrame, list[str]]:
    """All rows with their kind of ablation, none for importances, and the kinds in order."""
    said = ablation.frame["estimator"].str.extract(r"(\w+) ablation of", expand=False)
    return ablation.frame.assign(kind=said), list(dict.fromkeys(said.dropna()))


def _heads(frame: pd.DataFrame, quantity: str, model: str) -> pd.DataFrame:
    rows = frame[(frame["quantity"] == quantity) & (frame["model"] == model) & frame["value"].notna()]
    return rows.drop_duplicates(["layer", "head"])


def _association(association: Result, model: str, quantity: str = _WITHIN) -> pd.Series | None:
    frame = association.frame
    rows = frame[(frame["model"] == model) & (frame["quantity"] == quantity) & frame["value"].notna()]
    return rows.iloc[0] if len(rows) else None


def _name(row: Any) -> str:
    return f"{int(row['layer'])}.{int(row['head'])}"


def _nats(value: float) -> str:
    """Two significant digits, however small.

    >>> _nats(0.0000213), _nats(-0.0402), _nats(0.0)
    ('0.000021', '−0.040', '0')
    """
    if pd.isna(value):
        return "–"
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits)}f}".replace("-", "−")


def _nats_interval(row: Any) -> str:
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if pd.isna(low) or pd.isna(high):
        return f"{_nats(value)} (no interval)"
    return f"{_nats(value)} [{_nats(low)}, {_nats(high)}]"


def _significant(frame: pd.DataFrame, quantity: str, model: str) -> pd.DataFrame | None:
    """Heads whose corrected p is below 0.05, the largest effect first; None where nothing was tested."""
    corrected = _heads(frame, f"{quantity}_p_holm", model)
    if corrected.empty:
        return None
    low = corrected[corrected["value"].astype(float) < ALPHA][["layer", "head"]]
    rows = _heads(frame, quantity, model).merge(low, on=["layer", "head"])
    return rows.sort_values("value", ascending=False, kind="stable")


# ------------------------------------------------------------------------------------------ findings

_VERDICTS = {
    "below": "Similar heads do less in {names}, as the paper assumes.",
    "above": "Similar heads do more in {names}, contrary to what the paper assumes.",
    "within": f"Likeness says nothing of what a head does in {{names}}, to within ±{SMALLEST_EFFECT:g}.",
    "across": "Whether similar heads are redundant is not settled in {names}, by intervals across "
    f"±{SMALLEST_EFFECT:g}.",
    "missing": "Whether similar heads are redundant could not be measured in {names}.",
}


def _places(association: Result, names: Sequence[str]) -> dict[str, list[str]]:
    """Where the intervals of the models lie: place -> names."""
    found: dict[str, list[str]] = {}
    for name in names:
        row = _association(association, name)
        where = "missing" if row is None else place(row["low"], row["high"], SMALLEST_EFFECT)
        found.setdefault(where, []).append(name)
    return found


def _answer(association: Result, frame: pd.DataFrame, names: Sequence[str]) -> str:
    """Whether similar heads are redundant, and how many heads are dead weight."""
    if untrained_in(association.frame):
        words = "No verdict: at least one of the two has random weights, whose heads have learned nothing."
        return no_verdict(association.frame, words=words)
    parts = [
        _VERDICTS[where].format(names=listed(map(code, of)))
        for where, of in _places(association, names).items()
    ]
    return " ".join([*parts, _dead_in_short(frame, names)]).strip()


def _dead_in_short(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """How many heads are dead weight, both models in one sentence."""
    parts = []
    for name in names:
        rows = _heads(frame, "kl", name)
        if len(rows):
            dead = int((rows["high"].astype(float) < DEAD).sum())
            parts.append(f"{dead or 'none'} of the {len(rows)} heads of {code(name)}")
    if not parts:
        return ""
    few = int(frame.loc[frame["quantity"] == "kl", "n"].min())
    return (
        f"Dead weight by a strict bound (KL below {_bound()} nats with its whole interval, n = {few} images): "
        f"{' and '.join(parts)}."
    )


def _bound() -> str:
    return np.format_float_positional(DEAD, trim="-")


def _correlation(association: Result, name: str) -> str:
    row, whole = _association(association, name), _association(association, name, _OVERALL)
    if row is None:
        return f"For {code(name)} there is no correlation of likeness with effect."
    null = f"permuted [{number(row['null_low'])}, {number(row['null_high'])}]"
    noise = (
        "" if pd.isna(row["ceiling"]) else f" Noise in the effects holds it below {number(row['ceiling'])}."
    )
    overall = "" if whole is None else f" Over all heads, layers mixed, it is {interval(whole)}."
    return (
        f"Within the layers of {code(name)}, the rank correlation of a head's largest likeness to another head with "
        f"the KL divergence without it is {interval(row)} ({p_words(row['p'])}, {null}; n = {row['n']} heads).{noise}"
        f"{overall}"
    )


def _single(frame: pd.DataFrame, name: str) -> str:
    """What heads do one by one, against random directions of their size."""
    rows = _heads(frame, "kl", name)
    if rows.empty:
        return (
            f"For {code(name)} no KL divergence was measured: it has no classifier, or no image was finite."
        )
    rows = rows.sort_values("value", ascending=False, kind="stable")
    top, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"Taken out one by one ({top['kind']} ablation, n = {top['n']} images), heads of {code(name)} change the "
        f"output by a KL divergence of {_nats_interval(last)} (head {_name(last)}) to {_nats_interval(top)} nats (head "
        f"{_name(top)}), median {_nats(rows['value'].median())}; random subspaces of their size by a median of "
        f"{_nats(rows['null'].median())}. {_beyond(frame, name, len(rows))}"
    )


def _beyond(frame: pd.DataFrame, name: str, heads: int) -> str:
    found = _significant(frame, "kl", name)
    if found is None:
        return "With so few images there is no test."
    more = found[found["value"] > found["null"]]
    less = found[found["value"] < found["null"]]
    which = f" ({listed(_name(row) for _, row in more.head(6).iterrows())}{', ...' if len(more) > 6 else ''})"
    fewer = f", {len(less)} less" if len(less) else ""
    return (
        f"{len(more)} of {heads} do more than such a subspace, after Holm's correction{which if len(more) else ''}"
        f"{fewer}."
    )


def _predictions(frame: pd.DataFrame, name: str) -> str:
    """Whether any prediction or the accuracy changes, and how little so many images can rule out."""
    rows = _heads(frame, "prediction_change", name)
    if rows.empty:
        return f"For {code(name)} there are no predictions to change."
    still = rows[rows["value"].astype(float) == 0]
    n = int(rows.iloc[0]["n"])
    limit = percent(proportion_ci(0, n).high)
    return (
        f"{len(still)} of {len(rows)} heads of {code(name)} change the predicted class of none of the {n} images, "
        f"which rules out no more than changes in more than {limit} of images, for each head by "
        f"itself.{_accuracy(frame, name)}"
    )


def _accuracy(frame: pd.DataFrame, name: str) -> str:
    rows = _heads(frame, "accuracy_change", name)
    if rows.empty:
        return ""
    worst = rows.sort_values("value", kind="stable").iloc[0]
    found = _significant(frame, "accuracy_change", name)
    count = "not tested" if found is None else f"{len(found)} of {len(rows)}"
    return (
        f" Accuracy falls most without head {_name(worst)}: {interval(worst)}; changes that hold after Holm's "
        f"correction: {count}."
    )


def _order_of(row: Any) -> str:
    return str(row["estimator"]).split(" in order of ")[1].split(";")[0]


def _summaries(pruning: Result, name: str, quantity: str) -> pd.DataFrame:
    frame = pruning.frame
    rows = frame[(frame["model"] == name) & (frame["quantity"] == quantity) & frame["value"].notna()]
    return rows.assign(order=[_order_of(row) for _, row in rows.iterrows()])


def _removable(pruning: Result, name: str) -> str:
    rows = _summaries(pruning, name, "removable_by_kl")
    if rows.empty:
        return f"For {code(name)} there are no curves of removal."
    parts = [f"{interval(row)} by {row['order']}" for _, row in rows.iterrows()]
    first = rows.iloc[0]
    limit = str(first["estimator"]).split("exceeds ")[-1]
    return (
        f"Of the heads of {code(name)}, a fraction of {listed(parts)} can go before the KL divergence exceeds {limit} "
        f"nats; at random {number(first['null'])} [{number(first['null_low'])}, {number(first['null_high'])}] "
        f"({first['null_kind']}, n = {first['n']} images)."
    )


# ------------------------------------------------------------------------------------------ conclusions


def _kinds(frame: pd.DataFrame, kinds: Sequence[str], name: str) -> str:
    """Median effect, strongest head and number beyond chance, by kind of ablation."""
    parts = []
    for kind in kinds:
        own = frame[frame["kind"] == kind]
        rows = _heads(own, "kl", name)
        if rows.empty:
            continue
        alike = (
            ""
            if kind == kinds[0]
            else _order_like(rows, _heads(frame[frame["kind"] == kinds[0]], "kl", name))
        )
        top = rows.sort_values("value", ascending=False, kind="stable").iloc[0]
        found = _significant(own, "kl", name)
        tested = (
            "no test" if found is None else f"{int((found['value'] > found['null']).sum())} beyond the null"
        )
        parts.append(
            f"{kind} (n = {top['n']}): median {_nats(rows['value'].median())} nats, most in head {_name(top)}, "
            f"{tested}{alike}"
        )
    return f"By kind of ablation in {code(name)}: {'; '.join(parts) or 'not measured'}."


def _order_like(rows: pd.DataFrame, first: pd.DataFrame) -> str:
    """How alike heads are ordered by two kinds of ablation; nothing where ranks cannot be correlated."""
    both = rows.merge(first, on=["layer", "head"], suffixes=("", "_first"))
    alike = both["value"].astype(float).corr(both["value_first"].astype(float), method="spearman")
    kind = "" if first.empty else first.iloc[0]["kind"]
    return "" if pd.isna(alike) else f", rank correlation over heads with {kind} {number(alike)}"


def _layers(frame: pd.DataFrame, kinds: Sequence[str], name: str) -> str:
    """In how many layers the heads together do more than one by one."""
    own = frame[frame["kind"] == kinds[0]] if kinds else frame
    rows = own[(own["quantity"] == "kl_layer") & (own["model"] == name) & own["value"].notna()]
    if rows.empty:
        return f"Whole layers of {code(name)} were not taken out."
    p = holm(rows["p"].to_numpy(float, na_value=np.nan))
    clear = rows[p < ALPHA]
    more = clear[clear["value"] > clear["null"]]
    which = f": {listed(str(int(layer)) for layer in more['layer'])}" if len(more) else ""
    return (
        f"Without all heads of a layer, the output of {code(name)} changes by more than the sum over its heads one by "
        f"one in {len(more)} of {len(rows)} layers after Holm's correction{which}, and by less in "
        f"{len(clear) - len(more)}. More means that heads push the output the same way, or stand in for each other."
    )


def _areas(pruning: Result, name: str) -> Iterator[str]:
    rows = _summaries(pruning, name, "pruning_area_kl")
    for _, row in rows.iterrows():
        yield (
            f"Heads of {code(name)} removed by {row['order']}: the area between the curve of KL and the mean of random "
            f"orders is {interval(row)} nats, below 0 where less is lost (tested as one more random order, "
            f"{p_words(row['p'])}; most of those lie in [{number(row['null_low'])}, {number(row['null_high'])}])."
        )


def _sum(association: Result, pruning: Result, names: Sequence[str]) -> str:
    """Whether likeness is a guide to what can go."""
    if untrained_in(association.frame) or untrained_in(pruning.frame):
        return no_verdict(association.frame, pruning.frame)
    parts = [f"{code(name)}: {_guide(association, pruning, name)}" for name in names]
    return f"Is likeness a guide to heads that can go? {'; '.join(parts)}."


def _guide(association: Result, pruning: Result, name: str) -> str:
    row = _association(association, name)
    where = "missing" if row is None else side(row["low"], row["high"], SMALLEST_EFFECT)
    correlation = f"the correlation is {where}"
    areas = _summaries(pruning, name, "pruning_area_kl")
    areas = areas[areas["order"] == "similarity"]
    if areas.empty or pd.isna(areas.iloc[0]["p"]):
        return correlation
    area = areas.iloc[0]
    less = "less" if area["value"] < 0 else "more"
    found = "is not told from random orders" if area["p"] >= ALPHA else f"costs {less} than random orders"
    return f"{correlation}, and removal by likeness {found}"
