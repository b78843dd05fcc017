"""Tables that are kept: what their columns hold and mean, how a CSV of them is read, and how rows are added to it.

``columns.csv`` has a line for every column: of every result, of the study's runs, curves and rates, of the evidence
from real models. Rows are added under a lock and the file is replaced whole, so that several processes can write, and
a kill leaves the table as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ._files import csv_rows, whole_file, writable_folder
from .errors import DataError

Rows = Iterable[Mapping[str, Any]] | pd.DataFrame


@cache
def columns(table: str) -> dict[str, tuple[str, str]]:
    """Column -> (dtype, meaning) of a table, in the order of its file.

    >>> columns("curves")["epoch"]
    ('Int64', 'counted from 0')
    """
    lines = [line for line in csv_rows(Path(__file__).with_name("columns.csv")) if line["table"] == table]
    return {line["column"]: (line["dtype"], line["meaning"]) for line in lines}


def typed(rows: Rows, table: str) -> pd.DataFrame:
    """``rows`` with exactly the columns of a table, each of its dtype.

    Raises
    ------
    DataError
        A column that the table does not have.
    """
    frame, known = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)), columns(table)
    if unknown := sorted(set(frame.columns) - set(known)):
        raise DataError(f"unknown columns {unknown} in {table}; known: {list(known)}")
    return frame.reindex(columns=list(known)).astype({name: dtype for name, (dtype, _) in known.items()})


def read(path: str | Path, table: str) -> pd.DataFrame:
    """The CSV of a table, typed; without rows where there is no file. An empty cell is a missing value."""
    if not Path(path).exists():
        return typed([], table)
    dtypes = {name: dtype for name, (dtype, _) in columns(table).items()}
    return typed(pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""]), table)


def add(path: str | Path, table: str, rows: Rows, about: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Add rows to the CSV of a table, in place of those that are about the same.

    Parameters
    ----------
    about : columns that say what each of some rows is about.

    Raises
    ------
    DataError
        A column that the table does not have, or a folder that cannot be written into.
    """
    from filelock import FileLock

    def keys(of: pd.DataFrame) -> list[Any]:
        return list(about(of).astype("string").itertuples(index=False, name=None))

    path, new = Path(path), typed(rows, table)
    gone = set(keys(new))
    writable_folder(path.parent)
    with FileLock(path.parent / ".lock"):
        old = read(path, table)
        kept = old[[key not in gone for key in keys(old)]]
        whole = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        with whole_file(path) as temporary:
            whole.to_csv(temporary, index=False, float_format="%.6g")
