"""The order of a page: question, answer, verdict and deciding figure first; what it rests on is folded below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

from bs4 import BeautifulSoup, Tag

from ..claims.rule import VERDICTS

#: shapes that tell verdicts apart without colour, in the order of the rule
CHIPS = dict(zip(VERDICTS, "●✖◆▼□◌–", strict=True))
#: findings that are shown; the others are folded
SHOWN = 3
#: sections whose words stay in sight
_OPEN = ("Findings", "Conclusions", "References")
_SETUP = "What is compared"


def chip_class(verdict: str) -> str:
    """Return the CSS classes of a verdict.

    >>> chip_class("not tested")
    'chip chip-not-tested'
    """
    return f"chip chip-{verdict.replace(' ', '-')}"


def mark_verdicts(soup: BeautifulSoup) -> None:
    """A verdict in bold, or alone in a cell, becomes a chip: colour, shape and word."""
    for cell in soup.find_all("td"):
        if cell.get_text() in CHIPS:
            cell.append(soup.new_tag("strong", string=cell.get_text()))
            cell.contents[0].extract()
    for strong in soup.find_all("strong"):
        words = strong.get_text()
        if (verdict := words.lower()) in CHIPS:  # a sentence may begin with it
            strong.name, strong["class"] = "span", chip_class(verdict)
            strong.string = f"{CHIPS[verdict]} {words}"


def answer_first(soup: BeautifulSoup) -> None:
    """Put the first finding and the deciding figure below the title, and fold method, set-up, code and messages.

    A page without findings stays as its notebook is. The deciding figure is the first of a cell with that tag, or the
    first of the page.
    """
    title, findings = soup.find("h1"), soup.select_one("main .findings")
    if title is None or findings is None:
        return
    head = title.find_parent("div", class_="prose") or title
    answer = soup.new_tag("section", attrs={"class": "answer", "aria-label": "Answer"})
    head.insert_before(title, answer)
    answer.extend(soup.select("main .names, .title p:has(strong)"))  # who is meant, and warnings
    figure = soup.select_one("main .deciding figure") or soup.select_one("main figure")
    _lead(answer, findings, figure)
    _fold(soup, head, "Question, method, and what would change our mind")
    _fold_set_up(soup)
    for prose in soup.select("main > .prose"):
        _fold_section(soup, prose)
    for rest in soup.select("main .findings"):
        _fold_items(soup, rest)
    _to_the_end(soup)


def _details(soup: BeautifulSoup, summary: str, content: Iterable[Tag] = (), kind: str = "more") -> Tag:
    details = soup.new_tag("details", attrs={"class": kind})
    details.extend([soup.new_tag("summary", string=summary), *content])
    return details


def _fold(soup: BeautifulSoup, block: Tag, summary: str) -> None:
    """Wrap a whole block; nothing of one that is empty."""
    if block.get_text(strip=True):
        block.wrap(_details(soup, summary))
    else:
        block.extract()


def _lead(answer: Tag, findings: Tag, figure: Tag | None) -> None:
    """The first finding as a paragraph, the figure, and the other findings as a list."""
    first, *rest = findings.find_all("li")
    first.name, first["class"] = "p", "lead"
    answer.extend([first, *([figure] if figure is not None else [])])
    findings.extract()
    if rest:
        answer.append(findings)


def _fold_items(soup: BeautifulSoup, findings: Tag) -> None:
    items = findings.find_all("li")
    shown = SHOWN - 1 if findings.find_parent(class_="answer") else SHOWN
    if len(items) > shown + 1:
        more = soup.new_tag("ul")
        more.extend(items[shown:])
        findings.append(_details(soup, f"{len(items) - shown} more findings", [more]))


def _section(prose: Tag) -> str:
    heading = prose.find("h2")
    return heading.get_text(strip=True) if heading is not None else ""


def _fold_set_up(soup: BeautifulSoup) -> None:
    """Parameters, models and images in one place."""
    tables = soup.select("main table.parameters")
    parts = [table.find_parent("div", class_="scroll") or table for table in tables]
    for prose in soup.select("main > .prose"):
        if _section(prose) == _SETUP:
            parts += [prose, *_cells_after(prose)]
            heading = prose.find("h2")
            if heading is not None:
                heading.extract()
    if parts:
        details = _details(soup, "What was compared: models, images, parameters")
        parts[0].insert_before(details)
        details.extend(parts)


def _cells_after(prose: Tag) -> list[Tag]:
    """The cells between a heading and the next."""
    return list(takewhile(lambda block: "cell" in (block.get("class") or []), prose.find_next_siblings()))


def _fold_section(soup: BeautifulSoup, prose: Tag) -> None:
    """Figures first, and how they were made and are read below them, folded; an empty section goes."""
    name, cells = _section(prose), _cells_after(prose)
    if not name or name in _OPEN:
        kept = any(cell.select_one("figure, .findings, table") for cell in cells) or name == "References"
        if name in _OPEN and not kept:
            prose.extract()
        return
    words = [element for element in prose.find_all(recursive=False) if element.name != "h2"]
    shown = any(cell.select_one("figure, .findings, table, .html, .text") for cell in cells)
    if words:
        summary = "Method and reading" if shown else name
        (cells[-1] if cells else prose).insert_after(_details(soup, summary, words))
    if not shown:  # its figure is at the top, or it never had one
        prose.extract()


def _to_the_end(soup: BeautifulSoup) -> None:
    """One place for all code and one for what was printed."""
    main = soup.find("main")
    if not isinstance(main, Tag):
        return
    code = list(soup.select("main details.code"))
    printed = soup.select("main .cell > pre.stream, main details.messages")
    for blocks, summary, kind in (
        (code, "Code of this page", "code"),
        (printed, "Messages of the run", "messages"),
    ):
        if blocks:
            main.append(_details(soup, summary, blocks, kind))
    for cell in soup.select("main .cell"):
        if not cell.get_text(strip=True) and cell.find(["img", "svg"]) is None:
            cell.extract()


def slug(text: str) -> str:
    """A text as an id.

    >>> slug("What is compared?")
    'what-is-compared'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
