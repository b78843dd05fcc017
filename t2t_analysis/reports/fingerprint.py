"""What a report depends on, as one hash: the same hash means that running again would change nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _commit
from .._paths import cache_dir, data_dir

if TYPE_CHECKING:
    from ..parameters import CommonParams

_PACKAGE = Path(__file__).resolve().parent.parent
#: packages whose version may change a number or a picture
_PACKAGES = (
    *("t2t-analysis", "torch", "torchvision", "timm", "torchmetrics", "numpy", "scipy", "pandas"),
    *("scikit-learn", "scikit-image", "captum", "matplotlib", "seaborn", "pillow"),
)
#: parts of this package that run no measurement: a change there makes no number stale
_NO_NUMBERS = ("reports", "training", "cli.py", "__main__.py")
_KEPT_WEIGHTS = ("*.safetensors", "*.pth", "*.pth.tar", "*.pt", "*.ckpt", "*.bin")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    return _commit.versions(*_PACKAGES)


def sha(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _sources(paths: Iterable[Path]) -> str:
    parts = [(str(path.relative_to(_PACKAGE)), sha(path.read_bytes())) for path in sorted(paths)]
    return sha(json.dumps(parts).encode())


@cache
def _library() -> str:
    paths = [path for kind in ("py", "csv", "toml") for path in _PACKAGE.rglob(f"*.{kind}")]
    return _sources(path for path in paths if path.relative_to(_PACKAGE).parts[0] not in _NO_NUMBERS)


@cache
def page_fingerprint() -> str:
    """Hash of what turns a notebook into a page."""
    folder = Path(__file__).parent
    return _sources([*folder.glob("*.py"), *(folder / "template").iterdir()])


def _cells(notebook: Path) -> list[tuple[str, str]]:
    """Type and source of each cell: outputs and metadata do not change what a run does."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def _file(path: Path) -> list[Any]:
    """Name, size and time of a file; large ones are not read again at every run."""
    about = path.stat()
    return [str(path), about.st_size, about.st_mtime_ns]


def _tree(path: Path) -> list[Any]:
    if path.is_file():
        return _file(path)
    return [_file(part) for part in sorted(path.rglob("*")) if part.is_file()]


def _weights(model: str, weights: str) -> list[Any]:
    if weights == "random":
        return []
    if Path(weights).expanduser().is_file():
        return _file(Path(weights).expanduser())
    bundled = sorted((data_dir() / "weights").glob(f"{model}*"))
    if bundled:
        return [(path.name, sha(path.read_bytes())) for path in bundled if path.is_file()]
    return list(_downloaded())


def _downloaded() -> Iterator[list[Any]]:
    """What has been downloaded so far: weights that arrive later make an untrained report stale."""
    folder = cache_dir()
    for pattern in _KEPT_WEIGHTS if folder.is_dir() else ():
        yield from (_file(path) for path in sorted(folder.rglob(pattern)))


def _study() -> list[Any]:
    """The study's tables and the code that turns them into effects, which is no part of ``_library``."""
    tables = sorted((data_dir() / "study").glob("*.csv"))
    code = [_sources(path for path in (_PACKAGE / "training").iterdir() if path.suffix in (".py", ".csv"))]
    return [(path.name, sha(path.read_bytes())) for path in tables] + code


def run_fingerprint(notebook: Path, params: CommonParams) -> str:
    """Hash of the notebook, its resolved parameters, the library, weights, images and versions."""
    given = json.loads(params.model_dump_json(exclude={"results_dir"}))
    data = Path(params.data).expanduser()
    pairs = zip(params.names, (params.weights, params.baseline_weights), strict=False)
    parts = {
        "cells": _cells(notebook), "parameters": given, "library": _library(),
        "weights": [_weights(name, weights) for name, weights in pairs],
        "data": _tree(data) if data.exists() else params.data,
        "study": _study() if params.reads_study else [], "versions": versions(),
    }  # fmt: skip
    return sha(json.dumps(parts, sort_keys=True).encode())
