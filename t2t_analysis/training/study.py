"""``python -m t2t_analysis study``: the controlled study, one row per run, resumable at every point.

The plan is a list of runs; those that are in the table are left out. One run is done in this process; of several each
gets a process of its own, which keeps peak memory apart and lets one fail without the others. A run that was killed
goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .._files import writable_folder
from ..cli import LABELLED, positive
from ..errors import ParameterError, UnknownNameError
from . import rates
from .design import GROUPS, TASKS, Run, choose_cells, data_label, plan, rates_cell
from .recipe import OPTIMISERS, Recipe

BUSY = 3  # exit status of a process that found another at its run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    groups = ", ".join(GROUPS)
    add("--data", default="photo_crops", help=LABELLED)
    add("--cells", default="all", help=f"{groups}, or patterns as hard_deep,performer_* (default: all)")
    add("--seeds", help="0-4 or 0,2,5 (default: five for the corner cells, three elsewhere)")
    add("--fractions", help="of the training images, as 0.1,1 (default: four for two deep corners, else 1)")
    add("--epochs", help="lengths, as 3,6 (default: the horizons of the design)")
    add("--optimizer", default="muon", choices=tuple(OPTIMISERS), help="default: muon")
    add("--rates", action="store_true", help="only choose the rate of each cell, on held-out training images")
    words = "one run per value of a field of the recipe, as lr=5e-4,1e-3,2e-3; the first seed only"
    add("--sweep", action="append", metavar="FIELD=VALUES", help=words)
    words = "train, or take trained weights to --data (default: train)"
    add("--task", default="train", choices=TASKS, help=words)
    add("--source", help="finetune, probe: data set that the study's own weights were trained on")
    add("--weights", help="finetune, probe: weights to start from instead, as load_model takes them")
    add("--devices", default="auto", help="cpu, cuda, cuda:0,cuda:1; auto takes all GPUs, else the CPU")
    add("--jobs", type=positive, default=1, help="runs at a time on each device (default: 1)")
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
    typed = {name: getattr(arguments, name) for name in ("seeds", "fractions", "epochs")}
    asked: dict[str, Any] = {
        name: numbers(text, f"--{name}") for name, text in typed.items() if text is not None
    }
    if min(asked.get("epochs", (1,))) < 1:
        raise ParameterError(f"--epochs {arguments.epochs}: at least 1")
    if "fractions" in asked:
        asked["fractions"] = tuple(map(float, asked["fractions"]))
    how: dict[str, Any] = {name: getattr(arguments, name) for name in ("data", "task", "optimizer")}
    start: dict[str, Any] = {name: getattr(arguments, name) or "" for name in ("source", "weights")}
    return plan(choose_cells(arguments.cells), **how, **start, sweep=sweep_of(arguments.sweep), **asked)


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


def costs(runs: Sequence[Run], folder: Path, device: str) -> dict[str, tuple[float, float]]:
    """Name of a run -> the images that it goes through, and how many a second its model took in the rows of the table.

    Evaluation counts a third, having no backward pass. A run that goes on from a shorter one of the plan leaves out
    what that one did before it began to decay. The speed of a model without a row is NaN.
    """
    from ..data import train_data
    from .precision import usual
    from .table import read_runs

    rows = read_runs(folder)
    rows = rows[rows["precision"].str.startswith(usual(device.startswith("cuda")))]
    speeds = rows.groupby("model")["images_per_second"].median()
    sizes = {split: len(train_data(runs[0].data, split=split)) for split in ("train", "test")}
    evaluated = (min(sizes["train"], 10_000) + sizes["test"]) / 3
    found = {}
    for one in runs:
        recipe = one.recipe
        lengths = [run.recipe.epochs for run in runs if run.task == "train" and _at(run, 0) == _at(one, 0)]
        shorter = max((epochs for epochs in lengths if epochs < recipe.epochs), default=0)
        trained = sizes["train"] * (recipe.epochs - (1 - recipe.decay) * shorter)
        found[one.name] = trained + evaluated, float(speeds.get(one.model, math.nan))
    return found


def _at(run: Run, epochs: int) -> Run:
    """The same run with another length."""
    return replace(run, recipe=replace(run.recipe, epochs=epochs))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725.4), clock(59)
    ('1:02:05', '0:59')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _dry_run(todo: Sequence[Run], done: int, folder: Path, places: Sequence[str]) -> None:
    found = costs(todo, folder, places[0]) if todo else {}
    known = {name: images / speed for name, (images, speed) in found.items() if not math.isnan(speed)}
    for name, (_, speed) in found.items():
        told = (
            f"about {clock(known[name])} ({speed:.0f} images/s by rows of the table)"
            if name in known
            else "?"
        )
        print(f"{name}  {told}")
    total, blank = sum(known.values()), len(todo) - len(known)
    without = f"; {blank} of models without a row in the table are not in it" if blank else ""
    print(
        f"{len(todo)} runs to do, {done} done; about {clock(total)} of one process, "
        f"{clock(total / len(places))} with {len(places)} at a time if they do not slow each other down{without}"
    )


# ------------------------------------------------------------------------------------------ many runs


Launch = Callable[[Run, str, Any], Any]


def _launcher(arguments: argparse.Namespace, out: Path) -> Launch:
    """Start this very command for one run in a process of its own."""

    def launch(one: Run, device: str, log: Any) -> subprocess.Popen:
        words = [*one.words(), "--devices", device, "--out", str(out), "--runs", str(arguments.runs)]
        command = [sys.executable, "-m", "t2t_analysis", "study", *words]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    return launch


def _interrupt(*_: Any) -> None:
    """A polite kill ends the processes too; after kill -9 they finish their runs, and nobody starts those twice."""
    raise KeyboardInterrupt


def work(
    todo: Sequence[Run], slots: Sequence[str], folder: Path, launch: Launch
) -> Iterator[tuple[Run, int]]:
    """Every run with the exit status of its process, as they end; on an interruption the processes are ended too.

    Parameters
    ----------
    slots : devices, each as often as processes may use it at a time.
    folder : of run folders; what a process says goes to ``log.txt`` in its own.
    launch : starts the process of a run on a device.
    """
    free: SimpleQueue[str] = SimpleQueue()
    processes: list[subprocess.Popen] = []
    runs: dict[Future[int], Run] = {}
    for slot in slots:
        free.put(slot)

    def do(one: Run) -> int:
        slot = free.get()
        try:
            writable_folder(folder / one.name)
            with (folder / one.name / "log.txt").open("a", encoding="utf-8") as log:
                processes.append(process := launch(one, slot, log))
                return process.wait()
        finally:
            free.put(slot)

    before = signal.signal(signal.SIGTERM, _interrupt)
    pool = ThreadPoolExecutor(len(slots))
    try:
        runs = {pool.submit(do, one): one for one in todo}
        for ended in as_completed(runs):
            yield runs[ended], ended.result()
    finally:
        signal.signal(signal.SIGTERM, before)
        pool.shutdown(wait=False, cancel_futures=True)
        told = 0  # each is told once, while it may be saving; one more may just be starting
        while not all(run.done() for run in runs):
            for process in processes[told:]:
                process.terminate()
                told += 1
            wait(runs, timeout=0.1)


def _all(todo: Sequence[Run], slots: Sequence[str], folder: Path, launch: Launch) -> Counter[int]:
    """Do all runs, with a line about each and the time that is left; how many ended with which status."""
    print(f"{len(todo)} runs, {len(slots)} at a time; each writes {folder}/RUN/log.txt", file=sys.stderr)
    counts, begun = Counter[int](), time.monotonic()
    for one, status in work(todo, slots, folder, launch):
        counts[status] += 1
        done = counts.total()
        left = clock((time.monotonic() - begun) / done * (len(todo) - done))
        log = folder / one.name / "log.txt"
        if status == 0:
            *_, last = ["", *log.read_text(encoding="utf-8").splitlines()]
            said = f"done, {last.partition(': ')[2]}"
        else:
            said = "another process is at it" if status == BUSY else f"failed with status {status}; see {log}"
        print(f"[{done} of {len(todo)}, about {left} left] {one.name}: {said}", file=sys.stderr, flush=True)
    return counts


# ------------------------------------------------------------------------------------------ the command


def _one(one: Run, arguments: argparse.Namespace, out: Path, device: str) -> int:
    from .rows import said
    from .runner import BusyError, Place, execute

    try:
        row = execute(one, Place(out, arguments.runs, device))
    except BusyError as error:
        print(f"t2t-analysis: {error}", file=sys.stderr)
        return BUSY
    print(f"{one.name}: {said(row)}")
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
            said = f"held-out loss {loss:.4f}, accuracy {hits:.4f}"
            print(f"{cell}, {optimizer}, rate {rate:g}: {said}", flush=True)
        print(f"{cell}, {optimizer}: rate {rates.chosen(*known):g}", flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Do what is missing of the plan."""
    from .._paths import data_dir
    from .table import finished

    out = arguments.out or data_dir() / "study"
    slots = devices_of(arguments.devices) * arguments.jobs
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
    counts = _all(todo, slots, arguments.runs, _launcher(arguments, out))
    left = f", {counts[BUSY]} left to another process" if counts[BUSY] else ""
    failed = counts.total() - counts[0] - counts[BUSY]
    print(f"{counts[0]} runs added to {out}, {failed} failed{left}")
    return 1 if failed else 0
