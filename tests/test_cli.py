"""The command line: quick help, one line for a mistake, the status that scripts expect."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from t2t_analysis._names import model_table
from t2t_analysis.cli import COMMANDS, main, parsers
from t2t_analysis.models import MODELS
from tests.data_tables import facts


def _run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "t2t_analysis", *words], capture_output=True, text=True, cwd=cwd
    )


def test_help_lists_what_there_is_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from t2t_analysis.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'papermill', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    for name in ("report", "models", "bench"):
        assert f"\n    {name}" in done.stdout


def test_commands_without_a_module_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "study", COMMANDS["study"]._replace(module="nowhere.study"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "study" not in capsys.readouterr().out
    assert main(["study"]) == 2
    assert "unknown command 'study'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["reprot"], "unknown command 'reprot'; did you mean 'report'?"),
        (
            ["report", "head_redundnacy"],
            "unknown notebook 'head_redundnacy'; did you mean 'head_redundancy'?",
        ),
        (["report", "nowhere.ipynb"], "no such notebook: nowhere.ipynb"),
        (["report", "--models", "t2t_vit_41"], "did you mean"),
        (["report", "-p", "modle", "x"], "modle='x': unknown parameter; did you mean 'model'?"),
        (["report", "-p", "seed", "1", "-p", "seed", "2"], "-p seed is given twice"),
        (["report", "-p", "seed", "[1"], "not a list that can be read"),
        (["report", "--jobs", "0"], "'0' is not a whole number from 1 on"),
        (["report", "--jobs", "x"], "'x' is not a whole number from 1 on"),
        (["report", "--timeout", "-1"], "'-1' is not a whole number from 1 on"),
        (
            ["report", "--model", "t2t_vit_14"],
            "unknown option of t2t-analysis report '--model'; did you mean",
        ),
        (["models", "t2t*", "small*"], "'small*' is one word too many (t2t-analysis models --help)"),
        (["evaluate"], "the following arguments are required: --model (t2t-analysis evaluate --help)"),
        (["evaluate", "--model", "small_hard_deep", "--out", "x.txt"], "ends in .csv or .parquet"),
        (
            ["evaluate", "--model", "small_hard_deep", "--out", "/dev/null/x.csv"],
            "cannot write into /dev/null",
        ),
        (["report", "--out-dir", "/dev/null/x"], "cannot write into /dev/null/x"),
        (["report", "--out-dir", "a\0b"], "cannot write into 'a\\x00b': embedded null byte"),
        (["study", "--jobs", "0"], "'0' is not a whole number from 1 on"),
        (["bench", "nothing-like-it"], "benchmark"),
    ],
)
def test_mistakes_get_a_line_and_status_2(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert answer in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_mistake_in_all_notebooks_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--baseline", "nothing_like_it", "-p", "stages", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum("nothing_like_it" in line for line in lines) == 1
    assert any("stages=0" in line and line.endswith("(in attribution)") for line in map(_plain, lines))


def _plain(line: str) -> str:
    return line.replace("'", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_the_command_takes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    whole, _ = parsers()
    assert COMMANDS[name].examples
    for example in COMMANDS[name].examples:
        assert f"  t2t-analysis {name} {example}".rstrip() in shown
        given = whole.parse_args([name, *shlex.split(example.split(">")[0])])
        assert given.command == name


def test_completion_knows_commands_options_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("evaluate", "--out-dir", "t2t_vit_14", "head_redundancy"):
        assert word in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_no_command_prints_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from t2t_analysis import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("name", ["t2t_vit_14", "t2t_vit_t_14", "small_performer_deep", "small_hard_wide"])
def test_the_table_of_models_is_that_of_the_networks(name: str) -> None:
    table = model_table()
    assert list(table) == list(MODELS), "python -m tests.data_tables writes it anew"
    assert table[name] == facts(name), "python -m tests.data_tables writes it anew"


def test_models_loads_nothing_heavy() -> None:
    code = "import sys; from t2t_analysis.cli import main; main(['models']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"


def test_models_lists_ours_with_the_paper_s_parameter_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*vit*1[49]*"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["t2t_vit_14"][1:6] == ["21,545,550", "21,465,806", "1,000", "224x224", "performer"]
    assert lines["t2t_vit_t_19"][5] == "transformer"
    assert main(["models", "resnet*"]) == 2


def test_list_prints_one_quoted_papermill_command_a_line(tmp_path: Path) -> None:
    done = _run(
        "report",
        "head_redundancy",
        "--list",
        "--models",
        "t2t_vit_14,t2t_vit_24",
        "--out-dir",
        str(tmp_path / "a b"),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("papermill ") for line in lines)
    assert "-p model t2t_vit_14 -p baseline deit_small_patch16_224" in lines[0]
    assert f"'{tmp_path / 'a b'}/head_redundancy__t2t_vit_14__vs__deit_small_patch16_224.ipynb'" in lines[0]


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.ENOENT, None)])
def test_a_full_disk_is_one_line_and_other_errors_keep_their_traceback(
    number: int, status: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from t2t_analysis.commands import models

    def full(arguments: object) -> None:
        raise OSError(number, os.strerror(number), "copied", None, "last.ckpt")

    monkeypatch.setattr(models, "run", full)
    if status is None:
        with pytest.raises(OSError, match="No such file"):
            main(["models"])
    else:
        assert main(["models"]) == status
        said = capsys.readouterr().err
        assert said == f"t2t-analysis: {os.strerror(number)}: last.ckpt; what was finished before is whole\n"
