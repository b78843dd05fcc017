"""A copy of the default suite that readers see without running anything: pages, sidecars and an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import DataError
from .index import write_index

__all__ = ["LIMIT", "release"]

#: bytes of everything that is released
LIMIT = 5_000_000


def _sidecars(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(about, dict) and about.get("status") in ("done", "failed"):
            found.append(about)
    return found


def _problems(reports: list[dict[str, Any]], folder: Path) -> list[str]:
    """Why these reports are not fit to be read by others."""
    problems = [
        f"{about['stem']} failed: {about['failure']}" for about in reports if about["status"] == "failed"
    ]
    done = [about for about in reports if about["status"] == "done"]
    if not done:
        problems.append(f"no report in {folder}; python -m t2t_analysis report makes them")
    commits = sorted({str(about["commit"]) for about in done})
    if len(commits) > 1:
        problems.append(f"reports of several commits: {', '.join(commits)}; run report --force")
    problems += [f"made from {commit}: commit first" for commit in commits if "uncommitted" in commit]
    size = sum((folder / f"{about['stem']}.html").stat().st_size for about in done)
    if size > LIMIT:
        problems.append(f"{size / 1e6:.1f} MB of pages, {LIMIT / 1e6:g} MB at most")
    return problems


def release(folder: Path, target: Path) -> list[str]:
    """Replace what is in ``target`` by the reports in ``folder``, with an index of their own.

    Raises
    ------
    DataError
        names everything that is wrong with them at once: failed runs, several commits or an unclean one, too large;
        ``target`` is then as it was.

    Returns the names of the files.
    """
    reports = _sidecars(folder)
    if problems := _problems(reports, folder):
        raise DataError("these reports are not released\n  " + "\n  ".join(problems))
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for about in reports:
        for ending in (".html", ".json"):
            shutil.copyfile(folder / f"{about['stem']}{ending}", fresh / f"{about['stem']}{ending}")
    write_index(fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    return sorted(path.name for path in target.iterdir())
