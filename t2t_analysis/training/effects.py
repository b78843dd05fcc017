"""What the tokeniser and the backbone each do: effects with intervals, from the table of runs.

The unit is the training seed. Cells of one seed share order, crops and augmentation, so an effect is a contrast of
cells within each seed, and its mean over seeds has Student's t interval: nothing is assumed about the variances of
cells. Runs of one task, data set, optimiser and length are compared; runs of a sweep take no part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import stats
from .._files import csv_rows
from ..errors import DataError
from ..results import Result
from . import rates
from .design import CORNERS, FRACTION_CELLS, HORIZONS

Weights = Mapping[str, float]


class NoRunsError(DataError):
    """The table has no run of what is asked for."""


def _weights(cells: str) -> dict[str, float]:
    """Weight of each cell, from words as ``performer_deep=0.5``."""
    pairs = (word.split("=") for word in cells.split())
    return {f"small_{cell}": float(weight) for cell, weight in pairs}


#: a line a contrast; those of the wide backbone alone tell which part of the T2T module helps
_TABLE = {row["name"]: row for row in csv_rows(Path(__file__).with_name("contrasts.csv"))}
#: quantity -> weight of each cell's mean accuracy
CONTRASTS = {name: _weights(row["cells"]) for name, row in _TABLE.items()}
#: effects that are also followed over training length, and taken in log-odds
FOLLOWED = [name for name, row in _TABLE.items() if row["followed"]]
#: contrast -> its two sides in words; those of part of the cells have the same
SIDES = {name: (row["side"], row["side_b"]) for name, row in _TABLE.items() if row["side"]}
SIDES["gap_growth_per_halving"] = SIDES["tokeniser_effect"]


@cache
def printed() -> list[dict[str, str]]:
    """Accuracy differences that the paper prints or that are quoted from it, and which claims they belong to."""
    return csv_rows(Path(__file__).with_name("published.csv"))


def published(task: str, data: str = "") -> dict[str, tuple[float, str]]:
    """Quantity -> accuracy difference as a fraction, and the rows of the paper's tables that it is the difference of.

    Parameters
    ----------
    data : target of fine-tuning from ImageNet; nothing for training, which was on ImageNet.

    >>> published("finetune", "torch/cifar10")["t2t_minus_vit"][0]
    0.004
    """
    rows = [row for row in printed() if (row["task"], row["data"]) == (task, data) and row["quantity"]]
    return {row["quantity"]: (float(row["difference"]), row["where"]) for row in rows}


def runs_of(
    table: pd.DataFrame,
    data: str = "photo_crops",
    *,
    epochs: int | None = None,
    task: str = "train",
    source: str = "",
    optimizer: str = "muon",
) -> pd.DataFrame:
    """Runs that may be compared: one task, data set, source, optimiser and length; sweeps left out.

    Parameters
    ----------
    table : as ``table.read_runs`` returns it.
    epochs : length; the default is the longest that all four corner cells have, else the longest there is.
    optimizer : of runs that were trained; a probe has none.

    Raises
    ------
    DataError
        if there are none, or if they saw different pixels under one name.
    """
    rows = _all_lengths(table, data, task, source, optimizer)
    if rows.empty:
        raise NoRunsError(
            f"no runs of task {task!r} on {data!r} in the table; python -m t2t_analysis study --data {data} adds them"
        )
    there = sorted(map(int, rows["epochs"].unique()))
    rows = rows[rows["epochs"] == (_longest(rows) if epochs is None else epochs)]
    if rows.empty:
        raise NoRunsError(f"no runs of {epochs} epochs on {data!r}; there are runs of {there}")
    if rows["data_hash"].nunique() > 1:
        raise DataError(f"runs on {data!r} saw different pixels: {dict(rows['data_hash'].value_counts())}")
    lengths = rows["source_run"].str.extract(r"__e(\d+)__", expand=False)
    if lengths.nunique() > 1:
        found = sorted(set(lengths))
        raise DataError(f"runs on {data!r} start from weights of {found} epochs: keep them apart")
    return rows


def runs_so_far(table: pd.DataFrame, *args: Any, **kwargs: Any) -> tuple[pd.DataFrame, list[str]]:
    """What ``runs_of`` returns; without a run no rows, and why there are none."""
    try:
        return runs_of(table, *args, **kwargs), []
    except NoRunsError as error:
        return table.iloc[:0], [str(error)]


def _all_lengths(table: pd.DataFrame, data: str, task: str, source: str, optimizer: str) -> pd.DataFrame:
    """Runs of one task, data set, source and optimiser; no sweeps."""
    same = (table["task"] == task) & (table["data"] == data) & (table["source"] == source) & ~table["sweep"]
    return table[same & ((table["optimizer"] == optimizer) | (task == "probe"))]


def _longest(rows: pd.DataFrame) -> int:
    lengths = sorted({int(epochs) for epochs in rows["epochs"]}, reverse=True)
    complete = (e for e in lengths if set(CORNERS) <= set(rows.loc[rows["epochs"] == e, "model"]))
    return next(complete, lengths[0])


def whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that see all the training images."""
    return rows[rows["fraction"] == 1.0]


def _wide(rows: pd.DataFrame, cells: Collection[str], of: str = "test_accuracy") -> pd.DataFrame:
    """Values, a row a seed and a column a cell; NaN where a seed has no run.

    Raises
    ------
    DataError
        naming the cells that have no run, or several of one seed, which are not independent.
    """
    own = rows[rows[of].notna() & rows["model"].isin(list(cells))]
    known = own[["model", "seed", of]].astype({of: float})
    if missing := [cell for cell in cells if cell not in set(known["model"])]:
        raise DataError(f"no runs of {', '.join(missing)}")
    if (twice := known.duplicated(["model", "seed"])).any():
        model, seed, _ = known[twice].iloc[0]
        raise DataError(f"several runs of {model} with seed {seed}, where one is expected")
    return known.pivot(index="seed", columns="model", values=of)[list(cells)]


def _within_seeds(wide: pd.DataFrame, weights: Weights) -> pd.Series:
    """Weighted sum of the cells of each seed; seeds that miss a cell are left out."""
    return (wide[list(weights)] * pd.Series(weights)).sum(axis=1, skipna=False).dropna()


def contrast(rows: pd.DataFrame, weights: Weights, *, of: str = "test_accuracy") -> stats.Student:
    """A weighted sum of cells within each seed, its mean over seeds.

    Sides that share no seed (halves of one cell's seeds) are compared by Welch's t with Satterthwaite's degrees of
    freedom (Welch 1947), for any weights.

    Parameters
    ----------
    rows : runs, with columns model, seed and ``of``; those of cells without a weight take no part.
    weights : weight of each cell.
    of : column that is compared.

    Raises
    ------
    DataError
        naming the cells that have no run.
    """
    wide = _wide(rows, weights, of)
    if len(each := _within_seeds(wide, weights)):
        return _over_seeds(each, f"mean over seeds of a contrast of {len(weights)} cells")
    weight, n = pd.Series(weights), wide.count()
    parts = weight**2 * wide.var() / n
    value, total = float((weight * wide.mean()).sum()), float(parts.sum(skipna=False))
    df = 0.0 if n.min() < 2 else total**2 / float((parts**2 / (n - 1)).sum()) if total else np.inf
    words = "Welch's t" if df else "difference of means"
    return stats.Student(value, float(np.sqrt(total)), df, int(n.sum()), "seed", words)


def _over_seeds(values: Any, estimator: str) -> stats.Student:
    return stats.Student.of(values, "seed", estimator)


def _row(quantity: str, found: stats.Student | None = None, **columns: Any) -> dict[str, Any]:
    """A row of the result; effects are compared with none."""
    effect = {} if found is None else found.columns() | {"null": 0.0, "null_kind": "no effect"}
    common = {"measure": "study_effects", "quantity": quantity, "weights": "trained by the study"}
    return common | {"value_unit": "fraction of test images"} | effect | columns


def cell_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean accuracy of each cell at each fraction, with Student's t interval over seeds."""
    out = []
    keys: Any
    for keys, group in rows.groupby(["model", "fraction"]):
        model, fraction = keys
        columns = {"null": float(group["chance"].mean()), "null_kind": "commonest class", "p": np.nan}
        columns |= {"at": float(fraction), "at_unit": "share of the training images"}
        out.append(_row("accuracy", _over_seeds(group["test_accuracy"], "mean"), model=model, **columns))
    return out


def contrast_rows(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Every contrast whose cells are there, those that are followed in log-odds too; a note for each that is not."""
    rows = whole(rows)
    y = rows["test_accuracy"].astype(float).clip(1e-4, 1 - 1e-4)
    rows = rows.assign(log_odds=np.log(y / (1 - y)))
    out, notes = [], []
    for quantity, weights in CONTRASTS.items():
        try:
            out.append(_row(quantity, contrast(rows, weights)))
        except DataError as error:
            notes.append(f"{quantity} not estimated: {error}")
            continue
        if quantity in FOLLOWED:
            found = contrast(rows, weights, of="log_odds")
            out.append(_row(f"{quantity}_log_odds", found, value_unit="log-odds"))
    return out, notes


def efficiency_rows(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Soft minus hard at each fraction, and how much that gap grows when the training set is halved.

    Each seed has a slope of its gap in log2(1 / fraction); their mean is ``gap_growth_per_halving``, positive if the
    gap to the hard split grows as data shrink.
    """
    hard, soft = FRACTION_CELLS
    gaps: dict[Any, pd.Series] = {
        fraction: _within_seeds(_wide(group, (soft, hard)), {soft: 1.0, hard: -1.0})
        for fraction, group in rows.astype({"fraction": float}).groupby("fraction")
        if {hard, soft} <= set(group["model"])
    }
    if len(gaps) < 2:
        few = "fewer than two fractions of hard_deep and performer_deep"
        return [], [f"gap_growth_per_halving not estimated: {few}"]
    words = "mean over seeds of the slope of the gap in log2(1 / fraction)"
    by_halving = {-np.log2(fraction): gap for fraction, gap in gaps.items()}
    out = _slope_row("gap_growth_per_halving", by_halving, 1.0, words)
    for fraction, gap in gaps.items():
        at: dict[str, Any] = {"at": fraction, "at_unit": "share of the training images"}
        out.append(_row("tokeniser_effect_deep_at_fraction", _over_seeds(gap, "mean of the gap"), **at))
    return out, []


def _slope_row(quantity: str, effect: dict[Any, pd.Series], step: float, words: str) -> list[dict[str, Any]]:
    """Mean over seeds of the least-squares slope of ``effect`` (abscissa -> seed -> value), in units of ``step``."""
    values = pd.DataFrame(effect).dropna()  # seeds by points
    if values.empty:
        return []
    centred = values.columns.to_numpy(dtype=float) / step
    centred = centred - centred.mean()
    slopes = values.to_numpy(dtype=float) @ centred / (centred @ centred)
    return [_row(quantity, _over_seeds(slopes, words))]


# ------------------------------------------------------------------------------------------ over training length


#: what is held equal -> its unit
COSTS = {"epochs": "epochs", "macs": "multiply-accumulates of training", "time": "CPU seconds of training"}


def _curves(rows: pd.DataFrame, by: str) -> dict[str, dict[Any, np.ndarray]]:
    """Cell -> seed -> (lengths, 2): logarithm of the cost, ascending, and accuracy.

    Costs are epochs, 3 x forward multiply-accumulates x images, or CPU seconds: seconds an image are the median over
    the runs of a cell, since they are measured on a shared machine.
    """
    images, seconds, macs = (rows[name].astype(float) for name in ("images_seen", "cpu_seconds", "macs"))
    each = (seconds / images).groupby(rows["model"]).transform("median")
    cost = {"epochs": rows["epochs"].astype(float), "macs": 3 * macs * images, "time": each * images}[by]
    points = rows.assign(x=np.log(cost), y=rows["test_accuracy"].astype(float)).sort_values("x")
    return {
        str(cell): {seed: run[["x", "y"]].to_numpy(float) for seed, run in of_cell.groupby("seed")}
        for cell, of_cell in points.groupby("model")
    }  # fmt: skip


def length_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Effects at equal epochs, multiply-accumulates and time, and their growth per doubling of the length.

    Parameters
    ----------
    rows : runs of all lengths, see ``runs_of``. At each length, cost is that of the cell that spends least there;
        seeds of which a cell does not reach from below to above it are left out.
    """
    rows, out = whole(rows), []
    for by, unit in COSTS.items():
        curves = _curves(rows, by)
        for quantity in FOLLOWED:
            weights = CONTRASTS[quantity]
            if not set(weights) <= set(curves):
                continue
            own = {cell: curves[cell] for cell in weights}
            ends = [sorted({x for run in runs.values() for x in run[:, 0]}) for runs in own.values()]
            effect: dict[Any, pd.Series] = {}
            for x in sorted({min(xs) for xs in zip(*ends, strict=False)}):
                inside = {"left": np.nan, "right": np.nan}  # of the lengths that were run
                at = {
                    c: {s: np.interp(x, *run.T, **inside) for s, run in runs.items()}
                    for c, runs in own.items()
                }
                if len(each := _within_seeds(pd.DataFrame(at), weights)):
                    effect[x] = each
                    found = _over_seeds(each, f"mean over seeds of a contrast at equal {by}")
                    at_cost = round(float(np.exp(x)), 6)  # logarithm and back: 24 epochs are 24 again
                    out.append(_row(f"{quantity}_at_{by}", found, at=at_cost, at_unit=unit))
            if by == "epochs" and len(effect) > 1:
                words = "mean over seeds of the slope of the effect in log2(epochs)"
                out += _slope_row(f"{quantity}_growth_per_doubling", effect, np.log(2), words)
    return out


# ------------------------------------------------------------------------------------------ the recipe, the paper


def rate_rows(data: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The rate that was chosen for each corner cell, and the held-out loss at each that was tried."""
    out = []
    for model in CORNERS:
        one: dict[str, Any] = {"n": 1, "unit": "seed", "interval": "none: one seed", "model": model}
        for rate, loss in sorted(rates.tried(model, data, folder=folder).items()):
            at: dict[str, Any] = {"at": rate, "at_unit": "peak learning rate"}
            out.append(_row("held_out_loss", value=loss, value_unit="nats", **one, **at))
        if best := rates.chosen(model, data, folder=folder):
            out.append(_row("best_learning_rate", value=best, value_unit="none", **one))
    return out


def adamw_rows(table: pd.DataFrame, data: str) -> list[dict[str, Any]]:
    """The followed effects under AdamW, the paper's optimiser, at every length that was run."""
    rows = whole(_all_lengths(table, data, "train", "", "adamw"))
    return [
        _row(f"{quantity}_adamw", contrast(some, CONTRASTS[quantity]), at=at, at_unit="epochs")
        for quantity in FOLLOWED
        for at, some in rows.astype({"epochs": float}).groupby("epochs")
        if set(CONTRASTS[quantity]) <= set(some["model"])
    ]


def published_rows(task: str, data: str) -> list[dict[str, Any]]:
    """Differences of the paper's printed accuracies: single runs from ImageNet, without intervals."""
    one: dict[str, Any] = {"n": 1, "unit": "run", "interval": "none: single runs"}
    one["weights"] = "the authors', on ImageNet"
    return [
        _row(f"{quantity}_published", estimator=where, value=value, **one)
        for quantity, (value, where) in published(task, data if task == "finetune" else "").items()
    ]


def effects(
    table: pd.DataFrame | None = None,
    data: str = "photo_crops",
    *,
    epochs: int | None = None,
    task: str = "train",
    source: str = "",
) -> Result:
    """Cell means, main effects, interaction, contrasts, their course over training length, and what stands beside.

    Parameters
    ----------
    table : runs; the default is the shipped table.
    data, epochs, task, source : see ``runs_of``.

    Returns
    -------
    Result
        Named study_effects. Accuracy and effects are fractions of the test images (0.01 is one point). What cannot be
        estimated is named in the notes; without a run that is everything but the rates that were tried.
    """
    from .table import read_runs

    table = read_runs() if table is None else table
    rows, absent = runs_so_far(table, data, epochs=epochs, task=task, source=source)
    contrasts, missing = contrast_rows(rows)
    efficiency, too_few = efficiency_rows(rows)
    found = cell_rows(rows) + contrasts + efficiency
    if task == "train" and len(rows):
        every = _all_lengths(table, data, task, source, "muon")
        found += length_rows(every[every["data_hash"] == rows["data_hash"].iloc[0]])
        found += adamw_rows(table, data)
    found += (rate_rows(data) if task == "train" else []) + published_rows(task, data)
    notes = absent or [*missing, *too_few]
    if rows["reduced"].any():
        last = f", the last length is {HORIZONS[data][-1]}" if data in HORIZONS else ""
        notes.insert(0, f"reduced: {int(rows['epochs'].iloc[0])} epochs{last}")
    notes.append(
        "published differences are of single ImageNet runs of models 25 times as large: beside ours for their sign, "
        "not on the same scale"
    )
    meta = _meta(rows) if len(rows) else {"data": data, "task": task, "source": source, "runs": 0}
    return Result("study_effects", pd.DataFrame(found), meta, tuple(notes))


def _meta(rows: pd.DataFrame) -> dict[str, Any]:
    first, seeds = rows.iloc[0], whole(rows).groupby("model")["seed"].nunique()
    same: dict[str, Any] = {name: str(first[name]) for name in ("data", "task", "source", "data_hash")}
    return same | {
        "epochs": int(first["epochs"]), "reduced": bool(rows["reduced"].any()), "runs": len(rows),
        "seeds": {str(model): int(count) for model, count in seeds.items()},
        "devices": sorted(set(map(str, rows["device"]))), "commits": sorted(set(map(str, rows["commit"]))),
    }  # fmt: skip
