"""What every number of the suite is called and how it is written: words, axis, unit, digits, smallest effect, claim.

One line a quantity in ``quantities.csv``. What is derived from it by a rule of ``endings.csv``, such as a difference
between two models or a change over depth, is resolved from its name:
``quantity("cosine_centred_last_minus_first_difference")``. Nothing else formats a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ._files import csv_rows
from .errors import UnknownNameError

#: in place of a value that is not there
MISSING = "not measured"


@dataclass(frozen=True)
class Quantity:
    """One kind of number.

    Parameters
    ----------
    name : as in the column ``quantity``.
    words : as a sentence says it, without an article.
    axis : as an axis says it; ``words`` where left out.
    unit : as it is written after the number: ``%`` and ``points`` multiply by 100; empty where there is none.
    digits : after the decimal point, as a rule.
    smallest : smallest difference between two models that counts, in the unit of the value; None where none is set.
    claimed : sign of "T2T-ViT minus ViT" that the paper claims; 0 for no difference, None where it says nothing.
    bounds : smallest and largest value that there can be, None where there is no end.
    scale : what a value is multiplied by before it is written.
    """

    name: str
    words: str
    axis: str = ""
    unit: str = ""
    digits: int = 3
    smallest: float | None = None
    claimed: Literal[-1, 0, 1] | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The words with a capital letter."""
        return self.words[:1].upper() + self.words[1:]

    @property
    def label(self) -> str:
        """Label of an axis, with the unit."""
        axis = self.axis or self.words
        return f"{axis} ({self.unit})" if self.unit else axis

    def shown(self, value: Any) -> Any:
        """A value, or an array of values, in the unit in which it is written."""
        return value * self.scale

    def number(self, value: Any, *, unit: bool = True) -> str:
        """A value in words.

        >>> quantity("cosine_centred").number(-0.1234), quantity("zero_area").number(0.0031)
        ('−0.123', '0.3 %')
        >>> quantity("accuracy_difference").number(0.0204), quantity("zero_area").number(0.0031, unit=False)
        ('2.0 points', '0.3')
        """
        if pd.isna(value):
            return MISSING
        text = number(float(value) * self.scale, self.digits)
        return f"{text} {self.unit}" if unit and self.unit else text

    def interval(self, row: Mapping[str, Any] | pd.Series) -> str:
        """Value and interval of a row in one precision, finer where one would read as 0, or both ends as the same.

        >>> quantity("cosine_centred").interval({"value": 0.1234, "low": 0.1, "high": 0.15})
        '0.123 [0.100, 0.150]'
        >>> quantity("cosine_centred").interval({"value": -0.0011, "low": -0.0021, "high": -0.0002})
        '−0.0011 [−0.0021, −0.0002]'
        >>> quantity("zero_area").interval({"value": 0.179, "low": 0.142, "high": 0.217})
        '17.9 % [14.2, 21.7]'
        >>> quantity("zero_area").interval({"value": 0.0052, "low": 0.0051, "high": 0.0053})
        '0.52 % [0.51, 0.53]'
        >>> quantity("zero_area").interval({"value": 4 / 196, "low": 4 / 196 - 1e-17, "high": 4 / 196})
        '2.0 % [2.0, 2.0]'
        >>> quantity("zero_area").interval({"value": 0.179, "low": None, "high": None})
        '17.9 % (no interval)'
        """
        ends = [row[name] for name in ("value", "low", "high")]
        if pd.isna(ends[0]) or pd.isna(ends[1]) or pd.isna(ends[2]):
            text = self.number(ends[0])
            return text if pd.isna(ends[0]) else f"{text} (no interval)"
        shown = [float(x) * self.scale for x in ends]
        first = _digits(self.digits, *shown)
        for digits in range(first, first + 4):  # an interval that has a width shows one
            value, low, high = (_text(x, digits) for x in shown)
            if low != high or math.isclose(shown[1], shown[2], rel_tol=1e-9):
                break
        return f"{value}{f' {self.unit}' if self.unit else ''} [{low}, {high}]"


def number(value: Any, digits: int = 3) -> str:
    """A number in ``digits`` decimals, more where it would read as 0, with a true minus sign; a missing one in words.

    >>> number(0.1234), number(-0.00004), number(-0.0), number(float("nan"))
    ('0.123', '−0.00004', '0.000', 'not measured')
    """
    return MISSING if pd.isna(value) else _text(float(value), _digits(digits, float(value)))


def p_words(p: Any) -> str:
    """A p-value as a sentence says it.

    >>> p_words(0.0321), p_words(0.00012), p_words(None)
    ('p = 0.032', 'p < 0.001', 'no p')
    """
    if pd.isna(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _digits(digits: int, *values: float) -> int:
    """``digits``, or as many as the largest value needs, and one more where a value that is not 0 would read so.

    Whether an interval holds 0 has to be seen.

    >>> _digits(3, 0.0011, 0.0002, 0.0021), _digits(3, 0.1, 0.0, 0.2)
    (4, 3)
    """
    largest = max(abs(x) for x in values)
    if 1e-9 <= largest < 0.5 * 10**-digits:  # what is smaller still is as good as 0
        digits = math.ceil(-math.log10(largest))
    return digits + any(round(x, digits) == 0 != round(x, digits + 1) for x in values)


def _text(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "−")


# ------------------------------------------------------------------------------------------ the registry


def _table(name: str) -> list[dict[str, str]]:
    return csv_rows(Path(__file__).with_name(f"{name}.csv"))


#: Smallest effect of interest by what is measured; fixed before any number was seen.
SMALLEST = {row["name"]: float(row["value"]) for row in _table("smallest")}
#: what an endpoint of the ledger is called -> what it measures
ENDPOINTS = {row["name"]: row["quantity"] for row in _table("endpoints")}


def _kind(row: Mapping[str, str]) -> dict[str, Any]:
    low, high = (float(row[end]) if row[end] else None for end in ("low", "high"))
    numbers = {"digits": int(row["digits"]), "scale": float(row["scale"])}
    return {"unit": row["unit"], "bounds": (low, high)} | numbers


def _judged(row: Mapping[str, str]) -> dict[str, Any]:
    """What the columns ``smallest``, a key of ``SMALLEST``, and ``claimed`` say."""
    smallest = SMALLEST[row["smallest"]] if row["smallest"] else None
    return {"smallest": smallest, "claimed": int(row["claimed"]) if row["claimed"] else None}


#: what the column ``kind`` of ``quantities.csv`` says of a quantity's values
KINDS = {row["kind"]: _kind(row) for row in _table("kinds")}


def _read(row: Mapping[str, str]) -> Quantity:
    about = KINDS[row["kind"]] | _judged(row) | ({"digits": int(row["digits"])} if row["digits"] else {})
    return Quantity(row["name"], row["words"], row["axis"], **about)


QUANTITIES = {row["name"]: _read(row) for row in _table("quantities")}

# ------------------------------------------------------------------------------------------ what follows by a rule

#: what a name ends in, or what stands before its colon -> what that makes of the quantity that the rest of it names
_RULES = {row["ending"]: row for row in _table("endings")}


def _derived(rule: Mapping[str, str], base: Quantity) -> Quantity:
    """``base`` in the words of a rule; it may become a difference, a number without a claim, or one of ``KINDS``."""
    changes: dict[str, Any] = {name: rule["words"].format(getattr(base, name)) for name in ("words", "axis")}
    if not base.axis:
        changes["axis"] = ""
    if rule["becomes"] == "difference":  # percent become points, and there are no ends
        changes |= {"unit": "points" if base.unit == "%" else base.unit, "bounds": (None, None)}
    elif rule["becomes"]:
        changes |= KINDS.get(rule["becomes"], {}) | _judged(rule)
    return replace(base, **changes)


@cache
def _resolved(name: str) -> Quantity | None:
    if name in QUANTITIES or name in ENDPOINTS:
        return QUANTITIES[name] if name in QUANTITIES else _resolved(ENDPOINTS[name])
    start, colon, rest = name.partition(":")
    if colon:
        if rest in ("model", "baseline"):
            return _resolved(start)
        before, base = _resolved(start), _resolved(rest)
        rule = _RULES.get(f"{start}:") or {
            "words": f"{{}}, {before and before.words}",
            "becomes": "difference",
        }
        return _derived(rule, base) if base and (before or f"{start}:" in _RULES) else None
    for ending in sorted(_RULES, key=len, reverse=True):
        base = _resolved(name.removesuffix(ending)) if name.endswith(ending) else None
        if base is not None:
            return _derived(_RULES[ending], base)
    return None


def quantity(name: str) -> Quantity:
    """What is known of a quantity, by its name or by the rule that its name follows.

    Raises
    ------
    UnknownNameError : neither registered nor derived from one that is.

    >>> quantity("attention_distance_last_minus_first_difference").label
    'mean distance / image side, change from first to last third of layers, difference'
    >>> quantity("tokeniser_effect:edge_own").smallest, quantity("zero_area_difference").unit
    (0.02, 'points')
    """
    found = _resolved(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownNameError("quantity", name, list(QUANTITIES))
    return replace(found, name=name)


def possible(name: str) -> tuple[float | None, float | None]:
    """Smallest and largest value that an estimate can have: of a share that was counted, else None.

    An estimate without bias may lie beyond the ends of what it estimates, as that of a CKA of 0 does half of the time.

    >>> possible("top1"), possible("accuracy_difference"), possible("layer_cka"), possible("of my own")
    ((0.0, 1.0), (None, None), (None, None), (None, None))
    """
    found = _resolved(name)
    return found.bounds if found and found.unit == "%" else (None, None)


def listed(parts: Iterable[str]) -> str:
    """Join words as one says them.

    >>> listed(["a"]), listed(["a", "b"]), listed("abc")
    ('a', 'a and b', 'a, b and c')
    """
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(n: Any, unit: Any) -> str:
    """How many units, in words.

    >>> plural(3, "cluster of images"), plural(1, "image"), plural(2, "image pair")
    ('3 clusters of images', '1 image', '2 image pairs')
    """
    what, of, whole = str(unit).partition(" of ")
    return f"{int(n)} {what if int(n) == 1 or what.endswith('s') else f'{what}s'}{of}{whole}"
