"""Ctrl-C, SIGTERM and SIGKILL at random moments: what was finished stays, and the next run ends as an undisturbed one.

Each kind of work is a command. It is run once undisturbed, then again and again: killed at a moment drawn from
a seed, looked at, started again, until it ends by itself. ``make stress`` kills each of them as often as
``T2T_ANALYSIS_STRESS`` says, ``make test`` one of them once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
import pandas as pd
import pytest

KILLS = int(os.environ.get("T2T_ANALYSIS_STRESS", "1"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
PRELOADED = [
    "t2t_analysis.cli",
    "t2t_analysis.training.runner",
    "t2t_analysis.claims.recorded",
    "t2t_analysis.reports.runner",
    "lightning",
    "sklearn.linear_model",
    __name__,
]
#: Columns and fields that say when and how fast; everything else has to be the same.
CLOCKS = re.compile(r"seconds|second$|^date$|matrix_|peak_memory|memory_kind")

server = multiprocessing.get_context("forkserver")


class Work(NamedTuple):
    """A command, and what it leaves that counts: path in its folder -> content without clocks."""

    words: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, object]]
    too_large: int  #: bytes that one of its files has more than
    prepare: Callable[[Path], None] = lambda folder: None


def _call(words: list[str], folder: str, most: int | None, begun: Any) -> None:
    """In a process of its own, its output in a file, Ctrl-C as a terminal sends it; no file of ``most`` bytes."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    os.setsid()
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from t2t_analysis.cli import main

    begun.set()
    sys.exit(main(words))


def _table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    frame = pd.read_csv(path, dtype="string", keep_default_na=False)
    return frame[[name for name in frame if not CLOCKS.search(name)]].to_dict("records")


def _card(path: Path) -> dict[str, object]:
    return {key: value for key, value in json.loads(path.read_text()).items() if not CLOCKS.search(key)}


def _trained(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {str(p.relative_to(folder)): _table(p) for p in folder.rglob("*.csv")}
    for path in folder.rglob("weights.safetensors"):
        card = path.with_suffix(".json")
        found[str(path.relative_to(folder))] = path.read_bytes(), card.exists() and _card(card)
    return found


def _pages(folder: Path) -> dict[str, object]:
    """Bytes of every page that is done, but for the name of the folder."""
    done = [path.with_suffix(".html") for path in folder.glob("reports/tiny_*.json")]
    return {path.name: path.read_bytes().replace(bytes(folder), b"FOLDER") for path in done}


def _notebooks(folder: Path) -> None:
    for number in range(2):
        tags = {"tags": ["parameters"]}
        cells = [
            nbformat.v4.new_markdown_cell(f"# Tiny {number}", id="title"),
            nbformat.v4.new_code_cell("n_images = 2", metadata=tags, id="parameters"),
            nbformat.v4.new_code_cell("import time\ntime.sleep(0.5)", id="step"),
        ]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, folder / f"tiny_{number}.ipynb")


STUDY = ["--cells", "hard_wide", "--seeds", "0", "--fractions", "0.1", "--epochs", "1", "--devices", "cpu"]
WORKS = {
    "study": Work(
        lambda at: ["study", "--data", "digits", *STUDY, "--out", f"{at}/out", "--runs", f"{at}/runs"],
        _trained,
        10**6,
    ),
    "train": Work(
        lambda at: ["train", "--model", "small_hard_wide", "--data", "digits", "--epochs", "1", "--fraction", "0.1",
                    "--out", f"{at}/run"],
        _trained,
        10**6,
    ),
    "evidence": Work(
        lambda at: ["evidence", "--models", "small_hard_wide", "--data", "photos", "--n-images", "6",
                    "--out", f"{at}/evidence"],
        lambda at: {"models.csv": _table(at / "evidence" / "models.csv")},
        4000,
    ),
    "report": Work(
        lambda at: ["report", f"{at}/tiny_0.ipynb", f"{at}/tiny_1.ipynb", "--out-dir", f"{at}/reports"],
        _pages,
        8000,
        _notebooks,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    """Processes are forked from one that has everything imported: a start costs nothing."""
    server.set_forkserver_preload(PRELOADED)


def _start(work: Work, folder: Path, most: int | None = None) -> multiprocessing.process.BaseProcess:
    begun = server.Event()  # before that, a signal would end multiprocessing's own code, which says nothing
    process = server.Process(target=_call, args=(work.words(folder), str(folder), most, begun))
    process.start()
    while process.is_alive() and not begun.wait(0.01):
        pass
    return process


def _folder(work: Work, path: Path) -> Path:
    path.mkdir()
    work.prepare(path)
    return path


def _lost(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Results that were there and are not any more; rows of a table may only be added to."""

    def kept(old: object, new: object) -> bool:
        if isinstance(old, list) and isinstance(new, list):
            return all(row in new for row in old)
        return old == new

    return [name for name in before if name not in after or not kept(before[name], after[name])]


@pytest.mark.parametrize("kind", WORKS if KILLS > 1 else ["train"])
def test_killed_at_any_moment_it_ends_as_if_undisturbed(kind: str, tmp_path: Path) -> None:
    work, rng = WORKS[kind], np.random.default_rng(20)
    calm = _folder(work, tmp_path / "calm")
    begun = time.monotonic()
    process = _start(work, calm)
    process.join()
    whole = time.monotonic() - begun
    assert process.exitcode == 0, (calm / "log.txt").read_text()
    wanted, counts = work.results(calm), Counter[str]()
    assert wanted
    while counts["killed"] < KILLS:
        counts["rounds"] += 1
        folder = _folder(work, tmp_path / f"round_{counts['rounds']}")
        while True:
            before = work.results(folder)
            process = _start(work, folder)
            if counts["killed"] < KILLS:
                process.join(rng.uniform(0.05, 0.8) * whole)
            number = SIGNALS[counts["killed"] % 3]
            if process.exitcode is None and counts["killed"] < KILLS:
                os.kill(process.pid or 0, number)
                counts["killed"] += 1
                counts[number.name] += 1
            process.join(300)
            assert not _lost(before, work.results(folder)), (folder / "log.txt").read_text()
            if process.exitcode == 0:
                break
            assert process.exitcode in (130, 143, -number), (folder / "log.txt").read_text()
        assert work.results(folder) == wanted
        _clean(folder)
    print(f"{kind}: {dict(counts)}")


def _clean(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if path.suffix == ".part" or "running" in path.name]
    assert not left
    assert "Traceback" not in (folder / "log.txt").read_text()


@pytest.mark.skipif(KILLS == 1, reason="a short form is in the tests of the command line")
@pytest.mark.parametrize("kind", WORKS)
def test_without_room_the_reason_is_said_and_the_next_run_ends_well(kind: str, tmp_path: Path) -> None:
    """A limit for files stands for a full disk: both fail while a file is written."""
    work, folder = WORKS[kind], _folder(WORKS[kind], tmp_path / "full")
    process = _start(work, folder, work.too_large)
    process.join(300)
    assert process.exitcode == 1
    assert "File too large" in (folder / "log.txt").read_text()
    _clean(folder)
    process = _start(work, folder)
    process.join(300)
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    assert work.results(folder)
    _clean(folder)


@pytest.mark.skipif(KILLS == 1, reason="a short form is in the tests of reports")
def test_two_sweeps_at_once_leave_every_report_whole(tmp_path: Path) -> None:
    work, folder = WORKS["report"], _folder(WORKS["report"], tmp_path / "both")
    both = [_start(work, folder) for _ in range(2)]
    for process in both:
        process.join(300)
    said = (folder / "log.txt").read_text()
    failed = said.count("another process is making this report")
    assert {process.exitcode for process in both} <= {0, 1}
    assert said.count(": failed") == failed
    assert len(work.results(folder)) == 2
    _clean(folder)
