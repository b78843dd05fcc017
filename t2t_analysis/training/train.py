"""Train one model: a run folder holds its checkpoint, its learning curve and, when done, weights with a card."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from .. import models
from ..data import train_data
from ..errors import T2TError, UnknownNameError
from .module import AtomicCheckpointIO, Classifier, EpochSampler, History
from .recipe import Recipe

__all__ = ["model_args", "train"]


class _Data(L.LightningDataModule):
    """The training loader; the sampler is made here so that Lightning need not replace it under DDP."""

    def __init__(self, dataset: Any, recipe: Recipe, workers: int) -> None:
        super().__init__()
        self.dataset, self.recipe, self.workers = dataset, recipe, workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        sampler = EpochSampler(self.dataset, self.recipe.seed, trainer.global_rank, trainer.world_size)
        return DataLoader(
            self.dataset,
            batch_size=self.recipe.batch_size // trainer.world_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            # images that live on the device come as ready batches
            pin_memory=torch.cuda.is_available() and not getattr(self.dataset, "resident", False),
            collate_fn=getattr(self.dataset, "collate", None),
            drop_last=True,
        )


def model_args(model: str, num_classes: int, img_size: int | None) -> dict[str, Any]:
    """Arguments for ``timm.create_model``."""
    return {"num_classes": num_classes} | ({} if img_size is None else {"img_size": img_size})


def on_paper(model: str) -> Any:
    """The model without storage: enough to read its preprocessing from."""
    import timm

    if not timm.is_model(model):
        raise UnknownNameError(
            "model", model, [*models.MODELS, *timm.list_models("*deit*"), *timm.list_models("vit_*")]
        )
    with torch.device("meta"):
        return timm.create_model(model)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without Lightning's advice on things that are meant: no workers, a finished run, an average in eval mode."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in (".*many workers.*", ".*not empty.*", ".*eval mode.*", ".*isinstance.treespec.*"):
                warnings.filterwarnings("ignore", text)
            yield
    finally:
        logger.setLevel(level)


def _finite(trainer: L.Trainer) -> None:
    for name, value in trainer.lightning_module.named_parameters():
        if not value.isfinite().all():
            raise T2TError(f"training diverged: {name} is not finite; try a smaller learning rate")


def train(
    model: str,
    data: str = "photo_crops",
    *,
    recipe: Recipe | None = None,
    out: str | Path,
    img_size: int | None = None,
    devices: int | str | list[int] = "auto",
    accelerator: str = "auto",
    precision: Any = None,
    workers: int = 0,
    restart: bool = False,
    quiet: bool = False,
    compile: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    init: torch.nn.Module | None = None,
    dataset: Callable[..., Any] = train_data,
) -> Classifier:
    """Train ``model`` on ``data`` and return the Lightning module; ``out/last.ckpt`` is written after every epoch.

    If ``out`` holds a checkpoint of the same run, training goes on from there and ends with the same weights as an
    uninterrupted run; a checkpoint of another run is an error, and ``restart`` throws it away.

    Parameters
    ----------
    out : run folder: ``last.ckpt``, ``curve.csv``.
    img_size : default is the model's own.
    precision : Lightning's name; default is "bf16-mixed" on CUDA and "32-true" elsewhere.
    devices, accelerator : more than one device means DDP; ``recipe.batch_size`` is shared out.
    init : start from the weights of this model, which has the same parts and a head for these classes; every
        parameter is trained. A run that goes on from its checkpoint takes the weights from there.
    """
    recipe, out = recipe or Recipe(), Path(out)
    blank = on_paper(model)
    size = img_size or blank.default_cfg["input_size"][-1]
    images: Any = dataset(
        data, split="train", img_size=size, fraction=recipe.fraction, seed=recipe.seed, model=blank
    )
    steps = len(images) // recipe.batch_size
    if steps == 0:
        raise T2TError(
            f"batch_size={recipe.batch_size} is larger than the training set ({len(images)} images)"
        )
    args = model_args(model, len(images.info.classes), img_size)
    module = Classifier(model, args, recipe.as_dict(), steps * recipe.epochs)
    if init is not None:
        module.start_from(init)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint_of(out, module, restart)
    if compile:
        module.model.compile()
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    with _hushed():
        trainer = L.Trainer(
            max_epochs=recipe.epochs,
            accelerator=accelerator,
            devices=devices if cuda or devices != "auto" else 1,
            precision=precision or ("bf16-mixed" if cuda else "32-true"),
            gradient_clip_val=recipe.clip or None,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=out,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                History(out / "curve.csv", quiet),
                *callbacks,
                ModelCheckpoint(dirpath=out, filename="last", save_top_k=1, enable_version_counter=False),
            ],
        )
        trainer.fit(module, _Data(images, recipe, workers), ckpt_path=checkpoint, weights_only=True)
    _finite(trainer)
    return module


def _checkpoint_of(out: Path, module: Classifier, restart: bool) -> str | None:
    """Path of this run's checkpoint, None if there is none."""
    path = out / "last.ckpt"
    if restart or not path.exists():
        path.unlink(missing_ok=True)
        return None
    found = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
    wanted = dict(module.hparams)
    differ = [key for key in wanted if found.get(key) != wanted[key]]
    if differ:
        details = "; ".join(f"{key}: {found.get(key)} there, {wanted[key]} asked for" for key in differ)
        raise T2TError(f"{path} belongs to another run ({details}); choose another folder or restart")
    return str(path)
