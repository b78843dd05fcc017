"""What the tokeniser and the backbone each do: effects with intervals, from the table of runs.

The unit is the training seed. Every effect is a contrast between cell means: ordinary least squares with one mean per
cell on the runs of the cells that it names, and Student's t with the pooled residual variance (statsmodels). Only runs
of one task, one data set and one length are compared; runs of a sweep take no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..results import Result
from .design import CORNERS, FRACTION_CELLS, IDEAS

__all__ = ["CONTRASTS", "PUBLISHED", "contrast", "effects", "runs_of"]

HARD_DEEP, HARD_WIDE, SOFT_DEEP, SOFT_WIDE = CORNERS
Weights = Mapping[str, float]


def _difference(plus: Iterable[str], minus: Iterable[str]) -> dict[str, float]:
    """Mean of some cells minus the mean of others."""
    plus, minus = list(plus), list(minus)
    return {cell: 1 / len(plus) for cell in plus} | {cell: -1 / len(minus) for cell in minus}


def _tokeniser(plus: str, minus: str) -> dict[str, float]:
    """One tokeniser minus another, over both backbones."""
    shapes = ("deep", "wide")
    return _difference((f"small_{plus}_{s}" for s in shapes), (f"small_{minus}_{s}" for s in shapes))


def _idea(idea: str, *tokenisers: str) -> dict[str, float]:
    """An idea from convolutional networks minus the plain deep backbone, over tokenisers."""
    return _difference(
        (f"small_{t}_deep_{idea}" for t in tokenisers), (f"small_{t}_deep" for t in tokenisers)
    )


#: quantity -> weight of each cell's mean accuracy.
CONTRASTS: dict[str, dict[str, float]] = {
    "tokeniser_effect": _tokeniser("performer", "hard"),
    "tokeniser_effect_deep": _difference([SOFT_DEEP], [HARD_DEEP]),
    "tokeniser_effect_wide": _difference([SOFT_WIDE], [HARD_WIDE]),
    "backbone_effect": _difference([HARD_DEEP, SOFT_DEEP], [HARD_WIDE, SOFT_WIDE]),
    "backbone_effect_hard": _difference([HARD_DEEP], [HARD_WIDE]),
    "backbone_effect_performer": _difference([SOFT_DEEP], [SOFT_WIDE]),
    "interaction": {SOFT_DEEP: 1.0, HARD_DEEP: -1.0, SOFT_WIDE: -1.0, HARD_WIDE: 1.0},
    "t2t_minus_vit": _difference([SOFT_DEEP], [HARD_WIDE]),
    "performer_minus_convolution": _tokeniser("performer", "conv"),
    "performer_minus_convolution_deep": _difference([SOFT_DEEP], ["small_conv_deep"]),
    "transformer_minus_convolution": _tokeniser("transformer", "conv"),
    "transformer_minus_performer": _tokeniser("transformer", "performer"),
    "convolution_minus_hard": _tokeniser("conv", "hard"),
}
for _name in IDEAS:
    CONTRASTS[f"{_name}_effect"] = _idea(_name, "hard", "performer")
    CONTRASTS[f"{_name}_effect_hard"] = _idea(_name, "hard")
    CONTRASTS[f"{_name}_effect_performer"] = _idea(_name, "performer")

#: quantity -> accuracy difference as a fraction, and the rows of the paper's tables that it is the difference of.
PUBLISHED: dict[str, tuple[float, str]] = {
    "t2t_minus_vit": (0.034, "Table 2: T2T-ViT-14 81.5, ViT-S/16 78.1, each under its own recipe"),
    "tokeniser_effect_deep": (0.020, "Table 7: T2T-ViT-14 81.5, without T2T 79.5"),
    "backbone_effect_performer": (0.027, "Table 7: T2T-ViT-14 81.5, d768-4 78.8"),
    "backbone_effect_hard": (0.009, "Table 6: ViT-DN 79.0, ViT-S/16 78.1; half the parameters"),
    "performer_minus_convolution_deep": (0.007, "Table 7: T2T-ViT-14 81.5, T2T-ViT_c-14 80.8"),
    "transformer_minus_performer": (0.002, "Table 7: T2T-ViT_t-14 81.7, T2T-ViT-14 81.5"),
    "se_effect_hard": (0.003, "Table 6: ViT-SE 78.4, ViT-S/16 78.1"),
    "se_effect_performer": (0.001, "Table 6: T2T-ViT-SE 81.6, T2T-ViT-14 81.5"),
    "resnext_effect_hard": (-0.001, "Table 6: ViT-ResNeXt 78.0, ViT-S/16 78.1"),
    "resnext_effect_performer": (0.0, "Table 6: T2T-ViT-ResNeXt 81.5, T2T-ViT-14 81.5"),
    "dense_effect_hard": (-0.013, "Table 6: ViT-Dense 76.8, ViT-S/16 78.1"),
    "dense_effect_performer": (-0.009, "Table 6: T2T-ViT-Dense 80.6, T2T-ViT-14 81.5"),
    "ghost_effect_hard": (-0.044, "Table 6: ViT-Ghost 73.7, ViT-S/16 78.1; two thirds of the parameters"),
    "ghost_effect_performer": (-0.020, "Table 6: T2T-ViT-Ghost 79.5, T2T-ViT-14 81.5; fewer parameters"),
}

#: The same for fine-tuning from ImageNet, by target.
PUBLISHED_TRANSFER: dict[str, tuple[float, str]] = {
    "torch/cifar10": (0.004, "Table 5: T2T-ViT-14 97.5, ViT-S/16 97.1"),
    "torch/cifar100": (0.013, "Table 5: T2T-ViT-14 88.4, ViT-S/16 87.1"),
}


@dataclass(frozen=True)
class Estimate:
    """A linear combination of coefficients with its 95 % interval; NaN ends where no degree of freedom is left."""

    value: float
    low: float
    high: float
    p: float
    n: int
    freedom: int
    estimator: str
    se: float = np.nan

    def columns(self) -> dict[str, Any]:
        """Columns of a result row."""
        alone = self.freedom < 1
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "interval": "none: one seed per cell" if alone else f"t, {self.freedom} degrees of freedom",
            "se": self.se,
            "df": np.nan if alone else float(self.freedom),
            "p": self.p,
            "n": self.n,
            "unit": "run",
            "estimator": self.estimator,
        }


def runs_of(
    table: pd.DataFrame,
    data: str = "photo_crops",
    *,
    epochs: int | None = None,
    task: str = "train",
    source: str = "",
) -> pd.DataFrame:
    """Runs that may be compared: one task, data set, source and length; sweeps left out.

    Parameters
    ----------
    table : as ``table.read_runs`` returns it.
    epochs : length; the default is the longest that all four corner cells have, else the longest there is.

    Raises ``DataError`` if there are none, or if they saw different pixels under one name.
    """
    rows = table[
        (table["task"] == task) & (table["data"] == data) & (table["source"] == source) & ~table["sweep"]
    ]
    if rows.empty:
        raise DataError(
            f"no runs of task {task!r} on {data!r} in the table; python -m t2t_analysis study --data {data} adds them"
        )
    rows = rows[rows["epochs"] == (_longest(rows) if epochs is None else epochs)]
    if rows.empty:
        raise DataError(f"no runs of {epochs} epochs on {data!r}; there are {sorted(set(table['epochs']))}")
    if rows["data_hash"].nunique() > 1:
        raise DataError(f"runs on {data!r} saw different pixels: {dict(rows['data_hash'].value_counts())}")
    lengths = rows["source_run"].str.extract(r"__e(\d+)__", expand=False)
    if lengths.nunique() > 1:
        raise DataError(
            f"runs on {data!r} start from weights of {sorted(set(lengths))} epochs: keep them apart"
        )
    return rows


def _longest(rows: pd.DataFrame) -> int:
    lengths = sorted({int(epochs) for epochs in rows["epochs"]}, reverse=True)
    complete = (e for e in lengths if set(CORNERS) <= set(rows.loc[rows["epochs"] == e, "model"]))
    return next(complete, lengths[0])


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["fraction"] == 1.0]


def _combine(
    y: np.ndarray, design: np.ndarray, weights: np.ndarray, estimator: str, robust: bool
) -> Estimate:
    """``weights @ coefficients`` of a least-squares fit of y (n,) on design (n, k)."""
    import statsmodels.api as sm

    freedom = len(y) - np.linalg.matrix_rank(design)
    if freedom < 1:
        value = float(weights @ np.linalg.pinv(design) @ y)
        return Estimate(value, np.nan, np.nan, np.nan, len(y), 0, estimator)
    fit = sm.OLS(y, design).fit(cov_type="HC3" if robust else "nonrobust", use_t=True)
    found = fit.t_test(weights)
    low, high = np.ravel(found.conf_int(0.05))
    value, p = float(np.ravel(found.effect)[0]), float(np.ravel(found.pvalue)[0])
    se = float(np.ravel(found.sd)[0])
    return Estimate(value, float(low), float(high), p, len(y), int(freedom), estimator, se)


def contrast(
    rows: pd.DataFrame, weights: Weights, *, of: str = "test_accuracy", robust: bool = False
) -> Estimate:
    """A contrast between means of cells, each run a replicate.

    Parameters
    ----------
    rows : runs, with columns model and ``of``; those of cells without a weight take no part.
    weights : weight of each cell's mean.
    of : column that is compared.
    robust : the heteroscedasticity-consistent covariance HC3 (MacKinnon & White 1985) in place of the pooled variance;
        needs two runs in each cell.

    Raises ``DataError`` naming the cells that have no run.
    """
    cells = list(weights)
    if missing := [cell for cell in cells if not (rows["model"] == cell).any()]:
        raise DataError(f"no runs of {', '.join(missing)}")
    used = rows[rows["model"].isin(cells)]
    design = (used["model"].to_numpy()[:, None] == np.array(cells)).astype(float)  # (runs, cells)
    if robust and design.sum(0).min() < 2:
        raise DataError("HC3 needs at least two runs in each cell")
    y = used[of].to_numpy(dtype=float)
    name = f"least squares, a mean per cell, {len(cells)} cells{', HC3' if robust else ''}"
    return _combine(y, design, np.array([weights[cell] for cell in cells]), name, robust)


def _row(quantity: str, found: Estimate | None = None, **columns: Any) -> dict[str, Any]:
    """A row of the result; effects are compared with none."""
    effect = {} if found is None else found.columns() | {"null": 0.0, "null_kind": "no effect"}
    common = {"measure": "study_effects", "quantity": quantity, "weights": "trained by the study"}
    return common | {"value_unit": "fraction of test images"} | effect | columns


def cell_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean accuracy of each cell at each fraction, with Student's t interval over seeds."""
    from .. import stats

    out = []
    keys: Any
    for keys, group in rows.groupby(["model", "fraction"]):
        model, fraction = keys
        y = group["test_accuracy"].to_numpy(dtype=float)
        columns: dict[str, Any] = {"value": float(y.mean()), "n": len(y), "interval": "none: one seed"}
        if len(y) > 1:
            ci = stats.mean_ci(y, unit="seed")
            columns |= {"low": ci.low, "high": ci.high, "interval": "t"}
        columns |= {"null": float(group["chance"].mean()), "null_kind": "commonest class", "unit": "seed"}
        columns |= {"at": float(fraction), "at_unit": "share of the training images", "estimator": "mean"}
        out.append(_row("accuracy", model=model, **columns))
    return out


def contrast_rows(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Every contrast whose cells are there, and a note for each that misses some."""
    out, notes = [], []
    for quantity, weights in CONTRASTS.items():
        try:
            out.append(_row(quantity, contrast(_whole(rows), weights)))
        except DataError as error:
            notes.append(f"{quantity} not estimated: {error}")
    return out, notes


def efficiency_rows(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Soft minus hard at each fraction, and how much that gap grows when the training set is halved.

    The model has a mean per fraction, a gap, and the gap's slope in log2(fraction); the slope, sign turned, is
    ``gap_growth_per_halving``: positive if the gap to the hard split grows as data shrink.
    """
    hard, soft = FRACTION_CELLS
    used = rows[rows["model"].isin(FRACTION_CELLS)]
    counts: Any = used.groupby("fraction")["model"].nunique()
    both = [float(fraction) for fraction in counts.index[counts == 2]]
    used = used[used["fraction"].isin(both)]
    if len(both) < 2:
        return [], [
            "gap_growth_per_halving not estimated: fewer than two fractions of hard_deep and performer_deep"
        ]
    share = used["fraction"].to_numpy(dtype=float)
    is_soft: Any = (used["model"] == soft).to_numpy(dtype=float)
    means = (share[:, None] == np.array(both, dtype=float)).astype(float)  # (runs, fractions)
    design = np.column_stack((means, is_soft, -is_soft * np.log2(share)))
    weights = np.eye(design.shape[1])[-1]
    name = "least squares: mean per fraction, gap, gap x log2(1 / fraction)"
    y = used["test_accuracy"].to_numpy(dtype=float)
    out = [_row("gap_growth_per_halving", _combine(y, design, weights, name, robust=False))]
    for fraction in both:
        gap = contrast(used[used["fraction"] == fraction], {soft: 1.0, hard: -1.0})
        at: dict[str, Any] = {"at": fraction, "at_unit": "share of the training images"}
        out.append(_row("tokeniser_effect_deep_at_fraction", gap, **at))
    return out, []


def _without_lr(recipe: str) -> str:
    return re.sub(r"lr [^ ]+", "lr", recipe)


def sweep_rows(table: pd.DataFrame, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy of each cell at each learning rate with the sweep's seed, and the best; one seed, so no intervals."""
    keys = ["task", "data", "source", "epochs"]
    same = table.merge(rows[keys].drop_duplicates(), on=keys)
    same = same[(same["fraction"] == 1.0) & (same["seed"] == same["seed"].min())]
    out, best = [], {}
    for model, group in same.groupby("model"):
        group = group[group["recipe"].map(_without_lr).isin(set(rows["recipe"].map(_without_lr)))]
        if group["lr"].nunique() < 2:
            continue
        alone: dict[str, Any] = {"n": 1, "unit": "seed", "interval": "none: one seed", "model": model}
        for lr, y in zip(group["lr"], group["test_accuracy"], strict=True):
            at: dict[str, Any] = {"at": float(lr), "at_unit": "peak learning rate"}
            out.append(_row("accuracy_at_learning_rate", value=float(y), **alone, **at))
        winner = group.loc[group["test_accuracy"].astype(float).idxmax()]
        best[str(model)] = float(winner["test_accuracy"])
        out.append(_row("best_learning_rate", value=float(winner["lr"]), **alone) | {"value_unit": "none"})
    for quantity in ("tokeniser_effect", "backbone_effect"):
        weights = CONTRASTS[quantity]
        if set(weights) <= set(best):
            value = sum(weight * best[cell] for cell, weight in weights.items())
            alone = {"n": len(weights), "unit": "run", "interval": "none: one seed per cell"}
            text = "each cell at its own best learning rate of the sweep"
            out.append(_row(f"{quantity}_each_at_its_best", value=value, estimator=text, **alone))
    return out


def published_rows(task: str, data: str) -> list[dict[str, Any]]:
    """Differences of the paper's printed accuracies: single runs from ImageNet, without intervals."""
    known = PUBLISHED if task == "train" else {}
    if task == "finetune" and data in PUBLISHED_TRANSFER:
        known = {"t2t_minus_vit": PUBLISHED_TRANSFER[data]}
    return [
        _row(
            f"{quantity}_published",
            value=value,
            n=1,
            unit="run",
            interval="none: single runs",
            estimator=where,
        )
        | {"weights": "the authors', on ImageNet"}
        for quantity, (value, where) in known.items()
    ]


def effects(
    table: pd.DataFrame | None = None,
    data: str = "photo_crops",
    *,
    epochs: int | None = None,
    task: str = "train",
    source: str = "",
) -> Result:
    """Cell means, main effects, interaction, contrasts, sample efficiency, learning-rate sweep, published differences.

    Parameters
    ----------
    table : runs; the default is the shipped table.
    data, epochs, task, source : see ``runs_of``.

    Returns
    -------
    ``Result`` named study_effects. Accuracy and effects are fractions of the test images (0.01 is one point). What
    cannot be estimated is named in the notes.
    """
    from .table import read_runs

    table = read_runs() if table is None else table
    rows = runs_of(table, data, epochs=epochs, task=task, source=source)
    contrasts, missing = contrast_rows(rows)
    efficiency, too_few = efficiency_rows(rows)
    found = cell_rows(rows) + contrasts + efficiency + sweep_rows(table, rows) + published_rows(task, data)
    notes = [*missing, *too_few]
    if rows["reduced"].any():
        notes.insert(0, f"reduced: {int(rows['epochs'].iloc[0])} epochs, fewer than the recipe's")
    notes.append(
        "published differences are of single ImageNet runs of models 25 times as large: beside ours for their sign, "
        "not on the same scale"
    )
    return Result("study_effects", pd.DataFrame(found), _meta(rows), tuple(notes))


def _meta(rows: pd.DataFrame) -> dict[str, Any]:
    first = rows.iloc[0]
    return {
        "data": str(first["data"]),
        "task": str(first["task"]),
        "source": str(first["source"]),
        "data_hash": str(first["data_hash"]),
        "epochs": int(first["epochs"]),
        "reduced": bool(rows["reduced"].any()),
        "runs": len(rows),
        "seeds": {str(model): int(group["seed"].nunique()) for model, group in _whole(rows).groupby("model")},
        "devices": sorted(set(map(str, rows["device"]))),
        "commits": sorted(set(map(str, rows["commit"]))),
    }
