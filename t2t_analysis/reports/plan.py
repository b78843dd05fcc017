"""Which notebooks run with which parameters, and the commands that would do the same by hand."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._paths import notebooks_dir
from ..errors import DataError, ParameterError, UnknownNameError
from ..parameters import PARAMS, CommonParams, params_for, validate

#: parameters that change how a run is made but not what it finds, and those that the file name spells out
_NOT_IN_HASH = frozenset({"device", "batch_size", "results_dir"})
_SPELLED = frozenset({"model", "baseline"})
#: letters of a label that a file's name holds; what is cut off is in the digits
_LONGEST = 60


def stem(notebook: str, params: CommonParams) -> str:
    """Name that a run's files share; six digits are added when other parameters than the models differ.

    >>> from t2t_analysis.parameters import HeadRedundancyParams
    >>> stem("head_redundancy", HeadRedundancyParams(model="t2t_vit_14").resolve())
    'head_redundancy__t2t_vit_14__vs__deit_small_patch16_224'
    >>> stem("head_redundancy", HeadRedundancyParams(seed=1).resolve())
    'head_redundancy__small_performer_deep__vs__small_hard_deep__a4bbad'
    >>> stem("head_redundancy", HeadRedundancyParams(baseline="none").resolve())
    'head_redundancy__small_performer_deep'
    """
    given = params.resolve()
    named = given.labels == given.names and max(map(len, given.names)) <= _LONGEST
    ignored = _NOT_IN_HASH | (_SPELLED if named else frozenset())
    unusual = {"model": given.model} | _unusual(given)
    hashed = {name: value for name, value in unusual.items() if name not in ignored}
    digits = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:6]
    first, *others = (re.sub(r"[^\w.+-]+", "-", label)[:_LONGEST] for label in given.labels)
    words = [word for other in others for word in ("vs", other)]
    return "__".join([notebook, first, *words, *([digits] if hashed else [])])


def _unusual(params: CommonParams) -> dict[str, Any]:
    """Parameters that are not what the notebook takes for this model when nothing else is said."""
    usual = type(params)(model=params.model).resolve()
    values, others = (json.loads(one.model_dump_json()) for one in (params, usual))
    return {name: value for name, value in values.items() if value != others[name]}


@dataclass(frozen=True)
class Job:
    """One notebook with its checked parameters, and where its report goes."""

    notebook: Path
    params: CommonParams
    out_dir: Path
    threads: int | None = None
    timeout: int | None = None

    @property
    def stem(self) -> str:
        """Name that its files share."""
        return stem(self.notebook.stem, self.params)

    def path(self, ending: str) -> Path:
        """Return a file of this report."""
        return self.out_dir / f"{self.stem}{ending}"

    @property
    def title(self) -> str:
        """What is shown while it runs."""
        return f"{self.notebook.stem}: {self.params.subject}"


def available() -> list[str]:
    """Notebooks of the suite that are there."""
    return [name for name in PARAMS if (notebooks_dir() / f"{name}.ipynb").is_file()]


def _notebook(name: str) -> Path:
    """Return the path of a notebook given by name or by path."""
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path
        raise DataError(f"no such notebook: {name}")
    if name not in available():
        raise UnknownNameError("notebook", name, available())
    return notebooks_dir() / f"{name}.ipynb"


def plan(
    notebooks: Sequence[str],
    models: Sequence[str],
    given: Mapping[str, Any],
    out_dir: Path,
    *,
    timeout: int | None = None,
) -> list[Job]:
    """Return one job per notebook and model, all of them checked.

    Raises
    ------
    ParameterError
        names everything that is wrong with any of them, before anything runs.
    """
    jobs: dict[str, Job] = {}
    problems: dict[str, list[str]] = {}
    if not (notebooks or available()):
        raise DataError(f"no notebooks in {notebooks_dir()}")
    for name in notebooks or available():
        notebook = _notebook(name)
        for model in models or [""]:
            values = {**given, **({"model": model} if model else {})}
            try:
                params = validate(params_for(notebook.stem), values)
            except ParameterError as error:
                for line in str(error).splitlines()[1:]:
                    problems.setdefault(line, []).append(notebook.stem)
                continue
            job = Job(notebook, params, out_dir, timeout=timeout)
            jobs[job.stem] = job
    if problems:
        raise ParameterError("\n".join(["bad parameters", *_said_once(problems)]))
    return list(jobs.values())


def _said_once(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Each problem once, with the notebooks that have it where others do not."""
    most = max(len(set(names)) for names in problems.values())
    return [
        line if len(names := dict.fromkeys(found)) == most > 1 else f"{line} (in {', '.join(names)})"
        for line, found in problems.items()
    ]


def changed(job: Job) -> dict[str, Any]:
    """Parameters that are not the notebook's defaults; model and baseline always."""
    params, default = job.params, type(job.params)()
    unusual = {name: value for name, value in _unusual(params).items() if value != getattr(default, name)}
    return {"model": params.model, "baseline": params.baseline} | unusual


def _words(name: str, value: Any) -> list[str]:
    """A parameter as papermill's command line takes it; text that looks like a number must stay text."""
    if isinstance(value, list | dict):
        return ["-y", json.dumps({name: value})]
    from papermill.cli import _resolve_type

    raw = isinstance(value, str) and not isinstance(_resolve_type(value), str)
    return ["-r" if raw else "-p", name, str(value)]


def papermill_line(job: Job) -> str:
    """Return the plain command that makes this report's notebook in its place, quoted for a shell."""
    values = changed(job)
    values.setdefault("results_dir", str(job.path("")))
    return _papermill(without_braces(job.notebook), without_braces(job.path(".ipynb")), values)


def portable_papermill_line(job: Job) -> str:
    """Return the same for a page that others read: no folder of this machine, output beside the caller."""
    name = job.notebook.name
    notebook = f"notebooks/{name}" if job.notebook.stem in PARAMS else name
    return _papermill(notebook, "out.ipynb", changed(job))


def _papermill(notebook: str, output: str, values: Mapping[str, Any]) -> str:
    words = [word for name, value in values.items() for word in _words(name, value)]
    return shlex.join(["papermill", notebook, output, *words])


def without_braces(path: Path) -> str:
    """Papermill takes braces in a path for a place to put a parameter in."""
    return _relative(path).replace("{", "{{").replace("}", "}}")


def _relative(path: Path) -> str:
    """As it is typed from the current folder, where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def report_line(job: Job) -> str:
    """Return the command that makes this report."""
    values = changed(job)
    words = ["--models", values.pop("model"), "--baseline", values.pop("baseline")]
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, list) else str(value)
        words += ["--data", text] if name == "data" else ["-p", name, text]
    name = job.notebook.stem if job.notebook.stem in PARAMS else job.notebook.name
    return shlex.join(["python", "-m", "t2t_analysis", "report", name, *words])
