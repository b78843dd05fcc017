"""Which state of this package, and of those it rests on, makes the numbers."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def commit() -> str:
    """The commit of the checkout, with "+" if anything in the package differs from it; "unknown" outside one."""
    package = str(Path(__file__).resolve().parent)

    def git(*words: str) -> str:
        command = ["git", "-C", package, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy may lie in somebody else's checkout
        head = git("rev-parse", "--short=12", "HEAD")
        return head + "+" * bool(git("status", "--porcelain", "--", package))
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of some packages, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
