"""What measures that take heads out share: what it does to an output, calibration, donors, labels that count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import capture
from ..data.loading import first_images
from ..errors import DataError, T2TError, UnknownNameError
from .ablation import MODES, Edit, HeadMeans, Replay, Site, Start
from .base import ImageMeans, MeasureBatch, View
from .head_measure import HeadIndex

#: What is known of an image whose output changed, in the order of `effects`.
QUANTITIES = ("kl", "output_shift", "loss_change", "lost", "gained")


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats of the output distributions of two sets of logits, (B, K) each -> (B,) float64.

    Zero where they differ by a constant, and without any label: what ``other`` loses of ``logits``.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, 5.0]])).tolist()
    [0.0]
    """
    p, q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def effects(full: Tensor, changed: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """What a change did to each image: (B, K) outputs before and after -> (B, 5), see ``QUANTITIES``.

    ``loss_change`` is that of the cross-entropy (nats), ``lost`` and ``gained`` say whether the right class
    was lost or won, all NaN where not ``labelled`` (B,); ``output_shift`` is the squared distance. An image whose
    changed output is not finite has none of them.
    """
    shift = (changed.double() - full.double()).square().sum(-1)
    target = labels.clamp_min(0).clamp_max(full.shape[-1] - 1)
    loss = [-o.double().log_softmax(-1).gather(-1, target[:, None])[:, 0] for o in (full, changed)]
    before, after = (o.argmax(-1) == labels for o in (full, changed))
    rows = [kl_divergence(full, changed), shift, loss[1] - loss[0], before & ~after, after & ~before]
    found = torch.stack([row.double() for row in rows], dim=-1)
    found[~labelled, 2:] = torch.nan
    found[~changed.isfinite().all(-1)] = torch.nan
    return found


def random_subspaces(count: int, dim: int, width: int, seed: int) -> Tensor:
    """Orthonormal bases (count, dim, width) of uniformly random subspaces."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, dim, width, generator=generator, dtype=torch.float64))[0]


def projected(x: Tensor, bases: Tensor) -> Tensor:
    """Part of x (B, N, D) that lies in the subspace of its image, bases (B, D, r)."""
    return (x @ bases) @ bases.transpose(-2, -1)


def _ratio(wanted: Tensor, given: Tensor) -> Tensor:
    return torch.where(given > 0, wanted / given, 0.0)


def put(heads: Sequence[int], reference: Tensor) -> Edit:
    """Edit that replaces heads by ``reference``, broadcastable to (B, N, H, d)."""
    chosen = list(heads)

    def edit(z: Tensor) -> None:
        z[:, :, chosen] = reference.to(z).expand_as(z)[:, :, chosen]

    return edit


def remove_subspace(head: int, reference: Tensor, bases: Tensor) -> Edit:
    """Edit that takes a random subspace (B, D, r) out of z - reference, as much of it as ``head`` has."""

    def edit(z: Tensor) -> None:
        delta = z - reference.to(z)  # (B, N, H, d)
        part = projected(delta.flatten(-2), bases.to(z))  # (B, N, D)
        wanted = delta[:, :, head].norm(dim=-1, keepdim=True)
        z -= (part * _ratio(wanted, part.norm(dim=-1, keepdim=True))).unflatten(-1, z.shape[-2:])

    return edit


def head_gradients(replay: Replay, start: Start, losses: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """Head outputs and the gradients of some losses by them, in one forward pass.

    Parameters
    ----------
    losses : function of the output (B, K) -> (T, B), one row a loss.

    Returns
    -------
    layer -> joined head outputs z (B, N, H d) and gradients (T, B, N, H d). The derivative of an image's loss
    by the factor xi_h of a head is <gradient, z> over the head's channels and all tokens.
    """
    kept: dict[int, Tensor] = {}
    handles = [site.hook(_leaf(kept, layer)) for layer, site in replay.sites.items()]
    try:
        with torch.enable_grad():
            x = start.tokens
            for i in range(len(replay.steps)):
                x = replay.step(i, x, start)
            rows = losses(replay.finish(x)).sum(-1)  # (T,)
            layers = list(kept)
            grads = [
                torch.autograd.grad(row, [kept[i] for i in layers], retain_graph=t + 1 < len(rows))
                for t, row in enumerate(rows)
            ]
    finally:
        for handle in handles:
            handle.remove()
    return {i: (kept[i].detach(), torch.stack([g[j] for g in grads])) for j, i in enumerate(layers)}


def _leaf(kept: dict[int, Tensor], layer: int) -> Any:
    def keep(z: Tensor) -> Tensor:
        kept[layer] = z if z.requires_grad else z.detach().requires_grad_()
        return kept[layer]

    return keep


def head_scores(z: Tensor, gradients: Tensor, site: Site) -> Tensor:
    """dL/dxi_h at xi = 1 of every image: (T, B, H)."""
    return site.heads(z * gradients).sum((-3, -1))


def subspace_scores(z: Tensor, gradients: Tensor, site: Site, bases: Tensor) -> Tensor:
    """The same for a random subspace that is given each head's norm at every token: (T, B, H)."""
    part = projected(z, bases.to(z))  # (B, N, D)
    along = (gradients * part).sum(-1)  # (T, B, N)
    scale = _ratio(site.heads(z).norm(dim=-1), part.norm(dim=-1, keepdim=True))  # (B, N, H)
    return torch.einsum("tbn,bnh->tbh", along, scale)


# ------------------------------------------------------------------------------------------ the measure


class AblationMeasure(ImageMeans):
    """Takes heads out of one model, in one of the ``MODES``: means over images of what that does to the output.

    Parameters
    ----------
    mode : "mean" (over calibration images, per position), "zero", or "resample" (another image's output).
    calibration : images (B, C, H, W) or a loader for means and resampling, at most ``limit`` of them. Without
        any, the first batch serves, and the result says so.

    Class attribute: ``by_logits``, whether only a classifier can be asked.

    Raises
    ------
    UnknownNameError : a mode that does not exist.
    CaptureError : the blocks of a model cannot be run by themselves; said before the first batch.
    T2TError : a model without a classifier where one is needed.
    DataError : calibration images that will not do.
    """

    by_logits: ClassVar[bool] = False

    def __init__(
        self,
        mode: str = "mean",
        *,
        calibration: Tensor | Iterable[Any] | None = None,
        limit: int = 64,
        groups: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(groups=groups)
        if mode not in MODES:
            raise UnknownNameError("kind of ablation", mode, MODES)
        self.mode, self.calibration, self.limit, self.seed = mode, calibration, limit, seed
        self.bank: Tensor | None = None
        self.head_means: HeadMeans | None = None

    def find_heads(self, view: View) -> None:
        """Find the heads, and check that the model can be run from its blocks on."""
        self.replay = Replay(view)
        heads = {layer: site.num_heads for layer, site in self.replay.sites.items()}
        self.index = HeadIndex(tuple(heads), tuple(heads.values()))
        self.classifier = "logits" in view.names
        if self.by_logits and not self.classifier:
            raise T2TError(f"{view.label} has no classifier, so there is no output to judge heads by")
        self.place = "logits" if self.classifier else view.names[-1]
        assert view.example is not None
        start = self.replay.start(view.example)
        self.replay.verify(start)
        self.width = start.output.shape[-1]

    def wants(self, view: View) -> list[str]:
        """Only to be told whether the output is finite."""
        return [self.place]

    def reduce(self, obs: capture.Observation) -> None:
        """Nothing is kept."""

    def update(self, batch: MeasureBatch) -> None:
        """Run the layers once, and again without heads."""
        self.calibrate(batch.images)
        if self.place in batch.seen[0]:
            self.take_out(self.replay.start(batch.images), batch, self.group(batch))

    def take_out(self, start: Start, batch: MeasureBatch, groups: Tensor) -> None:
        """Add what one batch becomes without heads, in image groups (B,)."""
        raise NotImplementedError

    def calibrate(self, images: Tensor) -> None:
        """Take the images for means and resampling, once."""
        if self.mode == "zero" or self.bank is not None:
            return
        view = self.views[0]
        given = (
            _rank_zero(images)
            if self.calibration is None
            else first_images(view.model, self.calibration, self.limit)
        )
        self.bank = given[: self.limit].to(images)
        if len(self.bank) < 2:  # the mean over one image is that image: nothing would be taken out of it
            raise DataError(f"{self.mode} ablation needs at least 2 calibration images, got {len(self.bank)}")
        if self.mode == "mean":
            self.head_means = HeadMeans.of(view.model, self.bank.split(len(images)), self.limit)
            bad = [layer for layer, mean in self.head_means.mean.items() if not mean.isfinite().all()]
            if bad:
                raise DataError(f"head outputs of layer {bad[0]} are not finite for the calibration images")

    def donors(self, batch: MeasureBatch) -> Tensor:
        """Other images (B, C, H, W) to resample from: the same for an image whatever batch it is in."""
        assert self.bank is not None
        chosen = (batch.index.cpu() * 40503 + self.seed * 9973) % len(self.bank)
        same = (self.bank[chosen] == batch.images).flatten(1).all(1).cpu()
        return self.bank[(chosen + same) % len(self.bank)]

    def walk(self, start: Start, batch: MeasureBatch) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Every block: its number, the tokens (B, N, D) that enter it, and what is put in the place of its heads.

        The last is broadcastable to (B, N, H, d), or None for a block without heads.
        """
        donor = self.replay.start(self.donors(batch)) if self.mode == "resample" else None
        x, y = start.tokens, None if donor is None else donor.tokens
        for i in range(len(self.replay.steps)):
            reference = None
            if i in self.replay.sites:
                reference = (
                    torch.zeros((), device=x.device) if self.head_means is None else self.head_means.mean[i]
                )
            if donor is not None and y is not None:
                if reference is None:
                    y = self.replay.step(i, y, donor)
                else:
                    y, reference = self.replay.observed_step(i, y, donor)
            yield i, x, reference
            x = self.replay.step(i, x, start)

    def labels(self, batch: MeasureBatch) -> tuple[Tensor, Tensor]:
        """Labels (B,), -1 without, and which of them are a class of the model, (B,) bool."""
        labels = torch.full((len(batch.index),), -1) if batch.labels is None else batch.labels.cpu()
        fit = self.classifier and self._classes in (0, self.width)
        return labels, (labels >= 0) & (labels < self.width) & fit

    @property
    def _classes(self) -> int:
        """Number of classes of the data, 0 if they do not tell."""
        return len((self.run.get("data") or {}).get("classes") or ())

    def add_notes(self) -> None:
        """What a reader must know about calibration and labels."""
        label = self.views[0].label
        if self.bank is not None:
            which = "the first batch" if self.calibration is None else "the calibration images"
            self.note(f"{label}: {self.mode} ablation from {len(self.bank)} images, {which}")
        if not self.classifier:
            self.note(
                f"{label}: no classifier, so heads are judged by the change of the pooled features only"
            )
        elif self._classes not in (0, self.width):
            why = f"the data's {self._classes} classes are not the model's {self.width}"
            self.note(f"{label}: no change of loss or accuracy, {why}; KL divergence needs no labels")

    def base(self, quantity: str, unit: str, **columns: Any) -> dict[str, Any]:
        """Columns of all rows of one quantity."""
        return self.row(quantity=quantity, value_unit=unit, tokens="all") | columns


def _rank_zero(images: Tensor) -> Tensor:
    """The first batch of the first process, so that several processes calibrate as one would."""
    if not (dist.is_available() and dist.is_initialized()):
        return images
    box = [images.cpu()]
    dist.broadcast_object_list(box, src=0)
    return box[0]
