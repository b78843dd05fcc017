"""Are the printed costs right? Every model that the paper's tables name, counted, against what is printed.

Yuan et al., "Tokens-to-Token ViT", ICCV 2021 (arXiv 2101.11986v3), and the README of the authors' release.
The literature counts multiply-accumulates in two ways, so both stand beside the printed number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .._files import csv_rows
from ..results import Result
from .cost import EXACT, UNITS, Counts, Shapes, count

#: all tables print one decimal
_ROUNDING = 0.05 + 1e-9


class Printed(NamedTuple):
    """One line of a table as printed: millions of parameters, 10^9 multiply-accumulates.

    ``name`` is the registered model that the line is about, with its arguments as JSON; None where no code says what
    it is, with the reason in ``why``.
    """

    table: str
    label: str
    name: str | None
    millions: float | None
    billions: float | None
    img_size: int
    arguments: str
    why: str


def _paper() -> Iterator[Printed]:
    """The lines of ``paper_costs.csv``."""
    for line in csv_rows(Path(__file__).with_suffix(".csv")):
        millions, billions = (float(line[key]) if line[key] else None for key in ("millions", "billions"))
        yield Printed(
            line["table"], line["label"], line["name"] or None, millions,
            billions, int(line["img_size"]), line["arguments"], line["why"],
        )  # fmt: skip


PAPER = tuple(_paper())


@cache
def _counts(name: str, img_size: int, arguments: str) -> Counts:
    return count(Shapes.of(name, img_size, **json.loads(arguments or "{}")))


def printed_costs(lines: Iterable[Printed] = PAPER) -> Result:
    """Count every line of the paper's tables; its printed number is the null, for "what is printed is right".

    Parameters in millions, multiply-accumulates in 10^9. Lines whose model cannot be built are in the notes, with the
    reason. ``place`` is table and line.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for line in lines:
        if line.name is None:
            notes.append(f"{line.table}, {line.label}: not counted, {line.why}")
        else:
            rows += _tidy(line, _counts(line.name, line.img_size, line.arguments))
    return Result("paper_costs", pd.DataFrame(rows), {"source": "arXiv 2101.11986v3"}, tuple(notes))


def agreeing(frame: pd.DataFrame, tolerance: float) -> pd.Series:
    """Which rows of `printed_costs` agree with the print: within ``tolerance`` of it, or equal once rounded.

    >>> rows = pd.DataFrame({"value": [4.31, 4.23, 6.11], "null": [4.3, 4.2, 6.9]})
    >>> agreeing(rows, 0.01).tolist()
    [True, True, False]
    """
    off = (frame["value"] - frame["null"]).abs()
    return (off <= tolerance * frame["null"]) | (off <= _ROUNDING)


def disagreeing(printed: Result, tolerance: float = 0.01) -> pd.DataFrame:
    """Lines of `printed_costs` whose count does not agree with the print, to be read: what, counted, printed."""
    frame = printed.frame[printed.frame["null"].notna() & (printed.frame["quantity"] != "trainable")]
    rows = frame[~agreeing(frame, tolerance)]
    return pd.DataFrame({
        "line": rows["place"], "what": rows["quantity"].map(_SAID), "counted": rows["value"].astype(float).round(3),
        "printed": rows["null"].astype(float),
    }).reset_index(drop=True)  # fmt: skip


_SAID = {"parameters": "parameters (10⁶)", "macs_all": "multiply-accumulates, all products (10⁹)",
         "macs_linear": "multiply-accumulates, linear layers (10⁹)"}  # fmt: skip


def _tidy(line: Printed, counts: Counts) -> Iterator[dict[str, Any]]:
    for quantity, value in counts._asdict().items():
        unit, estimator = UNITS[quantity]
        printed, scale, many = (
            (line.millions, 1e6, "million") if unit == "parameters" else (line.billions, 1e9, "10^9")
        )
        yield EXACT | {
            "measure": "paper_costs", "model": line.name, "place": f"{line.table}: {line.label}", "quantity": quantity,
            "value": value / scale, "value_unit": f"{many} {unit}", "estimator": estimator, "null": printed,
            "null_kind": f"printed in {line.table}" if printed else "not printed",
        }  # fmt: skip
