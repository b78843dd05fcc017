"""The table of the study: one row per run, and the learning curves beside it; ``columns.csv`` says what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import tables
from .._paths import Folder, data_dir
from ..errors import DataError

RUNS, CURVES = "runs.csv", "curves.csv"


def read_runs(folder: Folder = None) -> pd.DataFrame:
    """All finished runs; an empty word is empty text, not missing.

    Parameters
    ----------
    folder : of the table; the default is the one that ships with the package.

    >>> list(read_runs().columns) == list(tables.columns("runs"))
    True
    """
    found = tables.read(Path(folder or data_dir() / "study") / RUNS, "runs")
    texts = [name for name, (dtype, _) in tables.columns("runs").items() if dtype == "string"]
    return found.fillna(dict.fromkeys(texts, ""))


def read_curves(folder: Folder = None) -> pd.DataFrame:
    """The learning curves of all finished runs."""
    return tables.read(Path(folder or data_dir() / "study") / CURVES, "curves")


def finished(folder: Folder = None) -> set[str]:
    """Names of the runs that are in the table."""
    return set(read_runs(folder)["run"])


def add_row(row: Mapping[str, Any], curve: Iterable[Mapping[str, Any]], folder: str | Path) -> None:
    """Add a run and its learning curve; the curve first, so that a run in the table always has one.

    A run that is there already is replaced.

    Raises
    ------
    DataError
        A column that is unknown or missing.
    """
    if missing := [name for name in tables.columns("runs") if name not in row]:
        raise DataError(f"the row lacks {missing}")
    tables.typed([row], "runs")
    points = [{"run": row["run"]} | dict(point) for point in curve]
    tables.add(Path(folder) / CURVES, "curves", points, lambda rows: rows[["run"]])
    tables.add(Path(folder) / RUNS, "runs", [row], lambda rows: rows[["run"]])
