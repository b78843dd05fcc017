"""What measures that take heads out share: calibration, donors, labels that count, and what to say about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import capture
from ..data.loading import as_seen_by, first_images
from ..errors import DataError, T2TError, UnknownNameError
from .ablation import MODES, HeadMeans, Replay, Start
from .base import Measure, MeasureBatch, View
from .head_summary import HeadIndex


class AblationMeasure(Measure):
    """Takes heads out of one model, in one of the ``MODES``.

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
        self.means: HeadMeans | None = None

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
            else first_images(as_seen_by(self.calibration, view.model), self.limit)
        )
        self.bank = given[: self.limit].to(images)
        if len(self.bank) < 2:  # the mean over one image is that image: nothing would be taken out of it
            raise DataError(f"{self.mode} ablation needs at least 2 calibration images, got {len(self.bank)}")
        if self.mode == "mean":
            self.means = HeadMeans.of(view.model, self.bank.split(len(images)), self.limit)
            bad = [layer for layer, mean in self.means.mean.items() if not mean.isfinite().all()]
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
                reference = torch.zeros((), device=x.device) if self.means is None else self.means.mean[i]
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
