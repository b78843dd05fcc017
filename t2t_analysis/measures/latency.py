"""How long a model takes, and how much memory it really uses, on this machine.

Models take turns, repeat by repeat, so that a machine that slows down slows all of them; what is reported is the
median with its interval, and ratios to the baseline within the same repeat.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats as sps
from torch import Tensor, nn

from ..data.loading import as_pair, channels_of
from ..errors import ParameterError, UnknownNameError
from ..results import Result


def median_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Median with the interval between order statistics that covers it in at least ``level`` of samples.

    Free of assumptions on the distribution (binomial); NaN ends where there are too few values (5 or fewer
    for 95 %).

    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    (5.0, 2.0, 8.0)
    """
    if not len(values):
        raise ParameterError("a median needs at least one value")
    ends = sps.quantile_test(values, p=0.5).confidence_interval(level)
    return float(np.median(values)), float(ends.low), float(ends.high)


def interleaved(
    work: Mapping[str, Callable[[], Any]], *, repeats: int = 11, warmup: int = 2, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Seconds that each piece of ``work`` takes, (repeats,) each; they take turns, in changing order.

    On CUDA the device is waited for before and after each.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for run in list(work.values()) * warmup:
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order, random = list(work), np.random.default_rng(0)
    for _ in range(repeats):
        random.shuffle(order)
        for name in order:
            wait()
            start = time.perf_counter()
            work[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What timings depend on, in words: processor or accelerator, threads, versions."""
    target = torch.device(device)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else platform.machine()
    return {
        "device": f"{target.type}, {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def machine_words(meta: Mapping[str, Any]) -> str:
    """What `latencies` wrote down of its machine, for a sentence.

    >>> machine_words({"device": "cpu, x86_64", "cores": 2, "threads": 1, "load": 1.5})
    'cpu, x86_64, 1 thread, load 1.5 on 2 cores just before'
    """
    threads, load = meta.get("threads"), meta.get("load")
    busy = "" if load is None else f", load {load} on {meta.get('cores')} cores just before"
    return f"{meta.get('device')}, {threads} thread{'' if threads == 1 else 's'}{busy}"


def latencies(
    models: Mapping[str, nn.Module],
    *,
    baseline: str | None = None,
    img_size: int | tuple[int, int] | Mapping[str, int | tuple[int, int]] = 224,
    batch_sizes: Sequence[int] = (1, 8, 32),
    training: bool = False,
    repeats: int = 11,
    warmup: int = 2,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Time of a forward pass or, if ``training``, of a training step without optimiser, by batch size.

    Quantities ``latency`` (milliseconds for a batch), ``throughput`` (images per second), each a median over
    repeats with its interval and, as null, the baseline's; ``latency_ratio`` to the baseline, pairwise within
    repeats; on CUDA also ``peak_inference`` or ``peak_training``, bytes that the allocator gave beyond
    weights and images (on a CPU, `costs` counts them).

    Parameters
    ----------
    models : label -> model; they are moved to ``device`` and put back.
    baseline : one of them, default the first.
    img_size : the same for all, or by label.
    dtype : of the images, and of autocast where it is a half precision.

    >>> found = latencies({"a": nn.Flatten()}, img_size=8, batch_sizes=[1], repeats=7)
    >>> sorted(set(found.frame["quantity"]))
    ['latency', 'throughput']
    """
    if not models or not batch_sizes or repeats < 1:
        raise ParameterError("latencies needs at least one model, one batch size and one repeat")
    first = next(iter(models)) if baseline is None else baseline
    if first not in models:
        raise UnknownNameError("baseline", first, list(models))
    busy = _load()  # before this adds to it
    homes = {
        label: next((p.device for p in model.parameters()), torch.device("cpu"))
        for label, model in models.items()
    }
    try:
        for model in models.values():
            model.train(training).to(device)
        rows: list[dict[str, Any]] = []
        for batch in batch_sizes:
            work = {label: _work(model, _images(batch, label, model, img_size, device), training, dtype)
                    for label, model in models.items()}  # fmt: skip
            seconds = interleaved(work, repeats=repeats, warmup=warmup, device=device)
            rows += _rows(seconds, first, batch, training)
            rows += _memory(work, first, batch, training, device)
    finally:
        for label, model in models.items():
            model.zero_grad(set_to_none=True)
            model.eval().to(homes[label])
    meta = {**machine(device), "load": busy, "dtype": str(dtype), "repeats": repeats, "baseline": first}
    name = "latency_training" if training else "latency"
    return Result(name, pd.DataFrame(rows).assign(measure=name), meta)


def _load() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _images(batch: int, label: str, model: nn.Module, img_size: Any, device: str) -> Tensor:
    size = as_pair(img_size[label] if isinstance(img_size, Mapping) else img_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels_of(model), *size, generator=generator).to(device)


def _work(model: nn.Module, images: Tensor, training: bool, dtype: torch.dtype) -> Callable[[], None]:
    half = dtype in (torch.float16, torch.bfloat16)

    def run() -> None:
        with torch.set_grad_enabled(training), torch.autocast(images.device.type, dtype=dtype, enabled=half):
            out = model(images)
        if training:
            out.float().sum().backward()
            model.zero_grad(set_to_none=True)

    return run


def _rows(
    seconds: Mapping[str, np.ndarray], first: str, batch: int, training: bool
) -> Iterator[dict[str, Any]]:
    step = "training step without optimiser" if training else "forward pass"
    for label, taken in seconds.items():
        series = {
            "latency": (1e3 * taken, 1e3 * seconds[first], "milliseconds"),
            "throughput": (batch / taken, batch / seconds[first], "images per second"),
            "latency_ratio": (taken / seconds[first], np.ones(1), "none"),
        }
        for quantity, (values, reference, unit) in series.items():
            if quantity == "latency_ratio" and label == first:
                continue
            value, low, high = median_interval(values)
            yield {
                **_shared(label, batch), "quantity": quantity, "value": value, "low": low, "high": high,
                "interval": f"order statistics of the median, {len(values)} repeats" if low == low else None,
                "n": len(values), "unit": "repeat", "value_unit": unit,
                "variant": "training" if training else "inference", "estimator": f"median, {step}",
                "null": float(np.median(reference)), "null_kind": f"as {first}",
            }  # fmt: skip


def _shared(label: str, batch: int) -> dict[str, Any]:
    return {
        "model": label, "weights": "any weights: time does not depend on them",
        "at": batch, "at_unit": "batch size",
    }  # fmt: skip


def _memory(
    work: Mapping[str, Callable[[], None]], first: str, batch: int, training: bool, device: str
) -> Iterator[dict[str, Any]]:
    """Peak of the CUDA allocator beyond what lies there already (all models' weights)."""
    if torch.device(device).type != "cuda":
        return
    peaks = {}
    for label, run in work.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        peaks[label] = torch.cuda.max_memory_allocated() - before
    for label, peak in peaks.items():
        yield {
            **_shared(label, batch), "quantity": "peak_training" if training else "peak_inference",
            "value": float(peak), "value_unit": "bytes", "interval": "none: the allocator is deterministic",
            "n": 1, "unit": "run", "estimator": "torch.cuda.max_memory_allocated beyond weights and images",
            "null": float(peaks[first]), "null_kind": f"as {first}",
        }  # fmt: skip
