"""One run of the study: train or transfer, evaluate, and make its row."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._files import writable_folder
from ..data import train_data
from ..data.loading import SMALL
from ..errors import DataError, T2TError
from ..models import save_weights
from . import precision, rates, rows, table
from .accuracy import score
from .design import WEIGHTS, Run, data_label, demand_rate, design_hash
from .module import Classifier
from .recipe import Recipe
from .resident import fingerprint, fixed_images, resident_train
from .train import on_paper, train
from .transfer import PENALTY, linear_probe, start, weights_of

#: Training images that the training loss and accuracy are measured on, at most.
MOST_TRAIN = 10_000


class BusyError(T2TError):
    """Another process is at this run."""


class Place(NamedTuple):
    """Where a run computes and writes."""

    out: Path
    runs: Path
    device: str = "cpu"

    @property
    def cuda(self) -> bool:
        """Whether it computes on a GPU; then the model is compiled."""
        return self.device.startswith("cuda")


class Images(NamedTuple):
    """Data of a run: ``train`` for ``train()``, loaders of the images to evaluate on."""

    train: Any
    test: Any
    seen: Any
    all_seen: Any  # called for a loader of all training images, not augmented


def _images(run: Run, place: Place) -> Images:
    """Small images are trained on from the device, others are streamed from where they are."""
    blank = on_paper(run.model)
    large, share = blank.default_cfg["input_size"][-1] >= SMALL, run.recipe.fraction
    if large and share < 1:
        raise DataError(f"fraction={share}: {run.model} is too large for images in memory, it takes all")
    fixed = partial(fixed_images, run.data, model=blank, batch_size=64 if large else 256)
    seen = partial(fixed, split="train", fraction=share, seed=run.recipe.seed)
    training = train_data if large else partial(resident_train, device=place.device)
    return Images(training, fixed(split="test"), seen(most=MOST_TRAIN), seen)


def _train(run: Run, place: Place, dataset: Any, folder: Path, **more: Any) -> Classifier:
    """Train in ``folder``, where a run that was killed goes on from its last checkpoint."""
    if place.cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
    index = int(place.device.partition(":")[2] or 0)
    kind, which = ("cuda", [index]) if place.cuda else ("cpu", 1)
    where: dict[str, Any] = {"accelerator": kind, "devices": which}
    where |= {"precision": precision.usual(place.cuda), "compile": place.cuda}
    return train(run.model, run.data, recipe=run.recipe, out=folder, dataset=dataset, **where, **more)


def _about_data(run: Run, images: Images) -> dict[str, Any]:
    blank, info = on_paper(run.model), images.test.dataset.info
    size = blank.default_cfg["input_size"][-1]
    drawn = {"fraction": run.recipe.fraction, "seed": run.recipe.seed}
    chosen = images.train(run.data, img_size=size, model=blank, **drawn)
    names = hashlib.sha256(repr((chosen.info.names, info.names)).encode()).hexdigest()[:12]
    return {
        "data_hash": fingerprint(run.data, size) if hasattr(chosen, "batch") else f"names-{names}",
        "classes": len(info.classes),
        "chance": info.chance,
        "train_images": getattr(chosen, "different", len(chosen)),
        "train_unit": getattr(chosen, "unit", "image"),
    }


def _trained_row(
    run: Run, place: Place, images: Images, folder: Path, init: Any = None
) -> tuple[dict[str, Any], Any]:
    """Train, evaluate the averaged weights as half precision keeps them, save them; the row and the curve."""
    about = _about_data(run, images)
    more: dict[str, Any] = {"init": init}
    if init is None:
        more["trunks"] = place.runs / "trunks" / about["data_hash"]
    module = _train(run, place, images.train, folder, **more)
    model = rows.rounded(module.averaged())
    row = rows.identity(run) | about
    row |= rows.quality(score(model, images.test, place.device), score(model, images.seen, place.device))
    row |= rows.effort(module, model) | {"compiled": place.cuda}
    per_epoch = module.length.per_epoch * run.recipe.batch_size
    row |= rows.cost(model, module.history, per_epoch, place.device)
    row["precision"] = precision.describe(module.hparams["precision"], place.cuda)
    save_weights(model.state_dict(), folder / WEIGHTS, rows.card(row, model, images.test.dataset.info))
    return row, module.history


def _transferred_row(run: Run, place: Place, images: Images, folder: Path) -> tuple[dict[str, Any], Any]:
    """The row and the learning curve of a probe or of fine-tuning."""
    info = images.test.dataset.info
    weights = run.weights or weights_of(run, table.read_runs(place.out), place.runs)
    model = start(run, weights, place.device, len(info.classes))
    origin = {"source_run": data_label(run.weights) if run.weights else Path(weights).parent.name}
    if run.task == "finetune":
        row, curve = _trained_row(run, place, images, folder, init=model.cpu())
        return row | origin, curve
    found = rows.quality(*linear_probe(model, images.all_seen(), images.test, place.device))
    row = rows.identity(run) | _about_data(run, images) | found
    row |= {"steps": None, "images_seen": None, "recipe": f"logistic regression, C {PENALTY:g}, standardised"}
    row |= {"lr": None, "batch_size": None, "optimizer": ""} | rows.cost(model, [], 0, place.device)
    trainable = (model.num_features + 1) * len(info.classes)
    return row | origin | {"parameters": trainable, "precision": "32-true", "compiled": False}, []


def execute(run: Run, place: Place) -> dict[str, Any]:
    """Do one run and add its row; a second process at the same run is refused (``BusyError``).

    The run folder keeps the weights with their card; the checkpoint goes once the row is in the table.
    """
    from filelock import FileLock, Timeout

    demand_rate(run)
    writable_folder(place.out)
    folder = writable_folder(place.runs / run.name)
    try:
        with FileLock(folder / ".lock", timeout=0):
            make = _trained_row if run.task == "train" else _transferred_row
            row, curve = make(run, place, _images(run, place), folder)
            table.add_row(row, curve, place.out)
            (folder / "last.ckpt").unlink(missing_ok=True)
    except Timeout:
        raise BusyError(f"another process is at {run.name}") from None
    return row


def trial(model: str, data: str, recipe: Recipe, place: Place) -> dict[str, Any]:
    """Train on a share of the training images, evaluate on the rest of them, and add the row to ``rates.csv``."""
    writable_folder(place.out)
    run = Run(model, data, replace(recipe, epochs=rates.EPOCHS, fraction=rates.SHARE))
    blank = on_paper(model)
    size = blank.default_cfg["input_size"][-1]
    held = partial(fixed_images, data, split="train", model=blank, fraction=rates.SHARE, seed=recipe.seed)
    folder = place.runs / f"rate__{run.name}"
    module = _train(run, place, partial(resident_train, device=place.device), folder)
    net = rows.rounded(module.averaged())
    held_out = score(net, held(rest=True), place.device)
    seen = score(net, held(most=MOST_TRAIN), place.device)
    row = {
        "data": data_label(data), "data_hash": fingerprint(data, size), "model": model,
        "optimizer": recipe.optimizer, "lr": f"{recipe.lr:g}", "seed": recipe.seed, "epochs": rates.EPOCHS,
        "held_out_loss": f"{held_out.loss.mean():.5f}", "held_out_accuracy": f"{held_out.top1.mean():.5f}",
        "held_out_images": len(held_out.top1), "train_loss": f"{seen.loss.mean():.5f}",
        "cpu_seconds": f"{sum(part['cpu_seconds'] for part in module.history):.1f}",
        "precision": precision.describe(module.hparams["precision"], place.cuda), "design": design_hash(),
    } | rows.made()  # fmt: skip
    rates.add(row, place.out)
    (folder / "last.ckpt").unlink(missing_ok=True)
    return row
