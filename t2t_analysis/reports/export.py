"""An executed notebook as one HTML page: no script, no request, formulas as MathML, alt text kept."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from itertools import chain, count
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from traitlets.config import Config

from .._show import METADATA
from ..errors import T2TError
from .layout import answer_first, mark_verdicts, slug
from .mathml import to_mathml

_TEMPLATES = Path(__file__).parent
#: cells that say nothing to a reader: papermill's copy of the parameters and its own error banners
_HIDDEN_TAGS = frozenset({"injected-parameters", "papermill-error-cell-tag"})
#: outputs that do not: the foot has the commands, the index the verdicts
_HIDDEN_ROLES = frozenset({"reproduce", "verdicts"})
#: elements that run, load or restyle something; pandas puts a style element into its tables
_FOREIGN = ("script", "style", "iframe", "object", "embed", "link", "meta", "base", "form")
#: letters of a cell whose column needs room
_LONG = 40
_PRIORITY = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/latex", "text/plain"]


@dataclass(frozen=True)
class Page:
    """What a page says about its run, beside the notebook's own content.

    ``stem`` begins the names of its files. ``parameters`` are rows with name, value and help; ``commands`` rows with
    words and line, each a way to make the page again; ``failure`` is empty unless the run failed.
    """

    title: str
    parameters: Sequence[Mapping[str, str]] = ()
    commands: Sequence[Mapping[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    failure: str = ""
    stem: str = ""


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


#: what the HTML of an output may hold; everything else goes, and scripts and styles with what is in them
_SANITIZER = SanitizeHTML(
    tags=["a", "b", "br", "caption", "code", "details", "div", "em", "i", "li", "ol", "p", "pre", "small", "span",
          "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"],
    attributes={"*": ["class"], "a": ["href", "title"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]},
    strip=True,
)  # fmt: skip


def own_html(html: str) -> str:
    """Return the HTML of an output without what runs, loads or restyles.

    >>> own_html('<p onclick="f()">a<script>b</script></p>')
    '<p>a</p>'
    """
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all(("script", "style")):
        element.decompose()
    return str(_SANITIZER.sanitize_html_tags(str(soup)))


def own_figure(html: str) -> str:
    """Return a figure of ours: an SVG becomes part of the page and follows its colours; a PNG stays as it is."""
    given = BeautifulSoup(html, "html.parser")
    figure = given.find("figure")
    least = str(figure.get("data-least-height", "")) if isinstance(figure, Tag) else ""
    image, words = given.find("img"), given.find("figcaption")
    if not isinstance(image, Tag) or not isinstance(words, Tag):
        return own_html(html)
    source, link = str(image.get("src", "")), words.find("a", download=True)
    numbers = str(link.get("href", "")) if isinstance(link, Tag) else ""
    if isinstance(link, Tag):
        link.extract()
    caption = own_html(words.decode_contents())
    if numbers.startswith("data:text/csv;base64,"):
        caption += f' <a class="numbers" download="figure.csv" href="{escape(numbers)}">Numbers (CSV)</a>'
    alt = escape(str(image.get("alt", "")))
    picture = f'<img src="{escape(source)}" alt="{alt}" width="{_pixels(image)}">'
    if source.startswith(_SVG):
        picture = _inline(b64decode(source.removeprefix(_SVG)).decode("utf-8"), _pixels(image))
    size = f' style="--least: {least}px"' if least.isdigit() else ""
    return f"<figure{size}>{picture}<figcaption><p>{caption}</p></figcaption></figure>"


_SVG = "data:image/svg+xml;base64,"
#: colours of drawings that follow the page's
_THEME = {"#000000": "currentColor", "#ffffff": "var(--page)", "#6e6e6e": "var(--soft)"}


def _pixels(image: Tag) -> int:
    """The width of a picture; what is no number has none that fits."""
    width = str(image.get("width", ""))
    return int(width) if width.isdigit() else 600


def _inline(svg: str, width: int) -> str:
    """An SVG as part of a page: nothing that runs or restyles, colours of the page, as wide as it was drawn."""
    soup = BeautifulSoup(svg, "html.parser")
    for element in soup.find_all((*_FOREIGN, "metadata", "foreignobject")):
        element.decompose()
    for element in soup.find_all(True):
        element.attrs = {
            name: value
            for name, value in element.attrs.items()
            if not name.startswith(("on", "xmlns"))
            and (not name.endswith("href") or str(value).startswith(("#", "data:image/png;base64,")))
        }
        if style := element.get("style"):
            element["style"] = re.sub(
                "#[0-9a-f]{6}", lambda found: _THEME.get(found[0], found[0]), str(style)
            )
    drawing = soup.find("svg")
    if isinstance(drawing, Tag):
        drawing["width"] = str(width)
        del drawing["height"]
    return str(soup)


def outputs_with_role(nb: NotebookNode, role: str) -> list[dict[str, Any]]:
    """Return what our own outputs of one role say in their metadata, in order."""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    return [output.metadata[METADATA] for output in outputs if _role(output) == role]


def _role(output: Any) -> str:
    return output.get("metadata", {}).get(METADATA, {}).get("role", "")


def _last_lines(text: str) -> str:
    """What a terminal shows of a text in which carriage returns overwrite lines."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _prepared(nb: NotebookNode) -> NotebookNode:
    nb = deepcopy(nb)
    nb.cells = [cell for cell in nb.cells if not _HIDDEN_TAGS & set(cell.metadata.get("tags", []))]
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if _role(output) not in _HIDDEN_ROLES]
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
    exporter.register_filter("own_figure", own_figure)
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=exporter))
    # not HTMLExporter's, which would give a figure without alt text a placeholder instead of an error
    html, _ = TemplateExporter.from_notebook_node(exporter, _prepared(nb), {"page": page})
    return _finished(html, page)


def _finished(html: str, page: Page) -> str:
    soup = BeautifulSoup(html, "html.parser")
    _one_title(soup, page)
    _only_embedded(soup, strict=not page.failure)
    _wrap_tables(soup)
    answer_first(soup)
    mark_verdicts(soup)
    _number_figures(soup, page.stem)
    _contents(soup)
    return _squeezed(str(soup))


def _squeezed(html: str) -> str:
    """Drop the template's empty lines, but none inside preformatted text."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else re.sub(r"\n\s*\n+", "\n", part) for part in parts)


def _one_title(soup: BeautifulSoup, page: Page) -> None:
    titles = soup.find_all("h1")
    if not titles:
        _one(soup, "main").insert(0, soup.new_tag("h1", string=page.title))
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
        if not re.match(
            r"https?://|#(?!harmful-link)|data:text/csv;base64,|[\w./-]+$", str(link.get("href", ""))
        ):
            del link["href"]


def _number_figures(soup: BeautifulSoup, stem: str) -> None:
    """Give every figure a number that is a link to it, ids of its own, and its numbers a name."""
    for number, figure in enumerate(soup.find_all("figure"), start=1):
        used = set(re.findall(r"""(?:url\(|href="|href=')#([^"')]+)""", str(figure)))
        figure["id"] = f"figure-{number}"
        for element in figure.find_all(True):
            if element.get("id") not in used:  # drawings give two equal pictures one name
                del element["id"]
            for name in [k for k in element.attrs if k == "id" or k.endswith(("href", "path", "style"))]:
                element[name] = re.sub(r"(^#|url\(#)", rf"\1f{number}-", str(element[name]))
            if element.get("id"):
                element["id"] = f"f{number}-{element['id']}"
        if (link := figure.find("a", class_="numbers")) is not None:
            link["download"] = f"{stem or 'report'}-figure-{number}.csv"
        if (caption := figure.find("figcaption")) is not None:
            label = soup.new_tag("b")
            label.extend([soup.new_tag("a", href=f"#figure-{number}", string=f"Figure {number}"), ". "])
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
        for cell in table.find_all("td"):
            if len(cell.get_text(strip=True)) > _LONG:
                cell["class"] = "wrap"
        caption = table.find("caption")
        words = caption.get_text(" ", strip=True) if caption else "Table"
        label = f"{words} (table {number})"
        about = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}
        table.wrap(soup.new_tag("div", attrs=about))


def _contents(soup: BeautifulSoup) -> None:
    """Give every heading an id of its own and list the second level."""
    entries = _one(_one(soup, "nav"), "ol")  # type: ignore[arg-type]
    headings = soup.find_all(["h1", "h2", "h3", "h4"])
    for heading in headings:
        del heading["id"]
    taken = {str(tag["id"]) for tag in soup.find_all(id=True)}
    for heading in headings:
        heading["id"] = _free(slug(heading.get_text(" ")), taken)
        if heading.name == "h2":
            item = soup.new_tag("li")
            item.append(soup.new_tag("a", href=f"#{heading['id']}", string=heading.get_text(" ", strip=True)))
            entries.append(item)


def _free(slug: str, taken: set[str]) -> str:
    names = chain([slug], (f"{slug}-{number}" for number in count(2)))
    taken.add(name := next(name for name in names if name not in taken))
    return name
