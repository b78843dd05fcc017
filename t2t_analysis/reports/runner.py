"""Runs notebooks by papermill, in parallel if asked, and leaves whole reports or none.

A run writes to temporary names; when it is whole, results, notebook and page are moved into place and the
sidecar, which says what the report is and what it depends on, comes last. A run that fails leaves
``*.failed.*`` beside an older good report and never touches that. papermill's own status is not read: after a
timeout or the death of a kernel it says that every cell was completed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import scratch_folder, writable_folder, write_whole
from .._paths import default_reports_dir
from .._show import RESULTS_VARIABLE
from ..errors import DataError, ParameterError, T2TError
from .fingerprint import page_fingerprint, run_fingerprint, sha
from .plan import Job, changed, papermill_line, plan, without_braces

if TYPE_CHECKING:
    from nbformat import NotebookNode

#: bytes that a notebook of two models of 24 layers takes, with room to spare
_MEMORY = 3 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``done``, ``current`` (nothing to do) or ``failed``, with the reason in words."""

    job: Job
    status: str
    words: str = ""


def _sidecar(job: Job) -> dict[str, Any]:
    try:
        return json.loads(job.path(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _has_run(job: Job, sidecar: Mapping[str, Any]) -> bool:
    """Whether the notebook and the tables that the sidecar speaks of are there."""
    tables = [job.path("") / name for name in sidecar.get("results", [])]
    return all(path.is_file() for path in (job.path(".ipynb"), *tables))


def _has_page(job: Job, sidecar: Mapping[str, Any]) -> bool:
    page = job.path(".html")
    return page.is_file() and sha(page.read_bytes()) == sidecar.get("page_sha256")


def run_job(job: Job, force: bool = False) -> Outcome:
    """Run one notebook if its report is not current; nothing but an interruption escapes."""
    try:
        sidecar = _sidecar(job)
        fingerprint = run_fingerprint(job.notebook, job.params)
        if not force and sidecar.get("fingerprint") == fingerprint and _has_run(job, sidecar):
            if sidecar.get("page_fingerprint") == page_fingerprint() and _has_page(job, sidecar):
                return Outcome(job, "current")
            return _export_again(job, fingerprint)
        return _run(job, fingerprint)
    except Exception as error:  # one report that fails must not stop the others
        _raise_if_interrupted(error)
        return Outcome(job, "failed", f"{type(error).__name__}: {error}")


def _export_again(job: Job, fingerprint: str) -> Outcome:
    import nbformat

    from .publish import page_of, publish

    nb = nbformat.read(job.path(".ipynb"), as_version=4)
    publish(job, nb, page_of(job, nb), fingerprint)
    return Outcome(job, "done", "page made again")


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Two commands that make the same report at the same time would tread on each other's files."""
    from filelock import FileLock, Timeout

    path = job.path(".running.lock")
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # while it is held: a lock on a file that is gone counts for nothing
                    path.unlink()
    except Timeout:
        raise DataError("another process is making this report") from None


def _run(job: Job, fingerprint: str) -> Outcome:
    job.out_dir.mkdir(parents=True, exist_ok=True)
    with _alone(job):
        _clear(job)
        job.path(".running").mkdir()
        try:
            return _run_and_publish(job, fingerprint)
        finally:
            _clear(job)


def _run_and_publish(job: Job, fingerprint: str) -> Outcome:
    from .publish import notebook_text, page_of, publish, publish_failure

    notebook, results = job.path(".running.ipynb"), job.path(".running")
    nb, failure = _execute(job, notebook, results)
    html = ""
    if not failure:
        try:
            html = page_of(job, nb)
        except T2TError as error:
            failure = f"the notebook ran, but makes no page: {error}"
    if failure:
        publish_failure(job, nb, failure)
        return Outcome(job, "failed", " ".join(line.strip() for line in failure.splitlines()[:2]))
    write_whole(notebook, notebook_text(nb))
    _replace_folder(results, job.path(""))
    os.replace(notebook, job.path(".ipynb"))
    publish(job, nb, html, fingerprint)
    for ending in (".failed.ipynb", ".failed.html", ".failed.json"):
        job.path(ending).unlink(missing_ok=True)
    return Outcome(job, "done")


def _clear(job: Job) -> None:
    """Remove what this or a killed run left half done."""
    job.path(".running.ipynb").unlink(missing_ok=True)
    shutil.rmtree(job.path(".running"), ignore_errors=True)


def _replace_folder(new: Path, old: Path) -> None:
    if not any(new.iterdir()):
        return
    shutil.rmtree(old, ignore_errors=True)
    os.replace(new, old)


def _execute(job: Job, path: Path, results: Path) -> tuple[NotebookNode, str]:
    """Return the notebook as far as it came, and why it stopped there (empty if it did not)."""
    import nbformat
    import papermill

    from .kernel import kernel_manager_class, last_words

    environment = {RESULTS_VARIABLE: str(results.resolve()), "PYTHONPATH": _python_path()}
    if job.threads:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    with scratch_folder() as sockets:
        try:
            # An empty context: jupyter keeps its event loop in one, and threads of a pool may share it.
            nb = Context().run(
                papermill.execute_notebook,
                nbformat.read(job.notebook, as_version=4),
                without_braces(path.resolve()),
                parameters=changed(job),
                progress_bar=False,
                kernel_manager_class=kernel_manager_class(sockets, environment),
                execution_timeout=job.timeout,
            )
        except Exception as error:
            _raise_if_interrupted(error)
            return _as_far_as_it_came(job, path), _reason(error, last_words(sockets))
    return nb, "" if _ran_through(nb) else "the notebook stopped before its last cell"


def _raise_if_interrupted(error: BaseException | None) -> None:
    """Ctrl-C stays Ctrl-C, also where the closing of a kernel failed after it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__context__


def _as_far_as_it_came(job: Job, path: Path) -> NotebookNode:
    """The notebook of a run that failed, or as it was before where the disk has not taken it whole."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return nbformat.read(job.notebook, as_version=4)


def _ran_through(nb: NotebookNode) -> bool:
    """Whether every code cell was executed; ``sys.exit(0)`` in a cell ends a run without an error."""
    return all(cell.execution_count for cell in nb.cells if cell.cell_type == "code" and cell.source.strip())


def _python_path() -> str:
    """The kernel sees this package, also from a checkout that is not installed."""
    package = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


def _reason(error: Exception, last_words: str) -> str:
    """What happened, in words; a kernel that died may have left some itself."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, CellTimeoutError):
        return "a cell took longer than the time allowed (--timeout)"
    if isinstance(error, DeadKernelError):
        return f"the kernel died, for example for want of memory\n{last_words}".strip()
    return f"{type(error).__name__}: {error}"


def _outcomes(
    jobs: Sequence[Job], workers: int, scheduler: str | None, force: bool, echo: Callable[[str], None]
) -> Iterator[Outcome]:
    """Yield outcomes as they come: here, in processes, or on a Dask cluster that sees the same files."""
    if scheduler is None:
        alone = [job for job in jobs if workers == 1 or job.params.measures_time]
        for job in alone:
            echo(f"{job.title} ...")
            yield run_job(job, force)
        together = [replace(job, threads=_threads(workers)) for job in jobs if job not in alone]
        together.sort(key=lambda job: not job.params.measures_all)  # the longest first, lest it run on alone
        if together:
            echo(f"{len(together)} notebooks, {workers} at a time ...")
            yield from _together(together, workers, force)
        return
    try:
        from distributed import Client
        from distributed import as_completed as arrived
    except ImportError:
        raise DataError("--scheduler needs Dask: pip install 't2t-analysis[cluster]'") from None
    with Client(scheduler, timeout=30) as client:
        for future in arrived(client.map(run_job, jobs, force=force, pure=False)):
            yield future.result()


def _together(jobs: Sequence[Job], workers: int, force: bool) -> Iterator[Outcome]:
    """Run several at a time, in processes that end when this one is interrupted or killed."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            with _interruption_blocked():
                running = {pool.submit(run_job, job, force): job for job in jobs}
            for done in as_completed(running):
                try:
                    yield done.result()
                except BrokenProcessPool:
                    yield Outcome(running[done], "failed", "a process died, for example for want of memory")
        except BaseException:
            # The pool's thread notices that they end, and is waited for: cut short, it would change our status.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


@contextmanager
def _interruption_blocked() -> Iterator[None]:
    """Ctrl-C waits, and does not reach processes that are started here, not even before they can refuse it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # a kernel shall hear it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(jobs: Sequence[Job]) -> int:
    """How many of the notebooks this machine has cores and free memory for at a time."""
    import psutil

    together = sum(not job.params.measures_time for job in jobs)
    return max(1, min(together, _cores(), psutil.virtual_memory().available // _MEMORY))


def _threads(workers: int) -> int | None:
    """Processor cores for each of several kernels, so that together they ask for no more than there are."""
    if workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, _cores() // workers)


def run_report(
    notebooks: Sequence[str] = (),
    models: Sequence[str] = (),
    baseline: str | None = None,
    data: str | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    list_only: bool = False,
    out_dir: str | Path | None = None,
    timeout: int | None = None,
    echo: Callable[[str], None] = print,
) -> int:
    """Make the reports of notebooks x models and the index, and return the exit status.

    Parameters
    ----------
    notebooks : names of the suite's notebooks, or paths; all of the suite by default.
    models, baseline, data : as in the notebooks' parameters; ``params`` holds further ones.
    jobs : runs at the same time, on this machine; by default as many as it has cores and memory for. Notebooks that
        time something run by themselves.
    scheduler : address of a Dask scheduler whose workers see the same files; replaces ``jobs``.
    force : run also what is current.
    list_only : print one papermill command per line and run nothing.
    timeout : seconds that one cell may take.

    Raises
    ------
    ParameterError, UnknownNameError
        before anything runs.
    """
    if jobs is not None and jobs < 1:
        raise ParameterError(f"jobs={jobs}: expected 1 or more")
    if timeout is not None and timeout < 1:
        raise ParameterError(f"timeout={timeout}: expected 1 second or more")
    folder = Path(out_dir) if out_dir else default_reports_dir()
    pair = {"baseline": baseline, "data": data}
    given = {name: value for name, value in pair.items() if value} | dict(params or {})
    planned = plan(notebooks, models, given, folder, timeout=timeout)
    writable_folder(folder)
    if list_only:
        for job in planned:
            echo(papermill_line(job))
        return 0
    outcomes = _outcomes(planned, jobs or _workers(planned), scheduler, force, echo)
    return _sweep(planned, outcomes, folder, echo)


def _sweep(
    planned: Sequence[Job], outcomes: Iterator[Outcome], folder: Path, echo: Callable[[str], None]
) -> int:
    from .index import write_index

    start, failed = time.monotonic(), 0
    for number, outcome in enumerate(outcomes, start=1):
        failed += outcome.status == "failed"
        words = f" ({outcome.words})" if outcome.words else ""
        echo(f"[{number}/{len(planned)}] {outcome.job.title}: {outcome.status}{words}")
    index = write_index(folder)
    echo(f"{index} ({time.monotonic() - start:.0f} s)")
    if failed:
        print(f"{failed} of {len(planned)} reports failed", file=sys.stderr)
    return 1 if failed else 0
