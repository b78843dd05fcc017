"""How far are we: one line that reads well in a terminal, in JupyterLab, in a report and in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
KERNEL_EVERY, LOG_EVERY = 0.5, 10.0  # seconds
#: Set to 1 to end a notebook's line with its seconds; without them a report is the same every time.
SECONDS = "T2T_ANALYSIS_PROGRESS_SECONDS"


def in_kernel() -> bool:
    """Whether this is an IPython kernel, found without importing IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")


def _count(n: int, unit: str) -> str:
    """A number with its unit; units that are all lower case get a plural.

    >>> _count(1, "batch"), _count(2, "batch"), _count(3, "image"), _count(4, "MiB")
    ('1 batch', '2 batches', '3 images', '4 MiB')
    """
    if n == 1 or not unit.islower():
        return f"{n:,} {unit}"
    return f"{n:,} {unit}{'es' if unit.endswith(('ch', 'sh', 's', 'x')) else 's'}"


def _so_far(n: int, total: int | None, unit: str, seconds: float) -> str:
    if not total:
        return f"{_count(n, unit)}, {seconds:.0f} s"
    left = seconds / n * (total - n) if n else float("nan")
    about = f", about {left:.0f} s left" if n else ""
    return f"{n:,} of {_count(total, unit)}, {seconds:.0f} s{about}"


def _length(iterable: Iterable[object]) -> int | None:
    try:
        return len(iterable)  # type: ignore[arg-type]
    except TypeError:
        return None


def _reported(
    iterable: Iterable[T],
    every: float,
    say: Callable[[int, float], None],
    done: Callable[[int, float, bool], None],
) -> Iterator[T]:
    """Pass items on; call ``say(n, seconds)`` now and then, ``done(n, seconds, complete)`` once."""
    start = last = time.monotonic()
    n, complete = 0, False
    try:
        for item in iterable:
            yield item
            n += 1
            now = time.monotonic()
            if now - last >= every:
                last = now
                say(n, now - start)
        complete = True
    finally:
        done(n, time.monotonic() - start, complete)


def _final(n: int, total: int | None, unit: str, complete: bool) -> str:
    if complete:
        return _count(n, unit)
    return f"stopped after {n:,}" + (f" of {_count(total, unit)}" if total else f" {unit}")


def _kernel(iterable: Iterable[T], desc: str, total: int | None, unit: str, seconds: bool) -> Iterator[T]:
    """One display that is updated in place, so that a saved notebook keeps its last text only."""
    from IPython.display import display

    def bundle(text: str) -> dict[str, str]:
        return {"text/plain": f"{desc}: {text}"}

    handle = display(bundle("starting"), raw=True, display_id=True)

    def say(n: int, spent: float) -> None:
        handle.update(bundle(_so_far(n, total, unit, spent)), raw=True)

    def done(n: int, spent: float, complete: bool) -> None:
        took = f" in {spent:.1f} s" if seconds else ""
        handle.update(bundle(_final(n, total, unit, complete) + took), raw=True)

    return _reported(iterable, KERNEL_EVERY, say, done)


def _lines(iterable: Iterable[T], desc: str, total: int | None, unit: str) -> Iterator[T]:
    """A line on stderr every ten seconds, and a last one; none about what is over sooner."""
    said = False

    def say(n: int, spent: float) -> None:
        nonlocal said
        said = True
        print(f"{desc}: {_so_far(n, total, unit, spent)}", file=sys.stderr, flush=True)

    def done(n: int, spent: float, complete: bool) -> None:
        if said:
            text = f"{desc}: {_final(n, total, unit, complete)} in {spent:.0f} s"
            print(text, file=sys.stderr, flush=True)

    return _reported(iterable, LOG_EVERY, say, done)


def progress(
    iterable: Iterable[T],
    desc: str,
    total: int | None = None,
    unit: str = "batch",
    *,
    seconds: bool | None = None,
    shown: bool = True,
) -> Iterator[T]:
    """Pass the items of ``iterable`` on and say how far it is.

    In an IPython kernel one display is updated in place, at most twice a second; in a terminal it is a tqdm
    bar on stderr; elsewhere a line on stderr every ten seconds.

    Parameters
    ----------
    desc : what is going on, for example "measuring".
    total : number of items, if ``iterable`` has no length.
    unit : what an item is, in the singular.
    seconds : whether the last text in a kernel says how long it took; by default only if the environment
        variable ``T2T_ANALYSIS_PROGRESS_SECONDS`` is 1, so that a report made twice is the same.
    shown : False says nothing.

    >>> list(progress([1, 2, 3], "counting", unit="number"))
    [1, 2, 3]
    """
    if not shown:
        return iter(iterable)
    total = _length(iterable) if total is None else total
    if in_kernel():
        timed = os.environ.get(SECONDS) == "1" if seconds is None else seconds
        return _kernel(iterable, desc, total, unit, timed)
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        return iter(tqdm(iterable, desc=desc, total=total, unit=f" {unit}", file=sys.stderr))
    return _lines(iterable, desc, total, unit)
