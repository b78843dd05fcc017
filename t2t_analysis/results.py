"""What a measure found, as one tidy table in which no number stands alone.

Every row is one number with its 95 % interval, its null, its ceiling, how many units it rests on, which unit was
resampled, which estimator and which tokens. Columns that do not apply are missing (``NaN`` or ``None``), never filled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import T2TError

__all__ = ["COLUMNS", "Result", "Results", "enough_digits"]

#: column -> (dtype, meaning). The order is the order in every frame and file.
COLUMNS: dict[str, tuple[str, str]] = {
    "measure": ("string", "name of the measure"),
    "quantity": ("string", "what the value is, for example cosine_centred"),
    "model": ("string", "model that was observed"),
    "weights": ("string", "where its weights came from; says UNTRAINED in words"),
    "place": ("string", "observed place, for example blocks.3.attn"),
    "layer": ("Int64", "its layer number, counted from 0"),
    "head": ("Int64", "head or channel number"),
    "model_b": ("string", "second model, for comparisons"),
    "place_b": ("string", "second place"),
    "layer_b": ("Int64", "second layer number"),
    "head_b": ("Int64", "second head number"),
    "at": ("Float64", "abscissa of a curve: threshold, frequency, distance, fraction"),
    "at_unit": ("string", "what the abscissa is, with its unit"),
    "value": ("Float64", "the number"),
    "low": ("Float64", "lower end of the 95 % interval"),
    "high": ("Float64", "upper end of the 95 % interval"),
    "interval": ("string", "how the interval was made"),
    "se": ("Float64", "standard error, where the interval is one of Student's t"),
    "df": ("Float64", "its degrees of freedom"),
    "null": ("Float64", "what the value would be if there were nothing to find"),
    "null_low": ("Float64", "2.5 % point of the null"),
    "null_high": ("Float64", "97.5 % point of the null"),
    "null_kind": ("string", "which null"),
    "p": ("Float64", "two-sided unless the estimator says otherwise, (1 + exceedances) / (K + 1)"),
    "ceiling": ("Float64", "the most that could be expected, for example from split halves"),
    "ceiling_kind": ("string", "which ceiling"),
    "n": ("Int64", "how many units"),
    "unit": ("string", "the unit that was resampled: image, head, seed"),
    "estimator": ("string", "name of the estimator"),
    "tokens": ("string", "class, patch, pooled, flattened or all"),
    "value_unit": ("string", "unit of the value: nats, fraction, pixels, none"),
}


def tidy(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Return ``rows`` with exactly the columns of ``COLUMNS``, typed; an unknown column is an error."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    unknown = sorted(set(frame.columns) - set(COLUMNS))
    if unknown:
        raise T2TError(f"unknown result columns {unknown}; known: {list(COLUMNS)}")
    return frame.reindex(columns=list(COLUMNS)).astype({name: dtype for name, (dtype, _) in COLUMNS.items()})


def _write_whole(path: Path, write: Any) -> None:
    """Write beside ``path`` and move into place, so that a killed run leaves the old file whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Result:
    """What one measure found.

    Parameters
    ----------
    measure : name of the measure.
    frame : tidy table with the columns of ``COLUMNS``.
    meta : what else a reader needs to repeat it: data set, n, seed, model provenance, versions. JSON values only.
    notes : warnings in words: layers that were not finite, estimators that fell back, untrained weights.
    """

    measure: str
    frame: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", tidy(self.frame))

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (.parquet or .csv) and, beside it, ``path``.json with ``meta`` and ``notes``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            _write_whole(path, lambda p: self.frame.to_csv(p, index=False))
        elif path.suffix == ".parquet":
            _write_whole(path, lambda p: self.frame.to_parquet(p, index=False))
        else:
            raise T2TError(f"results go to .parquet or .csv, not {path.suffix!r} ({path})")
        side = {"measure": self.measure, "meta": self.meta, "notes": list(self.notes)}
        text = json.dumps(side, indent=1, sort_keys=True) + "\n"
        _write_whole(path.with_name(path.name + ".json"), lambda p: p.write_text(text, encoding="utf-8"))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what ``save`` wrote."""
        path = Path(path)
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        side = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        return cls(side["measure"], frame, side["meta"], tuple(side["notes"]))


@dataclass(frozen=True)
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

    @property
    def frame(self) -> pd.DataFrame:
        """All rows of all results."""
        return tidy(pd.concat([r.frame for r in self.results], ignore_index=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes, each once, in order."""
        return tuple(dict.fromkeys(note for r in self.results for note in r.notes))

    def save(self, folder: str | Path, suffix: str = ".parquet") -> list[Path]:
        """Write one file per measure into ``folder``."""
        return [r.save(Path(folder) / f"{r.measure}{suffix}") for r in self.results]


def enough_digits(digits: int, *values: float) -> int:
    """Return ``digits``, or one more where a value that is not 0 would read as 0.

    Whether an interval holds 0 has to be seen.

    >>> enough_digits(3, 0.0011, 0.0002, 0.0021), enough_digits(3, 0.1, 0.0, 0.2)
    (4, 3)
    """
    return digits + any(round(x, digits) == 0 != round(x, digits + 1) for x in values)
