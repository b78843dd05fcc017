"""Is what a map calls relevant what the answer rests on? Deletion and insertion curves.

The pixels that a map ranks first are taken away, or put back, and the answer watched, beside random orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import T2TError
from ..results import Result
from ..stats import null_columns
from .attribution import METHODS, Explained, reference_images
from .clusters import cluster_mean
from .view import evaluating

#: what an image turns into while its cells are deleted, and from what it is brought back
DELETED, BLANK = "mean", "blurred"


def several(explained: Explained | Sequence[Explained]) -> list[Explained]:
    """Maps of one model or of several as a list."""
    return [explained] if isinstance(explained, Explained) else list(explained)


def method_row(measure: str, one: Explained, method: str) -> dict[str, Any]:
    """Columns that every row about one method's maps has."""
    return {
        "measure": measure, "model": one.label, "weights": one.weights, "variant": method,
        "estimator": METHODS[method].words,
    }  # fmt: skip


def cell_order(relevance: Tensor, cells: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Rank of each cell by its mean relevance, 0 for the highest: (n, H, W) -> (n, h, w); ties are drawn.

    >>> cell_order(torch.tensor([[[0.0, 1.0], [3.0, 2.0]]]), (2, 2), np.random.default_rng(0))
    tensor([[[3, 2],
             [0, 1]]])
    """
    score = F.adaptive_avg_pool2d(relevance[:, None].double(), cells)[:, 0].flatten(1).numpy()
    order = np.lexsort((rng.random(score.shape), -score), axis=-1)  # last key first
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(score.shape[1]), order.shape), axis=-1)
    return torch.from_numpy(ranks).unflatten(1, cells)


def perturbation_curve(
    model: nn.Module,
    start: Tensor,
    end: Tensor,
    target: Tensor,
    ranks: Tensor,
    fractions: np.ndarray,
    batch: int = 64,
) -> np.ndarray:
    """Probability of ``target`` (n,) while ``start`` turns into ``end``, cell after cell: (n, len(fractions)).

    Both (n, C, H, W); ``ranks`` (n, h, w) says which cells go first.
    """
    size, total = start.shape[-2:], ranks[0].numel()
    device = next(model.parameters()).device
    curves = []
    with evaluating(model), torch.no_grad():
        for fraction in fractions:
            changed = (ranks < round(float(fraction) * total))[:, None].float()
            mask = F.interpolate(changed, size=size, mode="nearest") > 0
            mixed = torch.where(mask, end, start)
            logits = torch.cat([model(part.to(device)).float().cpu() for part in mixed.split(batch)])
            curves.append(logits.softmax(1).gather(1, target[:, None]))
    return torch.cat([torch.empty(len(start), 0), *curves], dim=1).double().numpy()


def exchange_null(
    observed: np.ndarray, draws: np.ndarray, *, resamples: int = 1999, seed: int = 0
) -> dict[str, Any]:
    """Null of a mean over images whose order of cells was drawn instead of chosen.

    Parameters
    ----------
    observed : (n,), with the order of a map.
    draws : (K, n), with random orders.

    If a map knows nothing, its value is one more draw for every image. The distribution of the mean then
    follows by picking one of the K + 1 for each image, over and over: an exact test, given the images, with a
    handful of draws. The null columns come from the K draws alone, ``p`` (two-sided) from all K + 1.
    """
    rng = np.random.default_rng(seed)
    n = len(observed)
    pool = np.concatenate([observed[None], draws])
    means = pool[rng.integers(0, len(pool), (resamples, n)), np.arange(n)].mean(1)
    alone = draws[rng.integers(0, len(draws), (resamples, n)), np.arange(n)].mean(1)
    value, slack = observed.mean(), 1e-12
    above = (1 + (means >= value - slack).sum()) / (resamples + 1)
    below = (1 + (means <= value + slack).sum()) / (resamples + 1)
    return null_columns(alone) | {
        "null": draws.mean(),
        "null_kind": f"cells in random order, {len(draws)} orders per image",
        "p": float(min(1.0, 2 * min(above, below))),
    }


def deletion_insertion(
    explained: Explained | Sequence[Explained],
    *,
    steps: int = 10,
    draws: int = 8,
    cells: tuple[int, int] | None = None,
    resamples: int = 1999,
    seed: int = 0,
) -> Result:
    """Deletion and insertion curves and the areas under them (Petsiuk, Das & Saenko 2018).

    Deletion turns the image, most relevant cells first, into its mean colour: the probability of the class should
    fall fast, the area be small. Insertion starts from the blurred image and brings the cells back: the area should be
    large. Images with cells exchanged are like none that a model was trained on, which may help one curve and hurt the
    other; so what a map is worth is said by both together.

    Parameters
    ----------
    steps : points of a curve after the first.
    draws : random orders per image for the null; each costs what a method costs.
    cells : grid of cells that go together; default the grid of the model's tokens.

    Rows, by method (``variant``): ``deletion``, ``insertion`` over the fraction of cells; ``deletion_area``,
    ``insertion_area``; and ``faithfulness``, insertion area minus deletion area, less the same of random orders of the
    same images. p is that of a random order being as good, or as bad.

    Raises
    ------
    T2TError : fewer than one step or draw.
    """
    if steps < 1 or draws < 1:
        raise T2TError(f"steps={steps} and draws={draws} must be at least 1")
    fractions = np.linspace(0, 1, steps + 1)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    models = several(explained)
    for one in models:
        found = _Curves(one, cells or one.grid, fractions, draws, seed)
        for method in one.maps:
            notes.extend(_left_out(one, method))
            rows.extend(_rows(found, method, resamples, seed))
        notes.extend(one.notes)
    meta = {
        "fractions": fractions.tolist(), "draws": draws, "seed": seed, "deleted": DELETED, "blank": BLANK,
        "cells": [list(cells or one.grid) for one in models], "runs": [one.meta for one in models],
    }  # fmt: skip
    return Result.of_rows("attribution_faithfulness", rows, meta, tuple(dict.fromkeys(notes)))


def _left_out(one: Explained, method: str) -> Iterator[str]:
    if missing := int((~one.usable(method)).sum()):
        yield f"{one.label}: {METHODS[method].words} is constant or not finite for {missing} images, left out"


class _Curves:
    """Curves of one model; those of random orders are computed once, for all methods."""

    def __init__(
        self, one: Explained, grid: tuple[int, int], fractions: np.ndarray, draws: int, seed: int
    ) -> None:
        self.one, self.grid, self.fractions = one, grid, fractions
        self.versions = {
            "deletion": (one.images, reference_images(one.images, DELETED)),
            "insertion": (reference_images(one.images, BLANK), one.images),
        }
        self.rng = np.random.default_rng(seed)
        flat = torch.zeros(len(one.images), *grid)  # all cells tie, so their order is drawn
        both = np.array([0.0, 1.0])  # nothing or everything exchanged: the same whatever the order
        self.ends = {kind: self._points(kind, flat, both) for kind in self.versions}
        orders = [cell_order(flat, grid, self.rng) for _ in range(draws)]
        self.null = {kind: np.stack([self._run(kind, order) for order in orders]) for kind in self.versions}

    def _run(self, kind: str, ranks: Tensor) -> np.ndarray:
        inner = self._points(kind, ranks, self.fractions[1:-1])
        first, last = np.split(self.ends[kind], 2, axis=1)
        return np.concatenate([first, inner, last], axis=1)

    def _points(self, kind: str, ranks: Tensor, fractions: np.ndarray) -> np.ndarray:
        one, (start, end) = self.one, self.versions[kind]
        return perturbation_curve(one.model, start, end, one.target, ranks, fractions, one.settings.batch)

    def of(self, method: str) -> dict[str, np.ndarray]:
        """Kind -> (n, F)."""
        ranks = cell_order(self.one.maps[method].nan_to_num(), self.grid, self.rng)
        return {kind: self._run(kind, ranks) for kind in self.versions}


def _rows(found: _Curves, method: str, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    one, usable = found.one, found.one.usable(method)
    if not usable.any():
        return
    base = method_row("attribution_faithfulness", one, method) | {"value_unit": "probability"}
    clusters, areas = one.clusters[usable], {}
    for kind, curve in found.of(method).items():
        curve, null = curve[usable], found.null[kind][:, usable]
        for i, fraction in enumerate(found.fractions):
            columns = exchange_null(curve[:, i], null[:, :, i], resamples=min(resamples, 499), seed=seed)
            del columns["p"]  # one question, one test: that of the area
            at = {"quantity": kind, "at": float(fraction), "at_unit": "fraction of cells"}
            yield base | at | cluster_mean(curve[:, i], clusters) | columns
        areas[kind] = own, drawn = tuple(np.trapezoid(c, found.fractions, axis=-1) for c in (curve, null))
        columns = exchange_null(own, drawn, resamples=resamples, seed=seed)
        yield base | {"quantity": f"{kind}_area"} | cluster_mean(own, clusters) | columns
    own, drawn = (areas["insertion"][i] - areas["deletion"][i] for i in (0, 1))
    mean = drawn.mean(0)
    columns = exchange_null(own - mean, drawn - mean, resamples=resamples, seed=seed)
    columns["null"] = 0.0  # random orders are measured from their own mean
    yield base | {"quantity": "faithfulness"} | cluster_mean(own - mean, clusters) | columns
