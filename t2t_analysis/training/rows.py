"""What a row of the study says of a run: who it is, how good, what it saw and what it cost."""

from __future__ import annotations

import copy
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from .. import _commit
from .accuracy import Scores, calibration, in_words, proportion
from .design import Run, cell_of, data_label, design_hash
from .module import Classifier


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


def made() -> dict[str, str]:
    """Columns that say by which versions and on which day, in UTC."""
    known = _commit.versions("torch", "timm", "lightning", "numpy")
    words, day = "; ".join(map(" ".join, known.items())), datetime.now(UTC).date().isoformat()
    return {"versions": words, "commit": _commit.commit(), "date": day}


def quality(scores: Scores, seen: Scores) -> dict[str, Any]:
    """Columns on the test images and on training images."""
    top1 = proportion(scores.top1, scores.cluster)
    return {
        "train_loss": float(seen.loss.mean()), "train_accuracy": float(seen.top1.mean()),
        "test_loss": float(scores.loss.mean()), "test_accuracy": top1.value,
        "test_low": max(0.0, top1.low), "test_high": min(1.0, top1.high),
        "test_n": top1.n, "test_unit": top1.unit, "calibration_error": calibration(scores).value,
    }  # fmt: skip


def said(row: Mapping[str, Any]) -> str:
    """The test accuracy of a row, with interval, n and chance."""
    about = {
        "quantity": "test_accuracy",
        "value": row["test_accuracy"],
        "null": row["chance"],
        "interval": "95 %",
    }
    return in_words(about | {name: row[f"test_{name}"] for name in ("low", "high", "n", "unit")})


def rounded(model: Any) -> nn.Module:
    """The model as half precision keeps it, computing in float32: what a reader of the file will have."""
    return copy.deepcopy(model).half().float().eval()


def effort(module: Classifier, model: nn.Module) -> dict[str, Any]:
    """Columns that say how much a training took in, and how many parameters it moved."""
    length = module.length
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "steps": length.total,
        "images_seen": length.total * module.recipe.batch_size,
        "parameters": parameters,
    }


def identity(run: Run) -> dict[str, Any]:
    """Columns that say which run it is."""
    recipe = run.recipe
    told = ("seed", "fraction", "epochs", "optimizer", "lr", "batch_size")
    return {
        "run": run.name, "task": run.task, "model": run.model, **cell_of(run.model)._asdict(),
        "data": data_label(run.data), "source": run.origin, "source_run": "",
        **{name: getattr(recipe, name) for name in told}, "reduced": run.reduced, "sweep": run.sweep,
        "recipe": recipe.describe(), "command": run.command(), "design": design_hash(),
    }  # fmt: skip


def cost(
    model: nn.Module, history: Sequence[Mapping[str, float]], per_epoch: int, device: str
) -> dict[str, Any]:
    """What the run took; the time is added up from the epochs, so that it holds for a resumed run too."""
    products = macs(model, model.default_cfg["input_size"][-1])  # type: ignore[index, arg-type]
    speeds = [row["images_per_second"] for row in history]
    speed, rate = (median(speeds) if speeds else None), matrix_rate(device)
    memory, kind = _peak_memory(device)
    return {
        "macs": products, "images_per_second": speed, "matrix_rate": rate,
        "matrix_share": 6 * products * speed / rate if speed else None,
        "peak_memory": memory, "memory_kind": kind,
        "wall_seconds": sum(per_epoch / s for s in speeds) if speeds else None,
        "cpu_seconds": sum(row["cpu_seconds"] for row in history) if history else None,
        "device": _device_name(device), "threads": torch.get_num_threads(), **made(),
    }  # fmt: skip


def card(row: Mapping[str, Any], model: Any, info: Any) -> dict[str, Any]:
    """The card of a row's weights; ``info`` is that of the test images."""
    same = ("model", "data", "recipe", "seed", "commit", "command", "steps", "images_seen", "parameters")
    ends = {key: round(float(row[f"test_{key}"]), 4) for key in ("low", "high")}
    accuracy = {"value": round(float(row["test_accuracy"]), 4), **ends}
    return {key: row[key] for key in same} | {
        "test_accuracy": accuracy | {"n": int(row["test_n"]), "unit": str(row["test_unit"])},
        "chance": round(info.chance, 4), "classes": list(info.classes), "num_classes": len(info.classes),
        "img_size": model.default_cfg["input_size"][-1], "in_chans": 3, "data_licence": info.licence,
    }  # fmt: skip
