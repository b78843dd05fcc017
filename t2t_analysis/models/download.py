"""Fetch one file into the cache: resumable, verified, atomic, and quick to say that there is no network."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout

from .._progress import progress
from ..errors import DownloadError

__all__ = ["fetch", "file_sha256", "hash_prefix_of", "reachable", "within"]

_CHUNK = 1 << 20
_STALL = 30.0  # seconds without a byte, once a server has begun to answer
_T = TypeVar("_T")


class _ShortAnswerError(Exception):
    """The connection ended before the announced length: worth another try from where it stopped."""


def hash_prefix_of(name: str) -> str | None:
    """The sha256 prefix that a file name carries by the rule of ``torch.hub``, ``name-<prefix>.pth``.

    >>> hash_prefix_of("t2t-vit-t-14_8xb64_in1k_20210928-b7c09b62.pth")
    'b7c09b62'
    >>> hash_prefix_of("81.5_T2T_ViT_14.pth.tar") is None
    True
    """
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else None


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def within(seconds: float, function: Callable[[], _T]) -> _T:
    """``function()``, or TimeoutError after ``seconds``, even where it hangs in a name look-up.

    A resolver ignores socket timeouts, so the call runs in a thread that is left behind when it is late.
    """
    answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((True, function()))
        except BaseException as error:
            answer.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        fine, value = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if fine:
        return value
    raise value


def reachable(url: str, timeout: float = 5.0) -> None:
    """Return if the server of ``url`` answers at all within ``timeout`` seconds; proxies are honoured.

    Raises
    ------
    DownloadError
        Nobody answers: no network, no such host, connection refused, or silence.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "t2t_analysis"})

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
        except urllib.error.HTTPError:
            return  # an answer, if not a kind one

    try:
        within(timeout, ask)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot reach {url}: {_reason(error)}") from error


def fetch(
    url: str,
    path: str | Path,
    sha256_prefix: str | None = None,
    *,
    timeout: float = 5.0,
    tries: int = 3,
) -> Path:
    """Download ``url`` to ``path`` unless it is there, and return ``path``.

    What arrived before an interruption is kept beside ``path`` as ``.part`` and continued by HTTP Range, in
    this call up to ``tries`` times and in later calls; the file appears under its name only when it is whole
    and its hash is right. Of several processes that want the same file one downloads and the others wait for
    it.

    Parameters
    ----------
    url : http, https or file address.
    sha256_prefix : first hexadecimal digits that the file's SHA-256 must have; by default what the name
        itself carries (``name-<prefix>.pth``), otherwise only the length is checked.
    timeout : seconds until the server must have begun to answer, name look-up included.

    Raises
    ------
    DownloadError
        No network, an HTTP error such as 404, an answer that stays incomplete, a wrong hash, no room.
        Whatever was at ``path`` before is still there.
    """
    path = Path(path)
    prefix = (sha256_prefix or hash_prefix_of(path.name) or "").lower()
    if _is_good(path, prefix):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, url, timeout):
            if not _is_good(path, prefix):  # another process may have been quicker
                _download(url, path, prefix, timeout, tries)
    except DownloadError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot fetch {url} to {path}: {_reason(error)}") from error
    return path


def _is_good(path: Path, prefix: str) -> bool:
    return path.is_file() and (not prefix or file_sha256(path).startswith(prefix))


def _lock(path: Path, url: str, timeout: float) -> AcquireReturnProxy:
    """The file's lock, taken. Who has to wait for it first checks that there is something to wait for."""
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        reachable(url, timeout)
        return lock.acquire()


def _download(url: str, path: Path, prefix: str, timeout: float, tries: int) -> None:
    part = Path(f"{path}.part")
    for left in reversed(range(tries)):
        try:
            _continue(url, part, timeout)
            break
        except _ShortAnswerError as error:
            if not left:
                raise DownloadError(
                    f"{url} broke off {tries} times: {error}; what came is kept, try again"
                ) from error
    _verify(url, part, prefix)
    os.replace(part, path)
    _validator_file(part).unlink(missing_ok=True)


def _verify(url: str, part: Path, prefix: str) -> None:
    found = file_sha256(part) if prefix else ""
    if not found.startswith(prefix):
        _discard(part)
        raise DownloadError(
            f"{url} has the wrong content: expected SHA-256 {prefix}, found {found[:16]}...; "
            "the download was deleted"
        )


def _continue(url: str, part: Path, timeout: float) -> None:
    """Append to ``part`` what is missing; _ShortAnswerError if the connection ends too early."""
    start = part.stat().st_size if part.exists() else 0
    with _open(url, part, start, timeout) as answer:
        if getattr(answer, "status", None) == 416:  # nothing after `start`: whole, or not the same file
            if _total(answer) == start:
                return
            _discard(part)
            raise _ShortAnswerError("the server has a shorter file than the one begun")
        start = _resumed_at(answer, start)
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        _check_room(part, total, start)
        _validator_file(part).write_text(_validator(answer))
        _append(answer, part, start, total)
    if total is not None and part.stat().st_size != total:
        raise _ShortAnswerError(f"{part.stat().st_size} of {total} bytes arrived")


def _open(url: str, part: Path, start: int, timeout: float) -> Any:
    headers = {"User-Agent": "t2t_analysis", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if (kept := _validator_file(part)).exists() and kept.read_text():
            headers["If-Range"] = kept.read_text()  # the whole file anew if it has changed meanwhile
    request = urllib.request.Request(url, headers=headers)
    try:
        return within(timeout, lambda: urllib.request.urlopen(request, timeout=max(timeout, _STALL)))
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return error  # an HTTPError is an answer with headers too
        raise DownloadError(f"{url} answered {error.code} {error.reason}; expected the file") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"cannot reach {url}: {_reason(error)}") from error


def _resumed_at(answer: Any, start: int) -> int:
    """First byte of this answer: ``start`` if the server continues, 0 if it sends everything again."""
    if getattr(answer, "status", None) != 206:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not found or int(found[1]) > start:
        raise DownloadError(
            f"asked for bytes from {start}, got Content-Range {answer.headers.get('Content-Range')!r}"
        )
    return int(found[1])


def _append(answer: IO[bytes], part: Path, start: int, total: int | None) -> None:
    with open(part, "r+b" if part.exists() else "wb") as file:
        file.seek(start)
        file.truncate()
        pieces = None if total is None else -(-(total - start) // _CHUNK)
        for piece in progress(_pieces(answer), f"downloading {part.stem}", total=pieces, unit="MiB"):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _pieces(answer: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            piece = answer.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _ShortAnswerError(_reason(error)) from error
        if not piece:
            return
        yield piece


def _check_room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DownloadError(
            f"{total - start} bytes do not fit into {part.parent}: {free} bytes are free; "
            "the environment variable T2T_ANALYSIS_CACHE moves the cache"
        )


def _validator(answer: Any) -> str:
    """What identifies this version of the file; weak tags do not allow ranges (RFC 9110, 13.1.5)."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _validator_file(part: Path) -> Path:
    return Path(f"{part}.version")


def _total(answer: Any) -> int | None:
    found = re.match(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__
