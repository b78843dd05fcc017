"""Files that are whole or not there: written beside their place and moved into it."""

from __future__ import annotations

import csv
import glob
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to; the file moves to ``path`` when the block ends well, else ``path`` stays as it was.

    Leftovers of killed processes are removed on the way.
    """
    path, here = Path(path), re.sub(r"\W", "-", platform.node())
    for left in path.parent.glob(f".{glob.escape(path.name)}.{here}.*.part"):
        if not _runs(int(left.name.split(".")[-2])):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{here}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def csv_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV that has a header, all as text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_whole(path: str | Path, text: str) -> None:
    """Write a file so that nobody sees half of it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


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
