"""How far are we: one line that reads well in a terminal, in JupyterLab, in a report and in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

T = TypeVar("T")
KERNEL_EVERY, LOG_EVERY = 0.5, 10.0  # seconds


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


def _reported(
    iterable: Iterable[T],
    total: int | None,
    unit: str,
    every: float,
    say: Callable[[str, float | None], None],
) -> Iterator[T]:
    """Pass items on; ``say(text, None)`` now and then, and once, at the end, with the seconds that it took."""
    start = last = time.monotonic()
    n, complete = 0, False
    try:
        for item in iterable:
            yield item
            n += 1
            now = time.monotonic()
            if now - last >= every:
                last = now
                say(_so_far(n, total, unit, now - start), None)
        complete = True
    finally:
        stopped = f"stopped after {n:,}" + (f" of {_count(total, unit)}" if total else f" {unit}")
        say(_count(n, unit) if complete else stopped, time.monotonic() - start)


def _in_kernel(desc: str) -> Callable[[str, float | None], None]:
    """One display that is updated in place, so that a saved notebook keeps its last text only.

    That text holds no seconds, so that a report is the same every time.
    """
    from IPython.display import display

    handle = display({"text/plain": f"{desc}: starting"}, raw=True, display_id=True)
    return lambda text, took: handle.update({"text/plain": f"{desc}: {text}"}, raw=True)


def _on_stderr(desc: str) -> Callable[[str, float | None], None]:
    """Lines on stderr; a last one only where there was one before: none about what is over sooner."""
    said: list[str] = []

    def say(text: str, took: float | None) -> None:
        if took is None or said:
            ending = "" if took is None else f" in {took:.0f} s"
            print(f"{desc}: {text}{ending}", file=sys.stderr, flush=True)
            said.append(text)

    return say


def progress(
    iterable: Iterable[T],
    desc: str,
    total: int | None = None,
    unit: str = "batch",
    *,
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
    shown : False says nothing.

    >>> list(progress([1, 2, 3], "counting", unit="number"))
    [1, 2, 3]
    """
    if not shown:
        return iter(iterable)
    total = total or length_hint(iterable) or None
    if in_kernel():
        return _reported(iterable, total, unit, KERNEL_EVERY, _in_kernel(desc))
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        return iter(tqdm(iterable, desc=desc, total=total, unit=f" {unit}", file=sys.stderr))
    return _reported(iterable, total, unit, LOG_EVERY, _on_stderr(desc))
