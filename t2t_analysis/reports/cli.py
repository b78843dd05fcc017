"""``python -m t2t_analysis report``."""

from __future__ import annotations

import argparse
from typing import Any

from ..cli import positive, value
from ..errors import ParameterError


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="name in the suite, or path; default: all of it")
    add("--models", type=_names, default=[], metavar="A,B", help="one report per notebook and model")
    add("--baseline", metavar="NAME", help="what models are compared with, none for none; default: what fits")
    add("--data", metavar="DATA", help="photos, photo_crops, a folder, a .tar, or a set as torch/cifar10")
    pair: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("-p", dest="params", help="a parameter of the notebooks", **pair)
    add(
        "--jobs", type=positive, metavar="N", help="notebooks at a time; default: what cores and memory allow"
    )
    add("--scheduler", metavar="ADDRESS", help="Dask scheduler, as tcp://host:8786, with the same files")
    add("--force", action="store_true", help="run also what is current, as when weights have come online")
    add("--list", action="store_true", help="print one papermill command per line and run nothing")
    add("--out-dir", metavar="FOLDER", help="where reports go; default: reports/")
    add("--release", action="store_true", help="then copy the pages to released/ in that folder, to track")
    add("--release-to", metavar="FOLDER", help="the same to another folder, as one beside the released pages")
    add("--timeout", type=positive, metavar="SECONDS", help="how long one cell may take")


def _parameters(pairs: list[list[str]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ParameterError(f"-p {twice[0]} is given twice")
    return {name: value(text) for name, text in pairs}


def run(arguments: argparse.Namespace) -> int:
    """Make the reports."""
    from .runner import run_report

    asked = ("notebooks", "models", "baseline", "data", "jobs", "scheduler", "force", "out_dir", "timeout")
    how = {name: getattr(arguments, name) for name in asked}
    status = run_report(**how, params=_parameters(arguments.params), list_only=arguments.list)
    if status or arguments.list or not (arguments.release or arguments.release_to):
        return status
    return _release(arguments.out_dir, arguments.release_to)


def _release(out_dir: str | None, to: str | None) -> int:
    from pathlib import Path

    from .._paths import default_reports_dir, notebooks_dir
    from .digest import results_markdown
    from .index import write_index
    from .release import release

    folder = Path(out_dir) if out_dir else default_reports_dir()
    target = Path(to) if to else folder / "released"
    print(f"{len(release(folder, target))} files in {target}")
    tracked = default_reports_dir().resolve() / "released"
    if target.resolve().parent == tracked:
        write_index(tracked)
    if tracked in (target.resolve(), target.resolve().parent):  # of this checkout, not another folder's
        docs = notebooks_dir().parent / "docs" / "results.md"
        docs.write_text(results_markdown(tracked), encoding="utf-8")
    return 0
