"""Do heads that look elsewhere write the same? CKA of what each head adds to the residual stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError
from ..results import Result
from ..stats import max_statistic_p, null_columns
from .base import MeasureBatch, View
from .cka import LEAST, add_inner, correlation, gram, permutations, permuted_inner, u_centred
from .head_measure import HeadMeasure, contrast, layer_table


def head_outputs(z: Tensor, weights: Tensor) -> Tensor:
    """What each head adds to the residual stream, z_h W_O^h: (..., H, d) and (H, d, D) -> (..., H, D).

    Their sum over the heads plus the bias of the projection is the output of the attention layer.
    """
    return torch.einsum("...hd,hdm->...hm", z.to(weights.dtype), weights)


def head_output_weights(view: capture.ModelView, layer: int) -> Tensor:
    """W_O of every head of one layer, (H, d, D): slices of the output projection, times LayerScale if there is one.

    Raises
    ------
    T2TError : a norm or gate mixes the heads before they are projected.
    """
    attention = view.attention(layer)
    mixed = attention.z is not attention.proj and not isinstance(attention.z, nn.Identity)
    if mixed or getattr(attention.module, "gate", None) is not None:
        raise T2TError(
            f"{view.label}: a norm or gate mixes the heads of blocks.{layer} before "
            "they are projected, so what one head adds to the residual stream is not defined"
        )
    weight: Any = attention.proj.weight  # (D, H d)
    scale: Any = getattr(getattr(view.blocks[layer], "ls1", None), "gamma", None)
    weight = weight if scale is None else weight * scale[:, None]
    return weight.detach().T.unflatten(0, (attention.num_heads, -1))


def permutation_null(value: np.ndarray, null: np.ndarray, tested: np.ndarray) -> dict[str, Any]:
    """Columns of a permutation null: mean, 2.5 and 97.5 % points, and p of the max statistic.

    ``null`` (K, ...) holds one permutation of the images a row, the same for all cells of ``value`` (...);
    the largest value is taken over the cells in ``tested`` (...), so that looking for the most similar pair
    does not make it significant. p is one-sided, and missing in other cells.
    """
    p = max_statistic_p(np.where(tested, value, np.nan), np.where(tested, null, np.nan))
    return null_columns(null) | {"p": np.where(tested, p, np.nan)}


class HeadOutputCKA(HeadMeasure):
    """Linear CKA between what the heads of a model write, within and across layers; a sample is an image.

    Features of head h are z_h W_O^h (LayerScale included), as mean over the patch tokens (tokens ``pooled``)
    and of the class token (``class``) where there is one. Unbiased minibatch CKA, that is sum_b <U(K_b),
    U(L_b)> / sqrt(sum_b <U(K_b), U(K_b)> sum_b <U(L_b), U(L_b)>) with U-centred Gram matrices of each batch:
    a ratio of sums, each batch weighted by n (n - 3). Batches of fewer than 4 images have no such estimate
    and are left out; so is a layer that is not finite in any batch.

    The interval is a jackknife over images (groups of them, left out of their batches). The null permutes the
    images of one side within each batch, the same permutation for all pairs; p is that of the max statistic
    over all pairs, or all layers. What a gate behind the projection does (squeeze-and-excitation) is not in
    it.

    Source: Kornblith et al. 2019; Nguyen, Raghu & Kornblith 2021, eq. 3; Song et al. 2012.

    Parameters
    ----------
    permutations : how many.
    seed : of the permutations; they depend on it and on the number of the batch.
    """

    name = "head_output_cka"
    without_nonfinite = "the layer is left out"
    invariances = frozenset({"permute_heads", "orthogonal", "scale", "translation"})

    pooled: Tensor  # (G + 1, M, M): what leaving out a group takes away; the rest
    null_pooled: Tensor  # (K, M (M - 1) / 2), h < g

    def __init__(self, *, permutations: int = 200, seed: int = 0, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.permutations, self.seed = permutations, seed

    def anchors(self, view: View) -> list[str]:
        """Head outputs of every layer."""
        return view.select("blocks.*.attn.z")

    def make_states(self, view: View, heads: int) -> None:
        """Inner products of U-centred Gram matrices, and the same for every permutation."""
        layout = view.layout_of(self.sources[self.index.layers[0]][0])
        self.tokens = ("pooled", "class") if layout is not None and layout.prefix else ("pooled",)
        self.weights = {layer: head_output_weights(view, layer) for layer in self.index.layers}
        self.add_sum("skipped", dtype=torch.int64)
        for tokens in self.tokens:
            self.add_sum(tokens, self.groups + 1, heads, heads)
            self.add_sum(f"null_{tokens}", self.permutations, heads * (heads - 1) // 2)

    def reduce(self, obs: capture.Observation) -> dict[str, Tensor]:
        """U-centred Gram matrices (H, B, B) of every head, for the mean patch and for the class token."""
        weights = self.weights[int(obs.name.split(".")[1])].to(obs.value.device)
        z = {"pooled": obs.patches.mean(2), "class": obs.value[:, :, 0]}  # (B, H, d)
        if len(obs.value) < LEAST:
            return {}
        return {tokens: gram(head_outputs(z[tokens], weights).transpose(0, 1)) for tokens in self.tokens}

    def update(self, batch: MeasureBatch) -> None:
        """Add inner products of the batch: whole, without each group of its images, and permuted."""
        seen, groups = batch.seen[0], self.group(batch)
        if len(groups) < LEAST:
            self.skipped += len(groups)
            return
        present = self.present(seen)
        if not present.any():
            return
        both = present.outer(present).to(self.images)
        for group in groups.tolist():
            self.images[group] += both
        order = permutations(len(groups), self.permutations, self.seed, batch.number)
        for tokens in self.tokens:
            grams = self._stacked(seen, tokens)
            add_inner(getattr(self, tokens), grams, groups)
            self._add_null(getattr(self, f"null_{tokens}"), u_centred(grams), order)

    def _stacked(self, seen: dict[str, dict[str, Tensor]], tokens: str) -> Tensor:
        """Gram matrices (M, B, B) of all heads; zeros for layers that are not finite."""
        some = next(iter(seen.values()))[tokens]
        places = zip(self.sources.values(), self.index.heads, strict=True)
        return torch.cat(
            [
                seen[name][tokens] if name in seen else some.new_zeros((heads, *some.shape[1:]))
                for (name,), heads in places
            ]
        ).to(self.images.device)

    def _add_null(self, state: Tensor, u: Tensor, orders: Tensor) -> None:
        h, g = torch.triu_indices(len(u), len(u), offset=1, device=u.device)
        state += permuted_inner(u, u, orders)[:, h, g]

    def compute(self) -> Result:
        """Rows for pairs of heads, pairs of layers and the change over depth, for each choice of tokens."""
        if self.skipped:
            self.note(
                f"{int(self.skipped)} images came in batches of fewer than {LEAST}, which are too few for "
                "unbiased CKA, and are left out of head_output_cka"
            )
        counts = torch.cat([self.images, self.images.new_zeros(1, *self.images.shape[1:])])
        rows = [row for tokens in self.tokens for row in self._rows(tokens, counts)]
        return self.result(rows, permutations=self.permutations, seed=self.seed)

    def _rows(self, tokens: str, counts: Tensor) -> list[dict[str, Any]]:
        sums = self._finite(getattr(self, tokens))
        pairs, means, change = self.estimate_all(correlation, (sums,), counts)
        null = self._null(tokens, sums.sum(0).diagonal().sqrt()).cpu().numpy()
        layers = layer_table(null, self.index)  # (K, L, L), a layer with itself and with later ones
        nulls = [
            permutation_null(pairs.value, null, np.triu(np.isfinite(pairs.value), 1)),
            permutation_null(means.value, layers, np.triu(np.isfinite(means.value))),
            null_columns(contrast(np.diagonal(layers, axis1=-2, axis2=-1))),
        ]
        return self.report(
            (pairs, means, change), nulls, quantity="head_output_cka", tokens=tokens, value_unit="none",
            estimator="minibatch CKA from unbiased HSIC_1 of z_h W_O^h, image = sample",
            null_kind=f"images permuted within batches, {self.permutations} times; p of the max statistic",
            ceiling=1.0, ceiling_kind="a head with itself",
        )  # fmt: skip

    def _finite(self, state: Tensor) -> Tensor:
        """The sums, NaN for layers that were not finite in some batch, so that no pair mixes images."""
        state = state.clone()
        bad = dict(zip(self.wanted[0], (self.nonfinite[0] > 0).tolist(), strict=False))
        for (_, where), (name,) in zip(self.index.slices, self.sources.values(), strict=True):
            if bad.get(name):
                state[:, where] = state[:, :, where] = torch.nan
        return state

    def _null(self, tokens: str, deviation: Tensor) -> Tensor:
        """CKA of permuted images for pairs of heads h < g, NaN elsewhere: (K, M, M)."""
        heads = len(deviation)
        h, g = torch.triu_indices(heads, heads, offset=1, device=deviation.device)
        null = deviation.new_full((self.permutations, heads, heads), torch.nan)
        null[:, h, g] = getattr(self, f"null_{tokens}") / (deviation[h] * deviation[g])
        return null
