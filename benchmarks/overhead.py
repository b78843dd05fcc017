"""What does measuring cost beside the forward passes that it watches? Every measure, and sets of them.

    python benchmarks/overhead.py [--models t2t_vit_14 ...] [--batch 8] [--only HeadSimilarity ...] [--write]

A plain forward pass of each batch is timed just before the batch is measured, in one process. So the ratio of the two
holds on a busy machine as well; its interval leaves out one batch at a time. Seconds are of processor time on one
thread; on CUDA, seconds on the clock, the device waited for. ``--write`` puts the tables into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from t2t_analysis import load_model
from t2t_analysis.errors import UnknownNameError
from t2t_analysis.estimates import Estimate
from t2t_analysis.measures import (
    BoundaryBlindness,
    EffectiveReceptiveField,
    HeadAblation,
    Measure,
    accumulate,
    collect,
)
from t2t_analysis.measures.catalogue import ALL
from t2t_analysis.measures.latency import machine

MODELS = ("small_performer_deep", "small_hard_split_deep", "deit_small_patch16_224", "t2t_vit_14")
FIVE = ("LayerCKA", "HeadOutputCKA", "AttentionGeometry", "HeadSimilarity", "InvalidChannels")
SETS: dict[str, tuple[str, ...]] = {
    "the five above": FIVE,
    "those and spectra": (*FIVE, "EffectiveRank", "Spectrum"),
    "head_redundancy": ("HeadSimilarity", "HeadOutputCKA", "Sinks"),
    "layer_similarity": ("LayerCKA", "LayerCollapse", "EffectiveRank"),
    "attention_geometry": ("AttentionGeometry", "AttentionRollout", "Redundancy"),
    "channel_zeros": ("InvalidChannels", "ChannelOutliers"),
}
#: These run a model again, with a graph: their unit is a forward and backward pass to weights and images.
GRADIENTS = ("EffectiveReceptiveField", "BoundaryBlindness")
Step = Callable[[nn.Module, Tensor], None]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name in given.models:
            table = "\n".join(report(name, given, device))
            if given.write:
                PAGE.write_text(replaced(PAGE.read_text(), table))


def replaced(page: str, table: str) -> str:
    """The page with this table in the place of the former one of the same heading, or at its end.

    Of a table made in the same setting the rows stay that are not measured again.
    """
    heading = table.split("\n", 1)[0]
    parts = re.split(r"(?=^### |^## )", page, flags=re.MULTILINE)
    at = next((i for i, part in enumerate(parts) if part.split("\n", 1)[0] == heading), len(parts))
    (old, former), (new, rows) = (_rows(part) for part in ("".join(parts[at : at + 1]), table))
    parts[at : at + 1] = ["\n".join([*new, *((former if old == new else {}) | rows).values()])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _rows(table: str) -> tuple[list[str], dict[str, str]]:
    """Lines up to the rule under the head, and rows by what they measure."""
    lines = table.strip().splitlines()
    start = next((i + 1 for i, line in enumerate(lines) if line.startswith("| ---")), len(lines))
    return lines[:start], {line.split("|")[1].strip(): line for line in lines[start:]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--only",
        nargs="+",
        help="classes of measures, or names of sets; default: all, or the sets for large images",
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    return parser.parse_args()


def report(name: str, given: argparse.Namespace, device: str) -> Iterator[str]:
    """The table of one model, printed line by line."""
    model = load_model(name, "random", device=device)
    side = model.default_cfg["input_size"][-1]
    images = torch.randn(given.images, 3, side, side, generator=torch.Generator().manual_seed(0))
    batches = list(images.to(device).split(given.batch))
    about = ", ".join(f"{key} {value}" for key, value in machine(device).items())
    lines = [
        f"### `{name}` on {device}",
        f"\n{side} px, {len(batches) - 1} batches of {given.batch}; {processor()}, {about}\n",
        "| measured | ratio | of | a batch, s | before, s | tables, s | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    yield from map(shown, lines)
    few = (*FIVE, *SETS) if side > 64 else None  # all of them take hours on large images
    for words, measures in chosen(given.only or few).items():
        yield shown(Cost.of(model, batches, measures).line(words))


def shown(line: str) -> str:
    print(line, flush=True)
    return line


def chosen(only: Sequence[str] | None) -> dict[str, list[Measure]]:
    """The measures asked for, one by one and in sets, by name."""
    known: dict[str, Measure] = {type(measure).__name__: measure for measure in ALL}
    known["HeadAblation"] = HeadAblation(importance=False)
    for kind in (BoundaryBlindness, EffectiveReceptiveField):
        known[kind.__name__] = kind(max_images=10**9)  # by default they stop after some images
    sets: dict[str, tuple[str, ...]] = {**dict.fromkeys(FIVE, ()), **dict.fromkeys(known, ())}
    sets = {name: (name,) for name in sets} | SETS
    for name in only or ():
        if name not in sets:
            raise UnknownNameError("measure or set", name, sets)
    return {name: [known[part] for part in sets[name]] for name in only or sets}


class Stream:
    """Batches of a known number of images, each after a plain pass over it that is timed."""

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], step: Step) -> None:
        self.model, self.batches, self.step = model, batches, step
        self.dataset = range(sum(map(len, batches)))
        self.stamps: list[tuple[float, float]] = []  # before and after each plain pass

    def __iter__(self) -> Iterator[Tensor]:
        device = self.batches[0].device.type
        for batch in self.batches:
            start = now(device)
            self.step(self.model, batch)
            self.stamps.append((start, now(device)))
            yield batch


class Cost(NamedTuple):
    """What measuring took beside plain passes."""

    plain: np.ndarray  # (batches,) seconds of the plain passes
    measured: np.ndarray  # (batches,) seconds of the same batches, measured
    kind: str  # of the plain pass
    once: float  # seconds before the first batch: places found, states made
    tables: float  # seconds from the sums to intervals and rows
    memory: float  # peak beyond a plain pass, MiB

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Tensor], measures: Sequence[Measure]) -> Cost:
        """Measure a model once; its first batch warms up and is left out."""
        device = batches[0].device.type
        gradients = all(type(measure).__name__ in GRADIENTS for measure in measures)
        step = backward if gradients else forward
        stream = Stream(model, batches, step)
        with peak(device) as alone:
            step(model, batches[0])
        with peak(device) as whole:
            done = accumulate(model, stream, measures, progress=False)
        end = now(device)
        collect(done)
        tables = now(device) - end
        before, after = np.array(stream.stamps).T
        taken = np.append(before[1:], end) - after
        rest = slice(1, None)
        once = taken[0] - float(np.median(taken[rest]))
        return cls(
            (after - before)[rest], taken[rest], "forward + backward" if gradients else "forward",
            max(once, 0.0), tables, whole[0] - alone[0],
        )  # fmt: skip

    def line(self, words: str) -> str:
        ones = np.ones(len(self.plain))
        sums = [Estimate(x.mean(), (x.sum() - x) / (len(x) - 1), ones) for x in (self.measured, self.plain)]
        ratio = sums[0] / sums[1]
        return (
            f"| {words} | {float(ratio.value):.2f} [{float(ratio.low):.2f}, {float(ratio.high):.2f}] | {self.kind} | "
            f"{self.measured.mean():.3f} | {self.once:.1f} | {self.tables:.2f} | {self.memory:.0f} |"
        )


def forward(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        model(batch)


def backward(model: nn.Module, batch: Tensor) -> None:
    with torch.enable_grad():
        model(batch.clone().requires_grad_()).sum().backward()
    model.zero_grad(set_to_none=True)


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@contextlib.contextmanager
def peak(device: str) -> Iterator[list[float]]:
    """The largest memory in use inside the block, beyond that at its start, in MiB; nan where it cannot be had."""
    found = [float("nan")]
    read, reset = (allocated, torch.cuda.reset_peak_memory_stats) if device == "cuda" else (resident, forget)
    reset()
    start = read()
    yield found
    found[0] = (read() - start) / 2**20


def allocated() -> int:
    return torch.cuda.max_memory_allocated()


def resident() -> int:
    """Peak resident set of this process, bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget() -> None:
    """Let the peak of this process start again from what is resident now (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if "model name" in line), platform.machine())
    return platform.machine()


if __name__ == "__main__":
    main()
