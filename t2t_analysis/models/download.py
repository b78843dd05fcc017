"""Fetch one file into the cache: verified, atomic, and quick to say that there is no network."""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from .._files import whole_file
from .._progress import progress
from ..errors import DownloadError

_STALL = 30.0  # seconds without a byte, once a server has begun to answer
_PIECE = 2**20  # bytes
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
    answer: Future[_T] = Future()

    def run() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_good(path, prefix):  # another process may have been quicker
                _download(url, path, prefix, timeout)
    except DownloadError:
        raise
    except HTTPError as error:
        raise DownloadError(f"{url} answered {error.code} {error.reason}; expected the file") from error
    except (URLError, TimeoutError, HTTPException, ValueError) as error:
        raise DownloadError(f"cannot reach {url}: {getattr(error, 'reason', error)}") from error
    except OSError as error:
        hint = "the environment variable T2T_ANALYSIS_CACHE moves the cache"
        raise DownloadError(f"cannot fetch {url} to {path}: {error} ({hint})") from error
    return path


def _is_good(path: Path, prefix: str) -> bool:
    return path.is_file() and (not prefix or file_sha256(path).startswith(prefix))


def _download(url: str, path: Path, prefix: str, timeout: float) -> None:
    _check_address(url)
    request = Request(url, headers={"User-Agent": "t2t_analysis"})
    answer: Any = within(timeout, lambda: urlopen(request, timeout=_STALL))
    with answer, whole_file(path) as part:
        _check_address(answer.url)  # after redirections
        length = int(answer.headers.get("Content-Length") or 0)
        pieces = iter(lambda: answer.read(_PIECE), b"")
        with part.open("wb") as file:
            for piece in progress(pieces, f"downloading {path.name}", length // _PIECE, "MiB"):
                file.write(piece)
        if length and (arrived := part.stat().st_size) != length:
            raise DownloadError(f"{url} broke off: {arrived} of {length} bytes arrived; try again")
        if not (found := file_sha256(part)).startswith(prefix):
            raise DownloadError(
                f"{url} has the wrong content: expected SHA-256 {prefix}, found {found}; the download was deleted"
            )


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "file") and parts.hostname not in ("127.0.0.1", "localhost"):
        raise DownloadError(f"{url} is refused: expected an https address")
