"""One number per model for each measure that a claim rests on, and the paired difference of two models.

The same few numbers are taken of any pair of models over the same images (`pair_differences`), and of every trained run
of the study (`measure_runs`), where the unit is the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import tables
from .._files import csv_rows
from .._paths import Folder
from ..differences import difference
from ..errors import DataError, UnknownNameError
from ..results import Result

#: file of the headlines of the study's runs, beside its table
TABLE = "headlines.csv"


@dataclass(frozen=True)
class Headline:
    """Where a model's number stands among the rows of a measure, and how two models are compared.

    Attributes
    ----------
    measure : name of the result that holds it.
    where : columns and values that pick its one row for a model.
    choose : of a curve the "first" point; or what `premise` makes of many rows.
    study : whether it is taken of the study's runs, where it is a headline: "paired" if two models are compared by the
        difference of that row, paired over images, else "alone".
    group : what it is measured with when one model is asked alone; empty if it is not.
    """

    measure: str
    where: Mapping[str, str]
    choose: str = ""
    study: str = ""
    group: str = ""

    def row(self, frame: pd.DataFrame, model: str | None = None) -> pd.Series | None:
        """The one row, or None where the measure has none for this model."""
        wanted = dict(self.where) | ({"model": model} if model else {})
        return _pick(frame, wanted, self.choose)

    def difference(self, result: Result, model: str, baseline: str) -> pd.Series | None:
        """The row of model minus baseline, or None where one of them has no such row."""
        try:
            found = difference(result.where(**self.where), model, baseline)
        except UnknownNameError:
            return None
        return _pick(found.frame, {}, self.choose)


def _pick(frame: pd.DataFrame, wanted: Mapping[str, str], choose: str = "") -> pd.Series | None:
    for column, value in wanted.items():
        frame = frame[(frame[column] == value).fillna(False)]
    if choose == "first" and len(frame):
        frame = frame.sort_values("at").head(1)
    return frame.iloc[0] if len(frame) == 1 else None


def as_dict(row: pd.Series) -> dict[str, Any]:
    """A row of a tidy frame by the names of its columns."""
    return {str(name): value for name, value in row.items()}


def _read() -> dict[str, Headline]:
    rows = csv_rows(Path(__file__).parents[1] / "endpoints.csv")
    about = ("quantity", "place", "place_b", "tokens")
    where = [{name: row[name] for name in about if row[name]} for row in rows]
    return {
        row["name"]: Headline(row["measure"], picked, row["choose"], row["study"], row["group"])
        for row, picked in zip(rows, where, strict=True)
    }


#: name of a number -> where it comes from, one line each in ``endpoints.csv``
ALL = _read()
#: those of the study's runs
HEADLINES = {name: one for name, one in ALL.items() if one.study}


def measured(
    models: Mapping[str, Any],
    images: Any,
    wanted: Iterable[Headline],
    *,
    seed: int = 0,
    progress: bool = True,
) -> tuple[dict[str, Result], list[str]]:
    """Every result that some numbers need, of all models in one pass over the images.

    A measure that does not fit a model (a performer backbone, another tokeniser) is left out with a note. Correlations
    with what heads do need neither nulls nor importances of it.
    """
    from .. import measures as m

    asked: dict[str, Any] = {one.measure: one.measure for one in wanted}
    related = asked.pop("similarity_redundancy", None)
    if related:
        asked |= {"head_similarity": "head_similarity", "": m.HeadAblation(importance=False, subspaces=0)}
    found = m.measure(models, images, list(asked.values()), progress=progress)
    results = dict(found)
    if related:
        heads, loss = results["head_similarity"], results["head_ablation"]
        results[related] = m.similarity_is_redundancy(heads, loss, list(models), seed=seed)
    return results, list(found.notes)


def pair_order(models: Mapping[str, Any]) -> tuple[str, str] | None:
    """Labels of two models, soft split first, as every claim has it; None if both or neither have one."""
    from .._names import has_soft_split

    if len(models) != 2:
        return None
    first, second = models
    soft = [has_soft_split(model.provenance.model) for model in models.values()]
    return None if soft[0] == soft[1] else (first, second) if soft[0] else (second, first)


def pair_differences(results: Mapping[str, Result], model: str, baseline: str) -> list[dict[str, Any]]:
    """Rows of each headline's difference, model minus baseline, with the headline's name as quantity.

    Headlines whose measure is not among the results are passed over.
    """
    rows = {
        name: headline.difference(results[headline.measure], model, baseline)
        for name, headline in HEADLINES.items()
        if headline.study == "paired" and headline.measure in results
    }
    return [as_dict(row) | {"quantity": name} for name, row in rows.items() if row is not None]


# ------------------------------------------------------------------------------------------ runs of the study


def read_headlines(folder: Folder = None) -> pd.DataFrame:
    """Headlines of the study's runs, tidy: ``model`` is the name of the run, ``quantity`` that of the headline."""
    from .._paths import data_dir

    return tables.read(Path(folder or data_dir() / "study") / TABLE, "results")


def measure_runs(
    runs: pd.DataFrame, weights: Path, out: Path, *, n_images: int = 128, seed: int = 0
) -> list[str]:
    """Measure the headlines of every trained run that has none yet, and add them to the table beside the runs.

    Parameters
    ----------
    runs : rows of the study's table.
    weights : folder of run folders, each with the weights of its run.
    n_images : test images, the same for all runs of a data set.

    Returns the names of the runs whose weights are not there. Raises ``DataError`` if none are.
    """
    from ..training.design import WEIGHTS

    known = set(read_headlines(out)["model"].dropna())
    todo = [(str(r.run), str(r.model), str(r.data)) for r in runs.itertuples() if r.run not in known]
    absent = [run for run, _, _ in todo if not (weights / run / WEIGHTS).is_file()]
    there = [entry for entry in todo if entry[0] not in absent]
    if todo and not there and not known:
        said = f"no weights of the {len(todo)} runs in {weights}"
        raise DataError(f"{said}; python -m t2t_analysis study trains them")
    for i, (run, model, data) in enumerate(there):
        rows = _headlines_of(run, model, data, weights / run / WEIGHTS, n_images, seed)
        tables.add(out / TABLE, "results", rows, lambda found: found[["model", "quantity"]])
        print(f"[{i + 1} of {len(there)}] {run}: {len(rows)} headlines", flush=True)
    return absent


def _headlines_of(
    run: str, model: str, data: str, weights: Path, n_images: int, seed: int
) -> list[dict[str, Any]]:
    from .. import load_images, load_model

    network = load_model(model, str(weights))
    images = load_images(data, model=network, n_images=n_images, seed=seed, batch_size=16)
    results, _ = measured({run: network}, images, HEADLINES.values(), seed=seed, progress=False)
    rows = []
    for name, headline in HEADLINES.items():
        row = headline.row(results[headline.measure].frame, run)
        if row is not None:
            rows.append(as_dict(row) | {"quantity": name, "weights": f"run {run}"})
    return rows
