"""The released reports as Markdown with pictures, for readers who see files and no pages."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag

from .index import rendered, sidecars, telling
from .layout import CHIPS

#: folder of the pictures, in that of the released reports
FIGURES = "figures"
_RELEASED = "../reports" + "/released"  # as seen from docs/
#: what HTML writes in lower case and XML does not; and the colours of a page on white paper
_XML = {"viewbox=": "viewBox=", "<clippath": "<clipPath", "</clippath": "</clipPath", "currentColor": "#000000",
        "var(--page)": "#ffffff", "var(--soft)": "#6e6e6e"}  # fmt: skip
_SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def first_figure(page: str) -> tuple[str, bytes, str] | None:
    """Return ending, bytes and alt text of the first figure of a page; None where it has none."""
    figure = BeautifulSoup(page, "html.parser").find("figure")
    drawing = figure.find(["svg", "img"]) if isinstance(figure, Tag) else None
    if not isinstance(drawing, Tag):
        return None
    if drawing.name == "img":
        data = str(drawing["src"]).partition("base64,")[2]
        return ".png", b64decode(data), str(drawing.get("alt", ""))
    text = str(drawing)
    for html, xml in _XML.items():
        text = text.replace(html, xml)
    return ".svg", text.replace("<svg", f"<svg {_SPACES}", 1).encode(), str(drawing.get("aria-label", ""))


def write_figures(released: Path) -> None:
    """Write the first picture of every released page beside it."""
    for about in _reports(released):
        if found := first_figure((released / f"{about['stem']}.html").read_text(encoding="utf-8")):
            (released / FIGURES).mkdir(exist_ok=True)
            (released / FIGURES / f"{about['stem']}{found[0]}").write_bytes(found[1])


def _reports(released: Path) -> list[dict[str, Any]]:
    return [about for about in sidecars(released) if about["status"] == "done"]


def results_markdown(released: Path) -> str:
    """Return the released reports as Markdown: verdicts, and for each report its answer and its first picture."""
    reports = _reports(released)
    suites = {path.parent.name: _reports(path.parent) for path in sorted(released.glob("*/index.html"))}
    pictures = {
        one["stem"]: sorted(p.name for p in (released / FIGURES).glob(f"{one['stem']}.*")) for one in reports
    }
    where = {"released": _RELEASED, "figures": FIGURES}
    values = where | {"reports": reports, "suites": suites, "pictures": pictures}
    text = rendered("results.md.j2", values, said=_said, cell=lambda text: text.replace("|", "¦"))
    return text.rstrip() + "\n"


def _said(row: dict[str, Any], kind: str, about: str) -> str:
    """What evidence of one kind says of a claim: what it was asked, each verdict and its first number."""
    own = [one for one in telling(row["evidence"]) if one["basis"] == kind]
    statements = dict.fromkeys(one["statement"] for one in own)
    asked = [f"*{text}*" for text in statements if text != row["statement"]]
    return "<br>".join([*asked, *(_verdict(one, about) for one in own)])


def _verdict(one: dict[str, Any], about: str) -> str:
    size = f": {one['size']}" if one["size"] else ""
    of = f" ({one['about']})" if one["about"] != about else ""
    return f"{CHIPS[one['verdict']]} {one['verdict']}{size}{of}"
