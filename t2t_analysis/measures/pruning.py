"""Are similar heads redundant heads? Similarity against what a head does, and what happens as many heads go.

`similarity_is_redundancy` correlates, over heads, the largest similarity to another head of the layer with the
effect of taking the head out. `PruningCurves` takes out more and more heads, in orders that are given (by
similarity, by importance) and at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats as sps
from torch import Tensor

from ..errors import T2TError, UnknownNameError
from ..results import Result
from ..stats import null_columns, permutation_p
from .ablation import Edit, Head, Start
from .ablation_measure import AblationMeasure, kl_divergence, put
from .base import Estimate, MeasureBatch, View, add_finite

Array = np.ndarray
#: Values of all heads (M,) when image group g counts weights[g] times.
HeadValues = Callable[[Array], Array]


# ------------------------------------------------------------------------------------------- heads in a result


def _of_heads(result: Result, quantity: str, model: str | None) -> Result:
    """Rows of single heads of one model, the first when left out."""
    found = result.where(model=model or _first_model(result), quantity=quantity)
    return found.rows(np.flatnonzero(found.frame["head"].notna()))


def _first_model(result: Result) -> str:
    return str(result.frame["model"].iloc[0])


def similarity_matrix(
    result: Result, model: str | None = None, quantity: str = "cosine_centred", tokens: str | None = None
) -> tuple[Array, Array]:
    """Similarity of all pairs of heads (M, M), and (M, 2) layer and head numbers.

    The diagonal and pairs without a value are NaN. ``result`` is of `HeadSimilarity` or `HeadOutputCKA`.
    """
    frame = _of_heads(result, quantity, model).frame
    frame = frame[frame["tokens"] == (tokens or frame["tokens"].iloc[0])]
    first, second = (frame[list(names)].to_numpy(int) for names in (("layer", "head"), ("layer_b", "head_b")))
    heads, where = np.unique(np.concatenate([first, second]), axis=0, return_inverse=True)
    h, g = where.reshape(2, -1)
    matrix = np.full((len(heads), len(heads)), np.nan)
    matrix[h, g] = matrix[g, h] = frame["value"].to_numpy(float)
    return matrix, heads


def largest_similarity(matrix: Array, layers: Array) -> Array:
    """For every head, the largest similarity to another head of its layer: (M, M) -> (M,), NaN without one.

    >>> largest_similarity(np.array([[1, 0.2, 0.9], [0.2, 1, 0.1], [0.9, 0.1, 1]]), np.array([0, 0, 1]))
    array([0.2, 0.2, nan])
    """
    others = (layers[:, None] == layers) & ~np.eye(len(layers), dtype=bool) & ~np.isnan(matrix)
    largest = np.where(others, matrix, -np.inf).max(1)
    return np.where(others.any(1), largest, np.nan)


# ------------------------------------------------------------------------------------------- orders of removal


def similarity_order(matrix: Array, heads: Array) -> list[Head]:
    """Heads from the most to the least similar to another head of their layer.

    Of the two most similar heads that are left, the one that is also closer to the others goes; so of two copies one
    stays.
    """
    layers = heads[:, 0]
    left, gone = np.ones(len(heads), dtype=bool), []
    while left.any():
        masked = np.where(left[:, None] & left, matrix, np.nan)
        found = np.nan_to_num(largest_similarity(masked, layers), nan=-np.inf)
        ties = np.flatnonzero(left & (found >= np.where(left, found, -np.inf).max() - 1e-12))
        own = [np.nansum(masked[h][layers == layers[h]]) for h in ties]
        gone.append(int(ties[int(np.argmax(own))]))
        left[gone[-1]] = False
    return _named(heads, gone)


def ascending_order(result: Result, quantity: str, model: str | None = None) -> list[Head]:
    """Heads by a quantity of a `HeadAblation` result, the smallest first; of several kinds of ablation the first."""
    frame = _of_heads(result, quantity, model).frame
    frame = frame.drop_duplicates(["layer", "head"]).sort_values("value", kind="stable")
    return [(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()]


def pruning_orders(similarity: Result, ablation: Result, model: str | None = None) -> dict[str, list[Head]]:
    """Orders by similarity (most similar first) and by importance (least important first), of one model.

    Importance is that of the labels where the result has it. An order that was found on the images on which
    it is judged is judged kindly: take other images for it where there are enough.
    """
    known = set(ablation.frame["quantity"])
    quantity = "importance" if "importance" in known else "importance_label_free"
    return {
        "similarity": similarity_order(*similarity_matrix(similarity, model)),
        "importance": ascending_order(ablation, quantity, model),
    }


def _named(heads: Array, order: Any) -> list[Head]:
    return [(int(layer), int(head)) for layer, head in heads[order]]


# ------------------------------------------------------------------------------------------- association


def _spearman(a: Array, b: Array, layers: Array) -> Array:
    """Spearman's correlation over all heads, and that of ranks within each layer: (..., M) twice -> (..., 2)."""
    both = np.stack([a, b])
    within = np.empty_like(both)
    for layer in np.unique(layers):
        at = layers == layer
        ranks = sps.rankdata(both[..., at], axis=-1)
        within[..., at] = ranks - ranks.mean(-1, keepdims=True)
    whole = sps.rankdata(both, axis=-1)
    return np.stack([_pearson(whole), _pearson(within)], axis=-1)


def _pearson(both: Array) -> Array:
    """Correlation (...) of two lists (2, ..., M), NaN where one does not vary."""
    a, b = both - both.mean(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def head_association(
    similarity: HeadValues,
    effect: HeadValues,
    layers: Array,
    groups: Array,
    *,
    resamples: int = 999,
    seed: int = 0,
) -> dict[str, Array]:
    """Spearman's correlation of two values of heads: over all heads, and within layers; arrays (2,).

    The interval is on Fisher's scale, its width from a bootstrap that draws image groups and, within each
    layer, heads (one fewer than there are, which makes the variance of a stratified draw right: Rao & Wu
    1988). The null permutes effects among the heads of a layer, so that layers that differ in both, which
    correlate over all heads, are no evidence. p is two-sided.

    Parameters
    ----------
    similarity, effect : values (M,) when image group g counts weights[g] times, weights (G,).
    layers : (M,) layer of each head.
    groups : (G,) images in each group; those without any are not drawn.

    Returns
    -------
    value, low, high, p, null, null_low, null_high, ceiling: (2,) each. The ceiling is the root of the
    split-half reliability of the effect.
    """
    rng = np.random.default_rng(seed)
    one = (groups > 0).astype(float)
    known = ~np.isnan(similarity(one)) & ~np.isnan(effect(one))
    layers = layers[known]
    if len(layers) < 4:
        raise T2TError(f"a correlation over heads needs at least 4 of them, got {len(layers)}")
    a, b = similarity(one)[known], effect(one)[known]
    value = _spearman(a, b, layers)
    of_drawn = layers[_drawn_heads(layers, rng)]
    draws = np.empty((2, resamples, len(of_drawn)))
    for r in range(resamples):
        drawn, at = rng.multinomial(int(one.sum()), one / one.sum()), _drawn_heads(layers, rng)
        draws[:, r] = similarity(drawn)[known][at], effect(drawn)[known][at]
    permuted = np.stack([b[_permuted(layers, rng)] for _ in range(resamples)])
    null = _spearman(np.broadcast_to(a, permuted.shape), permuted, layers)
    low, high = _fisher(value, _spearman(draws[0], draws[1], of_drawn))
    p = permutation_p(value, null, "two-sided")
    ceiling = _reliability(effect, layers, known, one)
    return {"value": value, "low": low, "high": high, "p": p, "ceiling": ceiling} | null_columns(null)


def _drawn_heads(layers: Array, rng: np.random.Generator) -> Array:
    """Positions of drawn heads, layer by layer in the same order every time."""
    own = [np.flatnonzero(layers == layer) for layer in np.unique(layers)]
    return np.concatenate([rng.choice(at, max(len(at) - 1, 1)) for at in own])


def _permuted(layers: Array, rng: np.random.Generator) -> Array:
    order = np.arange(len(layers))
    for layer in np.unique(layers):
        at = np.flatnonzero(layers == layer)
        order[at] = rng.permutation(at)
    return order


def _fisher(value: Array, draws: Array) -> tuple[Array, Array]:
    """Normal interval on the scale of arctanh, spread from the draws (R, ...)."""
    most = 0.9995  # arctanh(1) is infinite
    z = np.arctanh(np.clip(value, -most, most))
    half = 1.959964 * np.nanstd(np.arctanh(np.clip(draws, -most, most)), axis=0, ddof=1)
    return np.tanh(z - half), np.tanh(z + half)


def _reliability(effect: HeadValues, layers: Array, known: Array, one: Array) -> Array:
    """Root of the correlation of two halves of the images, stepped up to all of them (Spearman & Brown 1910)."""
    used = np.flatnonzero(one)
    if len(used) < 2:
        return np.full(2, np.nan)
    halves = []
    for part in (used[::2], used[1::2]):
        weights = np.zeros_like(one)
        weights[part] = 1
        halves.append(effect(weights)[known])
    r = _spearman(halves[0], halves[1], layers)
    with np.errstate(invalid="ignore"):
        return np.sqrt(2 * r / (1 + r))


def similarity_is_redundancy(
    similarity: Result,
    ablation: Result,
    model: str | Sequence[str] | None = None,
    *,
    quantity: str = "cosine_centred",
    effect: str = "kl",
    resamples: int = 999,
    seed: int = 0,
) -> Result:
    """Spearman's correlation, over heads, of the largest similarity with the effect of taking the head out.

    If similar heads are redundant it is negative: the more a head resembles another one of its layer, the
    less is lost without it. Rows ``similarity_effect_spearman`` (over all heads; layers that are higher in
    both count too) and ``similarity_effect_spearman_within_layers``.

    Parameters
    ----------
    similarity : result of `HeadSimilarity` or `HeadOutputCKA`; of several kinds of tokens the first.
    ablation : result of `HeadAblation` with the same model, of the same images; of several modes the first.
    model : label of one or several models; the first when left out.
    quantity : of ``similarity``.
    effect : "kl", "loss_change", or "output_shift".

    Raises
    ------
    UnknownNameError : what the results do not have.
    T2TError : results that hold other heads, or that rest on other groups of images.
    """
    names = [model or _first_model(ablation)] if isinstance(model, str) or model is None else list(model)
    rows = []
    for name in names:
        alike, single = _of_heads(similarity, quantity, name), _of_heads(ablation, effect, name)
        pairs = alike.frame
        within = (pairs["layer"] == pairs["layer_b"]) & (pairs["tokens"] == pairs["tokens"].iloc[0])
        mode = single.frame["variant"].iloc[0]
        rows += _association(alike.rows(np.flatnonzero(within)), single.where(variant=mode), resamples, seed)
    return Result("similarity_redundancy", pd.DataFrame(rows), {"models": names}, ablation.notes)


def _association(alike: Result, single: Result, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Both rows of one model, from similarities of pairs within layers and from effects of single heads."""
    frame, pairs = single.frame, alike.frame
    heads = frame[["layer", "head"]].to_numpy(int)
    number = {tuple(head): i for i, head in enumerate(heads.tolist())}
    ends = [list(zip(pairs[a], pairs[b], strict=True)) for a, b in (("layer", "head"), ("layer_b", "head_b"))]
    if not {*ends[0], *ends[1]} <= set(number):
        raise T2TError(
            f"{frame['model'].iloc[0]}: similarities of other heads than the {len(heads)} with effects"
        )
    h, g = (np.array([number[head] for head in end], dtype=int) for end in ends)
    both = Estimate.concatenate([single.estimates(), alike.estimates()])
    effect, images = by_weight(both[: len(frame)])
    cosine, others = by_weight(both[len(frame) :])
    if (images != others).any():
        raise T2TError("similarity and effect rest on other groups of images; measure both in one call")

    def largest(weights: Array) -> Array:
        matrix = np.full((len(heads), len(heads)), np.nan)
        matrix[h, g] = matrix[g, h] = cosine(weights)
        return largest_similarity(matrix, heads[:, 0])

    found = head_association(largest, effect, heads[:, 0], images, resamples=resamples, seed=seed)
    what = pairs["quantity"].iloc[0], frame["quantity"].iloc[0], frame["variant"].iloc[0]
    base: dict[str, Any] = {
        "model": frame["model"].iloc[0], "weights": frame["weights"].iloc[0],
        "measure": "similarity_redundancy", "n": int((~np.isnan(largest(np.ones(len(images))))).sum()),
        "unit": "head", "tokens": "all", "value_unit": "none",
        "null_kind": "effects permuted among the heads of a layer",
        "interval": "Fisher z, bootstrap of images in similarity and effect, heads within layers, "
        f"{resamples} resamples",
        "estimator": f"Spearman, largest {what[0]} within the layer against {what[1]} ({what[2]} ablation)",
        "ceiling_kind": "root of the split-half reliability of the effect",
    }  # fmt: skip
    names = ("similarity_effect_spearman", "similarity_effect_spearman_within_layers")
    return [base | {"quantity": q} | {k: v[i] for k, v in found.items()} for i, q in enumerate(names)]


def by_weight(found: Estimate) -> tuple[HeadValues, Array]:
    """Means (...) as functions of how often each group of images counts, and images in each group (G,).

    What a mean loses when a group is left out is that group's sum.
    """
    counts = found.sizes
    rest = counts.sum(0) - counts
    left = np.where(rest > 0, rest * found.leave_out, 0.0)
    sums = np.where(counts > 0, counts.sum(0) * found.value - left, 0.0)

    def values(weights: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.tensordot(weights, sums, 1) / np.tensordot(weights, counts, 1)

    return values, counts.reshape(len(counts), -1).max(1)


# ------------------------------------------------------------------------------------------- pruning curves


def crossing(fractions: Array, values: Array, limit: float) -> Array:
    """Where curves (..., F) first exceed ``limit``, interpolated; the last fraction if they never do.

    >>> crossing(np.array([0.0, 0.5, 1.0]), np.array([[0.0, 0.2, 0.1], [0.0, 0.1, 0.1]]), 0.1)
    array([0.25, 1.  ])
    """
    above = values > limit
    i = np.maximum(above.argmax(-1), 1)
    x0, x1 = fractions[i - 1], fractions[i]
    y0, y1 = (np.take_along_axis(values, j[..., None], -1)[..., 0] for j in (i - 1, i))
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x0 + (x1 - x0) * (limit - y0) / (y1 - y0)
    return np.where(above.any(-1), np.where(above[..., 0], fractions[0], at), fractions[-1])


class PruningCurves(AblationMeasure):
    """What remains of the output as more and more heads go, in given orders and at random.

    ``pruned_kl`` (KL(full || pruned), nats) and, with labels of the model's own classes,
    ``pruned_accuracy`` against the fraction of heads removed; the null is the mean over random orders with
    their 2.5 and 97.5 % points. ``pruning_area_kl`` and ``pruning_area_accuracy`` are the areas between an
    order's curve and the random mean; p, two-sided, by Student's t, takes the area as one more draw among
    the random orders' areas. ``removable_by_accuracy`` and ``removable_by_kl`` are redundancy indices: the
    fraction of heads that can go before accuracy falls by ``points`` or KL exceeds ``nats``.

    Parameters
    ----------
    orders : name -> heads (layer, head), the first to go first, all heads of the model; or model label ->
        such a mapping, for several models (see `pruning_orders`).
    random : number of random orders.
    fractions : of all heads, to remove.
    mode, calibration, limit : see `AblationMeasure`.
    """

    name = "pruning_curves"
    invariances = frozenset({"permute_images"})
    by_logits = True

    def __init__(
        self,
        orders: Mapping[str, Any],
        mode: str = "mean",
        *,
        random: int = 20,
        fractions: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0),
        points: float = 0.01,
        nats: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(mode, **kwargs)
        if random < 2:
            raise T2TError(f"random={random}: the random orders are the null, at least 2 of them")
        self.orders, self.random, self.points, self.nats = dict(orders), random, points, nats
        self.fractions = tuple(sorted(fractions))

    def bind(self, views: Sequence[View]) -> None:
        """Complete the orders with random ones and make the states."""
        (view,) = views
        self.find_heads(view)
        heads = _named(self.index.table, slice(None))
        given = self.orders
        if all(isinstance(order, Mapping) for order in given.values()):
            if view.label not in given:
                raise UnknownNameError("model", view.label, list(given), hint="among the orders")
            given = given[view.label]
        self.named = {name: _complete(name, order, heads) for name, order in given.items()}
        rng = np.random.default_rng(self.seed)
        drawn = [_named(self.index.table, rng.permutation(len(heads))) for _ in range(self.random)]
        self.all_orders = [*self.named.values(), *drawn]
        self.sizes = sorted({max(1, round(f * len(heads))) for f in self.fractions})
        self.add_means(("pruned_kl", "pruned_accuracy"), len(self.all_orders), 1 + len(self.sizes))

    def take_out(self, start: Start, batch: MeasureBatch, groups: Tensor) -> None:
        """Run every pruned model over the batch, from its first block on; curves start with the whole model."""
        labels, labelled = self.labels(batch)
        full, outputs = start.output.cpu(), self._outputs(start, batch)
        right = torch.stack([full, *outputs]).argmax(-1) == labels  # (1 + O F, B)
        found = torch.stack([torch.stack([kl_divergence(full, o) for o in (full, *outputs)]), right.double()])
        found[:, 1:].masked_fill_(~outputs.isfinite().all(-1), torch.nan)
        found[1].masked_fill_(~labelled, torch.nan)
        curves = found[:, 1:].unflatten(1, (len(self.all_orders), -1))  # (2, O, F, B)
        whole = found[:, :1, None].expand(-1, curves.shape[1], -1, -1)
        add_finite(self.total, self.count, groups, torch.cat([whole, curves], 2).movedim(-1, 0))

    def _outputs(self, start: Start, batch: MeasureBatch) -> Tensor:
        """(O F, B, K) outputs of all orders and sizes, on the CPU."""
        references = {i: put_in for i, _, put_in in self.walk(start, batch) if put_in is not None}
        variants = [
            self._pruned(order[:size], references) for order in self.all_orders for size in self.sizes
        ]
        return torch.stack([o.cpu() for o in self.replay.run(0, start.tokens, start, variants)])

    @staticmethod
    def _pruned(gone: Sequence[Head], references: Mapping[int, Tensor]) -> dict[int, Edit]:
        layers: dict[int, list[int]] = {}
        for layer, head in gone:
            layers.setdefault(layer, []).append(head)
        return {layer: put(heads, references[layer]) for layer, heads in layers.items()}

    # rows

    def compute(self) -> Result:
        """Curves, areas and redundancy indices of the named orders, each against the random ones."""
        self.add_notes()
        found = self.means()  # (2, O, 1 + F)
        kl, accuracy = found[0].positive(), found[1]
        rows = self._rows("pruned_kl", "nats", kl, self.nats)
        if accuracy.n.any():
            rows += self._rows("pruned_accuracy", "fraction", accuracy, self.points)
        return self.result(rows, orders={self.views[0].label: self.named})

    def _rows(self, quantity: str, unit: str, value: Estimate, limit: float) -> list[dict[str, Any]]:
        """Everything that one quantity tells."""
        at = np.array([0, *self.sizes]) / self.index.total
        area, falls = self._areas(value, at), quantity == "pruned_accuracy"
        kept, low, high = _removable(value, at, limit, falls=falls, seed=self.seed)
        named, k = np.array(list(self.named), dtype=object), len(self.named)
        how = np.array(
            [f"{self.mode} ablation, heads removed in order of {name}" for name in named], dtype=object
        )
        row = self.base(quantity, unit, variant=named, null_kind=f"{self.random} random orders")
        until = f"{quantity.removeprefix('pruned_')} {'falls by' if falls else 'exceeds'} {limit:g}"
        return [
            row | null_columns(value.value[k:]) | {
                "variant": named[:, None], "estimator": how[:, None], "estimate": value[:k], "at": at,
                "at_unit": "fraction of heads removed",
            },
            row | null_columns(area.value[k:]) | {
                "quantity": quantity.replace("pruned_", "pruning_area_"), "value_unit": f"{unit} x fraction of heads",
                "estimate": area[:k], "p": np.array([one_more_p(x, area.value[k:]) for x in area.value[:k]]),
                "estimator": how + "; area to the mean of random orders, trapezoids; p: one more random order",
                "null_kind": f"{self.random} random orders, each against the others",
            },
            row | null_columns(kept[k:]) | {
                "quantity": quantity.replace("pruned_", "removable_by_"), "value_unit": "fraction of heads",
                "value": kept[:k], "low": low[:k], "high": high[:k], "n": value.n[:k, 0], "unit": "image",
                "interval": "percentile bootstrap over image groups, 999 resamples",
                "estimator": how + f"; until {until}",
            },
        ]  # fmt: skip

    def _areas(self, curves: Estimate, at: Array) -> Estimate:
        """Area between every order's curve and the mean of the random ones (the others, for a random one)."""
        named, random = len(self.named), self.random

        def area(curve: Array) -> Array:
            under = np.trapezoid(curve, at)  # (1 + G, O)
            drawn = under[:, named:]
            mean = drawn.mean(1, keepdims=True)
            others = (random * mean - drawn) / (random - 1)
            return np.concatenate([under[:, :named] - mean, drawn - others], 1)

        return curves.map(area, curves.sizes[..., 0])


def _complete(name: str, order: Sequence[Head], heads: Sequence[Head]) -> list[Head]:
    given = [(int(layer), int(head)) for layer, head in order]
    if sorted(given) != sorted(heads):
        odd = sorted(set(given) ^ set(heads))[:3]
        raise T2TError(
            f"order {name!r} must hold each of the {len(heads)} heads once; look at {odd or given[:3]}"
        )
    return given


def one_more_p(value: float, drawn: Array) -> float:
    """Two-sided p that ``value`` is one more draw from a normal distribution of which ``drawn`` (R,) are some.

    >>> round(one_more_p(0.0, np.array([-1.0, 1.0])), 3), one_more_p(50.0, np.arange(9.0)) < 1e-5
    (1.0, True)
    """
    spread = float(drawn.std(ddof=1)) * float(np.sqrt(1 + 1 / len(drawn)))
    distance = abs(value - float(drawn.mean()))
    if spread == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * sps.t.sf(distance / spread, len(drawn) - 1))


def _removable(
    curves: Estimate, at: Array, limit: float, *, falls: bool, seed: int, resamples: int = 999
) -> tuple[Array, Array, Array]:
    """Fraction of heads that can go, of every order, and its percentile interval: (O,) each."""
    of_images, images = by_weight(curves)
    sign, groups = -1 if falls else 1, np.flatnonzero(images)

    def index(weights: Array) -> Array:
        every = np.zeros(len(images))
        every[groups] = weights
        curve = sign * of_images(every)  # (O, 1 + F)
        return crossing(at, curve - curve[:, :1], limit)

    rng, n = np.random.default_rng(seed), len(groups)
    value = index(np.ones(n))
    if n < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    draws = np.array([index(w) for w in rng.multinomial(n, np.full(n, 1 / n), resamples)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return value, low, high
