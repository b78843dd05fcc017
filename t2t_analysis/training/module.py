"""The Lightning module, and what makes a run resumable."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import timm
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler

from .._files import whole_file
from ..errors import T2TError
from .optimiser import make_optimiser
from .precision import LINEAR, with_bf16_products
from .recipe import Recipe, rate_at

#: An epoch is cut into so many legs, each with a checkpoint at its end: a fifth of any number of epochs is whole legs.
LEGS = 5


class Length(NamedTuple):
    """Of a run, in steps: an epoch's legs, the steps of one, and the leg after which the rate decays."""

    legs: int
    steps: int
    epochs: int
    branch_leg: int

    @classmethod
    def of(cls, images: int, recipe: Recipe) -> Length:
        """Of a run on so many images an epoch; images that fill no whole leg are left out, others in each epoch.

        >>> Length.of(6080, Recipe(epochs=3)), Length.of(6080, Recipe(epochs=3)).total
        (Length(legs=5, steps=19, epochs=3, branch_leg=12), 285)
        """
        batches = images // recipe.batch_size
        if batches == 0:
            raise T2TError(
                f"batch_size={recipe.batch_size} is larger than the training set ({images} images)"
            )
        legs = min(LEGS, batches)
        return cls(legs, batches // legs, recipe.epochs, round((1 - recipe.decay) * legs * recipe.epochs))

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.legs * self.steps

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.epochs * self.per_epoch


class LegSampler(Sampler[int]):
    """One leg of a permutation that depends on (seed, epoch) only; Lightning tells it the leg, it tells the data set.

    With several processes each takes every ``world``-th index, and what does not divide is left out, so that all
    processes make the same number of steps.
    """

    def __init__(
        self, dataset: Sized, seed: int, legs: int, images: int, rank: int = 0, world: int = 1
    ) -> None:
        self.dataset, self.seed, self.legs, self.images = dataset, seed, legs, images
        self.rank, self.world = rank, world
        self.set_epoch(0)

    def set_epoch(self, leg: int) -> None:
        """Choose the leg, counted from the first epoch on, and the crops or augmentations of the data set."""
        self.epoch, self.leg = divmod(leg, self.legs)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)

    def __len__(self) -> int:
        return self.images // self.world

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))
        leg = order[self.leg * self.images : (self.leg + 1) * self.images]
        return iter(leg[self.rank :: self.world][: len(self)].tolist())


class Classifier(L.LightningModule):
    """A classifier under ``recipe``; ``state_dict`` holds the weights (``model.``) and their average (``ema.``).

    Every random choice of a step is seeded by (seed, step), so that a run that was killed and resumed ends with the
    same weights as one that was not. What Lightning calls an epoch is a leg of ours.
    """

    def __init__(
        self,
        model: str,
        model_args: dict[str, Any],
        recipe: dict[str, Any],
        images: int,
        precision: str = "32-true",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.recipe = Recipe(**recipe)
        self.length = Length.of(images, self.recipe)
        self.num_classes = model_args["num_classes"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.model = timm.create_model(model, drop_path_rate=self.recipe.drop_path, **model_args)
        if precision == LINEAR:
            with_bf16_products(self.model)
        self.ema = ModelEmaV3(self.model, decay=self.recipe.ema, use_warmup=True)
        how = {"label_smoothing": self.recipe.smoothing, "num_classes": self.num_classes}
        alphas = self.recipe.mixup, self.recipe.cutmix
        self.mix = Mixup(*alphas, **how) if any(alphas) else None
        self.loss = SoftTargetCrossEntropy()
        self.history: list[dict[str, float]] = []
        self._sums = torch.zeros(3)  # loss, hits, images of this epoch
        self._seconds = [0.0, 0.0]  # of this epoch up to its last leg: by the clock, by this process

    def start_from(self, model: nn.Module) -> None:
        """Take the weights of ``model``, head included, and let the average start there too."""
        self.model.load_state_dict(model.state_dict())
        self.ema.module.load_state_dict(model.state_dict())

    def on_train_epoch_start(self) -> None:
        """Start this epoch's sums, if it is its first leg."""
        if self.current_epoch % self.length.legs == 0:
            self._sums, self._seconds = torch.zeros(3), [0.0, 0.0]
        self._sums = self._sums.to(self.device)
        self._began = time.perf_counter(), time.process_time()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout, drop path and mixup by (seed, step, rank): loaders also draw from these generators."""
        key = [self.recipe.seed, self.global_step, self.global_rank]
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
        mix = self.mix if len(labels) % 2 == 0 else None
        images, targets = mix(images, labels) if mix else (images, self._targets(labels))
        logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        with torch.no_grad():
            hits, count = (logits.argmax(1) == labels).sum(), torch.full_like(loss, len(labels))
            self._sums += torch.stack((loss.detach() * len(labels), hits, count)).float()
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        """Add up a leg's time; at the end of an epoch write the learning curve and say where we are.

        Checkpoints are written after this.
        """
        ended = time.perf_counter(), time.process_time()
        self._seconds = [s + b - a for s, a, b in zip(self._seconds, self._began, ended, strict=True)]
        if (self.current_epoch + 1) % self.length.legs:
            return
        loss, hits, images = self._sums.tolist()
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        row = {
            "epoch": self.current_epoch // self.length.legs, "train_loss": loss / images,
            "train_accuracy": hits / images, "lr": rate,
            "images_per_second": images / self._seconds[0], "cpu_seconds": self._seconds[1],
        }  # fmt: skip
        self.history.append(row)
        if self.global_rank == 0:
            with whole_file(Path(self.trainer.default_root_dir) / "curve.csv") as temporary:
                pd.DataFrame(self.history).to_csv(temporary, index=False)
            print(_line(row, self.length.epochs, self._seconds[0]), file=sys.stderr, flush=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The learning curve travels in the checkpoint, so that a resumed run has all of it."""
        checkpoint |= {"history": self.history, "sums": self._sums.cpu(), "seconds": self._seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the learning curve where it ended."""
        self.history, self._sums, self._seconds = (checkpoint[key] for key in ("history", "sums", "seconds"))

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, and a rate that moves every step."""
        optimiser, length = make_optimiser(self.model, self.recipe), self.length
        warm = max(1, round(self.recipe.warmup * length.per_epoch))
        branch = length.branch_leg * length.steps
        schedule = LambdaLR(optimiser, lambda step: rate_at(step, warm, branch, length.total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def averaged(self) -> nn.Module:
        """The averaged weights in evaluation mode: what is evaluated and exported."""
        return self.ema.module.eval()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside and move into place: a kill while writing leaves the last good checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path`` whole or not at all."""
        with whole_file(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class Trunk(Checkpoint):
    """Keeps the checkpoint at which the decay begins: longer runs of the same recipe go on from there.

    Parameters
    ----------
    folder : where runs that differ in their length alone find each other's checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(module: Classifier) -> str:
        """Twelve digits of everything about a run but its number of epochs."""
        same = dict(module.hparams) | {"recipe": dict(module.hparams["recipe"]) | {"epochs": None}}
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]

    def find(self, module: Classifier) -> Path | None:
        """The longest trunk that ``module`` has not yet branched from."""
        legs = {int(path.stem.rpartition("_")[2]): path for path in self.folder.glob(f"{self.key(module)}_*")}
        fitting = [leg for leg in legs if leg <= module.length.branch_leg]
        return legs[max(fitting)] if fitting else None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the checkpoint at the last leg before the decay."""
        assert isinstance(module, Classifier)
        if trainer.current_epoch + 1 == module.length.branch_leg:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(self.folder / f"{self.key(module)}_{module.length.branch_leg}.ckpt")


def _line(row: dict[str, float], epochs: int, seconds: float) -> str:
    """Where a run is after an epoch that took so many seconds."""
    done = int(row["epoch"]) + 1
    left = seconds * (epochs - done)
    return (
        f"epoch {done}/{epochs}  loss {row['train_loss']:.3f}  train accuracy {row['train_accuracy']:.3f}  "
        f"{row['images_per_second']:.0f} images/s  {int(left // 60)}:{int(left % 60):02d} left"
    )
