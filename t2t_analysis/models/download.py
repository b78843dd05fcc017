"""Fetch one file into the cache: verified, atomic, and quick to say that there is no network.

What ``torch.hub.download_url_to_file`` leaves open is closed around it: it waits for a silent server without end, takes
a truncated answer for the file, and asks any address.
"""

from __future__ import annotations

import hashlib
import queue
import re
import socket
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from torch.hub import download_url_to_file

from .._files import whole_file
from .._progress import in_kernel
from ..errors import DownloadError

_STALL = 30.0  # seconds without a byte, once a server has begun to answer
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
    length = _length(url, timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_good(path, prefix):  # another process may have been quicker
                _download(url, path, prefix, length)
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answered {error.code} {error.reason}; expected the file") from error
    except RuntimeError as error:
        raise DownloadError(f"{url} has the wrong content: {error}; the download was deleted") from error
    except (OSError, HTTPException, ValueError) as error:
        hint = "the environment variable T2T_ANALYSIS_CACHE moves the cache"
        raise DownloadError(f"cannot fetch {url} to {path}: {_reason(error)} ({hint})") from error
    return path


def _download(url: str, path: Path, prefix: str, length: int) -> None:
    with whole_file(path) as part, _impatient():
        download_url_to_file(url, str(part), prefix or None, sys.stderr.isatty() or in_kernel())
        if length and (arrived := part.stat().st_size) != length:
            raise DownloadError(f"{url} broke off: {arrived} of {length} bytes arrived; try again")


def _is_good(path: Path, prefix: str) -> bool:
    return path.is_file() and (not prefix or file_sha256(path).startswith(prefix))


def _length(url: str, timeout: float) -> int:
    """Bytes that the server of ``url`` promises, 0 where it does not say; it has ``timeout`` seconds to answer."""
    _check_address(url)
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "t2t_analysis"})

    def ask() -> Any:
        try:
            return urllib.request.urlopen(request, timeout=2 * timeout)  # `within` speaks first, of one clock
        except urllib.error.HTTPError as error:
            return error  # an answer, if not a kind one: the file itself is asked for next

    try:
        with within(timeout, ask) as answer:
            _check_address(answer.url)  # after redirections
            return int(answer.headers.get("Content-Length") or 0) if answer.status in (200, None) else 0
    except DownloadError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot reach {url}: {_reason(error)}") from error


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "file") and parts.hostname not in ("127.0.0.1", "localhost"):
        raise DownloadError(f"{url} is refused: expected an https address")


@contextmanager
def _impatient() -> Iterator[None]:
    """Let no connection be silent for longer than ``_STALL``."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__
