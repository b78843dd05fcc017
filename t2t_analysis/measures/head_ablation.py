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
    LABELLED,
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
from .base import Estimate, MeasureBatch, View, add_by_group, grouped_estimate, mean_estimate
from .head_measure import head_rows

KINDS = ("single", "subspace", "layer")
SUBSPACE = (
    "random subspace of the layer's head outputs, as wide as a head, the same norm removed at every token"
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

    effects: Tensor  # (G, 3, M, 5) sums over images, see KINDS and QUANTITIES
    counts: Tensor  # (G, 3, M) images
    labelled: Tensor  # (G, 3, M) labelled images
    scores: Tensor  # (G, 2, 2, M): loss with labels or without, head or subspace
    score_counts: Tensor  # (G, 2)
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
        shape = (self.groups, len(KINDS), self.index.total)
        self.add_sum("effects", *shape, len(QUANTITIES))
        self.add_sum("counts", *shape)
        self.add_sum("labelled", *shape)
        self.add_sum("scores", self.groups, 2, 2, self.index.total)
        self.add_sum("score_counts", self.groups, 2)
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
        for layer, outputs in self._outputs(start, batch):
            self._add(layer, start.output.cpu(), outputs.cpu(), groups, labels, labelled)
        if self.importance and self.classifier:
            self._add_scores(start, batch.index, groups, labels, labelled)

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

    def _add(
        self, layer: int, full: Tensor, outputs: Tensor, groups: Tensor, labels: Tensor, labelled: Tensor
    ) -> None:
        heads = self.replay.sites[layer].num_heads
        sizes = [heads, heads if self.subspaces else 0, 1]
        finite = outputs.isfinite().all(-1)  # (V, B)
        if self.subspaces:
            finite[: 2 * heads] &= finite[: 2 * heads].roll(heads, 0)  # a head and its null, both or neither
        found = torch.stack([effects(full, o, labels, labelled) for o in outputs.nan_to_num()])  # (V, B, 5)
        first = self.where[layer].start
        kinds = torch.arange(len(KINDS)).repeat_interleave(torch.tensor(sizes))
        at = torch.cat([first + torch.arange(size) for size in sizes])
        for group in groups.unique():
            mine = groups == group
            used = (finite & mine).double()
            total = (found * used[..., None]).sum(1).to(self.effects)
            self.effects[group, kinds, at] += total
            self.counts[group, kinds, at] += used.sum(1).to(self.counts)
            self.labelled[group, kinds, at] += (used * labelled).sum(1).to(self.labelled)

    def _add_scores(
        self, start: Start, index: Tensor, groups: Tensor, labels: Tensor, labelled: Tensor
    ) -> None:
        predicted = start.output.argmax(-1)
        known = labelled.to(predicted.device)
        wanted = torch.where(known, labels.to(predicted.device), predicted)
        targets = torch.stack([wanted, predicted])  # (T, B)

        def losses(output: Tensor) -> Tensor:
            return -output.log_softmax(-1)[None].expand(2, -1, -1).gather(-1, targets[..., None])[..., 0]

        weight = torch.stack([labelled, torch.ones_like(labelled)]).double()  # (T, B)
        add_by_group(self.score_counts, groups, weight.T)
        for layer, (z, grads) in head_gradients(self.replay, start, losses).items():
            site, where = self.replay.sites[layer], self.where[layer]
            bases = self.bases[layer][index % self.subspaces].to(z.device)
            both = (head_scores(z, grads, site), subspace_scores(z, grads, site, bases))
            for kind, score in enumerate(both):
                value = (score.abs().cpu().double() * weight[..., None]).transpose(0, 1)  # (B, T, H)
                add_by_group(self.scores[:, :, kind, where], groups, value)

    # rows

    def compute(self) -> Result:
        """Rows for heads and layers, corrected p, importances."""
        self.add_notes()
        self._note_nonfinite()
        rows = [*self._effect_rows(), *self._importance_rows(), *self._layer_rows()]
        return self.result(rows, mode=self.mode)

    def _note_nonfinite(self) -> None:
        lost = float((self.counts[:, 0].amax(-1) - self.counts[:, 0].amin(-1)).sum())
        if lost:
            label = self.views[0].label
            self.note(f"{label}: without some heads the output of up to {lost:.0f} images is not finite")

    def _sums(self, kind: int, quantity: str) -> tuple[Tensor, Tensor]:
        """Sums and counts (G, M) of one quantity, of ``gained - lost`` for the change of accuracy."""
        counts = self.labelled if quantity in (*LABELLED, "accuracy_change") else self.counts
        of = self.effects[:, kind]
        if quantity == "accuracy_change":
            return of[..., QUANTITIES.index("gained")] - of[..., QUANTITIES.index("lost")], counts[:, kind]
        return of[..., QUANTITIES.index(quantity)], counts[:, kind]

    def _effect_rows(self) -> list[dict[str, Any]]:
        rows = self._shift_rows()
        if self.classifier:
            rows += self._tested("kl", "nats", against_null=True)
        if bool(self.labelled[:, 0].any()):
            rows += [*self._tested("loss_change", "nats", against_null=False), *self._accuracy_rows()]
        return rows

    def _means(self, quantity: str) -> tuple[Estimate, Estimate]:
        """Per head: the value and its null."""
        value, null = (mean_estimate(*self._sums(kind, quantity)) for kind in (0, 1))
        return value, null

    def _tested(self, quantity: str, unit: str, *, against_null: bool) -> list[dict[str, Any]]:
        value, null = self._means(quantity)
        tested = self._beyond(value, null) if against_null else value
        test = "p: against the null, paired" if against_null else "p: no change, paired"
        row = self.base(
            quantity, unit, variant=self.mode, estimator=f"{self.mode} ablation of one head; {test}"
        )
        if quantity == "kl":
            value, null = value.positive(), null.positive()
        return self._rows_of(row, value, null, tested)

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

    def _accuracy_rows(self) -> list[dict[str, Any]]:
        lost, gained = (self.effects[:, 0, :, QUANTITIES.index(q)].sum(0).long() for q in ("lost", "gained"))
        n = self.labelled[:, 0].sum(0).long()
        tests = [mcnemar(*_pairs(*x)) for x in zip(gained.tolist(), lost.tolist(), n.tolist(), strict=True)]
        low, high = (np.array([getattr(t.interval, k) for t in tests]) for k in ("low", "high"))
        p = np.array([test.p for test in tests])
        value, null = self._means("accuracy_change")
        row = self.base(
            "accuracy_change", "fraction", variant=self.mode,
            estimator=f"{self.mode} ablation of one head; p: exact McNemar",
        )  # fmt: skip
        columns = {"low": low, "high": high, "p": p, "interval": "Agresti-Min", "se": None, "df": None}
        columns |= self._beside(null)
        return [head_rows(row, self.index, value, **columns), self._holm(row, p)]

    def _shift_rows(self) -> list[dict[str, Any]]:
        counts = self.counts[:, 0]
        n = counts.amax(-1)

        def relative(total: Tensor, count: Tensor, mean: Tensor, square: Tensor, n: Tensor) -> Tensor:
            variance = square / n - (mean / n[:, None]).square().sum(-1)  # (1 + G,)
            return total / count / torch.where(variance > 0, variance, torch.nan)[:, None]

        spread = (self.output, self.output_square, n)
        value, null = (
            grouped_estimate(relative, (self._sums(kind, "output_shift")[0], counts, *spread), counts)
            for kind in (0, 1)
        )
        if not np.isfinite(value.value).any():
            self.note(
                f"{self.views[0].label}: the output is the same for all images, so no change is relative to it"
            )
            return []
        of = "logits" if self.classifier else "pooled features"
        how = f"E|o' - o|^2 / E|o - mean o|^2 of the {of} o; p: against the null, paired"
        row = self.base(
            "output_shift", "fraction of variance", variant=self.mode,
            estimator=f"{self.mode} ablation of one head; {how}",
        )  # fmt: skip
        return self._rows_of(row, value.positive(), null.positive(), self._beyond(value, null))

    def _importance_rows(self) -> list[dict[str, Any]]:
        names = ("importance", "importance_label_free")
        losses = ("cross-entropy of the label", "cross-entropy of the predicted class")
        return [
            self._importance_row(t, name, loss)
            for t, (name, loss) in enumerate(zip(names, losses, strict=True))
            if self.score_counts[:, t].any()
        ]

    def _importance_row(self, t: int, name: str, loss: str) -> dict[str, Any]:
        counts, scores = self.score_counts[:, t], self.scores[:, t]  # (G,), (G, 2, M)
        member = self.index.member.to(scores.device)

        def normalised(s: Tensor, n: Tensor) -> Tensor:
            mean = s / n[:, None, None]
            size = (mean[:, :1].square() @ member.T).sqrt() @ member  # (1 + G, 1, M), l2 norm of the layer
            return mean / size

        found = grouped_estimate(normalised, (scores, counts), counts)
        estimator = f"E|dL/dxi|, L the {loss}, divided by the l2 norm over the layer's heads"
        row = self.base(name, "none", estimator=estimator)
        return head_rows(row, self.index, found[0], **self._beside(found[1]))

    def _layer_rows(self) -> list[dict[str, Any]]:
        """All heads of a layer out, against the sum over its heads one by one."""
        if not self.classifier:
            return []
        member = self.index.member.to(self.effects.device)
        firsts = [where.start for where in self.where.values()]
        sums, counts = (x[:, firsts] for x in self._sums(2, "kl"))
        single = self._sums(0, "kl")[0] @ member.T  # (G, L)
        value, null = (mean_estimate(s, counts) for s in (sums, single))
        layers = np.array([f"blocks.{i}.attn" for i in self.index.layers], dtype=object)
        return [
            self.row(layers) | self.base(
                "kl_layer", "nats", variant=self.mode, estimate=value.positive(), p=value - null, null=null.positive(),
                null_kind="sum over the layer's heads taken out one by one; 95 % interval of it",
                estimator=f"{self.mode} ablation of all heads of a layer; p: against the null",
            )
        ]  # fmt: skip


_SUBSPACE = f"{SUBSPACE}; 95 % interval of its mean"


def _pairs(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong after and before a change, of n images of which so many differ."""
    after, before = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    after[:gained] = before[gained : gained + lost] = True
    return after, before
