"""Which heads does the output rest on? Every head taken out by itself, against a random direction of its size.

The null removes a random subspace of the layer's joined head outputs, as wide as a head, scaled so that at
every token as much is taken away as with the head: what is left of an effect beyond it belongs to this head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..results import Result
from ..stats import holm, mcnemar
from .ablation import Edit, Start
from .ablation_measure import (
    QUANTITIES,
    AblationMeasure,
    effects,
    head_gradients,
    head_scores,
    put,
    random_subspaces,
    remove_subspace,
    subspace_scores,
)
from .base import Estimate, MeasureBatch, View, add_by_group, add_finite, grouped_estimate
from .head_measure import head_rows

#: What is taken out: every head by itself, a random subspace for every head, all heads of a layer (at its first).
KINDS = ("single", "subspace", "layer")
SINGLE, SUBSPACES, LAYER = range(3)
#: Numbers of an image: effects of all kinds, and importances of the first two.
IMPORTANCES = ("importance", "importance_label_free")
NUMBERS = (*QUANTITIES, *IMPORTANCES)
_SUBSPACE = (
    "random subspace of the layer's head outputs, as wide as a head, the same norm removed at every token; "
    "95 % interval of its mean"
)


class HeadAblation(AblationMeasure):
    """What every head of the backbone does to the output, measured by taking it out.

    Per head, with intervals over images: ``kl``, KL(full || without the head) of the output distribution in
    nats, which needs no labels;
    ``output_shift``, the squared change of the output over its variance (the only one for a model without a
    classifier); with labels of the model's own classes ``loss_change`` (cross-entropy, nats) and
    ``accuracy_change`` (McNemar). The null is a random subspace from which as much is removed; p of ``kl`` is
    against that null, since no KL is ever below 0, p of ``loss_change`` against no change. Rows
    ``kl_p_holm``, ``loss_change_p_holm`` and ``accuracy_change_p_holm`` hold p corrected over all heads.
    ``kl_layer`` takes out all heads of a layer; its null is the sum over the heads one by one, which it
    exceeds where heads stand in for each other. Intervals of divergences and shifts are taken on the scale of the
    logarithm (`Estimate.positive`).

    ``importance`` is Michel, Levy & Neubig's (2019) E|dL/dxi_h|, l2-normalised per layer, with the labels;
    ``importance_label_free`` the same for the cross-entropy of the class that the model predicts (a KL
    divergence from the model's own output would not do: its derivative is 0 at xi = 1).

    Parameters
    ----------
    subspaces : random subspaces per layer; image i gets number i modulo ``subspaces``. With 0 there is no null, and the
        passes are half as many.
    importance : also by gradients.
    mode, calibration, limit : see `AblationMeasure`.

    Raises
    ------
    ParameterError
        ``importance`` without subspaces.
    """

    name = "head_ablation"
    invariances = frozenset({"permute_heads", "permute_images"})

    output: Tensor  # (G, K)
    output_square: Tensor  # (G,)

    def __init__(
        self,
        mode: str = "mean",
        *,
        importance: bool = True,
        subspaces: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(mode, **kwargs)
        if importance and not subspaces:
            raise ParameterError(
                "importance is held against random subspaces: importance=False goes with 0 of them"
            )
        self.importance, self.subspaces = importance, subspaces

    def bind(self, views: Sequence[View]) -> None:
        """Find the heads, draw the random subspaces and make the states."""
        (view,) = views
        self.find_heads(view)
        self.where = dict(self.index.slices)
        self.bases = {layer: self._bases(view, layer) for layer in self.where}
        self.add_means(KINDS, self.index.total, len(NUMBERS))
        self.add_sum("output", self.groups, self.width)
        self.add_sum("output_square", self.groups)

    def _bases(self, view: View, layer: int) -> Tensor:
        heads, _, width = view.shape_of(f"blocks.{layer}.attn.z")
        return random_subspaces(self.subspaces, heads * width, width, self.seed * 1000 + layer).float()

    # one batch

    def take_out(self, start: Start, batch: MeasureBatch, groups: Tensor) -> None:
        """From every layer on, with its heads taken out."""
        labels, labelled = self.labels(batch)
        add_by_group(self.output, groups, start.output)
        add_by_group(self.output_square, groups, start.output.double().square().sum(-1))
        found = torch.full(
            (len(groups), *self.total.shape[1:]), torch.nan, dtype=torch.float64
        )  # (B, 3, M, 7)
        full = start.output.cpu()
        for layer, outputs in self._outputs(start, batch):
            changes = torch.stack([effects(full, o, labels, labelled) for o in outputs.cpu()], 1)
            self._put_effects(found[..., : len(QUANTITIES)], layer, changes)
        if self.importance and self.classifier:
            self._put_scores(found[..., len(QUANTITIES) :], start, batch.index, labels, labelled)
        add_finite(self.total, self.count, groups, found)

    def _outputs(self, start: Start, batch: MeasureBatch) -> Iterator[tuple[int, Tensor]]:
        """For every layer, the outputs (V, B, K) of its variants, in the order of `_variants`."""
        for i, x, reference in self.walk(start, batch):
            if reference is not None:
                variants = [{i: edit} for edit in self._variants(i, reference, batch.index)]
                yield i, torch.stack(list(self.replay.run(i, x, start, variants)))

    def _variants(self, layer: int, reference: Tensor, index: Tensor) -> list[Edit]:
        """Every head, a random subspace for every head, and all heads."""
        heads = range(self.replay.sites[layer].num_heads)
        edits = [put([h], reference) for h in heads]
        if self.subspaces:
            bases = self.bases[layer][index % self.subspaces].to(reference.device)
            edits += [remove_subspace(h, reference, bases) for h in heads]
        return [*edits, put(list(heads), reference)]

    def _put_effects(self, found: Tensor, layer: int, changes: Tensor) -> None:
        """Effects (B, V, 5) of a layer's variants into their places of ``found`` (B, 3, M, 5)."""
        at, first = self.where[layer], self.where[layer].start
        heads = at.stop - first
        single, rest = changes[:, :heads], changes[:, heads:-1]
        if self.subspaces:  # a head and its null, both or neither
            lost = (single + rest).isnan()
            single[lost] = rest[lost] = torch.nan
            found[:, SUBSPACES, at] = rest
        found[:, SINGLE, at], found[:, LAYER, first] = single, changes[:, -1]

    def _put_scores(
        self, found: Tensor, start: Start, index: Tensor, labels: Tensor, labelled: Tensor
    ) -> None:
        """Importances of all heads and of their subspaces into ``found`` (B, 3, M, 2)."""
        predicted = start.output.argmax(-1)
        known = labelled.to(predicted.device)
        wanted = torch.where(known, labels.to(predicted.device), predicted)
        targets = torch.stack([wanted, predicted])  # (T, B)

        def losses(output: Tensor) -> Tensor:
            return -output.log_softmax(-1)[None].expand(2, -1, -1).gather(-1, targets[..., None])[..., 0]

        for layer, (z, grads) in head_gradients(self.replay, start, losses).items():
            site, at = self.replay.sites[layer], self.where[layer]
            bases = self.bases[layer][index % self.subspaces].to(z.device)
            found[:, SINGLE, at] = head_scores(z, grads, site).abs().permute(1, 2, 0).cpu().double()
            found[:, SUBSPACES, at] = (
                subspace_scores(z, grads, site, bases).abs().permute(1, 2, 0).cpu().double()
            )
        found[~labelled, ..., 0] = torch.nan

    # rows

    def compute(self) -> Result:
        """Rows for heads and layers, corrected p, importances."""
        self.add_notes()
        self._note_nonfinite()
        found = self.means()  # (3, M, 7)
        rows = [*self._shift_rows(), *self._effect_rows(found)]
        for quantity, loss in zip(IMPORTANCES, ("label", "predicted class"), strict=True):
            rows += self._importance_rows(found[..., NUMBERS.index(quantity)], quantity, loss)
        return self.result([*rows, *self._layer_rows(found[..., 0])], mode=self.mode)

    def _note_nonfinite(self) -> None:
        images = self.count[:, SINGLE, :, 0]
        if lost := float((images.amax(-1) - images.amin(-1)).sum()):
            label = self.views[0].label
            self.note(f"{label}: without some heads the output of up to {lost:.0f} images is not finite")

    def _effect_rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        """Changes of output, loss and accuracy, as far as there are a classifier and labels."""
        kl, loss, lost, gained = (found[..., NUMBERS.index(q)] for q in ("kl", *QUANTITIES[2:]))
        if self.classifier:
            row = self._effect("kl", "nats", "p: against the null, paired")
            value, null = kl[SINGLE], kl[SUBSPACES]
            yield from self._rows_of(row, value.positive(), null.positive(), self._beyond(value, null))
        if (loss.n > 0).any():
            row = self._effect("loss_change", "nats", "p: no change, paired")
            yield from self._rows_of(row, loss[SINGLE], loss[SUBSPACES], loss[SINGLE])
            yield from self._accuracy_rows(gained - lost)

    def _effect(self, quantity: str, unit: str, how: str) -> dict[str, Any]:
        """Columns of the rows of one effect of single heads."""
        return self.base(
            quantity, unit, variant=self.mode, estimator=f"{self.mode} ablation of one head; {how}"
        )

    def _rows_of(
        self, row: dict[str, Any], value: Estimate, null: Estimate, tested: Estimate | None
    ) -> list[dict[str, Any]]:
        """Rows of every head, and of p corrected if anything is tested."""
        found = head_rows(row, self.index, value, p=tested, **self._beside(null))
        return [found] if tested is None else [found, self._holm(row, tested.p)]

    def _beyond(self, value: Estimate, null: Estimate) -> Estimate | None:
        return value - null if self.subspaces else None

    def _beside(self, null: Any) -> dict[str, Any]:
        """Columns of the null, if there is one."""
        return {"null": null, "null_kind": _SUBSPACE} if self.subspaces else {}

    def _holm(self, row: dict[str, Any], p: np.ndarray) -> dict[str, Any]:
        """Corrected p over all heads of the model, as rows of their own."""
        (h,) = np.nonzero(~np.isnan(p))
        layer, head = self.index.table[h].T
        return row | {
            "quantity": f"{row['quantity']}_p_holm", "layer": layer, "head": head, "value": holm(p)[h],
            "place": np.array([f"blocks.{i}.attn" for i in layer.tolist()], dtype=object),
            "n": len(h), "unit": "head", "value_unit": "none", "null": 1.0, "null_kind": "no head of the model matters",
            "estimator": f"Holm over {len(h)} heads; {row['estimator']}",
        }  # fmt: skip

    def _accuracy_rows(self, change: Estimate) -> list[dict[str, Any]]:
        """Changes of accuracy (3, M), single heads by McNemar's test."""
        lost, gained = (self.total[:, SINGLE, :, NUMBERS.index(q)].sum(0).long() for q in ("lost", "gained"))
        n = change.n[SINGLE].tolist()
        tests = [mcnemar(*_pairs(*x)) for x in zip(gained.tolist(), lost.tolist(), n, strict=True)]
        low, high = (np.array([getattr(t.interval, k) for t in tests]) for k in ("low", "high"))
        p = np.array([test.p for test in tests])
        row = self._effect("accuracy_change", "fraction", "p: exact McNemar")
        columns = {"low": low, "high": high, "p": p, "interval": "Agresti-Min", "se": None, "df": None}
        columns |= self._beside(change[SUBSPACES])
        return [head_rows(row, self.index, change[SINGLE], **columns), self._holm(row, p)]

    def _shift_rows(self) -> list[dict[str, Any]]:
        at = NUMBERS.index("output_shift")
        counts = self.count[:, SINGLE, :, at]
        n = counts.amax(-1)

        def relative(total: Tensor, count: Tensor, mean: Tensor, square: Tensor, n: Tensor) -> Tensor:
            variance = square / n - (mean / n[:, None]).square().sum(-1)  # (1 + G,)
            return total / count / torch.where(variance > 0, variance, torch.nan)[:, None]

        spread = (self.output, self.output_square, n)
        value, null = (
            grouped_estimate(relative, (self.total[:, kind, :, at], counts, *spread), counts)
            for kind in (SINGLE, SUBSPACES)
        )
        if not np.isfinite(value.value).any():
            self.note(
                f"{self.views[0].label}: the output is the same for all images, so no change is relative to it"
            )
            return []
        of = "logits" if self.classifier else "pooled features"
        how = f"E|o' - o|^2 / E|o - mean o|^2 of the {of} o; p: against the null, paired"
        row = self._effect("output_shift", "fraction of variance", how)
        return self._rows_of(row, value.positive(), null.positive(), self._beyond(value, null))

    def _importance_rows(self, scores: Estimate, quantity: str, loss: str) -> Iterator[dict[str, Any]]:
        """Mean scores (3, M) over their l2 norm in the layer."""
        if not scores.n.any():
            return
        member = self.index.member.numpy()

        def normalised(mean: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):  # nothing depends on any head of the layer
                return mean / (np.sqrt(mean[:, :1] ** 2 @ member.T) @ member)  # (1 + G, 2, M)

        found = scores[[SINGLE, SUBSPACES]].map(normalised)
        how = f"E|dL/dxi|, L the cross-entropy of the {loss}, divided by the l2 norm over the layer's heads"
        row = self.base(quantity, "none", estimator=how)
        yield head_rows(row, self.index, found[0], **self._beside(found[1]))

    def _layer_rows(self, kl: Estimate) -> list[dict[str, Any]]:
        """All heads of a layer out, against the sum over its heads one by one; kl (3, M)."""
        if not self.classifier:
            return []
        member = self.index.member.numpy()
        value = kl[LAYER, [where.start for where in self.where.values()]]
        null = kl[SINGLE].map(lambda x: x @ member.T, value.sizes)
        layers = np.array([f"blocks.{i}.attn" for i in self.index.layers], dtype=object)
        return [
            self.row(layers) | self.base(
                "kl_layer", "nats", variant=self.mode, estimate=value.positive(), p=value - null, null=null.positive(),
                null_kind="sum over the layer's heads taken out one by one; 95 % interval of it",
                estimator=f"{self.mode} ablation of all heads of a layer; p: against the null",
            )
        ]  # fmt: skip


def _pairs(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong after and before a change, of n images of which so many differ."""
    after, before = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    after[:gained] = before[gained : gained + lost] = True
    return after, before
