"""Evidence from real weights: one row per endpoint and model, kept in ``data/evidence/models.csv``.

The weights themselves are not kept. Where a model has no rows, the ledger says so, and which command adds them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import tables
from .._commit import commit, versions
from .._files import writable_folder
from .._names import has_soft_split
from .._paths import Folder, data_dir
from ..errors import T2TError
from ..results import COLUMNS, Result, tidy
from ..stats import Student
from .headlines import as_dict
from .ledger import ledger
from .premise import groups_for, measure_endpoints

#: what tells one set of rows from another
_KEY = ("model", "sha256", "data_hash", "seed")
#: no more images than these: one group costs as many passes as a model has heads, others compare every two heads
AT_MOST = {"heads": 128, "sinks": 128, "redundancy": 128}
#: table in the folder of evidence
TABLE = "models.csv"
#: numbers of an endpoint, as in a result
_NUMBERS = [name for name in tables.columns("models") if name in COLUMNS and name not in ("model", "weights")]


def read_models(folder: Folder = None) -> pd.DataFrame:
    """The table; empty where there is none.

    Parameters
    ----------
    folder
        Of the evidence; the default ships with the package.
    """
    return tables.read(Path(folder or data_dir() / "evidence") / TABLE, "models")


def command_for(model: str = "MODEL=WEIGHTS", data: str = "FOLDER", n_images: int | None = None) -> str:
    """The command that adds a model's rows."""
    images = "" if n_images is None else f" --n-images {n_images}"
    return f"python -m t2t_analysis evidence --models {model} --data {data}{images}"


def record(
    name: str,
    weights: str,
    data: str,
    *,
    n_images: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    remark: str = "",
    folder: Folder = None,
) -> Iterator[str]:
    """Measure what is missing of one model and add its rows, group by group; yields a line about each.

    Parameters
    ----------
    name, weights
        As ``load_model`` takes them.
    data, n_images, seed
        As ``load_images`` takes them.
    remark
        What a reader must know of these images, such as that the model was trained on them.
    folder
        Of the evidence.

    Raises
    ------
    T2TError
        If the weights are random: there would be nothing to learn from them.
    DataError
        The folder cannot be written into.
    """
    from .. import load_images, load_model

    out = writable_folder(folder or data_dir() / "evidence")
    model = load_model(name, weights, device=device)
    if model.provenance.untrained:
        raise T2TError(
            f"{name}: random weights say nothing of what a model learned; give a file: {name}=FILE"
        )
    images = load_images(data, model=model, n_images=n_images, device=device, seed=seed)
    about = _about(name, model, images, device, seed) | {
        "command": command_for(f"{name}={_plain(weights)}", _plain(data), n_images), "remark": remark
    }  # fmt: skip
    same = read_models(out)
    for column in _KEY:
        same = same[same[column].astype("string") == str(about[column])]
    done = set(_groups_of(same.loc[same["value"].notna(), "endpoint"]))  # what failed is tried again
    for group in groups_for(images):
        if group in done:
            yield f"{name}: {group} is there"
            continue
        try:
            seen = images if group not in AT_MOST else load_images(
                data, model=model, n_images=min(AT_MOST[group], about["n_images"]), device=device, seed=seed
            )  # fmt: skip
            rows = measure_endpoints(about["label"], model, seen, group, seed=seed)
        except T2TError as error:
            rows = [{"quantity": group, "note": str(error)}]
        rows = rows or [{"quantity": group, "note": "does not fit this model"}]
        tables.add(out / TABLE, "models", [_entry(row, about) for row in rows], _subject)
        yield f"{name}: {group}, {len(rows)} rows"


def _groups_of(endpoints: pd.Series) -> Iterator[str]:
    from .premise import ENDPOINTS

    for name in endpoints:
        yield ENDPOINTS[name][0] if name in ENDPOINTS else str(name)


def _subject(rows: pd.DataFrame) -> pd.DataFrame:
    """Which group of which model: what could not be measured makes way for what was measured after all."""
    return rows[[*_KEY]].assign(group=list(_groups_of(rows["endpoint"])))


def _about(name: str, model: Any, images: Any, device: str, seed: int) -> dict[str, Any]:
    """What every row of a model has in common."""
    info, provenance = images.dataset.info, model.provenance
    found = _accuracy(model, images, device)
    return {
        "model": name, "label": name, "weights": provenance.label, "sha256": provenance.sha256,
        "accuracy": found.get("value"), "accuracy_low": found.get("low"), "accuracy_high": found.get("high"),
        "data": _plain(info.name), "data_hash": _digest(images), "n_images": info.n, "seed": seed, "commit": commit(),
        "versions": "; ".join(f"{key} {value}" for key, value in versions(*_SAID).items()),
        "date": date.today().isoformat(),
    }  # fmt: skip


def _plain(path: str) -> str:
    """The last part of a path, any other name as it is."""
    return Path(path).name if os.sep in path and Path(path).exists() else path


_SAID = ("torch", "timm", "numpy")


def _accuracy(model: Any, images: Any, device: str) -> Mapping[str, Any]:
    """Top-1, where the labels are those of the model's head."""
    from ..training.accuracy import accuracy

    try:
        frame = accuracy(model, images, device).frame
    except T2TError:
        return {}
    return as_dict(frame[frame["quantity"] == "top1"].iloc[0])


def _digest(images: Any) -> str:
    sha = hashlib.sha256()
    for batch in images:
        sha.update(batch.images.cpu().numpy().astype(np.float32).tobytes())
        sha.update(batch.labels.cpu().numpy().astype(np.int64).tobytes())
    return sha.hexdigest()[:12]


def _entry(row: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table from a row of a result, which may hold an estimate."""
    note = {"note": row["note"]} if "note" in row else {}
    whole = Result.of_rows("evidence", [{k: v for k, v in row.items() if k != "note"}])
    (frame,) = whole.frame.to_dict("records")
    numbers = {name: frame[name] for name in _NUMBERS}
    return {"endpoint": row["quantity"], **numbers, **note, **about}


# ------------------------------------------------------------------------------------------ as evidence


def _evidence(rows: pd.DataFrame, kind: str, about: str) -> Result:
    shared = [name for name in _NUMBERS if name in rows]
    frame = rows[shared].assign(
        measure="evidence", quantity=rows["endpoint"], model=rows["label"], weights=rows["weights"]
    )
    return Result("evidence", tidy(frame[frame["value"].notna()]), {"kind": kind, "about": about})


def premise_ledgers(folder: Folder = None) -> dict[str, pd.DataFrame]:
    """What each recorded model says of the premises: "label, n images of data" -> ledger."""
    return {
        f"{label}, {n} images of {data}": ledger(_evidence(rows, "premise", str(label)))
        for (label, data, n, _, _), rows in read_models(folder).groupby(
            ["label", "data", "n_images", "sha256", "seed"], sort=False
        )
    }


def published_ledger(folder: Folder = None) -> dict[str, pd.DataFrame]:
    """Recorded T2T-ViT against recorded ViT, as they are: their recipes differ, so that effects are confounded.

    Not paired: the standard errors of the two add up, which errs on the wide side. Of the first data set that
    both are measured on; empty where there is none.
    """
    table = read_models(folder)
    soft = table["model"].map(has_soft_split).astype(bool)
    sides = (table[soft], table[~soft])
    known = [set(side["data_hash"]) for side in sides]
    shared = next((one for one in table["data_hash"] if all(one in hashes for hashes in known)), "")
    own = (side[side["data_hash"] == shared].drop_duplicates("endpoint") for side in sides)
    ours, theirs = (side.set_index("endpoint") for side in own)
    both = [name for name in ours.index if name in theirs.index and not pd.isna(ours.loc[name, "se"])]
    if not both:
        return {}
    rows = []
    for name in both:
        a, b = ours.loc[name], theirs.loc[name]
        se = float(np.hypot(a["se"], b["se"]))
        df = se**4 / (a["se"] ** 4 / a["df"] + b["se"] ** 4 / b["df"]) if se else float(a["df"])
        apart, n = a["value"] - b["value"], min(a["n"], b["n"])
        found = Student(apart, se, df, n, a["unit"], "difference of means")
        rows.append(found.columns() | {
            "measure": "evidence", "quantity": name, "model": a["label"], "model_b": b["label"], "p": None,
            "weights": f"{a['weights']} | {b['weights']}", "interval": "t, not paired", "null": 0.0,
            "null_kind": "no difference between the models",
        })  # fmt: skip
    about = f"{rows[0]['model']} against {rows[0]['model_b']} as published; their recipes differ too"
    return {about: ledger(Result("evidence", pd.DataFrame(rows), {"kind": "pair"}))}
