"""Train one model: a run folder holds its checkpoint, its learning curve and, when done, weights with a card."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from .. import models
from .._files import writable_folder
from ..data import train_data
from ..errors import ParameterError, T2TError, UnknownNameError
from .module import AtomicCheckpointIO, Classifier, LegSampler, Trunk
from .precision import LINEAR, usual
from .recipe import Recipe

_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16", "bf16-true", "16-true", "64-true",
               "64")  # fmt: skip
#: what Lightning advises against and is meant: no workers, a finished run, an average in eval mode
_MEANT = ("many workers", "not empty", "eval mode", "isinstance.treespec", "dirpath has changed")


#: what Lightning would do besides
_QUIET: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False
)


class _Data(L.LightningDataModule):
    """The training loader; the sampler is made here so that Lightning need not replace it under DDP."""

    def __init__(self, dataset: Any, module: Classifier, workers: int) -> None:
        super().__init__()
        self.dataset, self.module, self.workers = dataset, module, workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        recipe, length = self.module.recipe, self.module.length
        leg = length.legs, length.steps * recipe.batch_size
        sampler = LegSampler(self.dataset, recipe.seed, *leg, trainer.global_rank, trainer.world_size)
        ready: Any = getattr(self.dataset, "batch", None)  # makes whole batches of indices, on its device
        images: Any = range(len(self.dataset)) if ready else self.dataset
        return DataLoader(
            images, batch_size=recipe.batch_size // trainer.world_size, sampler=sampler, drop_last=True,
            num_workers=self.workers, persistent_workers=self.workers > 0, collate_fn=ready,
            pin_memory=torch.cuda.is_available() and ready is None,
        )  # fmt: skip


def on_paper(model: str) -> Any:
    """The model without storage: enough to read its preprocessing from."""
    import timm

    if not timm.is_model(model):
        others = timm.list_models(["*deit*", "vit_*"])
        raise UnknownNameError("model", model, [*models.MODELS, *others])
    with torch.device("meta"):
        return timm.create_model(model)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without Lightning's advice on things that are meant."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in _MEANT:
                warnings.filterwarnings("ignore", f".*{text}.*")
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
    compile: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    trunks: Path | None = None,
    init: torch.nn.Module | None = None,
    dataset: Callable[..., Any] = train_data,
) -> Classifier:
    """Train ``model`` on ``data`` and return the Lightning module; ``out/last.ckpt`` is written five times an epoch.

    If ``out`` holds a checkpoint of the same run, training goes on from there and ends with the same weights as an
    uninterrupted run; a checkpoint of another run is an error, and ``restart`` throws it away.

    Parameters
    ----------
    out : run folder: ``last.ckpt``, ``curve.csv``.
    img_size : default is the model's own.
    precision : Lightning's name, or "bf16-linear" (see ``precision``); default is "bf16-mixed" on CUDA, "bf16-linear"
        on a CPU that has bfloat16, "32-true" elsewhere.
    devices, accelerator : more than one device means DDP; ``recipe.batch_size`` is shared out.
    trunks : folder of checkpoints that runs of other lengths left where they began to decay: the run starts from the
        longest that is also its own beginning, and ends with the same weights as without.
    init : start from the weights of this model, which has the same parts and a head for these classes; every
        parameter is trained. A run that goes on from its checkpoint takes the weights from there.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if not recipe.epochs:
        raise ParameterError("epochs=0: expected 1 or more")
    blank = on_paper(model)
    size = img_size or blank.default_cfg["input_size"][-1]
    drawn = {"fraction": recipe.fraction, "seed": recipe.seed}
    images: Any = dataset(data, split="train", img_size=size, model=blank, **drawn)
    args = {"num_classes": len(images.info.classes)} | ({"img_size": img_size} if img_size else {})
    if precision not in (None, LINEAR, *_PRECISIONS):
        raise UnknownNameError("precision", precision, (LINEAR, *_PRECISIONS))
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    precision = precision or usual(cuda)
    module = Classifier(model, args, asdict(recipe), len(images), precision)
    if init is not None:
        module.start_from(init)
    writable_folder(out)
    trunk = Trunk(trunks) if trunks else None
    checkpoint = _checkpoint_of(out, module, restart) or (trunk.find(module) if trunk else None)
    if compile:
        module.model.compile()
    last = ModelCheckpoint(dirpath=out, filename="last", save_top_k=1, enable_version_counter=False)
    with _hushed():
        trainer = L.Trainer(
            max_epochs=recipe.epochs * module.length.legs,
            accelerator=accelerator,
            devices=devices if cuda or devices != "auto" else 1,
            precision="32-true" if precision == LINEAR else precision,
            gradient_clip_val=recipe.clip or None,
            default_root_dir=out,
            plugins=[AtomicCheckpointIO()],
            callbacks=[*callbacks, *([trunk] if trunk else []), last],
            **_QUIET,
        )
        try:
            trainer.fit(module, _Data(images, module, workers), ckpt_path=checkpoint, weights_only=True)
        except SystemExit as end:  # how Lightning leaves after Ctrl-C, without a word
            raise KeyboardInterrupt from end
    _finite(trainer)
    return module


def _checkpoint_of(out: Path, module: Classifier, restart: bool) -> Path | None:
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
    return path
