"""The commit that cards, rows and reports name sees the whole package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from t2t_analysis import _commit


def _says(package: Path) -> str:
    code = "import _commit; print(_commit.commit())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with one subpackage, committed."""
    folder = tmp_path / "package"
    (folder / "models").mkdir(parents=True)
    (folder / "_commit.py").write_text(Path(_commit.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "models" / "net.py").write_text("WIDTH = 1\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    name = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "start"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return folder


def test_a_change_anywhere_in_the_package_shows(package: Path) -> None:
    clean = _says(package)
    assert len(clean) == 12
    (package.parent / "README.md").write_text("no part of the package", encoding="utf-8")
    assert _says(package) == clean
    (package / "models" / "net.py").write_text("WIDTH = 2\n", encoding="utf-8")
    assert _says(package) == f"{clean}+"


def test_a_new_file_shows_and_a_copy_outside_any_checkout_is_unknown(package: Path) -> None:
    (package / "models" / "new.py").write_text("", encoding="utf-8")
    assert _says(package).endswith("+")
    (package.parent / ".git").rename(package.parent / "gone")
    assert _says(package) == "unknown"
