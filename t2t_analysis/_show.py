"""What a notebook shows: computed prose, figures with alt text and caption, tables, and where results went.

Each output says its role in its metadata, so that the report can set captions under figures and the index
can quote the findings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._names import TWIN, short_names

if TYPE_CHECKING:
    import pandas as pd

    from .notebooks import Run
    from .parameters import CommonParams
    from .plots.base import Figure
    from .results import Result, Results

#: key of our own entries in the metadata of an output
METADATA = "t2t_analysis"
#: the report command points this at a temporary folder that it moves into place when the notebook is whole
RESULTS_VARIABLE = "T2T_ANALYSIS_RESULTS"
#: label -> short name of the models of this notebook, as `title_block` introduces them
_SHORT: dict[str, str] = {}


def _publish(data: dict[str, Any], role: str, **details: Any) -> None:
    from IPython.display import display

    display(data, raw=True, metadata={METADATA: {"role": role, **details}})


def code(name: object) -> str:
    """Return a name as Markdown code, whatever characters it has.

    >>> print(code("t2t_vit_14"), code("a`b|c"))
    `t2t_vit_14` `a'b¦c`
    """
    return "`" + str(name).replace("`", "'").replace("|", "¦").replace("\n", " ") + "`"


def plain(text: object) -> str:
    """Return a text in which Markdown finds nothing to format.

    >>> print(plain("a_b <c>"))
    a\\_b \\<c\\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", str(text)).replace("\n", " ")


def called(text: str) -> str:
    """Return a text, of a sentence or of a drawing, in which models have the short names of this notebook."""
    for label, short in _SHORT.items():
        letters = r"\n?".join(map(re.escape, label))  # a drawing may break a long name
        weights = "(?<!bundled )(?<!published )"  # their names stay
        text = re.sub(rf"(?<![\w./-]){weights}`?{letters}(?![\w-]|\.\w)`?", short, text)
    return text


def say(markdown: str, role: str = "text") -> None:
    """Show computed prose."""
    markdown = called(markdown)
    _publish({"text/markdown": markdown, "text/plain": markdown}, role)


def findings(sentences: Iterable[str]) -> None:
    """Show computed sentences as a list; the index of the reports quotes the first."""
    sentences = [sentence.strip() for sentence in sentences if sentence.strip()]
    text = called("\n".join(f"- {sentence}" for sentence in sentences))
    _publish({"text/markdown": text, "text/plain": text}, "findings", sentences=sentences)


def show(*figures: Figure | None) -> None:
    """Show figures with alt text and caption, and let go of them; None, where there is nothing to draw, is left out."""
    for figure in filter(None, figures):
        _publish(figure.renamed(called)._repr_mimebundle_(), "figure")
        figure.close()


def table_data(frame: pd.DataFrame, caption: str) -> dict[str, Any]:
    """Return a table with a caption as the data of an output."""
    minus = str.maketrans("-", "−")
    body = frame.to_html(
        index=False, border=0, escape=True, na_rep="", float_format=lambda x: f"{x:.3g}".translate(minus)
    )
    html = body.replace("<thead>", f"<caption>{escape(caption)}</caption>\n<thead>", 1)
    return {"text/html": html, "text/plain": f"{caption}\n{frame.to_string(index=False)}"}


def table(frame: pd.DataFrame, caption: str, *, folded: bool = False) -> None:
    """Show a table with a caption, without the index, floats to three significant digits; nothing of an empty one.

    Of a ``folded`` one the caption alone is in sight; a click on it unfolds the table.
    """
    if frame.empty:
        return
    data = table_data(frame, caption)
    if folded:
        data["text/html"] = f"<details><summary>{escape(caption)}</summary>{data['text/html']}</details>"
    _publish({kind: called(text) for kind, text in data.items()}, "table")


def verdicts(rows: Sequence[dict[str, Any]], about: str) -> None:
    """Hand the verdicts to the index of the reports, and say so; ``about`` says what they hold for."""
    text = f"{len(rows)} verdicts go to the index of the reports."
    _publish({"text/markdown": text, "text/plain": text}, "verdicts", verdicts=list(rows), about=about)


def _introduce(names: Mapping[str, str]) -> None:
    """Say which short names the models have from here on, where they have some."""
    short = short_names(names)
    twins = {label + TWIN: name + TWIN for label, name in short.items()}
    _SHORT.clear()
    _SHORT.update(twins | short)  # the longer ones first
    if short:
        text = f"{', '.join(f'{name} is {code(label)}' for label, name in short.items())}."
        _publish({"text/markdown": text, "text/plain": text}, "names")


def title_block(run: Run) -> None:
    """Show what is compared on what; say UNTRAINED in words where weights are random, and what else differs."""
    _introduce(dict(zip(run.params.labels, run.params.names, strict=True)))
    second = "untrained control" if run.alone else "baseline"
    parts = ["model", second, *["reference"] * len(run.reference)]
    named = run.models | run.reference
    lines = ["| | name | weights | parameters |", "|:--|:--|:--|--:|"]
    for part, (name, model) in zip(parts, named.items(), strict=True):
        count = sum(weight.numel() for weight in model.parameters())
        origin = model.provenance
        digits = f", SHA-256 {origin.sha256[:12]}" if origin.kind == "file" and origin.sha256 else ""
        lines.append(f"| {part} | {code(name)} | {plain(origin.label)}{digits} | {count:,} |")
    untrained = [name for name in run.asked | run.reference if named[name].provenance.untrained]
    warnings = [*_untrained(untrained, run.asked), *_confounded(run.asked)]
    text = "\n".join([*warnings, *lines, "", *_images(run)])
    _publish({"text/markdown": text, "text/plain": text}, "title", untrained=untrained)


def _untrained(untrained: Sequence[str], models: Mapping[str, Any]) -> list[str]:
    if not untrained:
        return []
    names = " and ".join(code(name) for name in untrained)
    learned = [code(name) for name in models if name not in untrained]
    what = f"of {names} it describes" if learned else "it describes"
    return [
        f"**UNTRAINED: random weights in {names}. What follows gives no verdict on a comparison; {what} "
        "architecture at initialisation, nothing that was learned.**",
        "",
    ]


def _confounded(models: Mapping[str, Any]) -> list[str]:
    """A warning where a trained pair differs in more than the models."""
    from .models.provenance import confounds

    origins = {name: model.provenance for name, model in models.items()}
    if len(origins) < 2 or any(origin.untrained for origin in origins.values()):
        return []
    found = [plain(words) for words in confounds(*origins.values())]
    return [f"**More than the models differs: {'; '.join(found)}.**", ""] if found else []


def _images(run: Run) -> list[str]:
    """What the images are, and what else is to be known of them."""
    info = run.images.dataset.info
    parts = [f"Images: {code(info.name)}, n = {info.n}"]
    if info.classes:
        parts.append(f"{len(info.classes)} class{'es' * (len(info.classes) != 1)}")
    about = f"{', '.join(parts)}; batches of {run.params.batch_size}; seed {run.params.seed}."
    about += " All networks see the same ones, in the same order, each through its own preprocessing."
    if run.alone:
        about += " The untrained control is the same architecture with random weights: it shows what was not learned."
    notes = [f"\nNote on the images: {plain(note)}." for note in info.notes]
    return [about, *_frames(run), *notes]


def _frames(run: Run) -> list[str]:
    """How the models see a picture, where they do not see it alike."""
    from .capture.layout import Grids

    seen = {}
    for name, model in run.asked.items():
        config, layout = run.images.config_of(model), Grids(model).layout("blocks")
        size, share = "x".join(map(str, config["input_size"][1:])), config.get("crop_pct", 1.0)
        tokens = f", {'x'.join(map(str, layout.grid))} tokens" if layout else ""
        seen[name] = f"{size} pixels of {100 * share:g} % of a side{tokens}"
    if len(set(seen.values())) < 2:
        return []
    each = "; ".join(f"{code(name)} {words}" for name, words in seen.items())
    return [f"\nWhat a model sees of a picture: {each}. So a token is not the same piece of it in both."]


def results_folder(params: CommonParams) -> Path:
    """Return the folder for tables: the one asked for, the report command's, or one of runs by hand.

    A notebook that somebody runs must not write into the folder of a published report.
    """
    if params.results_dir != "auto":
        return Path(params.results_dir).expanduser()
    if given := os.environ.get(RESULTS_VARIABLE):
        return Path(given)
    from ._paths import default_reports_dir
    from .reports.plan import stem

    return default_reports_dir() / "by-hand" / stem(params.notebook or "notebook", params)


def _short(folder: Path) -> str:
    """A folder as it is typed from here; no path of this machine for the report command's, which is moved."""
    if str(folder) == os.environ.get(RESULTS_VARIABLE):
        return "the report's folder"
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def save(results: Result | Results | Sequence[Result], params: CommonParams) -> None:
    """Write the tables behind the figures, one parquet file per measure, and name them."""
    from .results import Result

    folder = results_folder(params)
    several = results.values() if isinstance(results, Mapping) else results
    several = [several] if isinstance(several, Result) else list(several)
    names = [one.save(folder / f"{one.measure}.parquet").name for one in several]
    text = f"Tables behind the figures: {', '.join(code(name) for name in names)} in {code(_short(folder))}."
    _publish({"text/markdown": text, "text/plain": text}, "results", files=names)


def reproduce(params: CommonParams) -> None:
    """Show the command that makes the report of this run."""
    from ._paths import default_reports_dir, notebooks_dir
    from .reports.plan import Job, report_line

    job = Job(notebooks_dir() / f"{params.notebook}.ipynb", params, default_reports_dir())
    text = f"To make this report again:\n\n```\n{report_line(job)}\n```"
    _publish({"text/markdown": text, "text/plain": text}, "reproduce")
