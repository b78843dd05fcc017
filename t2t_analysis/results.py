"""What a measure found, as one tidy table in which no number stands alone.

Every row is one number with its 95 % interval, its null, its ceiling, how many units it rests on, which unit was
resampled, which estimator and which tokens. Columns that do not apply are missing (``NaN`` or ``None``), never filled.

Beside its rows a result keeps what each value is without each group of units, so that the difference between two
models (`difference`), or any other function of rows (`Result.estimates`), gets its interval from the same images.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._files import whole_file, writable_folder, write_whole
from ._repr import MOST_ROWS, html_table, readable
from .errors import T2TError, UnknownNameError
from .estimates import Estimate
from .quantities import possible
from .tables import Rows, columns, typed

#: column -> (dtype, meaning). The order is the order in every frame and file.
COLUMNS = columns("results")


def tidy(rows: Rows) -> pd.DataFrame:
    """Return ``rows`` with exactly the columns of ``COLUMNS``, typed; an unknown column is an error.

    Intervals of shares end at 0 and 1: no accuracy is below 0, whatever Student's t says of three seeds. What stands
    between two models may be a difference, by whatever name, and has no such ends.
    """
    frame = typed(rows, "results")
    alone = frame["quantity"].where(frame["model_b"].isna())
    for name, where in frame.groupby(alone).indices.items():
        least, most = possible(str(name))
        for value, low, high in (("value", "low", "high"), ("null", "null_low", "null_high")):
            middle, at = frame[value].to_numpy()[where], frame.index[where]
            if least is not None:
                frame.loc[at, low] = np.maximum(frame[low].to_numpy()[where], np.minimum(middle, least))
            if most is not None:
                frame.loc[at, high] = np.minimum(frame[high].to_numpy()[where], np.maximum(middle, most))
    return frame


def _tabulated(rows: Iterable[Mapping[str, Any]]) -> tuple[pd.DataFrame, Estimate]:
    """Tidy frame of ``rows``, and the estimate of each.

    A row may hold an Estimate for itself, its null and its p. If that has axes it stands for many rows, and the other
    columns are broadcast against it; a column that is given as well is kept as given.
    """
    blocks = [_flat(row) for row in rows]
    stops = np.cumsum([size for size, _ in blocks], dtype=int)
    total = sum(size for size, _ in blocks)
    parts = [(slice(stop - size, stop), block) for stop, (size, block) in zip(stops, blocks, strict=True)]
    columns: dict[str, np.ndarray] = {}
    for role in _FILLS:
        found = [(at, block[role]) for at, block in parts if isinstance(block.get(role), Estimate)]
        _fill(columns, role, found, total)
    for at, block in parts:
        for name, value in block.items():
            if not isinstance(value, Estimate):
                columns.setdefault(name, np.full(total, None, dtype=object))[at] = value
    held = [(at, block["estimate"]) for at, block in parts if "estimate" in block]
    return tidy(pd.DataFrame(columns)), _aligned(held, total)


def _flat(row: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many rows a row stands for, and its columns with arrays and estimates flat."""
    arrays = {k: v for k, v in row.items() if isinstance(v, np.ndarray) and v.ndim}
    estimates = {k: v for k, v in row.items() if isinstance(v, Estimate)}
    shapes = {e.value.shape for e in estimates.values()}
    if len(shapes) > 1:
        raise T2TError(f"estimates of shapes {sorted(shapes)} in one row of a result")
    shape = np.broadcast_shapes(*shapes, *(v.shape for v in arrays.values()))
    flat: dict[str, Any] = {k: np.broadcast_to(v, shape).reshape(-1) for k, v in arrays.items()}
    flat |= {k: Estimate.concatenate([e]) for k, e in estimates.items()}
    return math.prod(shape), dict(row) | flat


#: what an Estimate fills, by where it stands in a row
_FILLS: dict[str, dict[str, str]] = {
    "estimate": {k: k for k in ("value", "low", "high", "interval", "se", "df", "n", "unit")},
    "null": {"null": "value", "null_low": "low", "null_high": "high"},
    "p": {"p": "p"},
}


def _fill(columns: dict[str, np.ndarray], role: str, found: list[tuple[slice, Estimate]], total: int) -> None:
    """Fill the columns of estimates, all of one kind at once."""
    for kind in dict.fromkeys((e.unit, e.logarithm, e.paired) for _, e in found):
        some = [(at, e) for at, e in found if (e.unit, e.logarithm, e.paired) == kind]
        rows = np.concatenate([np.arange(at.start, at.stop) for at, _ in some])
        whole = Estimate.concatenate([e for _, e in some])
        for name, attribute in _FILLS[role].items():
            column = columns.setdefault(name, np.full(total, None, dtype=object))
            column[rows] = getattr(whole, attribute)


def _aligned(found: list[tuple[slice, Estimate]], size: int) -> Estimate:
    """One estimate for every row; without groups where a row has none."""
    groups = max((len(e.sizes) for _, e in found), default=0)
    value, left, sizes = np.full(size, np.nan), np.full((groups, size), np.nan), np.zeros((groups, size))
    for where, e in found:
        value[where], left[: len(e.sizes), where] = e.value, e.leave_out
        sizes[: len(e.sizes), where] = e.sizes
    return Estimate(value, left, sizes)


@dataclass(frozen=True, repr=False)
class Result:
    """What one measure found.

    Parameters
    ----------
    measure : name of the measure.
    frame : tidy table with the columns of ``COLUMNS``, or rows of it. A row (a mapping) may hold an `Estimate` as
        ``estimate``, as ``null`` and as ``p``: it fills value, low, high, interval, n and unit; null, null_low and
        null_high; p. Estimates with axes, and arrays in other columns, make several rows.
    meta : what else a reader needs to repeat it: data set, n, seed, model provenance, versions. JSON values only.
    notes : warnings in words: layers that were not finite, estimators that fell back, untrained weights.
    replicates : (R,), the estimate of every row; made from the rows where they hold estimates.
    """

    measure: str
    frame: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    replicates: Estimate | None = field(default=None, repr=False)

    @classmethod
    def of_rows(
        cls,
        measure: str,
        rows: Iterable[Mapping[str, Any]],
        meta: dict[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Result:
        """A result from rows instead of a table, see ``frame``."""
        return cls(measure, list(rows), meta or {}, notes)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        replicates = self.replicates
        if isinstance(self.frame, pd.DataFrame):
            frame = tidy(self.frame)
        else:
            frame, replicates = _tabulated(self.frame)
        if replicates is not None and len(replicates.value) != len(frame):
            raise T2TError(
                f"{len(replicates.value)} estimates beside {len(frame)} rows of {self.measure}; choose them by `where`"
            )
        object.__setattr__(self, "frame", frame)
        object.__setattr__(self, "replicates", replicates)

    def __repr__(self) -> str:
        """One line; a notebook shows `_repr_html_`."""
        models = ", ".join(self.frame["model"].dropna().unique())
        count = self.frame["quantity"].nunique()
        models = models or "no model"
        return f"<Result {self.measure}: {len(self.frame)} rows, {count} quantities, of {models}>"

    def _repr_html_(self) -> str:
        table = readable(self.frame.head(MOST_ROWS))
        more = f", the first {MOST_ROWS}" if len(self.frame) > MOST_ROWS else ""
        return html_table(f"{repr(self)[1:-1]}{more}", table.columns, table.itertuples(index=False))

    def to_latex(self, caption: str = "") -> str:
        """Return the rows as a LaTeX table (booktabs) with words, intervals, nulls and n; choose rows with `where`."""
        text = readable(self.frame).to_latex(index=False, escape=True, caption=caption or None)
        return text.replace("−", "$-$").replace("²", "$^2$").replace("σ", r"$\sigma$")

    def where(self, **columns: Any) -> Result:
        """The rows with these values: one value, a list of them, or None for a missing one.

        Raises
        ------
        UnknownNameError : no such column, or no row with a value that was asked for.
        """
        keep = np.ones(len(self.frame), dtype=bool)
        for name, wanted in columns.items():
            if name not in self.frame:
                raise UnknownNameError("column", name, list(COLUMNS))
            values = self.frame[name]
            known = values[keep].dropna().unique().tolist()
            asked = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
            for one in asked:
                if one is not None and one not in known:
                    raise UnknownNameError(name, str(one), [str(k) for k in known], hint=f"in {self.measure}")
            found = values.isin([one for one in asked if one is not None]).to_numpy(bool)
            keep &= found | (values.isna().to_numpy() & (None in asked))
        return self.rows(np.flatnonzero(keep))

    def rows(self, at: Any) -> Result:
        """The rows at these positions, with their replicates."""
        at = np.asarray(at, dtype=int)
        kept = None if self.replicates is None else self.replicates[at]
        return Result(self.measure, self.frame.iloc[at].reset_index(drop=True), self.meta, self.notes, kept)

    def estimates(self, **columns: Any) -> Estimate:
        """The estimates (R,) of the rows that `where` finds, for functions of them; missing where a row has none."""
        found = self.where(**columns)
        units = found.frame["unit"].dropna().unique().tolist()
        if found.replicates is None or len(units) > 1:
            raise T2TError(f"the rows of {self.measure} keep no replicates of one unit; units: {units}")
        return Estimate(*(getattr(found.replicates, k) for k in ("value", "leave_out", "sizes")), *units)

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (.parquet or .csv), beside it ``path``.json (``meta``, ``notes``) and .npz (replicates)."""
        path = Path(path)
        writable_folder(path.parent)
        if path.suffix not in (".csv", ".parquet"):
            raise T2TError(f"results go to .parquet or .csv, not {path.suffix!r} ({path})")
        with whole_file(path) as temporary:
            (self.frame.to_csv if path.suffix == ".csv" else self.frame.to_parquet)(temporary, index=False)
        side = {"measure": self.measure, "meta": self.meta, "notes": list(self.notes)}
        write_whole(path.with_name(path.name + ".json"), json.dumps(side, indent=1, sort_keys=True) + "\n")
        if (kept := self.replicates) is not None:
            with whole_file(path.with_name(path.name + ".npz")) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, value=kept.value, leave_out=kept.leave_out, sizes=kept.sizes)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what ``save`` wrote."""
        path = Path(path)
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        side = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        arrays = path.with_name(path.name + ".npz")
        kept = Estimate(*np.load(arrays).values()) if arrays.exists() else None
        return cls(side["measure"], frame, side["meta"], tuple(side["notes"]), kept)


def joined(results: Sequence[Result]) -> tuple[pd.DataFrame, Estimate | None]:
    """Rows of several results one after the other, with their replicates."""
    frame = pd.concat([r.frame for r in results], ignore_index=True)
    missing = [(r.replicates or _aligned([], len(r.frame))) for r in results]
    kept = Estimate.concatenate(missing) if any(r.replicates is not None for r in results) else None
    return frame, kept


@dataclass(frozen=True, repr=False)
class Results(Mapping[str, Result]):
    """Several results from one pass over the images, by the name of the measure."""

    results: tuple[Result, ...]

    def __getitem__(self, name: str) -> Result:
        for result in self.results:
            if result.measure == name:
                return result
        raise KeyError(f"no result named {name!r}; there are {list(self)}")

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(dict.fromkeys(r.measure for r in self.results))

    def __len__(self) -> int:
        return len({r.measure for r in self.results})

    def __repr__(self) -> str:
        return f"<Results: {', '.join(f'{r.measure} ({len(r.frame)} rows)' for r in self.results)}>"

    def _repr_html_(self) -> str:
        return "".join(result._repr_html_() for result in self.results)

    @property
    def frame(self) -> pd.DataFrame:
        """All rows of all results."""
        return joined(self.results)[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes, each once, in order."""
        return tuple(dict.fromkeys(note for r in self.results for note in r.notes))

    def save(self, folder: str | Path) -> list[Path]:
        """Write one file per measure into ``folder``."""
        return [r.save(Path(folder) / f"{r.measure}.parquet") for r in self.results]


def as_json(value: Any) -> Any:
    """``value`` with dataclasses and named tuples turned into dicts; what JSON does not know becomes text.

    >>> as_json({"n": 3, "chance": float("nan"), "size": (2, 3)})
    {'n': 3, 'chance': None, 'size': [2, 3]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
