"""How good a classifier is: top-1, top-5 and calibration, with intervals over independent images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import stats
from .._progress import progress
from ..data.loading import batches_for, must_tell
from ..errors import DataError
from ..quantities import plural, quantity
from ..results import Result

BINS = 15  # of the calibration error, as in Guo et al. (2017)


class Scores(NamedTuple):
    """One row per image: right at first, right among five, confidence, cross-entropy in nats.

    ``cluster`` tells which images belong together.
    """

    top1: np.ndarray
    top5: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    cluster: np.ndarray


def score(model: nn.Module, loader: Any, device: str | torch.device = "cpu") -> Scores:
    """Classify every image of ``loader`` (batches of images, labels, index); the model's mode is put back.

    Images of one cluster (crops of one block of a photograph: ``loader.dataset.clusters``) are not independent.
    """
    info = must_tell(loader)
    classes = len(info.classes)
    outputs = getattr(model, "num_classes", classes)
    if classes != outputs:
        raise DataError(f"the model tells {outputs} classes apart, {info.name} has {classes}")
    parts: list[tuple[np.ndarray, ...]] = []
    modes = [(module, module.training) for module in model.modules()]
    model.eval().to(device)
    try:
        with torch.inference_mode():
            for images, labels, _ in progress(batches_for(model, loader), "evaluating", total=len(loader)):
                if (labels < 0).any():
                    raise DataError(f"{info.name} has no labels")
                logits = model(images.to(device)).float().cpu()
                if bad := int((~logits.isfinite()).any(1).sum()):
                    raise DataError(
                        f"the model's output is not finite for {bad} of {len(images)} images of a batch"
                    )
                parts.append(scored(logits, labels))
    finally:
        for module, mode in modes:
            module.training = mode
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    n = len(columns[0])
    cluster = np.asarray(getattr(loader.dataset, "clusters", np.arange(n)))[:n]
    return Scores._make([*columns, cluster])


def scored(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, ...]:
    """Columns of `Scores` but the cluster, from logits (n, K) and labels (n,)."""
    best = logits.softmax(1).topk(min(5, logits.shape[1]), dim=1)
    hits = best.indices == labels[:, None]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return hits[:, 0].numpy(), hits.any(1).numpy(), best.values[:, 0].numpy(), loss.numpy()


def calibration_error(hits: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error with 15 equal bins (Guo et al., 2017): sum of |accuracy - confidence| by share.

    >>> calibration_error(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    0.0
    """
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(index, hits.astype(float) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(hits))


def proportion(hits: np.ndarray, cluster: np.ndarray) -> stats.Interval:
    """Share of hits, with Wilson's interval or, where images share a cluster, a delete-a-cluster jackknife."""
    groups, members = np.unique(cluster, return_inverse=True)
    if len(groups) == len(hits):
        return stats.proportion_ci(int(hits.sum()), len(hits))
    right, size = np.bincount(members, hits.astype(float)), np.bincount(members)
    without = (right.sum() - right) / (size.sum() - size)
    found = stats.jackknife(without, float(hits.mean()), size)
    return stats.Interval(found.value, found.low, found.high, len(groups), "image cluster", found.method)


def calibration(scores: Scores) -> stats.Interval:
    """Calibration error with a jackknife over clusters; biased upwards in small samples, interval and all."""
    groups, members = np.unique(scores.cluster, return_inverse=True)
    hits = scores.top1.astype(float)
    value = calibration_error(hits, scores.confidence)
    folds = members % min(len(groups), 50)
    without = [calibration_error(hits[folds != f], scores.confidence[folds != f]) for f in np.unique(folds)]
    return stats.jackknife(np.array(without), value, np.bincount(folds))


def accuracy(model: nn.Module, loader: Any, device: str | torch.device = "cpu") -> Result:
    """Top-1, top-5 and expected calibration error on ``loader``, with 95 % intervals and the level of chance."""
    scores, info = score(model, loader, device), loader.dataset.info
    provenance = getattr(model, "provenance", None)
    name = getattr(model, "default_cfg", {}).get("architecture", type(model).__name__)
    weights = provenance.label if provenance is not None else "unknown weights"
    common = {"measure": "accuracy", "model": name, "weights": weights, "value_unit": "fraction"}
    chance5 = min(1.0, 5 * info.chance)
    rows: list[dict[str, Any]] = [
        _row("top1", proportion(scores.top1, scores.cluster), info.chance, "commonest class"),
        _row("top5", proportion(scores.top5, scores.cluster), chance5, "five guesses, at most"),
    ]
    if len(np.unique(scores.cluster)) > 1:  # of one alone there is nothing to leave out
        rows.append(_row("calibration_error", calibration(scores), None, None))
    meta = {"data": info.name, "split": info.split, "n_images": len(scores.top1)}
    meta["classes"] = len(info.classes)
    notes = info.notes
    trained = provenance is not None and not (provenance.untrained or provenance.new_head)
    if trained and scores.top1.mean() <= info.chance:
        notes += (
            "no better than chance although the weights are trained: look whether the class folders, in the order "
            f"of their names ({', '.join(info.classes[:3])} ...), are the classes of the model's head in its order",
        )
    return Result.of_rows("accuracy", [common | row for row in rows], meta, notes)


def _row(quantity: str, found: stats.Interval, null: float | None, kind: str | None) -> dict[str, Any]:
    return {
        "quantity": quantity, "value": found.value, "low": max(0.0, found.low), "high": min(1.0, found.high),
        "interval": found.method, "n": found.n, "unit": found.unit, "null": null, "null_kind": kind,
        "estimator": "15 bins" if quantity == "calibration_error" else "proportion",
    }  # fmt: skip


def in_words(row: Mapping[Any, Any]) -> str:
    """A row of the result, with interval, n and chance."""
    look = quantity(row["quantity"])
    chance = "" if pd.isna(row["null"]) else f", chance {look.number(row['null'])}"
    n = plural(row["n"], row["unit"])
    return f"{look.words} {look.interval(row)} ({row['interval']}, n = {n}{chance})"
