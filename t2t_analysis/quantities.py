"""What every number of the suite is called and how it is written: words, axis, unit, digits, smallest effect, claim.

One line a quantity in ``quantities.csv``. What is derived from it by a rule, such as a difference between two models or
a change over depth, is resolved from its name: ``quantity("cosine_centred_last_minus_first_difference")``. Nothing else
formats a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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

    def interval(self, row: Mapping[str, Any] | pd.Series, *, unit: bool = True) -> str:
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
            text = self.number(ends[0], unit=unit)
            return text if pd.isna(ends[0]) else f"{text} (no interval)"
        shown = [float(x) * self.scale for x in ends]
        first = _digits(self.digits, *shown)
        for digits in range(first, first + 4):  # an interval that has a width shows one
            value, low, high = (_text(x, digits) for x in shown)
            if low != high or math.isclose(shown[1], shown[2], rel_tol=1e-9):
                break
        return f"{value}{f' {self.unit}' if unit and self.unit else ''} [{low}, {high}]"


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
    """``digits``, or as many as the largest value needs, and one more where a value that is not 0 would read so."""
    largest = max(abs(x) for x in values)
    if 0 < largest < 0.5 * 10**-digits:
        digits = min(9, math.ceil(-math.log10(largest)))
    return enough_digits(digits, *values)


def enough_digits(digits: int, *values: float) -> int:
    """``digits``, or one more where a value that is not 0 would read as 0: whether an interval holds 0 has to be seen.

    >>> enough_digits(3, 0.0011, 0.0002, 0.0021), enough_digits(3, 0.1, 0.0, 0.2)
    (4, 3)
    """
    return digits + any(round(x, digits) == 0 != round(x, digits + 1) for x in values)


def _text(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "−")


# ------------------------------------------------------------------------------------------ the registry

#: Smallest effect of interest by what is measured; fixed before any number was seen.
SMALLEST = {
    "edge_r2": 0.02,  # coefficient of determination of an edge map
    "channel_share": 0.01,  # of the channels
    "similarity": 0.05,  # of two heads, two layers; of an effective rank relative to its Gaussian null
    "rank_correlation": 0.1,  # Spearman
    "gradient_share": 0.05,  # of the squared gradient
    "accuracy": 0.005,  # half a point of top-1
    "backbone_accuracy": 0.01,  # one point
    "convolution_accuracy": 0.003,  # the paper speaks of 0.7 points, so finer than the others
    "cost": 0.01,  # of the printed number
    "threshold": 0.0,  # the reference is itself the bound: on which side of it does the value lie
}


def _number(text: str) -> float | None:
    return float(text) if text else None


#: what the column ``kind`` of ``quantities.csv`` says of a quantity's values, a line each in ``kinds.csv``
KINDS: dict[str, dict[str, Any]] = {
    row["kind"]: {
        "unit": row["unit"], "digits": int(row["digits"]), "scale": float(row["scale"]),
        "bounds": (_number(row["low"]), _number(row["high"])),
    }
    for row in csv_rows(Path(__file__).with_name("kinds.csv"))
}  # fmt: skip


def _read() -> dict[str, Quantity]:
    """Quantities by name: ``quantities.csv`` has one a line, with a key each of ``KINDS`` and ``SMALLEST``."""
    found = {}
    for row in csv_rows(Path(__file__).with_suffix(".csv")):
        about = dict(KINDS[row["kind"]]) | ({"digits": int(row["digits"])} if row["digits"] else {})
        about["smallest"] = SMALLEST[row["smallest"]] if row["smallest"] else None
        about["claimed"] = int(row["claimed"]) if row["claimed"] else None
        found[row["name"]] = Quantity(row["name"], row["words"], row["axis"], **about)
    return found


QUANTITIES = _read()

#: what an endpoint of the ledger is called -> what it measures
ENDPOINTS = {
    "head_cosine_change": "cosine_centred_last_minus_first",
    "head_cka_change": "head_output_cka_last_minus_first",
    "edge_own": "edge_r2_own",
    "edge_neighbour": "edge_r2_neighbour",
    "edge_own_rectified": "edge_r2_own",
    "flat_by_shortcut": "flat_area_made_by_shortcut",
    "rank_pooled": "effective_rank_over_null",
    "rank_tokens": "effective_rank_over_null",
    "similar_is_redundant": "similarity_effect_spearman_within_layers",
    "late_cosine": "cosine_centred",
    "late_cka": "head_output_cka",
    "late_cosine_without_sinks": "cosine_centred",
    "late_cosine_by_sinks": "sink_likeness",
    "late_sink_writes": "sink_value_ratio",
    "edges_over_pixels": "edge_r2_own_over_reference",
    "boundaries_over_pixels": "boundary_precision_over_reference",
}

# ------------------------------------------------------------------------------------------ what follows by a rule


def _said(template: str, **about: Any) -> Callable[[Quantity], Quantity]:
    """The same quantity under other words, with what changes in it."""

    def derived(base: Quantity) -> Quantity:
        axis = base.axis and template.format(base.axis)
        return replace(base, words=template.format(base.words), axis=axis, **about)

    return derived


def _changed(template: str) -> Callable[[Quantity], Quantity]:
    """A difference of two values: percent become points, and there are no ends."""

    def derived(base: Quantity) -> Quantity:
        unit = "points" if base.unit == "%" else base.unit
        return replace(_said(template)(base), unit=unit, bounds=(None, None))

    return derived


_PLAIN: dict[str, Any] = {"unit": "", "digits": 3, "scale": 1.0, "smallest": None, "claimed": None}
_UNCLAIMED: dict[str, Any] = {"smallest": None, "claimed": None}
#: ending of a name -> what it makes of the quantity before it; the longest that fits
_ENDINGS: dict[str, Callable[[Quantity], Quantity]] = {
    "_difference": _changed("{}, difference"),
    "_last_minus_first": _changed("{}, change from first to last third of layers"),
    "_trained": _changed("{}, more than in the untrained control"),
    "_over_reference": _changed("{}, more than in the reference"),
    "_made_by_shortcut": _changed("{}, made by the short cut"),
    "_shortcut": _said("{}, by the short cut", **_UNCLAIMED),
    "_real": _said("{}, by the real pass", **_UNCLAIMED),
    "_in_every_image": _said("{}, in every image", **_UNCLAIMED),
    "_over_null": _said("{} over that of Gaussian noise", **_PLAIN | {"smallest": SMALLEST["similarity"], "claimed": 1},
                        bounds=(0.0, None)),
    "_neighbours": _said("{}, neighbouring layers"),
    "_mean": _said("{}, mean over the map"),
    "_centred": _said("{}, centred"),
    "_abs": _said("{}, sizes only"),
    "_within_layers": _said("{}, within layers"),
    "_partial": _said("{}, at equal importance"),
    "_split_half": _said("{}, agreement of two halves of the images", **_PLAIN, bounds=(-1.0, 1.0)),
    "_p_holm": _said("{}, corrected p", **_PLAIN, bounds=(0.0, 1.0)),
    "_deep": _said("{}, deep backbone"),
    "_wide": _said("{}, wide backbone"),
    "_hard": _said("{}, hard split"),
    "_performer": _said("{}, soft split"),
    "_adamw": _said("{}, under AdamW"),
    "_log_odds": _said("{}, log-odds", **_PLAIN),
    "_growth_per_doubling": _said("{}, growth per doubling of the training"),
    "_at_epochs": _said("{}, at equal epochs"),
    "_at_macs": _said("{}, at equal multiply-accumulates"),
    "_at_time": _said("{}, at equal time"),
    "_published": _said("{}, as published"),
    "_at_fraction": _said("{}, at a share of the training images"),
}  # fmt: skip
#: words before a colon that say of which runs or sides a number is
_STARTS = {
    "mean": "all cells", "hard": "hard split", "performer": "soft split",
    "transfer_probe": "linear probe on another data set", "transfer_finetune": "fine-tuned on another data set",
}  # fmt: skip


def _resolved(name: str) -> Quantity | None:
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name in ENDPOINTS:
        return _resolved(ENDPOINTS[name])
    start, colon, rest = name.partition(":")
    if colon:
        if rest in ("model", "baseline"):
            return _resolved(start)
        before, base = _STARTS.get(start) or getattr(_resolved(start), "words", None), _resolved(rest)
        if before is None or base is None:
            return None
        return _said(f"{{}}, {before}")(base) if start in _STARTS else _changed(f"{{}}, {before}")(base)
    for ending in sorted(_ENDINGS, key=len, reverse=True):
        base = _resolved(name.removesuffix(ending)) if name.endswith(ending) else None
        if base is not None:
            return _ENDINGS[ending](base)
    return None


@cache
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
    found = _resolved(name)
    if found is None:
        raise UnknownNameError("quantity", name, list(QUANTITIES))
    return replace(found, name=name)


def plural(n: Any, unit: Any) -> str:
    """How many units, in words.

    >>> plural(3, "cluster of images"), plural(1, "image"), plural(2, "image pair")
    ('3 clusters of images', '1 image', '2 image pairs')
    """
    what, of, whole = str(unit).partition(" of ")
    return f"{int(n)} {what if int(n) == 1 or what.endswith('s') else f'{what}s'}{of}{whole}"
