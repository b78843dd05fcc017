"""Runs notebooks and writes what people read: one HTML file per run and an index, all of it offline."""

from importlib import import_module
from typing import Any

from .._paths import default_reports_dir

__all__ = ["default_reports_dir", "run_report", "stem"]

#: papermill and pydantic take long to import, and only a run needs them
_HOME = {"run_report": "runner", "stem": "plan"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
