"""The Lightning module and the callbacks that make a run resumable and readable."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Sampler

from .recipe import Recipe

__all__ = ["AtomicCheckpointIO", "Classifier", "EpochSampler", "History"]


class EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) only; Lightning tells it the epoch, it tells the data set.

    With several processes each takes every ``world``-th index, and what does not divide is left out, so that all
    processes make the same number of steps.
    """

    def __init__(self, dataset: Sized, seed: int, rank: int = 0, world: int = 1) -> None:
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation, and the crops or augmentations of the data set."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset) // self.world

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))
        return iter(order[: len(self) * self.world][self.rank :: self.world].tolist())


class Classifier(L.LightningModule):
    """A classifier under ``recipe``; ``state_dict`` holds the weights (``model.``) and their average (``ema.``).

    Every random choice of a step is seeded by (seed, epoch, step), so that a run that was killed and resumed ends with
    the same weights as one that was not.
    """

    def __init__(
        self, model: str, model_args: dict[str, Any], recipe: dict[str, Any], total_steps: int
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.recipe, self.total_steps = Recipe(**recipe), total_steps
        self.num_classes = model_args["num_classes"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.model = timm.create_model(model, drop_path_rate=self.recipe.drop_path, **model_args)
        self.ema = ModelEmaV3(self.model, decay=self.recipe.ema, use_warmup=True)
        self.mix = self._make_mix()
        self.loss = SoftTargetCrossEntropy()
        self.history: list[dict[str, float]] = []
        self._sums = torch.zeros(3)  # loss, hits, images of this epoch

    def start_from(self, model: nn.Module) -> None:
        """Take the weights of ``model``, head included, and let the average start there too."""
        self.model.load_state_dict(model.state_dict())
        self.ema.module.load_state_dict(model.state_dict())

    def _make_mix(self) -> Mixup | None:
        if not (self.recipe.mixup or self.recipe.cutmix):
            return None
        return Mixup(
            self.recipe.mixup,
            self.recipe.cutmix,
            label_smoothing=self.recipe.smoothing,
            num_classes=self.num_classes,
        )

    def on_train_epoch_start(self) -> None:
        """Start this epoch's sums."""
        self._sums = torch.zeros(3, device=self.device)
        self._started = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout, drop path and mixup by (seed, epoch, step, rank): loaders also draw from these generators."""
        key = [self.recipe.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # timm's Mixup draws from numpy's global generator

    def _targets(self, labels: Tensor) -> Tensor:
        off = self.recipe.smoothing / self.num_classes
        soft = torch.full((len(labels), self.num_classes), off, device=labels.device)
        return soft.scatter_(1, labels[:, None], 1 - self.recipe.smoothing + off)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One step on images (B, C, H, W) and labels (B,)."""
        images, labels = batch
        images, targets = (
            self.mix(images, labels) if self.mix and len(labels) % 2 == 0 else (images, self._targets(labels))
        )
        logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        with torch.no_grad():
            hits = (logits.argmax(1) == labels).sum()
            self._sums += torch.stack(
                (loss.detach() * len(labels), hits, torch.full_like(loss, len(labels)))
            ).float()
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model, step=self.global_step)

    def epoch_row(self) -> dict[str, float]:
        """What the epoch did; loss and accuracy are of the training images as augmented, by the moving weights."""
        loss, hits, images = self._sums.tolist()
        return {
            "epoch": self.current_epoch,
            "train_loss": loss / images,
            "train_accuracy": hits / images,
            "lr": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            "images_per_second": images / (time.perf_counter() - self._started),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The learning curve travels in the checkpoint, so that a resumed run has all of it."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the learning curve where it ended."""
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> Any:
        """AdamW and a cosine that moves every step."""
        recipe = self.recipe
        optimizer = create_optimizer_v2(self.model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=self.total_steps,
            lr_min=recipe.min_lr,
            warmup_t=max(1, round(recipe.warmup * self.total_steps)),
            warmup_lr_init=recipe.min_lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Timm's schedulers are told the step."""
        scheduler.step_update(self.global_step)

    def averaged(self) -> nn.Module:
        """The averaged weights in evaluation mode: what is evaluated and exported."""
        return self.ema.module.eval()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside and move into place: a kill while writing leaves the last good checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path`` whole or not at all."""
        temporary = f"{path}.part"
        super().save_checkpoint(checkpoint, temporary, storage_options)
        os.replace(temporary, path)


class History(L.Callback):
    """The learning curve as CSV, and one line an epoch on stderr with the time that is left."""

    def __init__(self, path: Path, quiet: bool = False) -> None:
        self.path, self.quiet = path, quiet
        self._began = 0.0
        self._first: int | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Remember when this run, which may be a resumed one, began."""
        if self._first is None:
            self._began, self._first = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Add a row, write the curve, say where we are; checkpoints are written after this."""
        assert isinstance(module, Classifier)
        assert self._first is not None
        module.history.append(module.epoch_row())
        if not trainer.is_global_zero:
            return
        write_curve(module.history, self.path)
        if not self.quiet:
            done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
            left = (time.perf_counter() - self._began) / (done - self._first) * (total - done)
            print(_line(module.history[-1], done, total, left), file=sys.stderr, flush=True)


def _line(row: dict[str, float], done: int, total: int, left: float) -> str:
    return (
        f"epoch {done}/{total}  loss {row['train_loss']:.3f}  train accuracy {row['train_accuracy']:.3f}  "
        f"{row['images_per_second']:.0f} images/s  {int(left // 60)}:{int(left % 60):02d} left"
    )


def write_curve(history: list[dict[str, float]], path: Path) -> None:
    """Write the learning curve as CSV, whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    os.replace(temporary, path)
