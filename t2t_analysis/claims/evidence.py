"""The numbers that the ledger judges, as one tidy result: from the study's runs, or from two given models.

``quantity`` is the name by which an effect asks for a row (`base.Effect.controlled`, `base.Effect.pair`); ``model`` and
``model_b`` say what is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from .. import stats
from .._paths import Folder
from ..errors import DataError
from ..models.provenance import confounds
from ..results import Result
from ..training.design import CORNERS, cell_of, horizons_of
from ..training.effects import CONTRASTS, SIDES, contrast, effects, runs_of, whole
from .headlines import HEADLINES, as_dict, measured, pair_differences, pair_order, read_headlines
from .premise import premise_evidence

#: contrasts that are taken of every headline
OF_HEADLINES = ("tokeniser_effect", "backbone_effect", "t2t_minus_vit")
_PAPERS_VIT = "ViT-S/16"
TRANSFER = {"data": "digits", "source": "photo_crops"}
_SEEDS = "trained by the study"


def sides(quantity: str) -> dict[str, str]:
    """Columns ``model, model_b`` of a contrast by its name; nothing where it is none.

    >>> sides("tokeniser_effect_deep")
    {'model': 'soft split', 'model_b': 'hard split'}
    """
    known = [name for name in SIDES if quantity.startswith(name)]
    return dict(zip(("model", "model_b"), SIDES[max(known, key=len)], strict=True)) if known else {}


# ------------------------------------------------------------------------------------------ the study


def controlled_evidence(
    data: str = "photo_crops", *, epochs: int | None = None, folder: Folder = None
) -> Result:
    """Effects over training seeds: of accuracy, of every headline, of transfer; and the costs.

    Parameters
    ----------
    data : which runs.
    epochs : their length; the default is the last of the design, where alone effects are judged.
    folder : of the study's tables; the default are those that ship with the package.

    What cannot be estimated is in the notes, with the reason.
    """
    from ..training.table import read_runs

    table, epochs = read_runs(folder), epochs or horizons_of(data)[-1]
    rows, notes = list(cost_rows()), []
    try:
        of_accuracy = effects(table, data, epochs=epochs)
        runs = _with_headlines(whole(runs_of(table, data, epochs=epochs)), folder)
    except DataError as error:
        return Result("evidence", pd.DataFrame(rows), {"data": data}, (str(error),))
    rows += [row | sides(str(row["quantity"])) for row in _records(of_accuracy) if pd.isna(row["model"])]
    notes += list(of_accuracy.notes)
    for name in HEADLINES:
        found, missing = _of_headline(runs, name)
        rows += found
        notes += missing
    found, missing = _transfer(table)
    meta = {"data": data, "epochs": int(runs["epochs"].iloc[0]), "reduced": bool(runs["reduced"].any())}
    return Result("evidence", pd.DataFrame(rows + found), meta, (*notes, *missing))


def _records(result: Result) -> list[dict[str, Any]]:
    return [as_dict(row) for _, row in result.frame.iterrows()]


def _with_headlines(runs: pd.DataFrame, folder: Folder) -> pd.DataFrame:
    """Runs with a column for each headline; missing where a run was not measured."""
    found = read_headlines(folder)
    wide = found.pivot_table(index="model", columns="quantity", values="value", aggfunc="first")
    return runs.merge(wide.reindex(columns=list(HEADLINES)), left_on="run", right_index=True, how="left")


def _of_headline(runs: pd.DataFrame, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    known = runs[runs[name].notna()]
    if known.empty:
        why = "no run of this length is measured (study --measure)"
        return [], [f"{quantity} of {name} not estimated: {why}" for quantity in OF_HEADLINES]
    rows, notes = [], []
    for quantity in OF_HEADLINES:
        try:
            estimate = contrast(known, CONTRASTS[quantity], of=name)
        except DataError as error:
            notes.append(f"{quantity} of {name} not estimated: {error}")
            continue
        rows.append(_seed_row(f"{quantity}:{name}", **estimate.columns(), **sides(quantity)))
    corners = known[known["model"].isin(CORNERS)]
    if len(corners) > 1:  # the runs of all corner cells count alike
        mean = stats.Student.of(corners[name], "run", "mean over runs").columns()
        about = {"interval": "t over runs", "model": "all corner cells", "p": None}
        rows.append(_seed_row(f"mean:{name}", **mean | about))
    return rows, notes


def _seed_row(quantity: str, **columns: Any) -> dict[str, Any]:
    common = {"measure": "evidence", "quantity": quantity, "weights": _SEEDS, "null": 0.0}
    return common | {"null_kind": "no effect"} | columns


def _transfer(table: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    notes = []
    for task in ("probe", "finetune"):
        try:
            found = effects(table, TRANSFER["data"], task=task, source=TRANSFER["source"])
        except DataError as error:
            notes.append(f"transfer_{task} not estimated: {error}")
            continue
        missing = [note for note in found.notes if note.startswith("tokeniser_effect not")]
        notes += [f"transfer_{task} not{note.partition(' not')[2]}" for note in missing]
        for row in _records(found):
            if row["quantity"] in CONTRASTS:
                rows.append(row | {"quantity": f"transfer_{task}:{row['quantity']}"} | sides(row["quantity"]))
    return rows, notes


def seed_evidence(
    cell: str, data: str = "photo_crops", *, epochs: int | None = None, folder: Folder = None
) -> Result:
    """The same names, but both sides are seeds of ONE cell: the first two against the others.

    Nothing differs between the sides but the random numbers, so a verdict from it is a false alarm. Rows that the study
    does not take from single runs are left out.
    """
    from ..training.table import read_runs

    runs = runs_of(read_runs(folder), data, epochs=epochs)
    runs = _with_headlines(whole(runs), folder)
    runs = runs[runs["model"] == cell].sort_values("seed")
    if len(runs) < 4:
        raise DataError(f"{cell}: {len(runs)} seeds, but two against two are the least")
    halves = runs.assign(model=["first two seeds"] * 2 + ["other seeds"] * (len(runs) - 2))
    weights = {"first two seeds": 1.0, "other seeds": -1.0}
    rows = []
    asked = {"test_accuracy": list(CONTRASTS)}
    asked |= {name: [f"{quantity}:{name}" for quantity in OF_HEADLINES] for name in HEADLINES}
    for of, names in asked.items():
        known = halves[halves[of].notna()]
        if known["model"].nunique() < 2:
            continue
        columns = contrast(known, weights, of=of).columns()
        rows += [_seed_row(q, **columns, model="first two seeds", model_b="other seeds") for q in names]
    return Result("evidence", pd.DataFrame(rows), {"data": data, "cell": cell})


# ------------------------------------------------------------------------------------------ two models


def pair_evidence(models: Mapping[str, Any], images: Any, *, seed: int = 0) -> Result:
    """Headlines of two models over the same images, soft split minus hard split; and the costs.

    The unit is the image, or the head: an interval says how sure the number is for these weights, and nothing of other
    training runs. Random weights are marked in the ``weights`` column. Where both models split alike there is no such
    difference, and only the costs are left.
    """
    order = pair_order(models)
    if order is None:
        return Result("evidence", pd.DataFrame(list(cost_rows())), {}, (_ALIKE,))
    results, notes = measured(models, images, HEADLINES.values(), seed=seed)
    rows = [*pair_differences(results, *order), *cost_rows()]
    for row in rows:
        row.setdefault("model", order[0])
    return Result("evidence", pd.DataFrame(rows), {"models": list(order)}, tuple(notes))


_ALIKE = "both models split alike, and the claim compares a soft split with a hard one"


# ------------------------------------------------------------------------------------------ costs


def cost_rows() -> Iterable[dict[str, Any]]:
    """Counted costs: T2T-ViT-14 over the paper's ViT-S/16, and the largest deviation from what is printed.

    Exact numbers: both ends of the interval are the number.
    """
    from ..measures.paper_costs import PAPER, printed_costs

    published = [line for line in PAPER if line.table in ("Table 1", "Table 2")]
    lines = [line for line in published if line.label.startswith("T2T") or line.label == _PAPERS_VIT]
    frame = printed_costs(lines).frame
    counted = frame.set_index(["place", "quantity"])["value"].astype(float)
    for quantity in ("parameters", "macs_all"):
        ours, paper = (counted[f"Table 2: {line}", quantity] for line in ("T2T-ViT-14", _PAPERS_VIT))
        yield _counted(
            f"cost:{quantity}_over_half", ours / paper - 0.5, "T2T-ViT-14", "the paper's ViT-S/16",
            "ratio less one half",
        )  # fmt: skip
    t2t = frame[frame["model"].str.startswith("t2t")]
    for name, quantity in (("parameters", "parameters"), ("macs", "macs_all")):
        rows = t2t[t2t["quantity"] == quantity]
        apart = (rows["value"] / rows["null"] - 1).astype(float).to_numpy()
        worst = int(np.nanargmax(np.abs(apart)))
        table, label = str(rows["place"].iloc[worst]).split(": ")
        yield _counted(
            f"cost:printed_{name}", float(apart[worst]), f"{label}, {table}", "the printed number",
            "counted over printed, less one",
        )  # fmt: skip


def _counted(quantity: str, value: float, model: str, model_b: str, estimator: str) -> dict[str, Any]:
    from ..measures.cost import EXACT

    return EXACT | {
        "measure": "evidence", "quantity": quantity, "model": model, "model_b": model_b, "value": value, "low": value,
        "high": value, "interval": "none needed: counted", "null": 0.0, "null_kind": "equal", "estimator": estimator,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ which of the two


def gather(models: Mapping[str, Any], images: Any, *, seed: int = 0, folder: Folder = None) -> list[Result]:
    """The evidence that suits one or two models, each kind by itself; what the first says comes first.

    Parameters
    ----------
    models
        Label -> model, the model and its baseline if it has one.
    images
        Loader, used for the models as they are.
    folder
        Of the study's tables.

    Returns
    -------
    list of Result
        For two models the study's training runs where it has them, else the two as they are; then every trained model
        alone. ``meta["kind"]`` says which names of effects apply, ``meta["about"]`` in words what evidence holds for.
    """
    alone = [premise_evidence(label, model, images, seed=seed) for label, model in models.items()]
    each = zip(alone, models.values(), strict=True)
    trained = [found for found, model in each if not model.provenance.untrained]
    if len(models) < 2:
        return alone
    return [_of_pair(models, images, seed, folder), *trained]


def _of_pair(models: Mapping[str, Any], images: Any, seed: int, folder: Folder) -> Result:
    if all(cell_of(model.provenance.model).tokeniser for model in models.values()):
        found = controlled_evidence(folder=folder)
        return _labelled(found, "controlled", _about_study(found.meta))
    about = f"{' against '.join(models)}, {images.dataset.info.n} images of {images.dataset.info.name}"
    confounded = confounds(*(model.provenance for model in models.values()))
    about += f"; more than the architecture may differ: {', '.join(confounded)}" if confounded else ""
    untrained = [name for name, model in models.items() if model.provenance.untrained]
    if untrained:
        note = f"random weights in {' and '.join(untrained)}: not measured"
        return _labelled(Result("evidence", pd.DataFrame(list(cost_rows())), {}, (note,)), "pair", about)
    return _labelled(pair_evidence(models, images, seed=seed), "pair", about)


def _labelled(found: Result, kind: str, about: str) -> Result:
    return replace(found, meta=dict(found.meta) | {"kind": kind, "about": about})


def _about_study(meta: Mapping[str, Any]) -> str:
    if "epochs" not in meta:
        return "the small models of the study, of which no run has its last length yet"
    short = ", fewer than its last length" if meta["reduced"] else ""
    return (
        f"the small models of the study, trained here on {meta['data']} for {meta['epochs']} epochs{short}, "
        "compared over training seeds"
    )


def seed_ledgers(evidence: Result, folder: Folder = None) -> dict[str, pd.DataFrame]:
    """Corner cell -> ledger of two seeds against the others; none where the evidence is of two given models."""
    from .ledger import ledger

    found = {}
    for cell in CORNERS if "epochs" in evidence.meta else ():
        try:
            own = seed_evidence(cell, evidence.meta["data"], epochs=evidence.meta["epochs"], folder=folder)
        except DataError:  # fewer than four seeds
            continue
        found[cell] = ledger(own)
    return found
