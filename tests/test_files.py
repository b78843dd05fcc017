"""Files that are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from t2t_analysis._files import scratch_folder, whole_file, writable_folder
from t2t_analysis.errors import DataError


def test_a_file_takes_its_place_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "a[1].csv"
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    with pytest.raises(OSError, match="No such file"), whole_file(path) as temporary:
        temporary.write_text("half") and (tmp_path / "nowhere").rename(temporary)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a[1].csv"]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    code = (
        "import os, sys; from t2t_analysis._files import whole_file\n"
        "with whole_file(sys.argv[1]) as temporary: temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "a.csv"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = os.listdir(tmp_path)
    living = tmp_path / left.replace(left.split(".")[-2], str(os.getppid()))
    living.write_text("of a process that runs")
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, "a.csv"])


def test_scratch_folders_of_killed_processes_are_removed_and_those_of_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "t2t-of-somebody.else.x").mkdir()
    with scratch_folder() as mine:
        left = mine.name.split(".")
        pids = {"dead": str(_dead_process()), "alive": str(os.getppid())}
        for kind, pid in pids.items():
            (tmp_path / ".".join([left[0], pid, kind])).mkdir()
            (tmp_path / ".".join([left[0], pid, kind]) / "k.json").write_text("")
        with scratch_folder() as second:
            found = sorted(path.name.split(".")[-1] for path in tmp_path.iterdir())
        assert found == sorted(["x", "alive", mine.name.split(".")[-1], second.name.split(".")[-1]])
    assert sorted(path.name.split(".")[-1] for path in tmp_path.iterdir()) == ["alive", "x"]


def _dead_process():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_folders_are_tried_before_the_work(tmp_path):
    assert writable_folder(tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write into .*file/below: Not a directory"):
        writable_folder(tmp_path / "file" / "below")
