"""Is an attribution map about the model? Completeness, randomised weights, another model.

Adebayo et al. (2018) ask that a map change when what the model learned is destroyed. Every comparison of maps
is read beside the same comparison with maps of other images: what is left there is where all maps lie.
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
from ..stats import null_columns
from .attribution import METHODS, Explained, maps_of, ranks_something
from .clusters import paired_against_others, permute_clusters
from .faithfulness import deletion_insertion, method_row, several
from .sums import grouped_estimate
from .untrained import random_twin

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


def completeness(explained: Explained | Sequence[Explained]) -> Result:
    """Compare what integrated gradients add up to with the change of the logit (Sundararajan et al. 2017).

    Row ``completeness_error``: sum over images of |sum of the map - (f(x) - f(baseline))|, over the sum of
    |f(x) - f(baseline)|; 0 for an exact integral. Null: sums of other images' maps.
    """
    rows, models = [], several(explained)
    for one in models:
        for method, (error, change) in one.errors.items():
            usable = one.usable(method)
            columns = _completeness(error[usable], change[usable], one.clusters[usable])
            row = method_row("attribution_completeness", one, method)
            rows.append(row | {"quantity": "completeness_error", "value_unit": "fraction"} | columns)
    notes = dict.fromkeys(note for one in models for note in one.notes)
    return Result.of_rows(
        "attribution_completeness", rows, {"runs": [one.meta for one in models]}, tuple(notes)
    )


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
    explained: Explained | Sequence[Explained],
    twins: nn.Module | Sequence[nn.Module] | None = None,
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
    models = several(explained)
    given = [twins] if isinstance(twins, nn.Module) else list(twins or [])
    given = given or [_unlike(one.model, seed) for one in models]
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
        notes.extend(one.notes)
    meta = {"seed": seed, "runs": [one.meta for one in models]}
    return Result.of_rows(_CASCADE, rows, meta, tuple(dict.fromkeys(notes)))


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
    notes = [*first.notes, *second.notes]
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
    meta = {"seed": seed, "same_class": float(alike.mean()), "runs": [first.meta, second.meta]}
    return Result.of_rows("attribution_agreement", rows, meta, tuple(dict.fromkeys(notes)))


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
    models = list(explained)
    results = [
        completeness(models),
        deletion_insertion(models, steps=steps, draws=draws, seed=seed),
        weight_randomisation(models, twins, stages=stages, seed=seed),
    ]
    results += [map_agreement(models[0], other, same_class=same_class, seed=seed) for other in models[1:]]
    return Results(tuple(results))
