"""What vision transformers do with local structure, and which of their heads and channels are dead weight.

Public names are resolved on first use, so that ``import t2t_analysis`` loads no torch (a notebook checks its
parameters before it pays for that import).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load_model": "models", "load_images": "data", "measure": "measures", "explore": "explorer", "Measure": "measures",
    "difference": "differences", "quantity": "quantities", "Result": "results", "Results": "results",
    "progress": "_progress", "T2TError": "errors",
}  # fmt: skip
_MODULES = {
    "capture", "cli", "data", "differences", "errors", "estimates", "measures", "models", "notebooks", "plots",
    "quantities", "reports", "results", "stats", "training",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = import_module(f"{__name__}.{_HOME[name]}")
        return getattr(module, name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
