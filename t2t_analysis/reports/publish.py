"""From an executed notebook to the page and the sidecar that says what the report is."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from typing import Any

import nbformat
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from .._commit import commit
from .._files import write_whole
from .export import Page, outputs_with_role, to_html
from .fingerprint import page_fingerprint, sha, versions
from .plan import Job, portable_papermill_line, report_line


def notebook_text(nb: NotebookNode) -> str:
    """Return a notebook as it is written to a file."""
    return nbformat.writes(nb) + "\n"


def _title(job: Job, nb: NotebookNode) -> str:
    return nb.metadata.get("title") or job.notebook.stem.replace("_", " ")


def _page(job: Job, nb: NotebookNode, failure: str = "") -> Page:
    fields = type(job.params).model_fields
    values = json.loads(job.params.model_dump_json())
    rows = [{"name": n, "value": str(v), "help": fields[n].description or ""} for n, v in values.items()]
    commands = [
        {"words": "This page again, if anything that it depends on has changed:", "line": report_line(job)},
        {"words": "Its notebook, by papermill alone:", "line": portable_papermill_line(job)},
    ]
    title = f"{_title(job, nb)}: {job.params.subject}"
    return Page(title, rows, commands, versions(), commit(), failure, job.stem)


def _about(job: Job, nb: NotebookNode) -> dict[str, Any]:
    """What the index says of a run."""

    def said(role: str, what: str) -> list[Any]:
        return [one for about in outputs_with_role(nb, role) for one in about[what]]

    params = job.params
    return {
        "stem": job.stem, "notebook": job.notebook.stem, "title": _title(job, nb), "subject": params.subject,
        "model": params.model, "baseline": params.baseline,
        "parameters": json.loads(params.model_dump_json(exclude={"results_dir"})),
        "findings": said("findings", "sentences"), "verdicts": outputs_with_role(nb, "verdicts"),
        "untrained": said("title", "untrained"), "results": said("results", "files"),
        "figures": len(outputs_with_role(nb, "figure")), "versions": versions(), "commit": commit(),
    }  # fmt: skip


def page_of(job: Job, nb: NotebookNode) -> str:
    """Return the page of a run that is whole."""
    return to_html(nb, _page(job, nb))


def publish(job: Job, nb: NotebookNode, html: str, fingerprint: str) -> None:
    """Write the page, the numbers of its figures and then the sidecar of a run that is whole."""
    write_whole(job.path(".html"), html)
    for name, data in re.findall(r'download="([\w.-]+)" href="data:text/csv;base64,([A-Za-z0-9+/=]+)"', html):
        folder = job.path("")
        folder.mkdir(exist_ok=True)
        write_whole(folder / name.removeprefix(f"{job.stem}-"), b64decode(data).decode("utf-8"))
    page = html.encode()
    about: dict[str, Any] = {"status": "done", "fingerprint": fingerprint}
    about |= {"page_fingerprint": page_fingerprint(), "page_sha256": sha(page), "page_bytes": len(page)}
    sidecar = _about(job, nb) | about
    write_whole(job.path(".json"), json.dumps(sidecar, indent=1, sort_keys=True) + "\n")


def _traceback_tail(nb: NotebookNode, lines: int = 12) -> str:
    """Return the last lines of the traceback in a notebook, without colours."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return "\n".join(strip_ansi("\n".join(output.traceback)).splitlines()[-lines:])
    return ""


def publish_failure(job: Job, nb: NotebookNode, failure: str) -> None:
    """Write what there is of a run that failed, under names of its own."""
    write_whole(job.path(".failed.ipynb"), notebook_text(nb))
    write_whole(job.path(".failed.html"), to_html(nb, _page(job, nb, failure)))
    about = {"status": "failed", "failure": failure, "traceback": _traceback_tail(nb)}
    sidecar = _about(job, nb) | about | {"older_report": job.path(".html").is_file()}
    write_whole(job.path(".failed.json"), json.dumps(sidecar, indent=1, sort_keys=True) + "\n")
