"""Documents that can be followed: code runs, printed output is true, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import papermill
import pytest

from t2t_analysis import cli
from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import params_for

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / folder / "README.md" for folder in ("data", "reports", "benchmarks")),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: signatures that are no statements, and pieces that go on from a pass over images or from a table of runs
SKETCHES, PIECES = {"architecture.md"}, {"measures.md", "study.md"}


@cache
def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block, as they were when tests were collected."""
    return [(found[1], found[2]) for found in FENCE.finditer(path.read_text(encoding="utf-8"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


WITH_CODE = [
    p for p in DOCUMENTS if p.name not in SKETCHES and any(lang == "python" for lang, _ in blocks(p))
]
RUNNABLE = [p for p in WITH_CODE if p.name not in PIECES]


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_python_blocks_run_in_order_and_print_what_they_say(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "document"}
    printed = ""
    for language, text in blocks(path):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, name_of(path), "exec"), space)
            printed = out.getvalue()
        elif language == "text":
            assert printed == text, f"{path.name} shows other output than its code prints:\n{printed}"


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_what_python_blocks_import_exists(path: Path) -> None:
    for language, text in blocks(path):
        nodes = ast.walk(ast.parse(text)) if language == "python" else []
        for node in (n for n in nodes if isinstance(n, ast.ImportFrom)):
            module = import_module(str(node.module))
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def commands() -> list[tuple[str, str]]:
    """Every command line in the documents that runs this package or papermill."""
    found = []
    for path in DOCUMENTS:
        shown = [text for language, text in blocks(path) if language in ("", "sh", "bash", "console")]
        inline = re.findall(
            r"`((?:python -m t2t_analysis|papermill) [^`]+)`", path.read_text(encoding="utf-8")
        )
        lines = [line.split("  #")[0].strip() for text in shown for line in text.splitlines()]
        for line in (*lines, *inline):
            if line.startswith(("python -m t2t_analysis ", "papermill ")) and not re.search(
                r"NAME|\w\|\w", line
            ):
                found.append((name_of(path), line.split(" | ")[0]))
    return sorted(set(found))


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_are_understood(document: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "papermill":
        check_papermill(words)
        return
    chosen, *rest = words[2:]
    assert chosen in cli.COMMANDS
    given = cli.parsers()[0].parse_args([chosen, *rest])
    for notebook in getattr(given, "notebooks", []):
        assert (ROOT / "notebooks" / f"{notebook}.ipynb").is_file(), notebook
    if chosen == "report" and given.models:
        values = dict(given.params) | {k: v for k in ("baseline", "data") if (v := getattr(given, k))}
        for model in given.models:
            check_values(given.notebooks[0], values | {"model": model})


def check_values(notebook: str, values: dict[str, Any]) -> None:
    """A folder of the reader's own does not exist here; everything else has to be right."""
    try:
        validate(params_for(notebook), values)
    except ParameterError as error:
        if "no such" not in str(error):
            raise


def check_papermill(words: list[str]) -> None:
    if words[0].startswith("--help"):
        assert papermill.inspect_notebook(ROOT / words[1])
        return
    assert (ROOT / words[0]).is_file()
    pairs = zip(words[3::3], words[4::3], strict=True)
    assert set(words[2::3]) <= {"-p"}
    check_values(Path(words[0]).stem, dict(pairs))


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{path.name}: {target}"


def test_there_is_a_guide_for_each_way_to_use_it() -> None:
    linked = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("guide-explore", "guide-batch", "guide-read", "your-own", "verdicts", "scaling"):
        assert f"docs/{name}.md" in linked, name


def test_what_the_readme_says_of_the_bundled_weights_stands_on_their_cards() -> None:
    from t2t_analysis.training.design import HORIZONS

    cards = [json.loads(path.read_text()) for path in (ROOT / "data" / "weights").glob("*.json")]
    epochs = HORIZONS["photo_crops"][-1]
    assert len(cards) == 4
    assert all(f" {epochs} epochs," in card["recipe"] and card["seed"] == 0 for card in cards)
    assert (
        f"the four corner cells of the study at its last length, {epochs} epochs under one recipe, seed 0"
        in (ROOT / "README.md").read_text()
    )
