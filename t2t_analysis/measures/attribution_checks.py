"""Is a map about the model, and does the answer rest on what it shows? Deletion, completeness, random weights.

The pixels that a map ranks first are taken away, or put back, and the answer watched, beside random orders. Adebayo et
al. (2018) ask that a map change when what the model learned is destroyed. Every comparison of maps is read beside the
same comparison with maps of other images: what is left there is where all maps lie.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from ..errors import DataError, T2TError
from ..results import Result, Results
from ..stats import null_columns, permutation_p
from .attribution import METHODS, Explained, maps_of, ranks_something, reference_images
from .base import grouped_estimate
from .clusters import cluster_mean, paired_against_others, permute_clusters
from .untrained import random_twin
from .view import evaluating

#: what an image turns into while its cells are deleted, and from what it is brought back
DELETED, BLANK = "mean", "blurred"


def _result(
    measure: str,
    rows: Sequence[dict[str, Any]],
    models: Sequence[Explained],
    notes: Sequence[str],
    **meta: Any,
) -> Result:
    """A result about the maps of some models, with what a reader must know of them."""
    every = [*notes, *(note for one in models for note in one.notes)]
    return Result.of_rows(
        measure, rows, meta | {"runs": [one.meta for one in models]}, tuple(dict.fromkeys(every))
    )


def method_row(measure: str, one: Explained, method: str) -> dict[str, Any]:
    """Columns that every row about one method's maps has."""
    return {
        "measure": measure, "model": one.label, "weights": one.weights, "variant": method,
        "estimator": METHODS[method].words,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ deletion, insertion


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
    means, alone = (
        some[rng.integers(0, len(some), (resamples, n)), np.arange(n)].mean(1) for some in (pool, draws)
    )
    return null_columns(alone) | {
        "null": draws.mean(),
        "null_kind": f"cells in random order, {len(draws)} orders per image",
        "p": float(permutation_p(observed.mean(), means, "two-sided")),
    }


def deletion_insertion(
    models: Sequence[Explained],
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
    for one in models:
        found = _Curves(one, cells or one.grid, fractions, draws, seed)
        for method in one.maps:
            notes.extend(_left_out(one, method))
            rows.extend(_rows(found, method, resamples, seed))
    return _result(
        "attribution_faithfulness", rows, models, notes, fractions=fractions.tolist(), draws=draws, seed=seed,
        deleted=DELETED, blank=BLANK, cells=[list(cells or one.grid) for one in models],
    )  # fmt: skip


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


# ------------------------------------------------------------------------------------------ comparing maps


def rank_correlations(first: Tensor, second: Tensor) -> np.ndarray:
    """Spearman's rank correlation of every map of ``first`` (n, H, W) with every one of ``second``: (n, m).

    >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> rank_correlations(x, torch.cat([x**3, -x])).round(6).tolist()
    [[1.0, -1.0]]
    """
    return _ranks(first) @ _ranks(second).T


def _ranks(maps: Tensor) -> np.ndarray:
    """Ranks of each map, centred and of length 1: (n, H W)."""
    ranks = rankdata(maps.flatten(1).numpy(), axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


def _likeness(
    first: Tensor, second: Tensor, clusters: np.ndarray, seed: int, notes: list[str], what: str
) -> dict[str, Any]:
    """Columns of the rank correlation of maps of the same images, and of maps of different ones as null.

    Images of which a map ranks nothing are left out, which a note says; nothing where too few are left.
    """
    keep = ranks_something(first) & ranks_something(second)
    if missing := int((~keep).sum()):
        notes.append(f"{what}: a map is constant or not finite for {missing} images, left out")
    if len(set(clusters[keep])) < 2:
        return {}
    return paired_against_others(rank_correlations(first[keep], second[keep]), clusters[keep], seed=seed)


# ------------------------------------------------------------------------------------------ completeness


def completeness(models: Sequence[Explained]) -> Result:
    """Compare what integrated gradients add up to with the change of the logit (Sundararajan et al. 2017).

    Row ``completeness_error``: sum over images of |sum of the map - (f(x) - f(baseline))|, over the sum of
    |f(x) - f(baseline)|; 0 for an exact integral. Null: sums of other images' maps.
    """
    rows = []
    for one in models:
        for method, (error, change) in one.errors.items():
            usable = one.usable(method)
            columns = _completeness(error[usable], change[usable], one.clusters[usable])
            row = method_row("attribution_completeness", one, method)
            rows.append(row | {"quantity": "completeness_error", "value_unit": "fraction"} | columns)
    return _result("attribution_completeness", rows, models, ())


def _completeness(error: Tensor, change: Tensor, clusters: np.ndarray) -> dict[str, Any]:
    groups = torch.from_numpy(np.unique(clusters, return_inverse=True)[1])
    zeros = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    sums = [zeros.index_add(0, groups, x) for x in (error.abs(), change.abs(), torch.ones_like(error))]
    rng = np.random.default_rng(0)
    others = torch.from_numpy(permute_clusters(clusters, 99, rng, others_only=True))
    null = (((error + change)[others] - change).abs().sum(1) / change.abs().sum()).numpy()
    return grouped_estimate(lambda e, c: e / c, sums[:2], sums[2]).columns() | {
        **null_columns(null), "null_kind": "sums of other images' maps, 99 random pairings",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ random weights


def cascade_stages(model: nn.Module) -> list[tuple[str, list[str]]]:
    """Parts of a model from the head backwards with the names of their tensors: head, blocks, embed.

    >>> import timm
    >>> [name for name, _ in cascade_stages(timm.create_model("vit_tiny_patch16_224", depth=2))]
    ['head', 'blocks.1', 'blocks.0', 'embed']
    """
    stages: dict[str, list[str]] = {"head": []}
    stages |= {f"blocks.{i}": [] for i in reversed(range(len(model.blocks)))}  # type: ignore[arg-type]
    stages["embed"] = []
    for key in model.state_dict():
        if key.startswith("blocks."):
            stages[".".join(key.split(".")[:2])].append(key)
        else:
            last = key.startswith(("head", "norm.", "fc_norm", "attn_pool"))
            stages["head" if last else "embed"].append(key)
    return list(stages.items())


def weight_randomisation(
    models: Sequence[Explained],
    twins: Sequence[nn.Module] | None = None,
    *,
    stages: int | None = None,
    seed: int = 0,
) -> Result:
    """How soon a map forgets what the weights knew: cascading randomisation (Adebayo et al. 2018).

    From the head backwards, part after part takes the weights of an untrained twin, and the map for the
    class that the whole model was attributed for is compared with the original one: ``spearman_abs``, the rank
    correlation of absolute values, over the number of parts replaced (``at``; ``place`` is the last of them).
    A map about the model falls to its null, maps of other images, soon; one that stays up shows the image.

    Parameters
    ----------
    twins : untrained, one for each model; default `random_twin` of each with ``seed``.
    stages : compare after so many parts, evenly spread and the last included; default after each.

    Raises
    ------
    T2TError : another number of twins than of models, or a twin with the model's own weights.

    The models themselves are not touched: parts are replaced in a copy.
    """
    given = twins or [_unlike(one.model, seed) for one in models]
    if len(given) != len(models):
        raise T2TError(f"{len(models)} models but {len(given)} twins")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for one, twin in zip(models, given, strict=True):
        if _same_weights(one.model, twin):
            raise T2TError(f"the twin of {one.label} has the same weights: nothing would be randomised")
        rows += [method_row(_CASCADE, one, method) | _ORIGINAL for method in one.maps]
        for count, place, hybrid in _cascade(one.model, twin, stages):
            for method, maps in one.maps.items():
                parts = torch.arange(len(maps)).split(16)
                found = [maps_of(hybrid, one.images[i], one.target[i], method, one.settings) for i in parts]
                other = torch.cat([p.pixels for p in found])
                what = f"{one.label}, {METHODS[method].words}, after {place}"
                if columns := _likeness(maps.abs(), other.abs(), one.clusters, seed, notes, what):
                    row = method_row(_CASCADE, one, method) | {"at": float(count), "place": place}
                    rows.append(row | _LIKENESS | columns)
    return _result(_CASCADE, rows, models, notes, seed=seed)


def _unlike(model: nn.Module, seed: int) -> nn.Module:
    """A random twin of other weights than the model has, which may be random too, of the same seed."""
    twin = random_twin(model, seed)
    return random_twin(model, seed + 1) if _same_weights(model, twin) else twin


def _same_weights(model: nn.Module, twin: nn.Module) -> bool:
    other = twin.state_dict()
    return all(torch.equal(value, other[key]) for key, value in model.state_dict().items())


_CASCADE = "attribution_cascade"
_LIKENESS = {
    "quantity": "spearman_abs", "at_unit": "parts randomised, head first", "ceiling": 1.0,
    "ceiling_kind": "the map itself",
}  # fmt: skip
_ORIGINAL = _LIKENESS | {"at": 0.0, "value": 1.0, "interval": "none: the original map with itself"}


def _cascade(model: nn.Module, twin: nn.Module, most: int | None) -> Iterator[tuple[int, str, nn.Module]]:
    """Number of parts replaced, the last of them, and the hybrid, whose weights go on changing."""
    parts = cascade_stages(model)
    shown = set(np.linspace(len(parts), 1, min(most or len(parts), len(parts))).round().astype(int).tolist())
    hybrid = copy.deepcopy(model)
    own, other = hybrid.state_dict(), twin.state_dict()
    for count, (place, keys) in enumerate(parts, start=1):
        with torch.no_grad():
            for key in keys:
                own[key].copy_(other[key])
        if count in shown:
            yield count, place, hybrid


# ------------------------------------------------------------------------------------------ two models


def map_agreement(first: Explained, second: Explained, *, same_class: bool = False, seed: int = 0) -> Result:
    """Do two models look at the same pixels? Rank correlation of their maps of the same image, ``agreement``.

    For the methods that both have. Null: the second model's maps of other images; what is common to all images (the
    middle, the border) is in it.

    Parameters
    ----------
    same_class : leave out images for which the maps are about different classes; the notes count them.

    Raises
    ------
    DataError : maps of another number of images.
    """
    if len(first.images) != len(second.images):
        raise DataError(
            f"maps of {len(first.images)} and {len(second.images)} images do not match; explain both models "
            "with one loader"
        )
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    alike = (first.target == second.target).numpy()
    kept = alike if same_class else np.ones_like(alike)
    if not kept.all():
        notes.append(
            f"{first.label} and {second.label} answer different classes for {int((~kept).sum())} of "
            f"{len(kept)} images, left out of their agreement"
        )
    for method in (m for m in first.maps if m in second.maps):
        maps = _where_both_look(first, second, method)
        what = f"{first.label} and {second.label}, {METHODS[method].words}"
        columns = _likeness(maps[0][kept], maps[1][kept], first.clusters[kept], seed, notes, what)
        if columns:
            pair = {"model_b": second.label, "weights": f"{first.weights} | {second.weights}"}
            row = method_row("attribution_agreement", first, method)
            rows.append(row | pair | {"quantity": "agreement"} | columns)
    same = float(alike.mean())
    return _result("attribution_agreement", rows, (first, second), notes, seed=seed, same_class=same)


def _where_both_look(first: Explained, second: Explained, method: str) -> list[Tensor]:
    """Maps (n, H, W) of both on the pixels of the part of the picture that both see, at the lower resolution."""
    shared = min(first.frame, second.frame)
    found = []
    for one in (first, second):
        values = one.maps[method]
        height, width = (round(side * shared / one.frame) for side in values.shape[-2:])
        top, left = (values.shape[-2] - height) // 2, (values.shape[-1] - width) // 2
        found.append(values[:, top : top + height, left : left + width])
    sizes = [tuple(values.shape[-2:]) for values in found]
    if sizes[0] == sizes[1]:
        return found
    least = min(sizes[0][0], sizes[1][0]), min(sizes[0][1], sizes[1][1])
    return [F.adaptive_avg_pool2d(values.unsqueeze(1), least).squeeze(1) for values in found]


def check_attribution(
    explained: Sequence[Explained],
    *,
    twins: Sequence[nn.Module] | None = None,
    steps: int = 10,
    draws: int = 8,
    stages: int | None = None,
    same_class: bool = False,
    seed: int = 0,
) -> Results:
    """Put all questions to the maps: completeness, faithfulness, randomised weights, agreement.

    The first model is the one that every other is compared with.

    Parameters
    ----------
    steps, draws : points and random orders of `deletion_insertion`.
    twins, stages : of `weight_randomisation`.
    same_class : of `map_agreement`.
    """
    first, *others = explained
    return Results((
        completeness(explained),
        deletion_insertion(explained, steps=steps, draws=draws, seed=seed),
        weight_randomisation(explained, twins, stages=stages, seed=seed),
        *(map_agreement(first, other, same_class=same_class, seed=seed) for other in others),
    ))  # fmt: skip
