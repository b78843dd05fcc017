"""A copy of a suite that readers see without running anything: pages, sidecars and an index."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import DataError
from .digest import write_figures
from .index import sidecars, write_index

#: bytes of everything that is released
LIMIT = 5_000_000


def _problems(reports: list[dict[str, Any]], folder: Path) -> list[str]:
    """Why these reports are not fit to be read by others."""
    failed = [about for about in reports if about["status"] == "failed"]
    problems = [f"{about['stem']} failed: {about['failure']}" for about in failed]
    done = [about for about in reports if about["status"] == "done"]
    if not done:
        problems.append(f"no report in {folder}; python -m t2t_analysis report makes them")
    commits = sorted({str(about["commit"]) for about in done})
    if len(commits) > 1:
        problems.append(f"reports of several commits: {', '.join(commits)}; run report --force")
    problems += [f"made from {commit}: commit first" for commit in commits if commit.endswith("+")]
    return problems


_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def smaller(page: str) -> str:
    """Return a page whose pictures have 256 colours each, at a third of the size."""
    return _PNG.sub(lambda found: f"data:image/png;base64,{_with_palette(found[1])}", page)


def _with_palette(encoded: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    shrunk = base64.b64encode(buffer.getvalue()).decode("ascii")
    return shrunk if len(shrunk) < len(encoded) else encoded


def _elsewhere(text: str, about: dict[str, Any]) -> str:
    """Text of a report in which files of this machine go by their names alone."""
    for value in about.get("parameters", {}).values():
        if isinstance(value, str) and os.sep in value and Path(value).expanduser().exists():
            text = text.replace(value, Path(value).name)
    return text


def release(folder: Path, target: Path) -> list[str]:
    """Replace what is in ``target`` by the reports in ``folder``, with an index of their own.

    Other suites in folders of ``target`` stay, and its index links to them; a suite in such a folder has no separate
    pictures. Files that the reports were made from, such as weights, are named without their folders.

    Raises
    ------
    DataError
        names everything that is wrong with them at once: failed runs, several commits or an unclean one, too large;
        ``target`` is then as it was.

    Returns the names of the files.
    """
    reports = sidecars(folder)
    if problems := _problems(reports, folder):
        raise DataError("these reports are not released\n  " + "\n  ".join(problems))
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for about in reports:
        page = _elsewhere(smaller((folder / f"{about['stem']}.html").read_text(encoding="utf-8")), about)
        (fresh / f"{about['stem']}.html").write_text(page, encoding="utf-8")
        shown = about | {"page_bytes": len(page.encode())}
        text = _elsewhere(json.dumps(shown, indent=1, sort_keys=True), about)
        (fresh / f"{about['stem']}.json").write_text(text + "\n", encoding="utf-8")
    if not (target.parent / "index.html").is_file():
        write_figures(fresh)
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > LIMIT:
        shutil.rmtree(fresh)
        raise DataError(f"these reports are not released\n  {size / 1e6:.1f} MB, {LIMIT / 1e6:g} MB at most")
    for suite in target.glob("*/index.html"):
        shutil.copytree(suite.parent, fresh / suite.parent.name)
    write_index(fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    return sorted(path.name for path in target.iterdir())
