"""What models cost, in words. Weights play no part in it, so random ones get the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .._show import code
from ..claims.rule import SMALLEST, place
from ..measures.latency import machine_words
from ..measures.paper_costs import agreeing
from ..quantities import quantity as described
from ..results import Result
from .words import interval, listed, number, percent

__all__ = ["cost_conclusions", "cost_findings"]

SMALLEST_EFFECT = SMALLEST["cost"]

_WORDS = {"parameters": "parameters", "macs_all": "multiply-accumulates"}
#: what the claim of half is about, and what else the same tables put beside it
_OURS, _PAPER, _DEIT = "Table 2: T2T-ViT-14", "Table 2: ViT-S/16", "Table 2: DeiT-small"
_TRANSFORMER = "Table 3: T2T-ViT_t-14"


def cost_findings(
    printed: Result, counted: Result, timed: Result, step: Result, model: str, baseline: str = ""
) -> list[str]:
    """Sentences on costs, first the one that answers the question.

    Parameters
    ----------
    printed : of `printed_costs`.
    counted : of `costs` for both models, against ``baseline``.
    timed, step : of `latencies` against ``baseline``, of forward passes and of training steps.
    baseline : empty for one model alone.
    """
    own = _pair(counted, timed, model, baseline) if baseline else _alone(counted, timed, model)
    lines = [
        f"{_half(printed, _OURS, _PAPER)} {own}",
        *_beside(printed),
        *_tables(printed),
        *_twice(printed),
        *(_memory(counted, model, baseline) if baseline else ()),
        *_times(timed, step, model, baseline),
    ]
    return [line for line in lines if line]


def cost_conclusions(
    printed: Result, counted: Result, timed: Result, step: Result, model: str, baseline: str = ""
) -> list[str]:
    """The claim under both conventions, the print, and whether counts foretell the clock."""
    return [
        *_claim(printed),
        *_fit(printed),
        *(_against_macs(result, counted, model, baseline) for result in (timed, step) if baseline),
    ]


# ------------------------------------------------------------------------------------------ looking up


def _line(printed: Result, at: str, quantity: str) -> pd.Series | None:
    """One printed line, or None where it was not counted."""
    frame = printed.frame
    rows = frame[(frame["place"] == at) & (frame["quantity"] == quantity) & frame["value"].notna()]
    return None if rows.empty else rows.iloc[0]


def _over(printed: Result, first: str, second: str, quantity: str) -> float | None:
    """Counted cost of one printed line over that of another."""
    rows = _line(printed, first, quantity), _line(printed, second, quantity)
    return None if rows[0] is None or rows[1] is None else float(rows[0]["value"] / rows[1]["value"])


def _value(result: Result, quantity: str, model: str) -> float | None:
    frame = result.frame
    rows = frame[(frame["quantity"] == quantity) & (frame["model"] == model) & frame["value"].notna()]
    return None if rows.empty else float(rows.iloc[0]["value"])


def _share(counted: Result, quantity: str, model: str, baseline: str) -> float | None:
    ours, theirs = _value(counted, quantity, model), _value(counted, quantity, baseline)
    return ours / theirs if ours is not None and theirs else None


def _ratios(timed: Result, model: str) -> pd.DataFrame:
    """Rows of time over that of the baseline, by batch size."""
    frame = timed.frame
    return frame[(frame["quantity"] == "latency_ratio") & (frame["model"] == model)].sort_values("at")


def _name(at: str) -> str:
    return at.split(": ", 1)[1]


# ------------------------------------------------------------------------------------------ findings


def _half(printed: Result, ours: str, paper: str) -> str:
    """How much of the paper's ViT-S/16, and what the claim of half makes of it."""
    found = {quantity: _over(printed, ours, paper, quantity) for quantity in _WORDS}
    known = {quantity: ratio for quantity, ratio in found.items() if ratio is not None}
    if len(known) < len(_WORDS):
        return f"{_name(ours)} and the paper's {_name(paper)} were not both counted: no verdict on half."
    more = [_WORDS[q] for q, ratio in known.items() if _of_half(ratio) == "above"]
    shares = listed(f"{percent(ratio)} of the {_WORDS[q]}" for q, ratio in known.items())
    verdict = (
        f"more than half of the {listed(more)}, contrary to the paper's claim"
        if more
        else "no more than half of either, as the paper claims"
    )
    return f"Counted, {_name(ours)} has {shares} of the paper's {_name(paper)}: {verdict}."


def _of_half(ratio: float) -> str:
    return place(ratio - 0.5, ratio - 0.5, SMALLEST_EFFECT)


def _pair(counted: Result, timed: Result, model: str, baseline: str) -> str:
    """What the pair at hand has and takes."""
    shares = {quantity: _share(counted, quantity, model, baseline) for quantity in _WORDS}
    has = listed(f"{percent(s)} of the {_WORDS[q]}" for q, s in shares.items() if s is not None)
    rows = _ratios(timed, model)
    time = f"takes {_time(rows.iloc[-1], baseline)}" if len(rows) else "was not timed"
    return f"{code(model)} has {has or 'no cost that was counted'} of {code(baseline)} and {time}."


def _alone(counted: Result, timed: Result, model: str) -> str:
    """What one model has and takes."""
    has = listed(
        f"{described(name).number(value)} {words}" if name != "parameters" else f"{value:,.0f} {words}"
        for name, words in _WORDS.items()
        if (value := _value(counted, name, model)) is not None
    )
    rows = timed.frame[(timed.frame["quantity"] == "latency") & (timed.frame["model"] == model)]
    if rows.empty:
        return f"{code(model)} has {has}; it was not timed."
    row = rows.sort_values("at").iloc[-1]
    time = described("latency").interval(row)
    return f"{code(model)} has {has} and takes {time} for a batch of {int(row['at'])} (median of {row['n']} repeats)."


def _time(row: Any, baseline: str) -> str:
    size = int(row["at"])
    return (
        f"{interval(row)} times as long for {size} image{'' if size == 1 else 's'} (median of {row['n']} "
        f"repeats in turn; {code(baseline)} itself: 1)"
    )


def _beside(printed: Result) -> Iterator[str]:
    """What the same tables put beside the claim: another plain ViT, another tokeniser."""
    deit = [_over(printed, _OURS, _DEIT, quantity) for quantity in _WORDS]
    if deit[0] is not None and deit[1] is not None:
        more = all(x is not None and _of_half(x) == "above" for x in deit)
        yield (
            f"Of {_name(_DEIT)}, another plain vision transformer in the same table, {_name(_OURS)} has "
            f"{percent(deit[0])} of the parameters and {percent(deit[1])} of the multiply-accumulates"
            f"{': the half is a half of one ViT, not of the other' if more else ''}."
        )
    macs = _over(printed, _TRANSFORMER, _PAPER, "macs_all")
    if macs is not None:
        which = {"above": "more than half", "below": "less than half", "within": "half"}[_of_half(macs)]
        yield (
            f"With the transformer tokeniser, {_name(_TRANSFORMER)} has {percent(macs)} of the "
            f"multiply-accumulates of the paper's {_name(_PAPER)}: {which}."
        )


def _tables(printed: Result) -> Iterator[str]:
    """How often the print is right, by quantity, and where it is furthest off."""
    parts = [f"parameters on {_agree(printed, 'parameters')}"]
    parts += [f"multiply-accumulates on {_agree(printed, 'macs_all')} counting all products"]
    parts += [f"on {_agree(printed, 'macs_linear')} counting linear layers only"]
    skipped = f" {len(printed.notes)} lines have no code to count." if printed.notes else ""
    yield (
        f"The printed numbers agree with counts, to {percent(SMALLEST_EFFECT, 0)} or to their last digit, for "
        f"{', '.join(parts)}.{skipped}"
    )
    off = [row for quantity in _WORDS if (row := _furthest(printed, quantity)) is not None]
    if off:
        yield f"Furthest off: {'; '.join(_off(row) for row in off)}."


def _twice(printed: Result) -> Iterator[str]:
    """Models that the tables print more than once, with different costs."""
    found = []
    for quantity, unit in (
        ("parameters", " million parameters"),
        ("macs_all", " × 10⁹ multiply-accumulates"),
    ):
        for _, rows in _rows(printed, quantity).groupby(["model", "value"], sort=False):
            numbers = rows["null"].drop_duplicates()
            if len(numbers) > 1:
                names = dict.fromkeys(_name(at) for at in rows["place"])
                found.append(f"{' or '.join(names)} {listed(f'{x:.1f}' for x in numbers)}{unit}")
    if found:
        yield f"Printed in two ways for one and the same model: {'; '.join(found)}."


def _rows(printed: Result, quantity: str) -> pd.DataFrame:
    frame = printed.frame
    rows = frame[(frame["quantity"] == quantity) & frame["value"].notna() & frame["null"].notna()]
    return rows.astype({"value": float, "null": float})


def _agree(printed: Result, quantity: str) -> str:
    rows = _rows(printed, quantity)
    return f"{int(agreeing(rows, SMALLEST_EFFECT).sum())} of {len(rows)} lines"


def _furthest(printed: Result, quantity: str) -> pd.Series | None:
    rows = _rows(printed, quantity)
    if rows.empty:
        return None
    return rows.iloc[int((rows["value"] / rows["null"] - 1).abs().to_numpy().argmax())]


def _off(row: Any) -> str:
    unit = " million" if row["quantity"] == "parameters" else " × 10⁹"
    apart = row["value"] / row["null"] - 1
    return (
        f"{_WORDS[row['quantity']]} of {row['place']}, {row['null']:g}{unit} printed and "
        f"{row['value']:.2f} counted ({'+' if apart > 0 else ''}{percent(apart)})"
    )


def _memory(counted: Result, model: str, baseline: str) -> Iterator[str]:
    """Peak of a training step, and what the tokeniser keeps of it."""
    ratio, ours = (
        _share(counted, "peak_training", model, baseline),
        _value(counted, "peak_training", model),
    )
    kept, unfolded = (_value(counted, f"tokeniser_saved{x}", model) for x in ("", "_unfolded"))
    if ratio is None or ours is None:
        return
    batches = counted.frame.loc[counted.frame["quantity"] == "peak_training", "at"]
    size = int(batches.to_numpy(float)[0])
    text = (
        f"A training step on {size} images holds {_mebibytes(ours)} at its peak in {code(model)}, "
        f"{number(ratio)} times as much as in {code(baseline)} (counted on shapes: no interval)"
    )
    if kept is not None:
        text += f"; its tokeniser alone keeps {_mebibytes(kept)} for the backward pass"
        text += f", and would keep {_mebibytes(unfolded)} if it unfolded" if unfolded else ""
    yield f"{text}."


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def _times(timed: Result, step: Result, model: str, baseline: str) -> Iterator[str]:
    """The ratio by batch size, the training step, and the machine."""
    rows = _ratios(timed, model)
    if len(rows) > 1:
        sizes = "; ".join(f"{interval(row)} at {int(row['at'])}" for _, row in rows.iterrows())
        yield f"Time of {code(model)} over that of {code(baseline)}, by batch size: {sizes}."
    steps = _ratios(step, model)
    if len(steps):
        yield f"A training step of {code(model)} takes {_time(steps.iloc[-1], baseline)}."
    yield f"Timed on: {machine_words(timed.meta)}. Another machine has other ratios."


# ------------------------------------------------------------------------------------------ conclusions


def _claim(printed: Result) -> Iterator[str]:
    """Half of the parameters, of the multiply-accumulates by either convention."""
    asked = {
        "parameters": "parameters",
        "macs_all": "multiply-accumulates, all products",
        "macs_linear": "multiply-accumulates, linear layers only",
    }
    words = {
        "below": "less than half; as the paper claims",
        "within": f"half, to within {percent(SMALLEST_EFFECT, 0)}; as the paper claims",
        "above": "more than half; contrary to the paper's claim",
    }
    for quantity, what in asked.items():
        ratio = _over(printed, _OURS, _PAPER, quantity)
        if ratio is None:
            yield f"{what.capitalize()}: not counted, no verdict."
        else:
            yield (
                f"{what.capitalize()}: {_name(_OURS)} over the paper's {_name(_PAPER)} is {number(ratio)}, "
                f"{words[_of_half(ratio)]}."
            )


def _fit(printed: Result) -> Iterator[str]:
    """Which convention the paper's own models are printed in."""
    conventions = ("macs_all", "macs_linear")
    rows = {quantity: _rows(printed, quantity).set_index("place") for quantity in conventions}
    right = pd.DataFrame({q: agreeing(r, SMALLEST_EFFECT) for q, r in rows.items()})
    own = right[right.index.str.contains(": T2T-ViT", regex=False)]
    if len(own):
        yield (
            f"Of {len(own)} printed multiply-accumulates of the T2T-ViT family {int(own['macs_all'].sum())} agree "
            f"counting all products, {int(own['macs_linear'].sum())} counting linear layers only and "
            f"{int((~own.any(axis=1)).sum())} by neither."
        )


def _against_macs(timed: Result, counted: Result, model: str, baseline: str) -> str:
    """Whether the clock says what the count says: the ratio of times against the ratio of counts."""
    rows, macs = _ratios(timed, model), _share(counted, "macs_all", model, baseline)
    if rows.empty or macs is None:
        return "Time against counts: not measured."
    row = rows.iloc[-1]
    what = "a training step" if "training" in str(row["estimator"]) else "a forward pass"
    where = f"At {int(row['at'])} images {what} of {code(model)} takes {interval(row)} times that of {code(baseline)}"
    if pd.isna(row["low"]):
        return f"{where}; too few repeats for an interval."
    words = {
        "above": "longer than its multiply-accumulates say",
        "below": "less than its multiply-accumulates say",
        "within": "what its multiply-accumulates say",
        "across": "not settled against its multiply-accumulates",
    }[place(row["low"] - macs, row["high"] - macs, SMALLEST_EFFECT * macs)]
    return f"{where}: {words}, {number(macs)} times."
