"""Fetch one file into the cache: verified, atomic, and quick to say that there is no network.

``torch.hub.download_url_to_file`` waits for a silent server without end and takes a truncated answer for the file.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout

from .._progress import progress
from ..errors import DownloadError

__all__ = ["fetch", "file_sha256", "hash_prefix_of", "reachable", "within"]

_CHUNK = 1 << 20
_STALL = 30.0  # seconds without a byte, once a server has begun to answer
_HEADERS = {"User-Agent": "t2t_analysis", "Accept-Encoding": "identity"}
_T = TypeVar("_T")


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
    request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
        except urllib.error.HTTPError:
            return  # an answer, if not a kind one

    try:
        within(timeout, ask)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot reach {url}: {_reason(error)}") from error


def fetch(url: str, path: str | Path, sha256_prefix: str | None = None, *, timeout: float = 5.0) -> Path:
    """Download ``url`` to ``path`` unless it is there, and return ``path``.

    The file appears under its name only when it is whole and its hash is right. Of several processes that want
    the same file one downloads and the others wait for it.

    Parameters
    ----------
    url : https or file address; http only of this machine.
    sha256_prefix : first hexadecimal digits that the file's SHA-256 must have; by default what the name
        itself carries (``name-<prefix>.pth``), otherwise only the length is checked.
    timeout : seconds until the server must have begun to answer, name look-up included.

    Raises
    ------
    DownloadError
        No network, an HTTP error such as 404, an incomplete answer, a wrong hash, no room, an address that is not
        encrypted. Whatever was at ``path`` before is still there.
    """
    path = Path(path)
    prefix = (sha256_prefix or hash_prefix_of(path.name) or "").lower()
    if _is_good(path, prefix):
        return path
    _check_address(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, url, timeout):
            if not _is_good(path, prefix):  # another process may have been quicker
                _download(url, path, prefix, timeout)
    except DownloadError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot fetch {url} to {path}: {_reason(error)}") from error
    return path


def _is_good(path: Path, prefix: str) -> bool:
    return path.is_file() and (not prefix or file_sha256(path).startswith(prefix))


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "file") and parts.hostname not in ("127.0.0.1", "localhost"):
        raise DownloadError(f"{url} is refused: expected an https address")


def _lock(path: Path, url: str, timeout: float) -> AcquireReturnProxy:
    """The file's lock, taken. Who has to wait for it first checks that there is something to wait for."""
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        reachable(url, timeout)
        return lock.acquire()


def _download(url: str, path: Path, prefix: str, timeout: float) -> None:
    part = Path(f"{path}.part")  # what a killed process has left there is overwritten
    try:
        with _open(url, timeout) as answer, open(part, "wb") as file:
            _check_address(answer.url)  # after redirections
            total = int(answer.headers.get("Content-Length") or 0)
            _check_room(part, total)
            pieces = iter(partial(answer.read, _CHUNK), b"")
            for piece in progress(pieces, f"downloading {path.name}", total=-(-total // _CHUNK), unit="MiB"):
                file.write(piece)
        if total and (arrived := part.stat().st_size) != total:
            raise DownloadError(f"{url} broke off: {arrived} of {total} bytes arrived; try again")
        found = file_sha256(part) if prefix else ""
        if not found.startswith(prefix):
            raise DownloadError(
                f"{url} has the wrong content: expected SHA-256 {prefix}, found {found[:16]}...; "
                "the download was deleted"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _open(url: str, timeout: float) -> Any:
    request = urllib.request.Request(url, headers=_HEADERS)
    try:
        return within(timeout, lambda: urllib.request.urlopen(request, timeout=max(timeout, _STALL)))
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answered {error.code} {error.reason}; expected the file") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"cannot reach {url}: {_reason(error)}") from error


def _check_room(part: Path, total: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total > free:
        raise DownloadError(
            f"{total} bytes do not fit into {part.parent}: {free} bytes are free; "
            "the environment variable T2T_ANALYSIS_CACHE moves the cache"
        )


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__
