"""Reports: whole or not at all, current or run again, the same bytes for the same inputs, and offline."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import nbformat
import pytest
from matplotlib.figure import Figure as Drawing
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from t2t_analysis._paths import notebooks_dir
from t2t_analysis.errors import ParameterError, T2TError, UnknownNameError
from t2t_analysis.parameters import CommonParams
from t2t_analysis.plots.base import Figure
from t2t_analysis.reports import fingerprint, runner
from t2t_analysis.reports.export import Page, to_html
from t2t_analysis.reports.index import write_index
from t2t_analysis.reports.mathml import to_mathml
from t2t_analysis.reports.plan import available, papermill_line, plan, stem
from t2t_analysis.reports.runner import run_report

from .helpers import execute_here

SPEC = {
    "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
    "language_info": {"name": "python"},
    "title": "Tiny",
}
PARAMETERS = """
model: str = "small_performer_deep"
baseline: str = "auto"
seed: int = 0
results_dir: str = "auto"
""".strip()
CHECK = """
from t2t_analysis.notebooks import check, findings, say
from t2t_analysis.parameters import CommonParams
from t2t_analysis.plots.base import Figure
p = check(CommonParams, globals())
""".strip()
FIGURE = """
from matplotlib.figure import Figure as Drawing
from t2t_analysis._show import results_folder, show
from t2t_analysis.plots.base import Figure
drawing = Drawing(figsize=(1, 1))
drawing.subplots().plot([0, p.seed])
show(Figure(drawing, "A **line**.", "Line from 0 to the seed"))
(results_folder(p) / "numbers.csv").write_text(f"seed,{p.seed}")
"""
NAME = "tiny__small_performer_deep__vs__small_hard_deep"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a notebook with the usual head and the given code, and return its path."""

    def make(name: str, *code: str) -> str:
        cells = [
            new_markdown_cell("# Is it tiny?\n\nYes: $x^2$.", id="question"),
            new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
            new_code_cell(CHECK, id="check"),
            *(new_code_cell(source, id=f"step-{i}") for i, source in enumerate(code)),
        ]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=SPEC), path)
        return str(path)

    return make


@pytest.fixture(autouse=True, scope="module")
def still_sources() -> Iterator[None]:
    """The library's hash counts as fixed: a test must not depend on who edits a source meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_library", lambda: "library")
        yield


class Made:
    """A folder of reports and what the command said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, []

    def run(self, *notebooks: str, **options: Any) -> int:
        self.said = []
        return run_report(notebooks, out_dir=self.folder, echo=self.said.append, **{"jobs": 1, **options})

    def bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def sidecar(self, name: str = NAME) -> dict[str, Any]:
        return json.loads(self.bytes(f"{name}.json"))

    def put_good_report(self, name: str) -> dict[Path, bytes]:
        """Put files of a report of that name there, as an earlier run would have left them."""
        (self.folder / name).mkdir(parents=True)
        files = [self.folder / f"{name}{end}" for end in (".html", ".ipynb", ".json", "/numbers.csv")]
        about = {"stem": name, "notebook": name.split("__")[0], "status": "done", "title": "Good"}
        for path in files:
            path.write_text(json.dumps(about | {"model": "a", "baseline": "b"}))
        return {path: path.read_bytes() for path in files}

    def statuses(self) -> list[str]:
        return [line.split(": ")[2].split(" (")[0] for line in self.said if line.startswith("[")]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "reports")


# ----------------------------------------------------------------------------- whole reports


def test_a_run_leaves_page_notebook_tables_sidecar_and_index(write: Any, made: Made) -> None:
    assert made.run(write("tiny", "findings([f'The seed is {p.seed}.'])", FIGURE), params={"seed": 3}) == 0
    (name,) = {path.stem for path in made.folder.glob("tiny*.json")}
    about = made.sidecar(name)
    assert about["status"] == "done"
    assert about["findings"] == ["The seed is 3."]
    assert about["figures"] == 1
    assert made.bytes(f"{name}/numbers.csv") == b"seed,3"
    page = made.bytes(f"{name}.html").decode()
    assert 'aria-label="Line from 0 to the seed"' in page
    assert '<b><a href="#figure-1">Figure 1</a>. </b>A <strong>line</strong>.' in page
    assert "-p seed 3" in page
    assert "The seed is 3." in made.bytes("index.html").decode()
    assert (
        sorted(p.name for p in made.folder.iterdir() if "running" in p.name or p.name.startswith(".")) == []
    )


def test_what_is_current_is_skipped_and_the_same_inputs_give_the_same_bytes(write: Any, made: Made) -> None:
    tiny = write("tiny", "findings(['a'])", FIGURE)
    assert made.run(tiny) == 0
    first = made.bytes(f"{NAME}.html"), made.bytes("index.html"), made.bytes(f"{NAME}.json")
    assert made.run(tiny) == 0
    assert made.statuses() == ["current"]
    assert made.run(tiny, force=True) == 0
    assert made.statuses() == ["done"]
    assert (made.bytes(f"{NAME}.html"), made.bytes("index.html"), made.bytes(f"{NAME}.json")) == first


def test_what_a_report_depends_on_makes_it_stale(
    write: Any, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"1")
    path = Path(write("tiny", "1"))

    def now(**values: Any) -> str:
        params = CommonParams(data=str(images), **values).resolve()
        return fingerprint.run_fingerprint(path, params)

    seen = [now(), now(seed=1), now(baseline="small_conv_deep"), now(weights="random")]
    (images / "b.png").write_bytes(b"2")
    seen.append(now())
    path.write_text(path.read_text().replace("Is it tiny", "Is it so tiny"))
    seen.append(now())
    monkeypatch.setattr(fingerprint, "versions", lambda: {"torch": "99"})
    seen.append(now())
    monkeypatch.setattr(fingerprint, "_library", lambda: "changed")
    seen.append(now())
    assert len(set(seen)) == len(seen)
    nb = nbformat.read(path, as_version=4)
    nb.cells[-1].outputs = [new_output("stream", text="2")]
    nbformat.write(nb, path)
    assert now(results_dir=str(tmp_path)) == seen[-1], "outputs and the folder of the tables change no number"


def test_bundled_and_file_weights_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    path, file = Path(write("tiny", "1")), tmp_path / "w.safetensors"
    monkeypatch.setattr(fingerprint, "data_dir", lambda: tmp_path)
    (tmp_path / "weights").mkdir()
    file.write_bytes(b"1")
    given = [CommonParams().resolve(), CommonParams(weights=str(file)).resolve()]
    before = [fingerprint.run_fingerprint(path, params) for params in given]
    (tmp_path / "weights" / "small_hard_deep.safetensors").write_bytes(b"trained")
    file.write_bytes(b"22")
    after = [fingerprint.run_fingerprint(path, params) for params in given]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_damaged_page_or_a_new_template_is_mended_without_running_and_a_lost_table_is_not(
    write: Any, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write("tiny", "1")
    assert made.run(tiny) == 0
    whole = made.bytes(f"{NAME}.html")
    (made.folder / f"{NAME}.html").write_bytes(whole[:100])
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("ran the notebook again"))
    assert made.run(tiny) == 0
    assert made.bytes(f"{NAME}.html") == whole
    monkeypatch.setattr(runner, "page_fingerprint", lambda: "new template")
    assert made.run(tiny) == 0
    assert "page made again" in made.said[-2]
    about = made.sidecar() | {"results": ["gone.parquet"]}
    (made.folder / f"{NAME}.json").write_text(json.dumps(about))
    monkeypatch.setattr(
        runner, "_run", lambda job, fingerprint: runner.Outcome(job, "done", "ran for its tables")
    )
    assert made.run(tiny) == 0
    assert "ran for its tables" in made.said[-2]


# ---------------------------------------------------------------------------------- failures


FAILURES = {
    "exception": (FIGURE + "{}['nothing']", "KeyError: 'nothing'"),
    "dead": ("import os; os.write(2, b'last words'); os._exit(3)", "the kernel died"),
    "slow": ("import time; time.sleep(30)", "a cell took longer than the time allowed"),
    "exit": ("import sys; sys.exit(0)", "stopped before its last cell"),
}


def test_failed_runs_never_replace_good_reports_and_the_others_go_on(write: Any, made: Made) -> None:
    stems = {name: NAME.replace("tiny", name) for name in FAILURES}
    before = {name: made.put_good_report(stems[name]) for name in FAILURES}
    notebooks = [write(name, code, "say('never reached')") for name, (code, _) in FAILURES.items()]
    assert made.run(*notebooks, write("other", "1"), timeout=12) == 1
    assert made.statuses() == ["failed"] * 4 + ["done"]
    index = made.bytes("index.html").decode()
    for name, (_, words) in FAILURES.items():
        assert {path: path.read_bytes() for path in before[name]} == before[name], name
        assert words in made.sidecar(f"{stems[name]}.failed")["failure"]
        page = made.bytes(f"{stems[name]}.failed.html").decode()
        assert words in page
        assert "never reached" not in re.sub("<details.*?</details>", "", page, flags=re.DOTALL)
        assert words.split("'")[0] in index
    assert "last words" in made.sidecar(f"{stems['dead']}.failed")["failure"]
    assert index.count("An older report of it") == 4
    assert not list(made.folder.glob("*running*"))


def test_a_repaired_notebook_clears_its_failure(write: Any, made: Made) -> None:
    assert made.run(write("tiny", "1/0", "2")) == 1
    assert "ZeroDivisionError" in made.bytes("index.html").decode()
    assert "Traceback" in made.bytes(f"{NAME}.failed.html").decode()
    assert made.run(write("tiny", "1/1", "2")) == 0
    assert not list(made.folder.glob("*failed*"))
    assert "ZeroDivisionError" not in made.bytes("index.html").decode()


def test_a_figure_without_alt_text_is_a_failure(write: Any, made: Made) -> None:
    code = "from IPython.display import display\ndisplay({'image/png': 'iVBORw0KGgo='}, raw=True)"
    assert made.run(write("tiny", code)) == 1
    assert "no alt text" in made.sidecar(f"{NAME}.failed")["failure"]
    assert not (made.folder / f"{NAME}.html").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_the_good_report_and_no_kernel(
    write: Any, made: Made, tmp_path: Path, number: int, status: int
) -> None:
    mark, before = tmp_path / "kernel.pid", made.put_good_report(NAME)
    record = f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
    tiny = write("tiny", record + "time.sleep(60)")
    command = [sys.executable, "-m", "t2t_analysis", "report", tiny, "--out-dir", str(made.folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    _until(lambda: mark.exists() and mark.read_text() != "")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert b"Traceback" not in errors
    assert {path: path.read_bytes() for path in before} == before
    _until(lambda: not _alive(int(mark.read_text())))
    assert bool(list(made.folder.glob("*running*"))) == (number == signal.SIGKILL)
    if number == signal.SIGINT:
        return  # what was half done is gone already; after a SIGKILL the next run has to clear it
    write("tiny", "2")
    assert made.run(tiny) == 0
    assert made.statuses() == ["done"]
    assert not list(made.folder.glob("*running*"))


def test_ctrl_c_reaches_no_process_that_has_only_begun(write: Any, made: Made) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "t2t_analysis",
        "report",
        write("one"),
        write("two"),
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(
        [*command, "--out-dir", str(made.folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert b"2 at a time" in process.stdout.readline()
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_no_thread_of_the_pool_is_left_to_race_with_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_job", signal.sigtimedwait)
    before = threading.enumerate(), multiprocessing.active_children()
    with pytest.raises(TypeError):  # the first fails at once, the second would wait
        list(runner._together([["no signal"], [signal.SIGUSR1]], 2, 60))  # type: ignore[list-item, arg-type]
    assert (threading.enumerate(), multiprocessing.active_children()) == before


def test_ctrl_c_stays_one_where_the_closing_of_a_kernel_fails(
    write: Any, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("Event loop stopped before Future completed.")

    monkeypatch.setattr("papermill.execute_notebook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.run(write("tiny"), write("other"))
    assert not list(made.folder.glob("*running*"))
    assert not list(made.folder.glob("*failed*"))


def _until(happened: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]


# ------------------------------------------------------------------------------ many at once


def test_all_problems_are_named_before_anything_runs(write: Any, made: Made) -> None:
    with pytest.raises(ParameterError) as caught:
        made.run(write("a"), write("b"), models=["t2t_vit_41", "t2t_vit_14"], params={"sed": 1})
    assert "t2t_vit_41" in str(caught.value)
    assert "did you mean 'seed'?" in str(caught.value)
    assert not made.folder.exists()
    with pytest.raises(UnknownNameError, match="head_redundancy"):
        made.run("head_redundancey")


def test_processes_run_jobs_at_the_same_time(write: Any, made: Made) -> None:
    code = "import os; say(f\"threads {os.environ.get('OMP_NUM_THREADS')}\")"
    assert made.run(write("one", code), write("bad", "1/0", "2"), jobs=2) == 1
    assert sorted(made.statuses()) == ["done", "failed"]


def test_pages_and_tables_are_the_same_to_the_byte_for_any_number_of_processes(
    write: Any, tmp_path: Path
) -> None:
    books = [write(name, FIGURE) for name in ("one", "two")]
    found = []
    for jobs in (1, 2):
        made = Made(tmp_path / str(jobs))
        assert made.run(*books, jobs=jobs) == 0
        files = [path for path in made.folder.rglob("*") if path.is_file() and path.suffix != ".ipynb"]
        # Here the library's hash is a fixed word; processes of their own know the true one.
        texts = {path: re.sub(r'(fingerprint": ")\w+', r"\1", path.read_text()) for path in files}
        found.append({str(path.relative_to(made.folder)): text for path, text in texts.items()})
    assert found[0] == found[1]
    assert {Path(name).suffix for name in found[0]} >= {".html", ".json", ".csv"}


@pytest.mark.parametrize(
    ("cores", "gib", "workers"), [(2, 64, 2), (8, 64, 5), (8, 7, 2), (8, 1, 1), (1, 64, 1)]
)
def test_as_many_run_at_a_time_as_there_are_cores_and_memory_for(
    cores: int, gib: int, workers: int, monkeypatch: Any, tmp_path: Path
) -> None:
    import psutil

    names = ["cost", "head_redundancy", "head_ablation", "attribution", "channel_zeros", "explore"]
    jobs = plan(names, [], {}, tmp_path)
    monkeypatch.setattr(runner, "_cores", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
    assert runner._workers(jobs) == workers  # the one that measures time runs by itself
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runner._threads(workers) == (None if workers == 1 else max(1, cores // workers))


def test_what_is_timed_runs_alone(made: Made, monkeypatch: Any) -> None:
    ran: list[tuple[str, int | None]] = []
    monkeypatch.setattr(runner, "run_job", lambda job, force: ran.append((job.title, job.threads)))
    jobs = plan(["head_redundancy", "cost"], [], {}, made.folder)
    outcomes = runner._outcomes(jobs, 2, None, False, made.said.append)
    next(outcomes)
    assert [title.split(":")[0] for title, _ in ran] == ["cost"]
    assert ran[0][1] is None  # with all cores


def test_a_dask_cluster_runs_the_same_jobs(write: Any, made: Made) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
    ) as cluster:
        assert made.run(write("one", "1"), write("bad", "1/0", "2"), scheduler=cluster.scheduler_address) == 1
    assert sorted(made.statuses()) == ["done", "failed"]
    assert made.sidecar(NAME.replace("tiny", "one"))["status"] == "done"


def test_two_commands_do_not_make_the_same_report_at_once(write: Any, made: Made) -> None:
    (job,) = plan([write("tiny", "1")], [], {}, made.folder)
    made.folder.mkdir()
    with runner._alone(job):
        outcome = runner.run_job(job)
    assert outcome.status == "failed"
    assert "another process" in outcome.words


def test_listed_commands_are_plain_papermill_and_work(write: Any, made: Made, tmp_path: Path) -> None:
    data = tmp_path / "it's {here} 007"
    data.mkdir()
    tiny = write("tiny", FIGURE)
    assert made.run(tiny, data=str(data), params={"seed": "3"}, list_only=True) == 0
    (line,) = made.said
    words = shlex.split(line)
    assert words[0] == "papermill"
    output = Path(words[2].replace("{{", "{").replace("}}", "}"))
    (output.parent / output.stem).mkdir()  # FIGURE writes there without making it
    words = [sys.executable, "-m", "papermill", *words[1:], "--no-progress-bar", "--log-level", "ERROR"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    injected = next(
        cell.source for cell in nbformat.read(output, as_version=4).cells if "injected" in str(cell.metadata)
    )
    assert "seed = 3" in injected
    assert (output.parent / output.stem / "numbers.csv").read_text() == "seed,3"


def test_text_that_looks_like_a_number_stays_text(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "007").mkdir()
    (job,) = plan([write("tiny", "1")], [], {"data": "007", "seed": 2}, tmp_path / "o")
    assert "-r data 007" in papermill_line(job)
    assert "-p seed 2" in papermill_line(job)


def test_file_names_are_safe_and_differ_where_the_run_differs() -> None:
    names = {
        stem("n", CommonParams(**values))
        for values in ({}, {"seed": 1}, {"n_images": 3}, {"weights": "random"}, {"model": "small_conv_deep"})
    }
    assert len(names) == 5
    assert stem("n", CommonParams(batch_size=3, device="cpu", n_images=256)) == stem("n", CommonParams())
    assert re.fullmatch(r"[\w.+-]+", stem("n", CommonParams(model="hf-hub:timm/../x y")))


def test_labels_name_files_and_never_make_two_runs_share_one() -> None:
    labels = [
        {"model_label": label} for label in ("後 <&$x_1$>", "a/b", "a-b", "🙂", "🙃", "x" * 300, "x" * 301)
    ]
    models = [{"model_label": "T2T", "model": model} for model in ("t2t_vit_14", "t2t_vit_19")]
    seeds = {"baseline": "small_performer_deep", "baseline_weights": "random"}
    names = [stem("n", CommonParams(**given)) for given in (*labels, *models, seeds)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.+-]{1,200}", name) for name in names)
    assert names[0].startswith("n__後-x_1-__vs__small_hard_deep__")
    assert names[-1].startswith("n__trained__vs__untrained__")


# ---------------------------------------------------------------------------------- the page


class Checked(HTMLParser):
    """Collects what the tests ask of a page, and that its elements are closed in order."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "mspace"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found["href"])] if found.get("href") else []
        self.images += [found] if tag == "img" else []
        assert not [name for name in found if name.startswith("on")]
        reaching = {v for v in found.values() if re.match(r"\s*((https?:)?//|javascript:)", v or "", re.I)}
        assert reaching == ({found["href"]} if tag == "a" and reaching else set())
        assert not any("javascript:" in str(value) for value in reaching)
        assert tag == "img" or not {"src", "srcset", "poster", "data", "action"} & set(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def assert_good_page(html: str, folder: Path | None = None) -> Checked:
    """What must hold of every page: nothing leaves it, nothing runs, everything can be reached."""
    page = Checked(html)
    assert not re.search(r"url\((?!#)|@import|<script", html, re.IGNORECASE)
    assert {"script", "iframe", "object", "embed", "link", "base", "form"}.isdisjoint(page.tags)
    assert page.tags.count("h1") == 1
    assert page.tags.count("main") == 1
    assert len(set(page.ids)) == len(page.ids)
    assert all((image.get("alt") or "").strip() for image in page.images)
    assert all(str(image["src"]).startswith("data:image/") for image in page.images)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        elif not link.startswith(("http://", "https://", "data:text/csv;base64,")) and folder is not None:
            assert (folder / unquote(link)).exists(), link
    return page


#: CSS pixels of a page's column, and of a window of 1100 x 800 below question and answer
COLUMN, BELOW = 768, 420


def assert_readable_answer(html: str) -> None:
    """The deciding figure has room beside the answer with letters of 9 pixels: it is shrunk to no less."""
    for figure in re.findall(r'<section class="answer".*?</section>', html, flags=re.DOTALL):
        for least, drawing in re.findall(
            r'<figure[^>]* style="--least: (\d+)px">(.*?)</figure>', figure, flags=re.DOTALL
        ):
            assert int(least) <= BELOW
            # letters are drawn with 12 pixels: so wide may it be at most to be shrunk to the column
            assert int(re.search(r'<(?:svg|img)[^>]* width="(\d+)"', drawing)[1]) <= COLUMN * 12 / 9  # type: ignore[index]
    assert not re.search(
        r'<section class="answer"(?:(?!</section>).)*<figure(?![^>]*--least)', html, flags=re.DOTALL
    )


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EVIL = "<script>alert('x')</script>"


def _shown(*outputs: Any, markdown: str = "", page: Page | None = None) -> str:
    cells = [
        new_markdown_cell(f"# T\n\n{markdown}"),
        new_code_cell("1 < 2", id="some-step", outputs=list(outputs)),
    ]
    return to_html(new_notebook(cells=cells, metadata=SPEC), page or Page("T"))


def test_names_labels_and_text_are_escaped_wherever_they_come_from() -> None:
    figure = {"t2t_analysis": {"role": "figure"}}
    drawing = Figure(Drawing(figsize=(1, 1)), f"**{EVIL}** `{EVIL}`", EVIL)
    forged = (
        f'<figure><img src="http://h/x.png" alt="a" onload="a()">{EVIL}<figcaption>b</figcaption></figure>'
    )
    html = _shown(
        new_output("display_data", {"text/html": drawing.html()}, metadata=figure),
        new_output("display_data", {"text/html": forged}, metadata=figure),
        new_output("display_data", {"text/markdown": f"**{EVIL}** `{EVIL}`"}),
        new_output(
            "display_data", {"text/markdown": f"{EVIL} [a](javascript:alert(1)) ![b](http://h/x.png)"}
        ),
        new_output("display_data", {"text/html": f"<table onclick='a()'><tr><td>{EVIL}1</td></tr></table>"}),
        new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "nothing"}),
        new_output("execute_result", {"text/plain": EVIL}),
        new_output("stream", text=EVIL),
        new_output("stream", text=EVIL, name="stderr"),
        new_output("error", ename="E", evalue="v", traceback=[f"\x1b[31m{EVIL}\x1b[0m"]),
        markdown=f"{EVIL} <img src=http://h/y.png> $\\text{{{EVIL}}}$",
        page=Page(
            EVIL,
            [{"name": EVIL, "value": EVIL, "help": EVIL}],
            [{"words": EVIL, "line": EVIL}],
            {EVIL: EVIL},
            EVIL,
            EVIL,
        ),
    )
    page = assert_good_page(html)
    assert html.count("&lt;script&gt;") >= 14
    assert (page.tags.count("svg"), len(page.images)) == (1, 0)
    assert "\x1b" not in html


def role(name: str) -> dict[str, Any]:
    return {"t2t_analysis": {"role": name}}


def test_results_tables_streams_and_captions_reach_the_reader() -> None:
    html = _shown(
        new_output(
            "execute_result", {"text/html": "<table><tr><td>7.5</td></tr></table>", "text/plain": "x"}
        ),
        new_output("execute_result", {"text/plain": "last expression"}),
        new_output("stream", text="10%\r100%\nnext\n"),
        new_output("display_data", {"text/html": "<details><summary>All</summary><p>rows</p></details>"}),
        new_output("display_data", {"text/plain": "for the index"}, metadata=role("verdicts")),
        markdown="| a | b |\n|:--|--:|\n| 1 | 2 |\n\n## Part\n\n## Part\n\n$$\\frac{a}{b}$$",
    )
    page = assert_good_page(html)
    assert "7.5" in html
    assert "last expression" in html
    assert "10%" not in html
    assert "100%\nnext" in html
    assert "<details><summary>All</summary>" in html
    assert "for the index" not in html
    assert {"part", "part-2"} <= set(page.ids)
    assert {"#part", "#part-2"} <= set(page.links)
    assert html.count('class="scroll"') == 2
    assert '<math display="block">' in html
    assert '<th scope="col"' in html
    assert "1 &lt; 2" in re.sub("<[^>]*>", "", html)


def test_papermill_s_banners_and_copies_of_the_parameters_are_left_out() -> None:
    cells = [
        new_markdown_cell(
            "<span>An Exception was encountered</span>", metadata={"tags": ["papermill-error-cell-tag"]}
        ),
        new_markdown_cell("# T"),
        new_code_cell("x = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("# Parameters\nx = 2", metadata={"tags": ["injected-parameters"]}),
    ]
    html = to_html(
        new_notebook(cells=cells, metadata=SPEC), Page("T", [{"name": "x", "value": "2", "help": "h"}])
    )
    assert "Exception" not in html
    assert "# Parameters" not in html
    assert "x = 1" not in html
    assert "Parameters of this run" in html


@pytest.mark.parametrize("tex", [r"\frac{a}{b}", r"\begin{aligned}a&=b\\c&=d\end{aligned}", r"\arg\max_x"])
def test_formulas_become_mathml(tex: str) -> None:
    assert to_mathml(tex).startswith("<math")


def test_a_formula_that_cannot_be_read_is_shown_as_its_source() -> None:
    assert to_mathml(r"\nonsense{<b>").endswith(r">\nonsense{&lt;b&gt;</code>")


@pytest.mark.parametrize("path", sorted(notebooks_dir().glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_formula_of_every_notebook_converts(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    html = to_html(nb, Page("T"))
    assert "<math" in html or "$" not in "".join(
        cell.source for cell in nb.cells if cell.cell_type == "markdown"
    )
    assert 'class="tex"' not in html
    assert_good_page(html.replace('href="index.html"', 'href="#main"'))


def test_a_notebook_without_a_title_gets_one_and_only_one() -> None:
    cells = [new_markdown_cell("text"), new_markdown_cell("# A"), new_markdown_cell("# B")]
    html = to_html(new_notebook(cells=cells, metadata=SPEC), Page("T"))
    assert re.findall(r"<h1[^>]*>(.*?)</h1>", html) == ["A"]
    assert "<h1" in to_html(new_notebook(cells=cells[:1], metadata=SPEC), Page("T"))


def test_the_answer_its_figure_and_its_verdict_come_first() -> None:
    said = "\n".join(["- **Supported** Yes, by 3.", *(f"- more {i}" for i in range(4))])
    pictures = [Figure(Drawing(figsize=(1, 1)), f"Caption {i}.", f"Alt {i}").html() for i in range(2)]
    shown = [[new_output("display_data", {"text/html": one}, metadata=role("figure"))] for one in pictures]
    cells = [
        new_markdown_cell("# Is it?\n\nThe method."),
        new_code_cell(
            "",
            id="load",
            outputs=[new_output("display_data", {"text/markdown": "T2T is `a`."}, metadata=role("names"))],
        ),
        new_code_cell(
            "",
            id="findings",
            outputs=[new_output("display_data", {"text/markdown": said}, metadata=role("findings"))],
        ),
        new_markdown_cell("## First\n\nHow to read it."),
        new_code_cell("a()", id="a", outputs=shown[0]),
        new_markdown_cell("## Second\n\nWhy."),
        new_code_cell(
            "b()",
            id="b",
            metadata={"tags": ["deciding"]},
            outputs=[*shown[1], new_output("stream", text="12 batches")],
        ),
    ]
    html = to_html(new_notebook(cells=cells, metadata=SPEC), Page("T", stem="stem"))
    assert_good_page(html)
    order = ["Is it?</h1>", "T2T is", "chip chip-supported", "Yes, by 3.", "Alt 1", "more 1", "2 more findings",
             "The method", "Alt 0", "How to read it", "<summary>Second", "Code of this page", "12 batches"]  # fmt: skip
    places = [html.index(words, html.index("<main")) for words in order]
    assert places == sorted(places)
    assert html.index("<details", html.index("<main")) < html.index("The method")
    assert "● Supported" in html
    assert_readable_answer(html)
    assert "max(21rem, var(--least" in html  # however low the rest makes it, letters can be read


def test_a_page_refuses_a_figure_without_alt_text_unless_the_run_failed() -> None:
    output = new_output("display_data", {"image/png": PNG})
    with pytest.raises(T2TError, match="no alt text"):
        _shown(output)
    assert_good_page(_shown(output, page=Page("T", failure="it stopped")))


def test_the_index_links_escapes_and_warns(write: Any, made: Made) -> None:
    body = "from t2t_analysis._show import _publish\n_publish({'text/plain': 'x'}, 'title', untrained=['m'])"
    finding = f"findings([{EVIL!r}])"
    assert made.run(write("tiny", body, finding), write("bad", finding, "1/0", "2")) == 1
    (made.folder / "strange.json").write_text('{"not": "ours"}')
    (made.folder / "broken.json").write_text("{")
    write_index(made.folder)
    html = made.bytes("index.html").decode()
    page = assert_good_page(html, made.folder)
    assert "UNTRAINED: random weights in m" in html
    assert EVIL not in html
    assert f"{NAME}.html" in page.links
    for path in made.folder.glob("*.html"):
        assert_good_page(path.read_text(), made.folder)


def test_an_empty_index_says_how_to_fill_it(tmp_path: Path) -> None:
    html = write_index(tmp_path).read_text()
    assert "python -m t2t_analysis report" in html
    assert_good_page(html, tmp_path)


#: figures of the shortest pages: one look per model; none of a study whose runs have not ended
LEAST = {"explore": 2, "claims": 1, "training_from_scratch": 0}
#: what takes longest, made short
QUICK: dict[str, dict[str, Any]] = {
    "attribution": {"steps": 4, "squares": 4, "stages": 1},
    "cost": {"batch_sizes": [1, 4], "repeats": 6},
    "head_ablation": {"random_orders": 2},
}
#: what they say rests on training runs or on counts, not on the weights that they are given
NOT_OF_THE_WEIGHTS = {"claims", "cost", "training_from_scratch"}


@pytest.mark.parametrize("name", available())
def test_every_notebook_of_the_suite_makes_a_report(
    name: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "explore":  # which has a kernel, as the small notebooks above; starting one takes seconds
        monkeypatch.setattr(runner, "_execute", execute_here)
    given = {"weights": "random", "baseline_weights": "random", "n_images": 8, "batch_size": 4}
    given |= QUICK.get(name, {})
    assert made.run(name, params=given) == 0, made.said
    (side,) = made.folder.glob(f"{name}*.json")
    about = made.sidecar(side.stem)
    html = made.bytes(f"{side.stem}.html").decode()
    page = assert_good_page(html, made.folder)
    assert_readable_answer(html)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.DOTALL)
    least = LEAST.get(name, 3)
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert about["figures"] == len(page.images) + len(drawings) == len(captions) >= least
    if name not in NOT_OF_THE_WEIGHTS:
        geometry = "The central token laid back on the pixels"  # no weight enters such a figure
        assert all("UNTRAINED" in caption or geometry in caption for caption in captions)
        assert about["untrained"] == [about["model"], about["baseline"]]
    if name not in {"explore", *NOT_OF_THE_WEIGHTS}:  # explore describes one image and judges nothing
        assert about["findings"][0].startswith("No verdict")
    numbers = re.findall(r'href="data:text/csv;base64,[^"]*"', html)
    assert all('role="img"' in drawing and "aria-label=" in drawing for drawing in drawings)
    assert (
        len(html) - sum(map(len, (*drawings, *numbers, *(str(image["src"]) for image in page.images))))
        < 100_000
    )
    assert sorted(path.name for path in (made.folder / side.stem).glob("*.parquet")) == sorted(
        about["results"]
    )


# ------------------------------------------------------------------------------------------------- sentences
