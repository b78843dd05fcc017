"""Is an attribution map about the model? Completeness, randomised weights, another class, another model.

Adebayo et al. (2018) ask that a map change when what the model learned is destroyed. Every comparison of maps
is read beside the same comparison with maps of other images: what is left there is where all maps lie.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result, Results
from .attribution import METHODS, Explained, attribute
from .clustered import cluster_mean, paired_against_others, permute_clusters
from .faithfulness import deletion_insertion
from .reference import random_twin
from .sums import grouped_estimate

__all__ = [
    "cascade_stages",
    "check_attribution",
    "completeness",
    "label_randomisation",
    "map_agreement",
    "other_class",
    "rank_correlations",
    "structural_similarity",
    "weight_randomisation",
]

#: pairings for the null of the structural similarity, which costs too much for all pairs
SSIM_DRAWS = 8


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


def structural_similarity(first: Tensor, second: Tensor) -> np.ndarray:
    """SSIM (Wang et al. 2004) of the absolute values of maps (n, H, W), each scaled to a maximum of 1: (n,)."""
    from skimage.metrics import structural_similarity as ssim

    if min(first.shape[1:]) < 7:
        raise DataError(f"SSIM looks at windows of 7x7; maps of {tuple(first.shape[1:])} are smaller")
    pairs = zip(_scaled(first), _scaled(second), strict=True)
    return np.array([ssim(a, b, data_range=1.0) for a, b in pairs])


def _scaled(maps: Tensor) -> np.ndarray:
    size = maps.abs().double()
    return (size / size.amax((1, 2), keepdim=True)).numpy()


def _several(explained: Explained | Sequence[Explained]) -> list[Explained]:
    return [explained] if isinstance(explained, Explained) else list(explained)


def _asked(one: Explained, methods: Sequence[str] | None) -> list[str]:
    """Those of ``methods`` that there are maps of; an unknown one is an error."""
    for method in methods or ():
        if method not in one.maps:
            raise UnknownNameError("attribution method", method, one.maps, hint="with maps to check")
    return list(methods or one.maps)


def _base(measure: str, one: Explained, method: str) -> dict[str, Any]:
    return {
        "measure": measure,
        "model": one.label,
        "weights": one.weights,
        "variant": method,
        "estimator": method,
        "tokens": "patch" if METHODS[method].by_token else None,
    }


def _usable(maps: Tensor) -> np.ndarray:
    values = maps.flatten(1)
    return (values.isfinite().all(1) & (values.amax(1) > values.amin(1))).numpy()


class _Comparison:
    """Maps of the same images under two conditions, those alone that rank something in both."""

    def __init__(self, first: Tensor, second: Tensor, clusters: np.ndarray, seed: int) -> None:
        self.keep = _usable(first) & _usable(second)
        self.first, self.second = first[self.keep], second[self.keep]
        self.clusters, self.seed = clusters[self.keep], seed

    def note(self, what: str) -> Iterator[str]:
        if missing := int((~self.keep).sum()):
            yield f"{what}: a map is constant or not finite for {missing} images, left out"

    def spearman(self, size_only: bool) -> dict[str, Any]:
        """Columns of the rank correlation, of the maps or of their absolute values."""
        if len(set(self.clusters)) < 2:
            return {}
        pair = (self.first.abs(), self.second.abs()) if size_only else (self.first, self.second)
        return paired_against_others(rank_correlations(*pair), self.clusters, seed=self.seed)

    def ssim(self) -> dict[str, Any]:
        """Columns of the structural similarity."""
        if len(set(self.clusters)) < 2:
            return {}
        rng = np.random.default_rng(self.seed)
        others = permute_clusters(self.clusters, SSIM_DRAWS, rng, others_only=True)
        null = np.array([structural_similarity(self.first, self.second[o]).mean() for o in others])
        return cluster_mean(structural_similarity(self.first, self.second), self.clusters) | {
            "null": float(null.mean()),
            "null_low": float(null.min()),
            "null_high": float(null.max()),
            "null_kind": f"maps of other images; mean and range of {SSIM_DRAWS} random pairings",
        }


def _both_signs(pair: _Comparison, name: str, method: str, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the rank correlation; for signed maps that of their absolute values too."""
    if columns := pair.spearman(size_only=False):
        yield base | {"quantity": name} | columns
    if METHODS[method].signed and (columns := pair.spearman(size_only=True)):
        yield base | {"quantity": f"{name}_abs"} | columns


# ------------------------------------------------------------------------------------------ completeness


def completeness(explained: Explained | Sequence[Explained]) -> Result:
    """Compare what integrated gradients add up to with the change of the logit (Sundararajan et al. 2017).

    Rows ``completeness_error`` by method: sum over images of |sum of the map - (f(x) - f(baseline))|, over
    the sum of |f(x) - f(baseline)|; 0 for an exact integral. Null: sums of other images' maps.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for one in _several(explained):
        notes.extend(one.notes)
        for method, (error, change) in one.errors.items():
            usable = torch.from_numpy(one.usable(method))
            rows.append(
                _base("attribution_completeness", one, method)
                | {"quantity": "completeness_error", "value_unit": "fraction"}
                | _completeness(error[usable], change[usable], one.clusters[usable.numpy()])
            )
    meta = {"runs": [one.meta for one in _several(explained)]}
    return Result("attribution_completeness", rows, meta, tuple(dict.fromkeys(notes)))  # type: ignore[arg-type]


def _completeness(error: Tensor, change: Tensor, clusters: np.ndarray) -> dict[str, Any]:
    groups = torch.from_numpy(np.unique(clusters, return_inverse=True)[1])
    zeros = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    sums = [zeros.index_add(0, groups, x) for x in (error.abs(), change.abs(), torch.ones_like(error))]
    rng = np.random.default_rng(0)
    others = torch.from_numpy(permute_clusters(clusters, 99, rng, others_only=True))
    null = (((error + change)[others] - change).abs().sum(1) / change.abs().sum()).numpy()
    low, high = np.quantile(null, [0.025, 0.975])
    return grouped_estimate(lambda e, c: e / c, sums[:2], sums[2]).columns() | {
        "null": float(null.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "null_kind": "sums of other images' maps, 99 random pairings",
    }


# ------------------------------------------------------------------------------------------ sanity checks


def _maps_of(model: nn.Module, one: Explained, target: Tensor, method: str, n: int) -> Tensor:
    """Maps (n, H, W) of the first images of ``one`` by another model or for other classes."""
    device = next(model.parameters()).device
    parts = []
    for chunk in torch.arange(n).split(16):
        images, classes = one.images[chunk].to(device), target[chunk].to(device)
        parts.append(attribute(model, images, classes, method, one.settings).pixels.float().cpu())
    return torch.cat(parts)


def other_class(
    explained: Explained | Sequence[Explained], *, methods: Sequence[str] | None = None, seed: int = 0
) -> Result:
    """Rank correlation of a map with the map for another class, drawn at random, of the same image.

    Near 1, a map shows where something is and not why this class was answered. It asks less than training on
    random labels (`label_randomisation`) and needs no second model. Rows ``other_class`` and, for signed
    maps, ``other_class_abs``; the ceiling is 1, the map itself.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for one in _several(explained):
        target = _other_targets(one, seed)
        for method in _asked(one, methods):
            maps = one.maps[method]
            other = _maps_of(one.model, one, target, method, len(maps))
            pair = _Comparison(maps, other, one.clusters, seed)
            notes.extend(pair.note(f"{one.label}, {METHODS[method].words}, another class"))
            rows.extend(
                _both_signs(
                    pair, "other_class", method, _base("attribution_other_class", one, method) | _ITSELF
                )
            )
        notes.extend(one.notes)
    meta = {"seed": seed, "runs": [one.meta for one in _several(explained)]}
    return Result("attribution_other_class", rows, meta, tuple(dict.fromkeys(notes)))  # type: ignore[arg-type]


_ITSELF = {"ceiling": 1.0, "ceiling_kind": "the map itself"}


def _other_targets(one: Explained, seed: int) -> Tensor:
    classes = int(getattr(one.model, "num_classes", 0))
    if classes < 2:
        raise T2TError(f"{one.label} has {classes} classes: there is no other class to attribute")
    shift = np.random.default_rng(seed).integers(1, classes, len(one.target))
    return (one.target + torch.from_numpy(shift)) % classes


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
            stages["head" if key.startswith(("head", "norm.", "fc_norm", "attn_pool")) else "embed"].append(
                key
            )
    return list(stages.items())


def weight_randomisation(
    explained: Explained | Sequence[Explained],
    twins: nn.Module | Sequence[nn.Module] | None = None,
    *,
    methods: Sequence[str] | None = None,
    n_images: int = 16,
    stages: int | None = None,
    seed: int = 0,
) -> Result:
    """How soon a map forgets what the weights knew: cascading randomisation (Adebayo et al. 2018).

    From the head backwards, part after part takes the weights of an untrained twin, and the map for the
    class that the whole model was attributed for is compared with the original one: ``spearman_abs`` of the
    absolute values and ``ssim``, over the number of parts replaced (``at``; ``place`` is the last of them).
    A map about the model falls to its null, maps of other images, soon; one that stays up shows the image.

    Parameters
    ----------
    twins : untrained, one for each model; default `random_twin` of each with ``seed``.
    stages : compare after so many parts, evenly spread and the last included; default after each.

    The models themselves are not touched: parts are replaced in a copy.
    """
    several = _several(explained)
    given = [twins] if isinstance(twins, nn.Module) else list(twins or [])
    given = given or [_unlike(one.model, seed) for one in several]
    if len(given) != len(several):
        raise T2TError(f"{len(several)} models but {len(given)} twins")
    for one, twin in zip(several, given, strict=True):
        if _same_weights(one.model, twin):
            raise T2TError(f"the twin of {one.label} has the same weights: nothing would be randomised")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for one, twin in zip(several, given, strict=True):
        asked = _asked(one, methods)
        for method in asked:
            rows.append(_base(_CASCADE, one, method) | _ORIGINAL | {"quantity": "spearman_abs"} | _ITSELF)
            rows.append(_base(_CASCADE, one, method) | _ORIGINAL | {"quantity": "ssim"} | _ITSELF)
        for count, place, hybrid in _cascade(one.model, twin, stages):
            at = {"at": float(count), "at_unit": "parts randomised, head first", "place": place}
            for method in asked:
                found = _compare(one, hybrid, method, n_images, seed, notes, f"after {place}")
                rows.extend(_base(_CASCADE, one, method) | at | _ITSELF | row for row in found)
        notes.extend(one.notes)
    meta = {"seed": seed, "n_images": n_images, "runs": [one.meta for one in several]}
    return Result(_CASCADE, rows, meta, tuple(dict.fromkeys(notes)))  # type: ignore[arg-type]


def _unlike(model: nn.Module, seed: int) -> nn.Module:
    """A random twin of other weights than the model has, which may be random too, of the same seed."""
    twin = random_twin(model, seed)
    return random_twin(model, seed + 1) if _same_weights(model, twin) else twin


def _same_weights(model: nn.Module, twin: nn.Module) -> bool:
    other = twin.state_dict()
    return all(torch.equal(value, other[key]) for key, value in model.state_dict().items())


_CASCADE = "attribution_cascade"
_ORIGINAL = {
    "at": 0.0,
    "at_unit": "parts randomised, head first",
    "value": 1.0,
    "interval": "none: the original map with itself",
}


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


def _compare(
    one: Explained, model: nn.Module, method: str, n: int, seed: int, notes: list[str], when: str
) -> Iterator[dict[str, Any]]:
    """Spearman of absolute values and SSIM of the maps of ``one`` with those of another model."""
    n = min(n, len(one.images))
    other = _maps_of(model, one, one.target, method, n)
    pair = _Comparison(one.maps[method][:n], other, one.clusters[:n], seed)
    notes.extend(pair.note(f"{one.label}, {METHODS[method].words}, {when}"))
    questions: dict[str, Callable[[], dict[str, Any]]] = {
        "spearman_abs": lambda: pair.spearman(size_only=True),
        "ssim": pair.ssim,
    }
    for quantity, ask in questions.items():
        if columns := ask():
            yield {"quantity": quantity} | columns


def label_randomisation(
    explained: Explained, random_label_model: nn.Module, *, n_images: int | None = None, seed: int = 0
) -> Result:
    """Compare maps with those of the same architecture trained on permuted labels (Adebayo et al. 2018).

    That model is the caller's to train. Rows ``spearman_abs`` and ``ssim``, as in `weight_randomisation`.
    """
    rows: list[dict[str, Any]] = []
    notes = list(explained.notes)
    n = len(explained.images) if n_images is None else n_images
    for method in explained.maps:
        found = _compare(explained, random_label_model, method, n, seed, notes, "random labels")
        rows.extend(_base("attribution_random_labels", explained, method) | _ITSELF | row for row in found)
    meta = {"seed": seed, "runs": [explained.meta]}
    return Result("attribution_random_labels", rows, meta, tuple(dict.fromkeys(notes)))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ two models


def map_agreement(first: Explained, second: Explained, *, same_class: bool = False, seed: int = 0) -> Result:
    """Do two models look at the same pixels? Rank correlation of their maps of the same image.

    Rows ``agreement`` and, for signed maps, ``agreement_abs``, for the methods that both have. Null: the
    second model's maps of other images; what is common to all images (the middle, the border) is in it.

    Parameters
    ----------
    same_class : leave out images for which the maps are about different classes; the notes count them.
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
        pair = _Comparison(maps[0][kept], maps[1][kept], first.clusters[kept], seed)
        notes.extend(pair.note(f"{first.label} and {second.label}, {METHODS[method].words}"))
        base = _base("attribution_agreement", first, method) | {
            "model_b": second.label,
            "weights": f"{first.weights} | {second.weights}",
        }
        rows.extend(_both_signs(pair, "agreement", method, base))
    meta = {"seed": seed, "same_class": float(alike.mean()), "runs": [first.meta, second.meta]}
    return Result("attribution_agreement", rows, meta, tuple(dict.fromkeys(notes)))  # type: ignore[arg-type]


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
    again: Sequence[str] | None = None,
    n_cascade: int = 16,
    stages: int | None = None,
    same_class: bool = False,
    seed: int = 0,
) -> Results:
    """Put all questions to the maps: completeness, faithfulness, other class, randomised weights, agreement.

    The first model is the one that every other is compared with.

    Parameters
    ----------
    steps, draws : points and random orders of `deletion_insertion`.
    again : methods whose maps are made anew for another class and for randomised weights; default all.
    twins, n_cascade, stages : of `weight_randomisation`; ``same_class`` of `map_agreement`.
    """
    several = list(explained)
    results = [
        completeness(several),
        deletion_insertion(several, steps=steps, draws=draws, seed=seed),
        other_class(several, methods=again, seed=seed),
        weight_randomisation(several, twins, methods=again, n_images=n_cascade, stages=stages, seed=seed),
    ]
    results += [map_agreement(several[0], other, same_class=same_class, seed=seed) for other in several[1:]]
    return Results(tuple(results))
