"""Where bundled files and caches live, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

Folder = str | Path | None
#: what bundled weights are trained on where their name does not say
DEFAULT_DATA = "photo_crops"

_PACKAGE = Path(__file__).resolve().parent


def _bundled(name: str) -> Path:
    """A top-level folder of the checkout; in a wheel the same files are packed inside the package as ``_name``."""
    packed = _PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _PACKAGE.parent / name


def data_dir() -> Path:
    """Bundled data: ``weights/`` and ``study/``."""
    return _bundled("data")


def bundled_weights() -> dict[str, dict[str, Path]]:
    """Weights that ship with this package: model -> data set -> file."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((data_dir() / "weights").glob("*.safetensors")):
        model, _, data = path.stem.partition("__")
        found.setdefault(model, {})[data or DEFAULT_DATA] = path
    return found


def notebooks_dir() -> Path:
    """The notebooks of the suite."""
    return _bundled("notebooks")


def default_reports_dir() -> Path:
    """``reports/`` of the checkout, or of the current folder where the package is installed without one."""
    checkout = notebooks_dir().parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "reports"


def cache_dir() -> Path:
    """Downloads; ``T2T_ANALYSIS_CACHE`` moves it, otherwise ``~/.cache/t2t_analysis`` (XDG honoured)."""
    if given := os.environ.get("T2T_ANALYSIS_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "t2t_analysis"
