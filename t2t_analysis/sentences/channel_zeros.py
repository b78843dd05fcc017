"""Whether channels are zero, flat, too large or dead, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from .._names import has_soft_split
from .._show import code
from ..claims.rule import SMALLEST, place, too_few_agree, unseen_share
from ..results import Result
from .feature_maps import expected
from .words import found, interval, listed, no_verdict, number, untrained_in

__all__ = ["path_findings", "small", "zero_conclusions", "zero_findings"]

SMALLEST_EFFECT = SMALLEST["channel_share"]
STREAM = "blocks.*.resid_post"

_KINDS = {"zero": "zero", "flat": "flat", "dead": "dead", "too_large": "too large"}
_STEPS = {
    "normalise": "mean and standard deviation of the input",
    "class_token": "the class token",
    "position": "the position table",
    "own_size": "the model's own image size",
}


def small(row: Any) -> str:
    """A small share with its interval, in percent with as many digits as it needs.

    >>> small({"value": 0.0034, "low": 0.0032, "high": 0.0036}), small({"value": 0, "low": 0, "high": 0})
    ('0.34 % [0.32, 0.36]', '0 % [0, 0]')
    """
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{_digits(row['value'])} % (no interval)"
    return f"{_digits(row['value'])} % [{_digits(row['low'])}, {_digits(row['high'])}]"


def _digits(share: float) -> str:
    """A share as percent with two digits that tell something; below a ten-thousandth of a percent it is 0."""
    percent = 100 * float(share)
    if abs(percent) < 5e-5:
        return "0"
    return (
        f"{percent:.4f}".rstrip("0").replace("-", "−")
        if abs(percent) < 0.01
        else f"{percent:.2f}".replace("-", "−")
    )


def _area(result: Result, quantity: str, model: str, where: str = STREAM) -> pd.Series | None:
    return found(result.frame, quantity=quantity, model=model, place=where, at=None)


def zero_findings(
    invalid: Result,
    outliers: Result,
    difference: Result,
    trained: Sequence[Result],
    model: str,
    baseline: str,
) -> list[str]:
    """Sentences on invalid channels by the real forward pass, first the one that answers the question.

    Parameters
    ----------
    invalid : of `InvalidChannels` for both models and, where they have any, their random twins.
    outliers : of `ChannelOutliers` for both models.
    difference : of `difference` in the residual stream, model minus baseline.
    trained : of `difference`, each model minus its twin.
    """
    pair = (model, baseline)
    lines = [
        _answer(invalid, difference, model, baseline),
        _none_of(invalid, pair),
        _most(invalid, pair),
        _everywhere(invalid, pair),
        _exact(invalid, pair),
        *(_training(result) for result in trained),
        *(_outliers(outliers, pair)),
    ]
    return [line for line in lines if line]


# ------------------------------------------------------------------------------------------ the answer


def _answer(invalid: Result, difference: Result, model: str, baseline: str) -> str:
    """Whether one of the two has fewer channels that are zero or too large."""
    row = found(difference.frame, quantity="invalid_area_difference")
    rows = {name: _area(invalid, "invalid_area", name) for name in (model, baseline)}
    if row is None or any(r is None for r in rows.values()):
        return "Whether channels are invalid cannot be said: no block has finite features, or there are too few images."
    each = listed(f"{small(r)} in {code(name)}" for name, r in rows.items())
    return (
        f"{_verdict(row, difference, rows)} In the residual stream the share of channels that are zero or too large "
        f"(mean over layers and thresholds) is {each}; the difference is {small(row)}, paired over {row['n']} images."
    )


def _verdict(row: Any, difference: Result, rows: Mapping[str, Any]) -> str:
    """The answer in words; ``rows`` are the shares of model and baseline, in this order."""
    model, baseline = rows
    if untrained_in(difference.frame):
        return no_verdict(difference.frame, words="No verdict: at least one of the two has random weights.")
    if pd.isna(row["low"]):
        return "No verdict: too few images for an interval of the difference."
    if too_few_agree(row["low"], row["high"], row["n"], SMALLEST_EFFECT):
        both = f"{code(model)} and {code(baseline)}"
        return (
            f"No verdict: in none of the {row['n']} images do {both} differ, so there is no spread for an interval "
            f"and up to {100 * unseen_share(row['n']):.1f} % of images could be different."
        )
    where = place(row["low"], row["high"], SMALLEST_EFFECT)
    if where == "across":
        return f"Inconclusive: the interval reaches across {100 * SMALLEST_EFFECT:g} %, the smallest share that counts."
    if where == "within":
        if all(r is not None and r["high"] < SMALLEST_EFFECT for r in rows.values()):
            return (
                f"Hardly any channel of {code(model)} or {code(baseline)} is zero or too large{_said(rows)}."
            )
        return (
            f"{code(model)} and {code(baseline)} have as many channels that are zero or too large, to within "
            f"{100 * SMALLEST_EFFECT:g} % of the channels."
        )
    fewer, more = (model, baseline) if where == "below" else (baseline, model)
    return f"{code(fewer)} has fewer channels that are zero or too large than {code(more)}{expected(fewer, more)}."


def _said(rows: Iterable[str]) -> str:
    """What the paper says of such a pair, if it says anything."""
    one_soft = len({has_soft_split(name) for name in rows}) == 2
    return ", contrary to the paper's claim that a hard split has many, a soft one fewer" if one_soft else ""


def _none_of(invalid: Result, pair: Iterable[str]) -> str:
    """How far from zero the channels are, where there is none."""
    frame = invalid.frame
    parts = []
    for name in pair:
        rows = frame[(frame["quantity"] == "zero") & frame["layer"].notna() & (frame["model"] == name)]
        rows = rows[rows["place"].str.endswith("resid_post") & rows["at"].notna() & rows["value"].notna()]
        if rows.empty:
            return ""
        none = [float(part["at"].iloc[0]) for _, part in rows.groupby("at") if part["value"].max() == 0]
        least = (
            f"no channel of any block has a peak below {max(none):.2g} levels"
            if none
            else "some have a peak of 0"
        )
        parts.append(f"in {code(name)} {least}")
    n = int(frame["n"][frame["unit"] == "image"].max())
    return (
        f"How far from zero: {listed(parts)}. An interval [0, 0] says that none of the {n} images had such a channel; "
        f"up to {100 * unseen_share(n):.1f} % of images could (95 %)."
    )


def _most(invalid: Result, pair: Iterable[str]) -> str:
    """Of every model, the place and kind with the largest share."""
    frame = invalid.frame
    areas = [f"{kind}_area" for kind in _KINDS]
    frame = frame[
        frame["quantity"].isin(areas) & frame["at"].isna() & ~frame["place"].str.contains("*", regex=False)
    ]
    parts = []
    for name in pair:
        rows = frame[(frame["model"] == name) & frame["value"].notna()]
        if rows.empty:
            return ""
        top = rows.iloc[int(rows["value"].astype(float).argmax())]
        kind = _KINDS[str(top["quantity"]).removesuffix("_area")]
        of = f"at {top['place']} of {code(name)} ({kind}; values shuffled {_digits(top['null'])} %)"
        parts.append(f"{small(top)} {of}" if top["value"] > 0 else f"0 in {code(name)}")
    return f"The largest share of channels of any kind at any place is {listed(parts)}."


def _everywhere(invalid: Result, pair: Iterable[str]) -> str:
    """Channels that are invalid in every image, where the unit is the channel."""
    frame = invalid.frame
    kinds = [f"{kind}_area_in_every_image" for kind in _KINDS]
    rows = frame[frame["quantity"].isin(kinds) & frame["model"].isin(list(pair)) & frame["value"].notna()]
    if rows.empty:
        return ""
    some = rows[rows["value"] > 0]
    if len(some):
        top = some.iloc[int(some["value"].astype(float).argmax())]
        kind = _KINDS[str(top["quantity"]).removesuffix("_area_in_every_image")]
        where = f"{top['place']} of {code(top['model'])}"
        return f"Channels that are {kind} in every image, at most {small(top)}, are at {where}."
    stream = rows[rows["place"].str.endswith("resid_post")]
    least = (stream if len(stream) else rows).iloc[0]
    return (
        "No channel at any place is zero, flat, dead or too large in every image. With "
        f"{least['n']} channels in a block of the residual stream this leaves up to {_digits(least['high'])} % "
        "possible (Wilson)."
    )


def _exact(invalid: Result, pair: Iterable[str]) -> str:
    frame = invalid.frame
    rows = frame[
        (frame["quantity"] == "exact_zero") & frame["model"].isin(list(pair)) & frame["value"].notna()
    ]
    if rows.empty:
        return ""
    top = rows.iloc[int(rows["value"].astype(float).argmax())]
    if top["value"] == 0:
        return "No value at any place is exactly 0."
    return f"Most values that are exactly 0 are at {top['place']} of {code(top['model'])}: {small(top)}."


def _training(result: Result) -> str:
    row = found(result.frame, quantity="invalid_area_difference")
    if row is None or pd.isna(row["low"]):
        return ""
    if row["low"] == row["high"] == 0:
        return (
            f"Training changed nothing about that in {code(row['model'])}, in any of the {row['n']} images."
        )
    words = {
        "above": "made more channels zero or too large",
        "below": "made fewer channels zero or too large",
        "within": "made no difference that counts",
        "across": "made no difference that is settled",
    }[place(row["low"], row["high"], SMALLEST_EFFECT)]
    return f"Training {words} in {code(row['model'])}: trained minus random weights {small(row)}."


# ------------------------------------------------------------------------------------------ outliers


def _outliers(outliers: Result, pair: Sequence[str]) -> list[str]:
    """Largest outliers of the residual stream, in the block that has most of them."""
    massive, tokens, kurtosis = (
        _largest(outliers, quantity, pair)
        for quantity in ("massive_activations", "outlier_tokens", "kurtosis")
    )
    lines = []
    if massive and all(row["value"] == 0 for row in massive.values()):
        lines.append(
            "No activation of the residual stream is massive (over 100 and over 1,000 medians of its image)."
        )
    elif massive:
        lines.append(f"Massive activations per image, in the block with most: {_with_intervals(massive)}.")
    if tokens:
        each = listed(f"{small(row)} in {code(name)} (layer {row['layer']})" for name, row in tokens.items())
        lines.append(
            f"Tokens with over 3 times the median norm of their image, in the block with most: {each}."
        )
    if kurtosis:
        null = number(next(iter(kurtosis.values()))["null"])
        lines.append(
            f"Largest kurtosis over channels: {_with_intervals(kurtosis)}; normal values have {null}."
        )
    return lines


def _largest(outliers: Result, quantity: str, pair: Iterable[str]) -> dict[str, pd.Series]:
    """Of each model, the row of the block with most; empty where a model has none."""
    frame = outliers.frame
    rows = frame[(frame["quantity"] == quantity) & frame["at"].isna() & frame["value"].notna()]
    rows = rows[rows["place"].str.endswith("resid_post")]
    own = {name: rows[rows["model"] == name] for name in pair}
    if any(part.empty for part in own.values()):
        return {}
    return {name: part.iloc[int(part["value"].astype(float).argmax())] for name, part in own.items()}


def _with_intervals(tops: dict[str, pd.Series]) -> str:
    return listed(f"{interval(row)} in {code(name)} (layer {row['layer']})" for name, row in tops.items())


# ------------------------------------------------------------------------------------------ the notebook's path


def path_findings(shortcut: Result | None, models: Sequence[str]) -> list[str]:
    """How many of the "zero channels" the released notebook's path makes, and by which step.

    ``shortcut`` is of `ShortcutShare` with ``steps``; None where no model has such a path.
    """
    lines = []
    for name in models:
        if shortcut is None or name not in set(shortcut.frame["model"]):
            lines.append(f"For {code(name)} the path does not exist: it is more than its children in a row.")
            continue
        lines += [line for kind in ("zero", "flat") if (line := _made(shortcut, name, kind))]
    return lines


def _made(shortcut: Result, model: str, kind: str) -> str:
    """One kind in one model, in the block where the path makes most of it."""
    frame = shortcut.frame
    rows = frame[(frame["quantity"] == f"{kind}_area_made_by_shortcut") & (frame["model"] == model)]
    rows = rows[rows["layer"].notna() & rows["value"].notna()]
    if rows.empty:
        return ""
    top = rows.iloc[int(rows["value"].astype(float).argmax())]
    shown, real = (
        _area(shortcut, f"{kind}_area_{way}", model, str(top["place"])) for way in ("shortcut", "real")
    )
    if shown is None or real is None:
        return ""
    if pd.notna(shown["high"]) and shown["high"] < SMALLEST_EFFECT / 10:
        return (
            f"In {code(model)} the released notebook's path shows next to no {kind} channels either: {small(shown)} in "
            "the block with most, too few for a share of them to mean anything."
        )
    part = _area(shortcut, f"{kind}_area_share", model, str(top["place"]))
    of_them = f", {100 * part['value']:.0f} % of all that it shows" if part is not None else ""
    return (
        f"In {code(model)} the released notebook's path shows {small(shown)} {kind} channels at {top['place']}, where "
        f"the real forward pass has {small(real)}: the path makes {small(top)}{of_them}, "
        f"{_against(top['low'], top['high'])}.{_step(shortcut, model, kind, top)}"
    )


def _against(low: float, high: float) -> str:
    if pd.isna(low):
        return "without an interval"
    return {
        "above": f"more than {100 * SMALLEST_EFFECT:g} % of the channels",
        "below": "fewer than the real pass",
        "within": f"less than {100 * SMALLEST_EFFECT:g} % of the channels",
        "across": f"not settled against {100 * SMALLEST_EFFECT:g} % of the channels",
    }[place(low, high, SMALLEST_EFFECT)]


def _step(shortcut: Result, model: str, kind: str, top: Any) -> str:
    """Which single step, put right, removes most of them."""
    rows = {
        step: row
        for step in _STEPS
        if (row := _area(shortcut, f"{kind}_area_made_with_{step}", model, str(top["place"]))) is not None
    }
    helps = {step: row for step, row in rows.items() if row["high"] < top["low"]}
    if not helps:
        return ""
    each = listed(f"{_STEPS[step]} ({small(row)} left)" for step, row in helps.items())
    return f" Any one of these steps, put right, removes most of them: {each}." if len(helps) > 1 else (
        f" One step, put right, removes most of them: {each}."
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ conclusions


def zero_conclusions(invalid: Result, differences: Sequence[Result], model: str, baseline: str) -> list[str]:
    """One sentence per place on the paired differences of all kinds, then the verdict.

    ``differences`` are of `difference` on ``invalid``, the residual stream first.
    """
    lines = [_place_words(result) for result in differences]
    if any(untrained_in(result.frame) for result in differences):
        return [*(line for line in lines if line), no_verdict(*(result.frame for result in differences))]
    row = found(differences[0].frame, quantity="invalid_area_difference") if differences else None
    rows = {name: _area(invalid, "invalid_area", name) for name in (model, baseline)}
    if row is not None:
        lines.append(f"{_verdict(row, differences[0], rows)} This is said of these two, on these images.")
    return [line for line in lines if line]


def _place_words(result: Result) -> str:
    rows = {kind: found(result.frame, quantity=f"{kind}_area_difference") for kind in _KINDS}
    known = {kind: row for kind, row in rows.items() if row is not None}
    if not known:
        return ""
    where = str(next(iter(known.values()))["place"])
    parts = [f"{_KINDS[kind]} {small(row)}" for kind, row in known.items()]
    count = sum(
        pd.notna(row["low"]) and place(row["low"], row["high"], SMALLEST_EFFECT) in ("above", "below")
        for row in known.values()
    )
    beyond = f"{count} of {len(known)} beyond ±{100 * SMALLEST_EFFECT:g} %" if count else (
        f"none beyond ±{100 * SMALLEST_EFFECT:g} %"
    )  # fmt: skip
    return f"Model minus baseline at {where}, in % of the channels: {', '.join(parts)}; {beyond}."
