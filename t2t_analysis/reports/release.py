"""A copy of the default suite that readers see without running anything: pages, sidecars and an index."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import DataError
from .digest import write_figures
from .index import write_index

__all__ = ["LIMIT", "release", "smaller"]

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
        page = smaller((folder / f"{about['stem']}.html").read_text(encoding="utf-8"))
        (fresh / f"{about['stem']}.html").write_text(page, encoding="utf-8")
        shown = about | {"page_bytes": len(page.encode())}
        (fresh / f"{about['stem']}.json").write_text(
            json.dumps(shown, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    write_figures(fresh)
    write_index(fresh)
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > LIMIT:
        shutil.rmtree(fresh)
        raise DataError(f"these reports are not released\n  {size / 1e6:.1f} MB, {LIMIT / 1e6:g} MB at most")
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    return sorted(path.name for path in target.iterdir())
