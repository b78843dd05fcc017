"""What several test files need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_analysis._show import RESULTS_VARIABLE

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

    from t2t_analysis.reports.plan import Job


def one(frame: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row of a frame in which these columns have these values."""
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def execute_here(job: Job, path: Path, results: Path) -> tuple[NotebookNode, str]:
    """As ``runner._execute``, in this process, where all that a kernel would import for seconds is there already."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from t2t_analysis.reports.plan import changed

    nb = parameterize_notebook(load_notebook_node(str(job.notebook)), changed(job))
    shell, before = InteractiveShell.instance(), os.environ.get(RESULTS_VARIABLE)
    os.environ[RESULTS_VARIABLE] = str(results.resolve())
    try:
        for number, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), start=1):
            with capture_output() as shown:
                done = shell.run_cell(cell.source, store_history=True)
            cell.execution_count, cell.outputs = number, _outputs(shown.outputs)
            if not done.success:
                return nb, repr(done.error_before_exec or done.error_in_exec)
    finally:
        os.environ.pop(RESULTS_VARIABLE)
        os.environ |= {} if before is None else {RESULTS_VARIABLE: before}
        InteractiveShell.clear_instance()
    return nb, ""


def _outputs(shown: list[Any]) -> list[NotebookNode]:
    """Displayed objects; one that was updated has its last content only."""
    from nbformat.v4 import new_output

    last: dict[Any, Any] = {}
    for number, output in enumerate(shown):
        last[(output.transient or {}).get("display_id", number)] = output
    return [new_output("display_data", o.data, metadata=o.metadata) for o in last.values()]
