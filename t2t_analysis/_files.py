"""Files that are whole or not there: written beside their place and moved into it."""

from __future__ import annotations

import csv
import glob
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError

#: this machine, short: sockets lie in scratch folders, and their paths may have a hundred characters
_HERE = f"t2t-{zlib.crc32(platform.node().encode()):08x}"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to; the file moves to ``path`` when the block ends well, else ``path`` stays as it was.

    Leftovers of killed processes are removed on the way.
    """
    path = Path(path)
    for left in _left_over(path.parent, f".{glob.escape(path.name)}.{_HERE}.*.part"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{_HERE}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder among the system's temporary files; what killed processes left there is removed on the way."""
    for left in _left_over(Path(tempfile.gettempdir()), f"{_HERE}.*.*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_HERE}.{os.getpid()}.", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _left_over(folder: Path, pattern: str) -> list[Path]:
    """Files whose last but one part is the number of a process that does not run any more."""
    import psutil

    return [path for path in folder.glob(pattern) if not psutil.pid_exists(int(path.name.split(".")[-2]))]


def csv_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV that has a header, all as text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_whole(path: str | Path, text: str) -> None:
    """Write a file so that nobody sees half of it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable_folder(folder: str | Path) -> Path:
    """``folder``, made if need be, after a file could be made in it: asked before the work, not after it.

    Raises
    ------
    DataError
        It cannot be made or written into; the reason is the system's.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"cannot write into {str(folder)!r}: {error}") from error
