"""Do similar heads stand in for each other? Pairs of heads taken out together, and whole layers skipped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats as sps
from torch import Tensor

from ..errors import T2TError
from ..results import Result
from .ablation import Start
from .ablation_measure import AblationMeasure, kl_divergence, put
from .base import MeasureBatch, View
from .pruning import similarity_matrix


class HeadPairs(AblationMeasure):
    """What two heads of a layer do together: KL divergence without both, less that without each.

    Per pair ``pair_kl``, KL(full || without both) in nats, and ``pair_interaction``, the same minus the sum of both
    heads taken out alone: above 0 where one stands in for the other, since then the second costs more once the first
    is gone; near 0 where they do separate things. Per layer ``layer_skip_kl``, the whole block skipped, to be read
    beside the CKA of what is before and behind it.

    Parameters
    ----------
    most : pairs of a layer that are tried, drawn at random where there are more.
    mode, calibration, limit : see `AblationMeasure`.

    Source: interactions of ablations after Michel et al. 2019, who take out one head or all but one.
    """

    name = "head_pairs"
    invariances = frozenset({"permute_images"})
    by_logits = True

    def __init__(self, mode: str = "mean", *, most: int = 15, **kwargs: Any) -> None:
        super().__init__(mode, **kwargs)
        self.most = most

    def bind(self, views: Sequence[View]) -> None:
        """Draw the pairs; one sum for every head, pair and layer."""
        (view,) = views
        self.find_heads(view)
        rng = np.random.default_rng(self.seed)
        self.pairs: dict[int, list[tuple[int, int]]] = {}
        for layer, count in zip(self.index.layers, self.index.heads, strict=True):
            every = list(combinations(range(count), 2))
            kept = np.sort(rng.permutation(len(every))[: self.most])
            self.pairs[layer] = [every[i] for i in kept]
        size = self.index.total + sum(map(len, self.pairs.values())) + len(self.pairs)
        self.add_means(["kl"], size)

    def take_out(self, start: Start, batch: MeasureBatch, groups: Tensor) -> None:
        """Run every layer's variants from its door on, and the blocks behind it from its input."""
        singles, pairs, skips = [], [], []
        for i, x, reference in self.walk(start, batch):
            if reference is None:
                continue
            heads = range(self.replay.sites[i].num_heads)
            gone = [*([h] for h in heads), *map(list, self.pairs[i])]
            outputs = [*self.replay.run(i, x, start, [{i: put(g, reference)} for g in gone])]
            outputs += self.replay.run(i + 1, x, start, [{}])  # the block skipped
            found = [kl_divergence(start.output, each) for each in outputs]
            singles += found[: len(heads)]
            pairs += found[len(heads) : -1]
            skips.append(found[-1])
        self.add(0, groups, torch.stack([*singles, *pairs, *skips], 1))

    def compute(self) -> Result:
        """Rows for pairs and layers."""
        self.add_notes()
        found = self.means()[0]
        where = {layer: at.start for layer, at in self.index.slices}
        both = [(layer, h, g) for layer, pairs in self.pairs.items() for h, g in pairs]
        first, second = (np.array([where[p[0]] + p[k] for p in both], dtype=int) for k in (1, 2))
        together = found[self.index.total + np.arange(len(both))]
        interaction = found.map(
            lambda v: v[:, self.index.total + np.arange(len(both))] - v[:, first] - v[:, second],
            together.sizes,
        )
        layer, head, other = (np.array([p[k] for p in both], dtype=object) for k in range(3))
        place = np.array([f"blocks.{p[0]}.attn" for p in both], dtype=object)
        base = self.base("pair_kl", "nats", estimator=f"{self.mode} ablation of two heads of a layer")
        pair = base | {"place": place, "layer": layer, "head": head, "layer_b": layer, "head_b": other}
        skipped = found[self.index.total + len(both) + np.arange(len(self.pairs))]
        layers = np.array(list(self.pairs), dtype=object)
        rows = [
            pair | {"estimate": together.positive(), "null": 0.0, "null_kind": "heads without effect"},
            pair | {"quantity": "pair_interaction", "estimate": interaction, "p": interaction, "null": 0.0,
                    "null_kind": "heads that do separate things",
                    "estimator": f"{self.mode} ablation: both, less the sum of each alone"},
            base | {"quantity": "layer_skip_kl", "estimate": skipped.positive(), "layer": layers, "null": 0.0,
                    "place": np.array([f"blocks.{i}" for i in self.pairs], dtype=object),
                    "null_kind": "a block without effect", "estimator": "whole block skipped"},
        ]  # fmt: skip
        return Result.of_rows(self.name, rows)


def similar_pairs_stand_in(
    pairs: Result, similarity: Result, *models: str, quantity: str = "cosine_centred"
) -> Result:
    """Whether the more similar pairs of a layer stand in for each other more than the less similar ones.

    Within each layer the pairs are ranked by similarity; the upper half against the lower one, the middle left out,
    averaged over layers, so that layers that differ in both do not count. ``pair_kl`` and ``pair_interaction`` of both
    halves (``variant`` "similar" and "dissimilar"), and ``pair_interaction_contrast``, the one less the other, paired
    over images: above 0 if similarity means redundancy.

    Parameters
    ----------
    pairs : of `HeadPairs`. similarity : of `HeadSimilarity` or `HeadOutputCKA`.
    models : labels in both; all of ``pairs`` when left out.
    quantity : of ``similarity``.

    Raises
    ------
    UnknownNameError : a model or quantity that a result does not have.
    T2TError : no layer with two pairs of heads.
    """
    names = models or tuple(pairs.frame["model"].unique())
    rows = [row for name in names for row in _contrast(pairs, similarity, name, quantity)]
    return Result.of_rows("head_pairs", rows, {"models": list(names)}, pairs.notes)


def skips_beside_cka(pairs: Result, cka: Result, *models: str) -> Result:
    """Whether blocks that change the tokens little, by CKA, are those that can be skipped.

    Spearman's correlation, over blocks but the first, of ``layer_skip_kl`` with the CKA of the mean patch before and
    behind the block: ``skip_cka_spearman``, below 0 if likeness means redundancy. Interval on Fisher's scale (Fieller,
    Hartley & Pearson 1957), p from the t distribution; the unit is a block.

    Parameters
    ----------
    pairs : of `HeadPairs`. cka : of `LayerCKA`. models : labels in both; all of ``pairs`` when left out.

    Raises
    ------
    UnknownNameError : a model that a result does not have.
    T2TError : fewer than 5 blocks to be compared.
    """
    rows = []
    for model in models or tuple(pairs.frame["model"].unique()):
        skip = (
            pairs.where(model=model, quantity="layer_skip_kl").frame.set_index("layer")["value"].astype(float)
        )
        frame = cka.where(model=model, quantity="cka_unbiased", tokens="pooled").frame
        next_ = frame[frame["layer_b"] == frame["layer"] + 1].set_index("layer_b")["value"].astype(float)
        both = sorted(set(skip.index) & set(next_.index))
        if len(both) < 5:
            raise T2TError(f"{model}: a correlation over blocks needs 5 of them, got {len(both)}")
        found = sps.spearmanr(next_[both], skip[both])
        value, half = float(found.statistic), 1.96 * np.sqrt(1.06 / (len(both) - 3))
        low, high = np.tanh(np.arctanh(np.clip(value, -0.9995, 0.9995)) + np.array([-half, half]))
        rows.append({
            "measure": pairs.measure, "model": model, "weights": frame["weights"].iloc[0], "place": "blocks.*",
            "quantity": "skip_cka_spearman", "value": value, "low": low, "high": high, "p": float(found.pvalue),
            "interval": "Fisher z", "n": len(both), "unit": "layer", "tokens": "pooled", "value_unit": "none",
            "null": 0.0, "null_kind": "unrelated",
            "estimator": "Spearman of the loss without a block with the CKA across it",
        })  # fmt: skip
    return Result.of_rows(pairs.measure, rows, {"models": list(models)}, pairs.notes)


def _contrast(pairs: Result, similarity: Result, model: str, quantity: str) -> list[dict[str, Any]]:
    matrix, heads = similarity_matrix(similarity, model, quantity)
    number = {tuple(h): i for i, h in enumerate(heads.tolist())}
    of = {q: pairs.where(model=model, quantity=q) for q in ("pair_kl", "pair_interaction")}
    frame = of["pair_kl"].frame
    alike = [
        matrix[number[a, b], number[a, c]] for a, b, c in frame[["layer", "head", "head_b"]].to_numpy(int)
    ]
    halves = [_halves(np.array(alike), frame["layer"].to_numpy(int), upper) for upper in (True, False)]
    if not any(w.any() for w in halves):
        raise T2TError(f"{model}: no layer has two pairs of heads to be compared")
    base = {k: frame[k].iloc[0] for k in ("measure", "model", "weights", "tokens", "value_unit")}
    base |= {"place": "blocks.*.attn", "null": 0.0}
    how = f"pairs of a layer by {quantity}, half against half, mean over layers"
    rows: list[dict[str, Any]] = []
    for name, result in of.items():
        whole = result.estimates()
        sizes = whole.sizes.max(1)
        parts = [whole.map(partial(_weighted, weights), sizes) for weights in halves]
        rows += [
            base | {"quantity": name, "variant": kind, "estimate": part, "estimator": how}
            for kind, part in zip(("similar", "dissimilar"), parts, strict=True)
        ]
    less = parts[0] - parts[1]
    return [*rows, base | {
        "quantity": "pair_interaction_contrast", "estimate": less, "p": less, "estimator": f"{how}; paired",
        "null_kind": "similar and dissimilar pairs interact alike",
    }]  # fmt: skip


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values @ weights


def _halves(alike: np.ndarray, layers: np.ndarray, upper: bool) -> np.ndarray:
    """Weights of pairs that average one half of every layer's, then the layers."""
    weights = np.zeros(len(alike))
    used = [layer for layer in np.unique(layers) if np.isfinite(alike[layers == layer]).sum() > 1]
    for layer in used:
        at = np.flatnonzero((layers == layer) & np.isfinite(alike))
        order = at[np.argsort(-alike[at] if upper else alike[at], kind="stable")]
        half = order[: len(at) // 2]
        weights[half] = 1 / (len(half) * len(used))
    return weights
