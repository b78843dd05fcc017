"""An executed notebook as one HTML page: no script, no request, formulas as MathML, alt text kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from .._show import METADATA
from ..errors import T2TError
from .mathml import to_mathml

__all__ = ["Page", "outputs_with_role", "to_html"]

_TEMPLATES = Path(__file__).parent
#: cells that say nothing to a reader: papermill's copy of the parameters and its own error banners
_HIDDEN_TAGS = frozenset({"injected-parameters", "papermill-error-cell-tag"})
#: elements that run, load or restyle something; pandas puts a style element into its tables
_FOREIGN = ("script", "style", "iframe", "object", "embed", "link", "meta", "base", "form")
_PRIORITY = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/latex", "text/plain"]


@dataclass(frozen=True)
class Page:
    """What a page says about its run, beside the notebook's own content.

    ``parameters`` are rows with name, value and help; ``commands`` rows with words and line, each a way to
    make the page again; ``failure`` is empty unless the run failed.
    """

    title: str
    parameters: Sequence[Mapping[str, str]] = ()
    commands: Sequence[Mapping[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    failure: str = ""


class _Renderer(IPythonRenderer):
    """Markdown in which formulas become MathML and raw HTML is shown as text."""

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{to_mathml(body, display=True)}</span>'

    def multiline_math(self, text: str) -> str:
        return self.block_math(text)

    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        cell = context.get("cell", {})
        renderer = _Renderer(
            escape=True,
            allow_harmful_protocols=False,
            exclude_anchor_links=True,
            attachments=cell.get("attachments", {}),
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def own_html(html: str) -> str:
    """Return the HTML of a table without what runs, loads or restyles.

    >>> own_html('<p onclick="f()">a<script>b</script></p>')
    '<p>a</p>'
    """
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all(_FOREIGN):
        element.decompose()
    for element in soup.find_all(True):
        element.attrs = {k: v for k, v in element.attrs.items() if not k.startswith("on") and k != "style"}
    return str(soup)


def outputs_with_role(nb: NotebookNode, role: str) -> list[dict[str, Any]]:
    """Return what our own outputs of one role say in their metadata, in order."""
    found = []
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get(METADATA, {})
            if about.get("role") == role:
                found.append(about)
    return found


def _role(output: Any) -> str:
    return output.get("metadata", {}).get(METADATA, {}).get("role", "")


def _with_captions(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Move each caption into the figure before it, and drop what the page says itself."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if _role(output) == "reproduce":  # the foot of the page says it
            continue
        if _role(output) == "caption" and kept and _role(kept[-1]) == "figure":
            kept[-1].metadata["image/png"]["caption"] = output.data["text/markdown"]
        else:
            kept.append(output)
    return kept


def _last_lines(text: str) -> str:
    """What a terminal shows of a text in which carriage returns overwrite lines."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _prepared(nb: NotebookNode) -> NotebookNode:
    nb = deepcopy(nb)
    nb.cells = [cell for cell in nb.cells if not _HIDDEN_TAGS & set(cell.metadata.get("tags", []))]
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = _with_captions(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _last_lines(output.text)
    return nb


def to_html(nb: NotebookNode, page: Page) -> str:
    """Return the page of an executed notebook.

    Raises
    ------
    T2TError
        a figure has no alt text, so part of the readers would get nothing; not raised for a failed run.
    """
    config = Config({"NbConvertBase": {"display_data_priority": _PRIORITY}})
    exporter = _Exporter(config=config, template_name="template", extra_template_basedirs=[str(_TEMPLATES)])
    exporter.register_filter("own_html", own_html)
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=exporter))
    # not HTMLExporter's, which would give a figure without alt text a placeholder instead of an error
    html, _ = TemplateExporter.from_notebook_node(exporter, _prepared(nb), {"page": page})
    return _finished(html, page)


def _finished(html: str, page: Page) -> str:
    soup = BeautifulSoup(html, "html.parser")
    _one_title(soup, page)
    _only_embedded(soup, strict=not page.failure)
    _number_figures(soup)
    _wrap_tables(soup)
    _contents(soup)
    return _squeezed(str(soup))


def _squeezed(html: str) -> str:
    """Drop the template's empty lines, but none inside preformatted text."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else re.sub(r"\n\s*\n+", "\n", part) for part in parts)


def _one_title(soup: BeautifulSoup, page: Page) -> None:
    titles = soup.find_all("h1")
    if not titles:
        title = soup.new_tag("h1")
        title.string = page.title
        _one(soup, "main").insert(0, title)
    for other in titles[1:]:
        other.name = "h2"


def _one(soup: BeautifulSoup, name: str) -> Tag:
    found = soup.find(name)
    if not isinstance(found, Tag):
        raise T2TError(f"the template of the reports has no <{name}>")
    return found


def _only_embedded(soup: BeautifulSoup, strict: bool) -> None:
    """No request leaves the page: what is not embedded is replaced by its text."""
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.replace_with(f"[picture not embedded: {image.get('alt', '')}]")
        elif not str(image.get("alt", "")).strip():
            if strict:
                raise T2TError("a figure has no alt text; show it with t2t_analysis.notebooks.show")
            image["alt"] = "A figure without a description, from a run that failed"
    for link in soup.find_all("a"):
        if not re.match(r"https?://|#(?!harmful-link)|[\w./-]+$", str(link.get("href", ""))):
            del link["href"]


def _number_figures(soup: BeautifulSoup) -> None:
    for number, figure in enumerate(soup.find_all("figure"), start=1):
        figure["id"] = f"figure-{number}"
        if (caption := figure.find("figcaption")) is not None:
            label = soup.new_tag("b")
            label.string = f"Figure {number}. "
            (caption.find("p") or caption).insert(0, label)


def _wrap_tables(soup: BeautifulSoup) -> None:
    """Wide tables scroll on their own, also by keyboard; cells say what they are the head of."""
    for number, table in enumerate(soup.find_all("table"), start=1):
        for head in table.find_all("th"):
            in_head = head.find_parent("thead") is not None
            head["scope"] = "col" if in_head else "row"
            if in_head and not head.get_text(strip=True):
                head.name = "td"
                del head["scope"]
        caption = table.find("caption")
        words = caption.get_text(" ", strip=True) if caption else "Table"
        label = f"{words} (table {number})"
        about = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}
        table.wrap(soup.new_tag("div", attrs=about))


def _contents(soup: BeautifulSoup) -> None:
    """Give every heading an id of its own and list the second level."""
    entries = _one(_one(soup, "nav"), "ol")  # type: ignore[arg-type]
    taken: set[str] = {str(tag["id"]) for tag in soup.find_all(id=True) if not _is_heading(tag)}
    for heading in soup.find_all(["h1", "h2", "h3", "h4"]):
        heading["id"] = _free(_slug(heading.get_text(" ")), taken)
        if heading.name == "h2":
            link = soup.new_tag("a", href=f"#{heading['id']}")
            link.string = heading.get_text(" ", strip=True)
            item = soup.new_tag("li")
            item.append(link)
            entries.append(item)


def _is_heading(tag: Tag) -> bool:
    return re.fullmatch("h[1-6]", tag.name) is not None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def _free(slug: str, taken: set[str]) -> str:
    name, number = slug, 1
    while name in taken:
        number += 1
        name = f"{slug}-{number}"
    taken.add(name)
    return name
