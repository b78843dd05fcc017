"""The index of all reports in a folder, made from their sidecars alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from .._files import write_whole
from .layout import CHIPS, chip_class


def rendered(template: str, values: Mapping[str, Any], **filters: Callable[..., str]) -> str:
    """Text of a template in ``template/``; what is put into a page is escaped."""
    loader, page = FileSystemLoader(Path(__file__).parent / "template"), template.endswith(".html.j2")
    environment = Environment(loader=loader, autoescape=page, trim_blocks=True)
    environment.filters |= filters
    return environment.get_template(template).render(values)


def sidecars(folder: Path) -> list[dict[str, Any]]:
    """Every readable sidecar, in the order of the names; a failed run's says so."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and {"stem", "notebook", "status"} <= set(about):
            found.append(about)
    return found


def _row(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    ending = ".failed" if about["status"] == "failed" else ""
    page = f"{about['stem']}{ending}.html"
    links = [(f"{about['stem']}{ending}.ipynb", "notebook")]
    if (folder / about["stem"]).is_dir():
        links.append((f"{about['stem']}/", "tables"))
    return {
        **about,
        "pair": about.get("subject") or f"{about['model']} against {about['baseline']}",
        "page": page if (folder / page).is_file() else None,
        "links": [(href, words) for href, words in links if (folder / href).exists()],
        "kilobytes": -(-about.get("page_bytes", 0) // 1000),
        "sentence": next(iter(about.get("findings", [])), ""),
        "settings": _settings(about),
        "untrained": about.get("untrained", []),
    }


def _settings(about: dict[str, Any]) -> str:
    chosen = about.get("parameters", {})
    images = "all images" if chosen.get("n_images") is None else f"{chosen['n_images']} images"
    return f"{chosen.get('data', '')}, {images}, seed {chosen.get('seed', 0)}"


def _ledgers(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts of every run that has some, each with the report of the same pair that shows its figures."""
    pages = {(row["notebook"], row["pair"]): row["page"] for row in done}
    found = []
    for row in done:
        for ledger in row.get("verdicts", []):
            seen = [
                v
                | {"page": pages.get((v["notebook"], row["pair"])), "evidence": telling(v["evidence"])}
                | {"cells": _cells(telling(v["evidence"]), ledger["about"])}
                for v in ledger["verdicts"]
                if v["evidence"]  # of the others nothing is said here
            ]
            bases = list(dict.fromkeys(basis for v in seen for basis in v["cells"]))
            about = {name: row[name] for name in ("page", "pair")} | {"bases": bases}
            found.append(about | ledger | {"verdicts": seen})
    return found


def telling(evidence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was tested; of a kind of evidence by which nothing was, the first, which says why."""
    tested = [one for one in evidence if one["verdict"] != "not tested"]
    bases = {one["basis"] for one in tested}
    for one in evidence:
        if one["basis"] not in bases:
            bases.add(one["basis"])
            tested.append(one)
    return tested


def _cells(evidence: list[dict[str, Any]], about: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Basis -> what it was asked -> verdicts: a single one with its size, of several only who got which and why."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for basis, asked in dict.fromkeys((one["basis"], one["statement"]) for one in evidence):
        own = [one for one in evidence if (one["basis"], one["statement"]) == (basis, asked)]
        lines: dict[tuple[str, str], list[str]] = {}
        for one in own:
            name = one["about"].partition(",")[0].removesuffix(" alone")
            lines.setdefault((one["verdict"], one["why"]), []).append(name)
        of = own[0]["compared"] if own[0]["about"] == about else own[0]["about"]
        found.setdefault(basis, {})[asked] = [
            {"verdict": verdict, "why": why, "size": own[0]["size"], "of": of}
            if len(own) == 1
            else {"verdict": verdict, "why": why, "size": "", "of": ", ".join(dict.fromkeys(names))}
            for (verdict, why), names in lines.items()
        ]
    return found


def write_index(folder: str | Path) -> Path:
    """Write ``index.html`` from the sidecars in ``folder`` and return its path."""
    folder = Path(folder)
    rows = [_row(about, folder) for about in sidecars(folder)]
    failed = [row for row in rows if row["status"] == "failed"]
    done = [row for row in rows if row["status"] == "done"]
    made_from = sorted({str(row["commit"]) for row in done if row.get("commit")})
    versions: dict[str, str] = next((row["versions"] for row in done if row.get("versions")), {})
    suites = [path.parent.name for path in sorted(folder.glob("*/index.html"))]
    above = (folder.parent / "index.html").is_file() and not suites
    text = rendered("suite.html.j2", {
        "made_from": made_from, "versions": versions, "rows": rows, "done": done, "failed": failed, "suites": suites,
        "above": above, "shapes": CHIPS, "ledgers": _ledgers(done),
    }, chip=chip_class)  # fmt: skip
    path = folder / "index.html"
    write_whole(path, text + "\n")
    return path
