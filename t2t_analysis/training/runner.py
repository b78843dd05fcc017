"""One run of the study: train or transfer, evaluate, and make its row."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn

from .._commit import commit
from ..data import load_images, train_data
from ..data.loading import SMALL
from ..errors import DataError, T2TError
from ..models import save_weights
from . import table
from .accuracy import Scores, calibration, proportion, score
from .design import Run, cell_of, data_label
from .export import rounded
from .module import Classifier
from .resident import fingerprint, resident_loader, resident_train
from .train import on_paper, train

__all__ = ["WEIGHTS", "execute", "macs", "matrix_rate"]

WEIGHTS = "weights.safetensors"
#: Training images that the training loss and accuracy are measured on, at most.
MOST_TRAIN = 10_000


class BusyError(T2TError):
    """Another process is at this run."""


class Place(NamedTuple):
    """Where a run computes and writes."""

    out: Path
    runs: Path
    device: str = "cpu"
    test_curve: bool = False
    compile: bool | None = None

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def precision(self) -> str:
        return "bf16-mixed" if self.cuda else "32-true"

    @property
    def compiled(self) -> bool:
        return self.cuda if self.compile is None else self.compile


def macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of one forward pass of one RGB image: half of the FLOPs of all matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    model.train(training)
    return counter.get_total_flops() // 2


def matrix_rate(device: str, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product on ``device``: bf16 with 8192 rows on CUDA, float32 with 1024 elsewhere."""
    cuda = device.startswith("cuda")
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)

    def timed() -> float:
        begun = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    timed()
    spent: list[float] = []
    while sum(spent) < seconds:
        spent.append(timed())
    return 2 * side**3 / median(spent)


def _peak_memory(device: str) -> tuple[int, str]:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device), "allocated on the device"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident set of the process"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _versions() -> str:
    known = {name: version(name) for name in ("torch", "timm", "lightning", "numpy")}
    return "; ".join([f"python {platform.python_version()}", *(f"{k} {v}" for k, v in known.items())])


class TestCurve(L.Callback):
    """Accuracy of the averaged weights on the test images after each epoch, into the learning curve."""

    def __init__(self, loader: Any, device: str) -> None:
        self.loader, self.device = loader, device

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Comes after the row of the epoch was made and before the checkpoint that keeps it."""
        assert isinstance(module, Classifier)
        module.history[-1]["test_accuracy"] = float(
            score(module.averaged(), self.loader, self.device).top1.mean()
        )


class Images(NamedTuple):
    """Data of a run: ``train`` for ``train()``, loaders of the images to evaluate on."""

    train: Any
    test: Any
    seen: Any
    all_seen: Any  # called for a loader of all training images, not augmented


def _images(run: Run, place: Place) -> Images:
    """On the device for small images, streamed from where they are for others."""
    blank = on_paper(run.model)
    if blank.default_cfg["input_size"][-1] >= SMALL:
        return _streamed(run, place, blank)
    common: dict[str, Any] = {
        "img_size": blank.default_cfg["input_size"][-1],
        "model": blank,
        "device": place.device,
    }
    chosen: dict[str, Any] = {"fraction": run.recipe.fraction, "seed": run.recipe.seed}

    def training(*args: Any, **kwargs: Any) -> Any:
        return resident_train(*args, device=place.device, **kwargs)

    def seen(most: int | None = None) -> Any:
        return resident_loader(run.data, split="train", most=most, **chosen, **common)

    return Images(training, resident_loader(run.data, split="test", **common), seen(MOST_TRAIN), seen)


def _streamed(run: Run, place: Place, blank: Any) -> Images:
    if run.recipe.fraction < 1:
        raise DataError(
            f"fraction={run.recipe.fraction}: {run.model} is too large for images in memory, it takes all"
        )
    common: dict[str, Any] = {"model": blank, "batch_size": 64, "device": place.device}

    def seen() -> Any:
        return load_images(run.data, split="train", **common)

    everything = seen()
    some = everything
    if len(everything.dataset) > MOST_TRAIN:
        some = load_images(run.data, split="train", n_images=MOST_TRAIN, **common)
    return Images(train_data, load_images(run.data, split="test", **common), some, seen)


def train_run(run: Run, place: Place, images: Images, folder: Path, init: Any = None) -> Classifier:
    """Train in ``folder``, where a run that was killed goes on from its last checkpoint."""
    if place.cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
    index = int(place.device.partition(":")[2] or 0)
    return train(
        run.model,
        run.data,
        recipe=run.recipe,
        out=folder,
        accelerator="cuda" if place.cuda else "cpu",
        devices=[index] if place.cuda else 1,
        precision=place.precision,
        compile=place.compiled,
        callbacks=(TestCurve(images.test, place.device),) if place.test_curve else (),
        dataset=images.train,
        init=init,
    )


def _quality(scores: Scores, seen: Scores) -> dict[str, Any]:
    top1 = proportion(scores.top1, scores.cluster)
    return {
        "train_loss": float(seen.loss.mean()),
        "train_accuracy": float(seen.top1.mean()),
        "test_loss": float(scores.loss.mean()),
        "test_accuracy": top1.value,
        "test_low": max(0.0, top1.low),
        "test_high": min(1.0, top1.high),
        "test_n": top1.n,
        "test_unit": top1.unit,
        "calibration_error": calibration(scores).value,
    }


def _identity(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "task": run.task,
        "model": run.model,
        **cell_of(run.model)._asdict(),
        "data": data_label(run.data),
        "source": run.origin,
        "source_run": "",
        "seed": run.recipe.seed,
        "fraction": run.recipe.fraction,
        "epochs": run.recipe.epochs,
        "reduced": run.reduced,
        "sweep": run.sweep,
        "lr": run.recipe.lr,
        "batch_size": run.recipe.batch_size,
        "recipe": run.recipe.describe(),
        "command": run.command(),
    }


def _cost(place: Place, model: nn.Module, history: list[dict[str, float]], per_epoch: int) -> dict[str, Any]:
    """What the run took; the time is added up from the epochs, so that it holds for a resumed run too."""
    products = macs(model, model.default_cfg["input_size"][-1])  # type: ignore[index, arg-type]
    speeds = [row["images_per_second"] for row in history]
    speed, rate = (median(speeds) if speeds else None), matrix_rate(place.device)
    memory, kind = _peak_memory(place.device)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "macs": products,
        "images_per_second": speed,
        "matrix_rate": rate,
        "matrix_share": 6 * products * speed / rate if speed else None,
        "peak_memory": memory,
        "memory_kind": kind,
        "wall_seconds": sum(per_epoch / s for s in speeds) if speeds else None,
        "device": _device_name(place.device),
        "threads": torch.get_num_threads(),
        "precision": place.precision,
        "compiled": place.compiled,
        "versions": _versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _about_data(run: Run, images: Images, size: int) -> dict[str, Any]:
    chosen = images.train(
        run.data, img_size=size, fraction=run.recipe.fraction, seed=run.recipe.seed, model=on_paper(run.model)
    )
    resident = getattr(chosen, "resident", False)
    names = (chosen.info.names, images.test.dataset.info.names)
    return {
        "data_hash": fingerprint(run.data, size) if resident else f"names-{_digest(repr(names))}",
        "classes": len(images.test.dataset.info.classes),
        "chance": images.test.dataset.info.chance,
        "train_images": getattr(chosen, "different", len(chosen)),
        "train_unit": getattr(chosen, "unit", "image"),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _card(row: Mapping[str, Any], model: Any, info: Any) -> dict[str, Any]:
    return {
        "model": row["model"],
        "data": row["data"],
        "recipe": row["recipe"],
        "seed": row["seed"],
        "commit": row["commit"],
        "command": row["command"],
        "test_accuracy": {
            "value": round(row["test_accuracy"], 4),
            "low": round(row["test_low"], 4),
            "high": round(row["test_high"], 4),
            "n": row["test_n"],
            "unit": row["test_unit"],
        },
        "chance": round(info.chance, 4),
        "classes": list(info.classes),
        "steps": row["steps"],
        "images_seen": row["images_seen"],
        "parameters": row["parameters"],
        "num_classes": row["classes"],
        "img_size": model.default_cfg["input_size"][-1],
        "in_chans": 3,
        "data_licence": info.licence,
    }


def trained_row(
    run: Run, place: Place, images: Images, folder: Path, init: Any = None
) -> tuple[dict[str, Any], Any]:
    """Train, evaluate the averaged weights as half precision keeps them, save them; the row and the curve."""
    module = train_run(run, place, images, folder, init)
    model = rounded(module.averaged())
    quality = _quality(score(model, images.test, place.device), score(model, images.seen, place.device))
    per_epoch = module.total_steps // run.recipe.epochs * run.recipe.batch_size
    size = model.default_cfg["input_size"][-1]  # type: ignore[index]
    row = _identity(run) | _about_data(run, images, size) | quality  # type: ignore[arg-type]
    row |= {"steps": module.total_steps, "images_seen": module.total_steps * run.recipe.batch_size}
    row |= _cost(place, model, module.history, per_epoch)
    save_weights(model.state_dict(), folder / WEIGHTS, _card(row, model, images.test.dataset.info))
    return row, module.history


def execute(run: Run, place: Place) -> dict[str, Any]:
    """Do one run and add its row; a second process at the same run is refused (``BusyError``).

    The run folder keeps the weights with their card; the checkpoint goes once the row is in the table.
    """
    from filelock import FileLock, Timeout

    folder = place.runs / run.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            row, curve = _row(run, place, folder)
            table.add_row(row, curve, place.out)
            (folder / "last.ckpt").unlink(missing_ok=True)
    except Timeout:
        raise BusyError(f"another process is at {run.name}") from None
    return row


def _row(run: Run, place: Place, folder: Path) -> tuple[dict[str, Any], Any]:
    images = _images(run, place)
    if run.task == "train":
        return trained_row(run, place, images, folder)
    from .transfer import transfer_row

    return transfer_row(run, place, images, folder)
