"""Runs notebooks and writes what people read: one HTML file per run and an index, all of it offline."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._paths import notebooks_dir

if TYPE_CHECKING:
    from ..parameters import CommonParams

__all__ = ["default_reports_dir", "run_report", "stem"]

#: parameters that change how a run is made but not what it finds, and those that the file name spells out
_NOT_IN_HASH = frozenset({"device", "batch_size", "results_dir"})
_SPELLED = frozenset({"model", "baseline"})
#: letters of a label that a file's name holds; what is cut off is in the digits
_LONGEST = 60


def default_reports_dir() -> Path:
    """``reports/`` of the checkout, or of the current folder where the package is installed without one."""
    checkout = notebooks_dir().parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "reports"


def stem(notebook: str, params: CommonParams) -> str:
    """Name that a run's files share; six digits are added when other parameters than the models differ.

    >>> from t2t_analysis.parameters import HeadRedundancyParams
    >>> stem("head_redundancy", HeadRedundancyParams(model="t2t_vit_14").resolve())
    'head_redundancy__t2t_vit_14__vs__deit_small_patch16_224'
    >>> stem("head_redundancy", HeadRedundancyParams(seed=1).resolve())
    'head_redundancy__small_performer_deep__vs__small_hard_deep__a4bbad'
    >>> stem("head_redundancy", HeadRedundancyParams(baseline="none").resolve())
    'head_redundancy__small_performer_deep'
    """
    given = params.resolve()
    usual = type(params)(model=given.model).resolve()
    named = given.labels == given.names and max(map(len, given.names)) <= _LONGEST
    ignored = _NOT_IN_HASH | (_SPELLED if named else frozenset())
    changed = {
        name: value
        for name, value in json.loads(given.model_dump_json()).items()
        if name not in ignored and (getattr(given, name) != getattr(usual, name) or name == "model")
    }
    digits = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    first, *others = (re.sub(r"[^\w.+-]+", "-", label)[:_LONGEST] for label in given.labels)
    return "__".join(
        [
            notebook,
            first,
            *(word for other in others for word in ("vs", other)),
            *([digits] if changed else []),
        ]
    )


def __getattr__(name: str) -> Any:
    if name == "run_report":  # papermill takes seconds to import, and only a run needs it
        from .runner import run_report

        return run_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
