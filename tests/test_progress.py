"""One line of progress, wherever it is shown."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from t2t_analysis import _progress
from t2t_analysis._progress import progress


class _Clock:
    """A clock that moves on by ``step`` seconds each time it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


class _Handle:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.texts.append(bundle["text/plain"])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Handle:
    handle = _Handle()

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> _Handle:
        assert display_id
        handle.update(bundle, raw)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(_progress, "in_kernel", lambda: True)
    return handle


def test_kernel_updates_at_most_every_half_second(kernel, monkeypatch):
    monkeypatch.setattr(_progress, "time", _Clock(0.1))
    assert list(progress(range(20), "measuring", unit="image")) == list(range(20))
    # 20 items take 2.0 s: the start, updates at 0.5, 1.0, 1.5 and 2.0 s, the end.
    assert kernel.texts[0] == "measuring: starting"
    assert kernel.texts[-1] == "measuring: 20 images"
    assert 5 <= len(kernel.texts) <= 6
    assert kernel.texts[1].startswith("measuring: 5 of 20 images")


def test_kernel_says_where_it_stopped(kernel):
    def failing():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(progress(failing(), "reading", total=9, unit="image"))
    assert kernel.texts[-1] == "reading: stopped after 1 of 9 images"


def test_log_lines_every_ten_seconds(monkeypatch, capsys):
    monkeypatch.setattr(_progress, "time", _Clock(4.0))
    list(progress(range(6), "training"))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("training: 3 of 6 batches, 12 s, about 12 s left")
    assert lines[-1] == "training: 6 batches in 28 s"
    assert len(lines) == 3


def test_short_work_leaves_a_log_clean(capsys):
    list(progress(range(100), "measuring"))
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_a_bar_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(iter("abc"), "copying", total=3, unit="file")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert "copying: 100%" in captured.err
    assert captured.out == ""


def test_importing_needs_nothing_heavy():
    code = "import sys, t2t_analysis; t2t_analysis.progress; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "ipywidgets", "IPython", "tqdm", "pandas"} & set(loaded)


def test_a_real_kernel_keeps_one_line_and_the_same_bytes():
    code = (
        "import sys, time\nfrom t2t_analysis import progress\n"
        "for _ in progress(range(3), 'measuring'):\n    time.sleep(0.3)\n"
        "assert 'ipywidgets' not in sys.modules"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert output.data == {"text/plain": "measuring: 3 batches"}
