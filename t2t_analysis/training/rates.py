"""Learning rates, chosen per cell on training images that were held out; no test image is looked at.

Rates are powers of two times a start. From the start on, the neighbours of the best so far are tried until the best has
both, so that the optimum never lies at the edge. What was tried is in ``rates.csv``, a row per trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import csv_rows
from .._paths import data_dir

TABLE = "rates.csv"
#: of a trial: the shortest length at which rates can be told apart, as each cell needs three or more of them
EPOCHS = 2
#: of the training images (blocks) of every class that a trial trains on; the others are held out
SHARE = 0.8
#: first rate by optimiser
START = {"muon": 2e-3, "adamw": 1e-3}


def tried(model: str, data: str, optimizer: str = "muon", folder: Path | None = None) -> dict[float, float]:
    """Rate -> held-out loss of every trial of a cell.

    >>> tried("small_hard_deep", "no such data")
    {}
    """
    path = (folder or data_dir() / "study") / TABLE
    if not path.exists():
        return {}
    wanted = {"model": model, "data": data, "optimizer": optimizer}
    rows = [row for row in csv_rows(path) if wanted.items() <= row.items()]
    return {float(row["lr"]): float(row["held_out_loss"]) for row in rows}


def next_rate(losses: Mapping[float, float], start: float) -> float | None:
    """The rate to try next; None once the best has both neighbours.

    >>> next_rate({}, 2e-3), next_rate({2e-3: 1.0}, 2e-3), next_rate({2e-3: 1.0, 1e-3: 1.1, 4e-3: 0.9}, 2e-3)
    (0.002, 0.001, 0.008)
    >>> next_rate({2e-3: 1.0, 1e-3: 1.1, 4e-3: 1.2}, 2e-3)
    """
    if not losses:
        return start
    best = min(losses, key=lambda rate: losses[rate])
    return next((rate for rate in (best / 2, best * 2) if rate not in losses), None)


def chosen(model: str, data: str, optimizer: str = "muon", folder: Path | None = None) -> float | None:
    """The rate with the lowest held-out loss; None while its neighbours were not tried."""
    losses = tried(model, data, optimizer, folder)
    if not losses or next_rate(losses, START[optimizer]) is not None:
        return None
    return min(losses, key=lambda rate: losses[rate])


def add(row: Mapping[str, Any], folder: Path) -> None:
    """Add a trial."""
    from .. import tables

    key = ["data", "model", "optimizer", "lr", "seed"]
    tables.add(folder / TABLE, "rates", [row], lambda rows: rows[key])
