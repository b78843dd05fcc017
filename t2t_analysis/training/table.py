"""The table of the study: one row per run, typed and documented, and the learning curves beside it.

``COLUMNS`` is the one source of the columns, their types and what they mean; ``data/study/README.md`` is written from
it. Rows are added under a lock and the file is replaced whole, so that several processes can write, and a kill leaves
the table as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .._files import whole_file
from .._paths import data_dir
from ..errors import DataError

RUNS, CURVES = "runs.csv", "curves.csv"

#: column -> (dtype, meaning). The order is the order in the file.
COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("string", "name of the run: the factors, and eight digits of everything that identifies it"),
    "task": ("string", "train (from random weights), finetune or probe (from weights trained on `source`)"),
    "model": ("string", "registered name of the model"),
    "tokeniser": ("string", "hard, performer, transformer, conv, hardnorm, convgelu, mlp; empty outside the design"),
    "backbone": ("string", "deep or wide"),
    "variant": ("string", "plain, or se, dense, resnext, ghost: an idea from convolutional networks"),
    "data": ("string", "data set; of a folder or tar the last part of its path"),
    "source": ("string", "finetune and probe: the data set, or the file, that the weights come from"),
    "source_run": ("string", "finetune and probe: the run, or the file, whose weights it starts from"),
    "data_hash": ("string", "twelve digits of the SHA-256 of pixels and labels, of names where images are streamed"),
    "classes": ("Int64", "number of classes"),
    "chance": ("Float64", "share of the commonest class among the test images"),
    "seed": ("Int64", "of weights, order, augmentation, dropout and the choice of a fraction"),
    "fraction": ("Float64", "share of the training images of every class; the number of steps does not change with it"),
    "train_images": ("Int64", "how many different training images"),
    "train_unit": ("string", "what such an image is: for photo_crops a block that crops are cut from"),
    "epochs": ("Int64", "passes over as many images as the whole training set has; 0 for a probe"),
    "reduced": ("boolean", "it ends, fully annealed, before the last horizon, at which effects are judged"),
    "sweep": ("boolean", "the recipe differs from the fixed one in more than its epochs: left out of the effects"),
    "optimizer": ("string", "muon, or adamw as a sensitivity"),
    "lr": ("Float64", "peak learning rate"),
    "batch_size": ("Int64", "images per step"),
    "recipe": ("string", "the whole recipe in words"),
    "steps": ("Int64", "optimiser steps"),
    "images_seen": ("Int64", "training images, repetitions counted"),
    "parameters": ("Int64", "trainable parameters, the classifier included"),
    "macs": ("Int64", "multiply-accumulates of one forward pass of one image, all matrix products"),
    "images_per_second": ("Float64", "training images per second, median over epochs, by this process"),
    "matrix_rate": ("Float64", "FLOP/s of a large matrix product in the precision of training, measured after the run"),
    "matrix_share": ("Float64", "6 x macs x images_per_second / matrix_rate"),
    "peak_memory": ("Int64", "bytes, at most"),
    "memory_kind": ("string", "resident set of the process (CPU) or allocated on the device (CUDA)"),
    "train_loss": ("Float64", "cross-entropy in nats on training images, not augmented, at most 10,000 of them"),
    "train_accuracy": ("Float64", "top-1 on the same, as a fraction"),
    "test_loss": ("Float64", "cross-entropy in nats on the test images"),
    "test_accuracy": ("Float64", "top-1 on the test images, as a fraction"),
    "test_low": ("Float64", "lower end of its 95 % interval over test images, this one run"),
    "test_high": ("Float64", "upper end"),
    "test_n": ("Int64", "independent units of that interval"),
    "test_unit": ("string", "what they are: images, or blocks of which four test crops are cut"),
    "calibration_error": ("Float64", "expected calibration error, 15 bins, on the test images"),
    "wall_seconds": ("Float64", "training alone, all sessions of a resumed run together"),
    "cpu_seconds": ("Float64", "of the process while it trained: on a shared machine the measure of time"),
    "device": ("string", "name of the processor"),
    "threads": ("Int64", "CPU threads of the process"),
    "precision": ("string", "of training; on a CPU without native bfloat16 it says so"),
    "compiled": ("boolean", "whether torch.compile was on"),
    "versions": ("string", "Python and the libraries that training rests on"),
    "commit": ("string", "of the checkout; + if the package had changes"),
    "date": ("string", "day on which the run ended, UTC"),
    "command": ("string", "repeats the run into a table of its own"),
    "design": ("string", "twelve digits of the design in docs/study.md by which it was run"),
}  # fmt: skip

#: The learning curves: one row per run and epoch.
CURVE_COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("string", "as in the table of runs"),
    "epoch": ("Int64", "counted from 0"),
    "train_loss": ("Float64", "mean over the epoch of the loss that is minimised, labels smoothed, images augmented"),
    "train_accuracy": ("Float64", "of the moving weights on the augmented images of the epoch"),
    "lr": ("Float64", "learning rate at its end"),
    "images_per_second": ("Float64", "training images per second"),
    "cpu_seconds": ("Float64", "of the process, for the epoch"),
    "test_accuracy": ("Float64", "of the averaged weights at its end; missing unless asked for with --test-curve"),
}  # fmt: skip


def _typed(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]], where: object) -> pd.DataFrame:
    if unknown := sorted(set(frame.columns) - set(columns)):
        raise DataError(f"{where} has unknown columns {unknown}; known: {list(columns)}")
    return frame.reindex(columns=list(columns)).astype({name: dtype for name, (dtype, _) in columns.items()})


def _read(path: Path, columns: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    if not path.exists():
        return _typed(pd.DataFrame(), columns, path)
    # As text first: an empty cell of a text column is empty text, not a missing number.
    frame = pd.read_csv(path, dtype="string", keep_default_na=False)
    texts = [name for name in frame.columns if columns.get(name, ("string",))[0] == "string"]
    numbers = frame.columns.difference(texts)
    frame[numbers] = frame[numbers].replace("", pd.NA)
    for name in numbers:
        if columns[name][0] == "boolean":
            frame[name] = frame[name].map({"True": True, "False": False})
        else:
            frame[name] = pd.to_numeric(frame[name])
    return _typed(frame, columns, path)


def read_runs(folder: str | Path | None = None) -> pd.DataFrame:
    """All finished runs, typed as ``COLUMNS`` says; without rows where none has finished.

    Parameters
    ----------
    folder : of the table; the default is the one that ships with the package.

    >>> list(read_runs().columns) == list(COLUMNS)
    True
    """
    return _read(Path(folder or data_dir() / "study") / RUNS, COLUMNS)


def read_curves(folder: str | Path | None = None) -> pd.DataFrame:
    """The learning curves of all finished runs."""
    return _read(Path(folder or data_dir() / "study") / CURVES, CURVE_COLUMNS)


def finished(folder: str | Path | None = None) -> set[str]:
    """Names of the runs that are in the table."""
    return set(read_runs(folder)["run"])


def _write(frame: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")


def add_row(row: Mapping[str, Any], curve: Iterable[Mapping[str, Any]], folder: str | Path) -> None:
    """Add a run and its learning curve; the curve first, so that a run in the table always has one.

    A run that is there already is replaced. Raises ``DataError`` if a column is unknown or missing.
    """
    from filelock import FileLock

    if missing := [name for name in COLUMNS if name not in row]:
        raise DataError(f"the row lacks {missing}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for name, columns, new in (
            (CURVES, CURVE_COLUMNS, [{"run": row["run"]} | dict(point) for point in curve]),
            (RUNS, COLUMNS, [dict(row)]),
        ):
            old = _read(folder / name, columns)
            fresh = _typed(pd.DataFrame(new), columns, "the new row")
            kept = old[old["run"] != row["run"]]
            _write(pd.concat([kept, fresh], ignore_index=True) if len(kept) else fresh, folder / name)


def markdown() -> str:
    """Both tables' columns as Markdown, for the README beside them."""
    parts = []
    for name, columns in ((RUNS, COLUMNS), (CURVES, CURVE_COLUMNS)):
        lines = [f"## {name}", "", "| column | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| {column} | {dtype} | {text} |" for column, (dtype, text) in columns.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
