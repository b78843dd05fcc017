"""``python -m t2t_analysis bench``: the scripts in ``benchmarks/`` of a checkout."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..errors import DataError, UnknownNameError

_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def _scripts() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_FOLDER.glob("[!_]*.py"))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run benchmarks one after the other; the status is that of the last one that failed."""
    scripts = _scripts()
    if not scripts:
        raise DataError(f"no benchmarks in {_FOLDER}: they come with a checkout only")
    for name in arguments.names:
        if name not in scripts:
            raise UnknownNameError("benchmark", name, scripts)
    chosen = arguments.names or list(scripts)
    if arguments.list:
        print("\n".join(chosen))
        return 0
    status = 0
    for name in chosen:
        print(f"== {name}", flush=True)
        status = subprocess.run([sys.executable, str(scripts[name])], check=False).returncode or status
    return status
