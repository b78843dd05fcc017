"""``python -m t2t_analysis study``: the controlled study, one row per run, resumable at every point.

The plan is a list of runs; those that are in the table are left out. One run is done in this process; of several each
gets a process of its own, which keeps peak memory apart and lets one fail without the others. A run that was killed
goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import ParameterError, UnknownNameError
from . import rates
from .design import GROUPS, TASKS, Run, choose_cells, data_label, plan, rates_cell
from .recipe import OPTIMISERS, Recipe

__all__ = ["add_arguments", "run"]

BUSY = 3  # exit status of a process that found another at its run
EVERY = 60.0  # seconds between two lines about runs that go on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add(
        "--data",
        default="photo_crops",
        help="photo_crops, digits, a tree or .tar with train/ and test/, torch/cifar10",
    )
    add(
        "--cells",
        default="all",
        help=f"{', '.join(GROUPS)}, or patterns as hard_deep,performer_* (default: all)",
    )
    add("--seeds", help="0-4 or 0,2,5 (default: five for the corner cells, three elsewhere)")
    add(
        "--fractions",
        help="of the training images, as 0.1,1 (default: four for hard_deep, performer_deep, else 1)",
    )
    add("--epochs", help="lengths, as 3,6 (default: the horizons of the design)")
    add("--optimizer", default="muon", choices=tuple(OPTIMISERS), help="default: muon")
    add(
        "--rates",
        action="store_true",
        help="choose the rate of each cell on held-out training images, and train nothing else",
    )
    add(
        "--sweep",
        action="append",
        metavar="FIELD=VALUES",
        help="one run per value of a field of the recipe, as lr=5e-4,1e-3,2e-3; the first seed only",
    )
    add(
        "--task",
        default="train",
        choices=TASKS,
        help="train, or take trained weights to --data (default: train)",
    )
    add("--source", help="finetune, probe: data set that the study's own weights were trained on")
    add("--weights", help="finetune, probe: weights to start from instead, as load_model takes them")
    add("--devices", default="auto", help="cpu, cuda, cuda:0,cuda:1; auto takes all GPUs, else the CPU")
    add("--jobs", type=int, default=1, help="runs at a time on each device (default: 1)")
    add("--test-curve", action="store_true", help="test accuracy after every epoch")
    add("--dry-run", action="store_true", help="print the plan and what it costs, and end")
    add("--out", type=Path, help="folder of the table (default: the study's own, data/study)")
    add("--runs", type=Path, default=Path("runs/study"), help="run folders: checkpoints, logs, weights")


# ------------------------------------------------------------------------------------------ what was asked for


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Return numbers and ranges of whole numbers, as typed.

    >>> numbers("0-2,5", "--seeds"), numbers("5e-4,1e-3", "--sweep")
    ((0, 1, 2, 5), (0.0005, 0.001))
    """
    found: list[float] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        first, dash, last = word.partition("-")
        if dash and first.isdigit() and last.isdigit():
            found += range(int(first), int(last) + 1)
            continue
        try:
            found.append(int(word) if word.isdigit() else float(word))
        except ValueError:
            raise ParameterError(f"{what} {text!r}: {word!r} is no number") from None
    if not found:
        raise ParameterError(f"{what} {text!r}: no number in it")
    return tuple(found)


def sweep_of(words: Sequence[str] | None) -> dict[str, tuple[float, ...]]:
    """Fields of the recipe with the values that each takes in turn.

    >>> sweep_of(["lr=5e-4,1e-3"])
    {'lr': (0.0005, 0.001)}
    """
    known = [f.name for f in fields(Recipe) if f.name not in ("seed", "fraction", "epochs", "optimizer")]
    found = {}
    for word in words or ():
        key, _, values = word.partition("=")
        if key not in known:
            raise UnknownNameError("field of the recipe", key, known)
        found[key] = numbers(values, f"--sweep {key}")
    return found


def planned(arguments: argparse.Namespace) -> list[Run]:
    """The whole plan, finished runs included."""
    transfer = arguments.task != "train"
    if transfer == (not (arguments.source or arguments.weights)):
        raise ParameterError(
            f"--task {arguments.task} " + ("needs --source or --weights" if transfer else "takes no weights")
        )
    fractions = numbers(arguments.fractions, "--fractions") if arguments.fractions else None
    if fractions and not all(0 < fraction <= 1 for fraction in fractions):
        raise ParameterError(f"--fractions {arguments.fractions}: each above 0 and at most 1")
    return plan(
        choose_cells(arguments.cells),
        arguments.data,
        seeds=_whole(arguments.seeds, "--seeds", 0),
        fractions=fractions and [float(fraction) for fraction in fractions],
        epochs=_whole(arguments.epochs, "--epochs", 1),
        sweep=sweep_of(arguments.sweep),
        task=arguments.task,
        source=arguments.source or "",
        weights=arguments.weights or "",
        optimizer=arguments.optimizer,
    )


def _whole(text: str | None, what: str, least: int) -> list[int] | None:
    """Whole numbers as typed; None if nothing was."""
    if text is None:
        return None
    found = numbers(text, what)
    if any(int(number) != number or number < least for number in found):
        raise ParameterError(f"{what} {text}: whole numbers only, at least {least}")
    return [int(number) for number in found]


def devices_of(text: str) -> list[str]:
    """Names of the devices to use, each as torch knows it."""
    if text == "cpu":
        return ["cpu"]
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if text == "auto":
        return gpus or ["cpu"]
    found = gpus if text == "cuda" else [word.strip() for word in text.split(",")]
    if unknown := [name for name in found if name not in ("cpu", *gpus)]:
        raise UnknownNameError("device", unknown[0], ["auto", "cpu", "cuda", *gpus])
    if not found:
        raise ParameterError("--devices cuda: torch sees no GPU here")
    return found


# ------------------------------------------------------------------------------------------ what it costs


def images_of(task: Run, sizes: dict[str, int], shorter: int = 0) -> float:
    """Training images that a run goes through; evaluation counts a third, having no backward pass.

    A run that goes on from one of ``shorter`` epochs leaves out what that one did before it began to decay.
    """
    epochs = task.recipe.epochs - (1 - task.recipe.decay) * shorter
    return sizes["train"] * epochs + (min(sizes["train"], 10_000) + sizes["test"]) / 3


def sizes_of(data: str) -> dict[str, int]:
    """Images of an epoch and of the test, without decoding any."""
    from ..data import train_data

    if data == "photo_crops":
        return {split: len(train_data(data, split=split)) for split in ("train", "test")}
    from ..data.sources import find_source

    found: dict[str, Any] = {
        split: find_source(data, split=split, strict=True) for split in ("train", "test")
    }
    return {split: len(source.labels) for split, source in found.items()}


def measured_speeds(folder: Path, precision: str) -> dict[str, float]:
    """Images per second of each model in the rows of the table, by precision, which tells CPU from GPU."""
    from .table import read_runs

    rows = read_runs(folder)
    rows = rows[rows["precision"].str.startswith(precision) & rows["images_per_second"].notna()]
    return {str(model): float(group.median()) for model, group in rows.groupby("model")["images_per_second"]}


def calibrate(model: str, batch_size: int, device: str, seconds: float = 2.0) -> float:
    """Images per second of a few training steps on noise, not compiled."""
    import timm
    import torch

    from .. import models  # noqa: F401 - registers the names

    net: Any = timm.create_model(model).train().to(device)
    size = net.default_cfg["input_size"][-1]
    x = torch.randn(min(batch_size, 64), 3, size, size, device=device)
    done, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            net(x).square().mean().backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        done += len(x)
    return done / spent


def costs(runs: Sequence[Run], folder: Path, device: str) -> dict[str, tuple[float, str]]:
    """Name of a run -> seconds, and where the speed comes from."""
    from .precision import usual

    if not runs:
        return {}
    known = measured_speeds(folder, usual(device.startswith("cuda")))
    sizes, found = sizes_of(runs[0].data), {}
    speeds = {model: (speed, "rows of the table") for model, speed in known.items()}
    for one in runs:
        if one.model not in speeds:
            speeds[one.model] = calibrate(one.model, one.recipe.batch_size, device), "two seconds of steps"
        speed, why = speeds[one.model]
        lengths = [
            r.recipe.epochs
            for r in runs
            if replace(r.recipe, epochs=0) == replace(one.recipe, epochs=0)
            and r.model == one.model
            and r.recipe.epochs < one.recipe.epochs
            and r.task == "train"
        ]
        found[one.name] = (
            images_of(one, sizes, max(lengths, default=0)) / speed,
            f"{speed:.0f} images/s by {why}",
        )
    return found


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725.4), clock(59)
    ('1:02:05', '0:59')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _dry_run(todo: Sequence[Run], done: int, folder: Path, places: Sequence[str]) -> None:
    found = costs(todo, folder, places[0])
    for one in todo:
        seconds, why = found[one.name]
        print(f"{one.name}  about {clock(seconds)} ({why})")
    total = sum(seconds for seconds, _ in found.values())
    print(
        f"{len(todo)} runs to do, {done} done; about {clock(total)} of one process, "
        f"{clock(total / len(places))} with {len(places)} at a time if they do not slow each other down"
    )


# ------------------------------------------------------------------------------------------ many runs


@dataclass
class Worker:
    """A process that does one run on one device."""

    run: Run
    slot: str
    process: Any
    log: Any
    begun: float = field(default_factory=time.monotonic)


Launch = Callable[[Run, str, Any], Any]


def _launcher(arguments: argparse.Namespace, out: Path) -> Launch:
    """Start this very command for one run in a process of its own."""

    def launch(one: Run, device: str, log: Any) -> subprocess.Popen:
        words = [*one.words(), "--devices", device, "--out", str(out), "--runs", str(arguments.runs)]
        words += ["--test-curve"] if arguments.test_curve else []
        command = [sys.executable, "-m", "t2t_analysis", "study", *words]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    return launch


def _interrupt(*_: Any) -> None:
    """A polite kill ends the processes too; after kill -9 they finish their runs, and nobody starts those twice."""
    raise KeyboardInterrupt


class Crew:
    """Works through the plan with so many processes a device, and says how far it is."""

    def __init__(self, todo: Iterable[Run], slots: Sequence[str], folder: Path, launch: Launch) -> None:
        self.waiting, self.free, self.folder, self.launch = list(todo), list(slots), folder, launch
        self.working: list[Worker] = []
        self.total, self.slots = len(self.waiting), len(slots)
        self.ended: list[Run] = []
        self.failed: list[Run] = []
        self.elsewhere: list[Run] = []  # another process is at them
        self.seconds: list[float] = []
        self._said = time.monotonic()

    def work(self, pause: float = 1.0) -> list[Run]:
        """Do everything; return the runs that failed. On an interruption the processes are ended first."""
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self.waiting or self.working:
                while self.waiting and self.free:
                    self._start(self.waiting.pop(0), self.free.pop(0))
                time.sleep(pause)
                for worker in [w for w in self.working if w.process.poll() is not None]:
                    self._end(worker)
                self._report()
        finally:
            signal.signal(signal.SIGTERM, before)
            for worker in self.working:
                worker.process.terminate()
                worker.log.close()
        return self.failed

    def _start(self, one: Run, slot: str) -> None:
        home = self.folder / one.name
        home.mkdir(parents=True, exist_ok=True)
        log = (home / "log.txt").open("a", encoding="utf-8")
        self.working.append(Worker(one, slot, self.launch(one, slot, log), log))

    def _end(self, worker: Worker) -> None:
        self.working.remove(worker)
        self.free.append(worker.slot)
        worker.log.close()
        status = worker.process.returncode
        if status == 0:
            self.seconds.append(time.monotonic() - worker.begun)
            self.ended.append(worker.run)
        else:
            (self.elsewhere if status == BUSY else self.failed).append(worker.run)
        word = {0: "done", BUSY: "another process is at it"}.get(status, f"failed with status {status}")
        log = f"; see {self.folder / worker.run.name / 'log.txt'}" if status not in (0, BUSY) else ""
        self.say(f"{worker.run.name}: {word}{self._result(worker.run) if status == 0 else log}")

    def _result(self, one: Run) -> str:
        lines = (self.folder / one.name / "log.txt").read_text(encoding="utf-8").splitlines()
        return f", {lines[-1].partition(': ')[2]}" if lines else ""

    def _report(self) -> None:
        if time.monotonic() - self._said >= EVERY and self.working:
            self.say("; ".join(f"{w.run.name} {self._epoch(w.run)}" for w in self.working))

    def _epoch(self, one: Run) -> str:
        curve = self.folder / one.name / "curve.csv"
        done = len(curve.read_text(encoding="utf-8").splitlines()) - 1 if curve.exists() else 0
        return f"epoch {min(done + 1, one.recipe.epochs)} of {one.recipe.epochs}"

    def say(self, text: str) -> None:
        """One line, with how much is done and about how long the rest takes."""
        self._said = time.monotonic()
        done = len(self.ended) + len(self.failed) + len(self.elsewhere)
        left = ""
        if self.seconds and (rest := self.total - done):
            left = f", about {clock(rest * median(self.seconds) / self.slots)} left"
        print(f"[{done} of {self.total}{left}] {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------ the command


def _one(one: Run, arguments: argparse.Namespace, out: Path, device: str) -> int:
    from .runner import BusyError, Place, execute

    try:
        row = execute(one, Place(out, arguments.runs, device, arguments.test_curve))
    except BusyError as error:
        print(f"t2t-analysis: {error}", file=sys.stderr)
        return BUSY
    print(
        f"{one.name}: test accuracy {row['test_accuracy']:.4f} (95 % interval {row['test_low']:.4f} to "
        f"{row['test_high']:.4f} over {row['test_n']} {row['test_unit']}s, chance {row['chance']:.4f})"
    )
    return 0


def choose_rates(arguments: argparse.Namespace, out: Path, device: str) -> None:
    """Try rates for every cell of the plan until each has a best one with both neighbours.

    Cells that take the rate of another are not tried. The trials go to ``rates.csv`` in ``out``.
    """
    from .runner import Place, trial

    optimizer, data = arguments.optimizer, arguments.data
    for cell in dict.fromkeys(map(rates_cell, choose_cells(arguments.cells))):
        known = (cell, data_label(data), optimizer, out)
        while rate := rates.next_rate(rates.tried(*known), rates.START[optimizer]):
            row = trial(cell, data, Recipe(optimizer=optimizer, lr=rate), Place(out, arguments.runs, device))
            loss, hits = (float(row[f"held_out_{key}"]) for key in ("loss", "accuracy"))
            print(
                f"{cell}, {optimizer}, rate {rate:g}: held-out loss {loss:.4f}, accuracy {hits:.4f}",
                flush=True,
            )
        print(f"{cell}, {optimizer}: rate {rates.chosen(*known):g}", flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Do what is missing of the plan."""
    from .._paths import data_dir
    from .table import finished

    out = arguments.out or data_dir() / "study"
    slots = devices_of(arguments.devices) * max(1, arguments.jobs)
    if arguments.rates:
        choose_rates(arguments, out, slots[0])
        return 0
    runs, there = planned(arguments), finished(out)
    todo = [one for one in runs if one.name not in there]
    if not todo and not arguments.dry_run:
        print(f"nothing to do: {len(runs)} of {len(runs)} planned runs are in {out}")
        return 0
    if arguments.dry_run:
        _dry_run(todo, len(runs) - len(todo), out, slots)
        return 0
    if len(runs) == 1:
        return _one(todo[0], arguments, out, slots[0])
    crew = Crew(todo, slots, arguments.runs, _launcher(arguments, out))
    failed = crew.work()
    left = f", {len(crew.elsewhere)} left to another process" if crew.elsewhere else ""
    print(f"{len(crew.ended)} runs added to {out}, {len(failed)} failed{left}")
    return 1 if failed else 0
