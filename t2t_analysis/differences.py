"""How two models differ in every row that both have, paired over the units that both were measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ._names import TWIN
from .errors import T2TError
from .results import Result

#: rows of two models that agree in these, and stand at the places asked for, are compared
_ABOUT = ("quantity", "variant", "place_b", "layer_b", "at", "at_unit", "tokens", "value_unit")
_KEPT = ("measure", "variant", "model", "place", "layer", "at", "at_unit", "tokens", "value_unit")


def difference(
    result: Result, model: str, model_b: str, place: str | None = None, place_b: str | None = None
) -> Result:
    """First model minus second, paired over units, for every row that both models have.

    Each group of units is left out of both models at once, so what the images do to both cancels. p is two-sided for
    "no difference", by Student's t on the jackknife standard error with (groups - 1) degrees of freedom. Rows of single
    heads and channels are left out: head 3 of one model is no counterpart of head 3 of another. For some rows only,
    ask ``difference(result.where(quantity="cka_mean"), ...)``.

    Parameters
    ----------
    result : of one measure for both models, from one pass over the images.
    model, model_b : labels as in the result's ``model`` column.
    place : compare this place only.
    place_b : with that place of the second model, if it is not the same.

    Returns
    -------
    A row for each, with ``_difference`` after the name of its quantity and null 0; it keeps replicates in its turn. A
    note says which rows the two measured on different images, so that they cannot be paired.

    Raises
    ------
    UnknownNameError : a label or place that the result does not have.
    T2TError : no row of the two can be paired, since they rest on other images.
    """
    a, b = _side(result, model, place), _side(result, model_b, place_b or place)
    at = {key: i for i, key in enumerate(_keys(b, alone=place is not None))}
    pairs = [(i, at[key]) for i, key in enumerate(_keys(a, alone=place is not None)) if key in at]
    first, second = (side.rows([pair[k] for pair in pairs]) for k, side in enumerate((a, b)))
    if not pairs or not (paired := _paired(first, second)).any():
        raise T2TError(_why(result, first, second, model, model_b))
    left_out = sorted(set(first.frame["quantity"][~paired]))
    first, second = (side.rows(np.flatnonzero(paired)) for side in (first, second))
    units = first.frame["unit"]
    sides = (
        [side.rows(np.flatnonzero(units == unit)) for side in (first, second)] for unit in units.unique()
    )
    rows = [_rows(*pair) for pair in sides]
    unpaired = (
        f"no difference in {', '.join(left_out)}: {np.sum(~paired)} rows rest on other images of {model} than of "
        f"{model_b}, or on other groups of them",
    ) * bool(left_out)
    notes = (*result.notes, *unpaired, *_conditions(result, model, model_b))
    return Result.of_rows(result.measure, rows, {"models": [model, model_b]}, notes)


def _rows(first: Result, second: Result) -> dict[str, Any]:
    """Rows of the differences of two results, row by row."""
    estimate = first.estimates() - second.estimates()
    one, other = (side.frame.astype(object) for side in (first, second))
    columns = {name: one[name] for name in _KEPT} | {
        "quantity": one["quantity"] + "_difference",
        "model_b": other["model"],
        "weights": one["weights"] + " | " + other["weights"],
        "place_b": other["place_b"].where(other["place_b"].notna(), other["place"]),
        "layer_b": other["layer_b"].where(other["layer_b"].notna(), other["layer"]),
        "estimator": one["estimator"] + "; first model minus second",
    }
    row: dict[str, Any] = {name: values.to_numpy(object) for name, values in columns.items()}
    return row | {
        "estimate": estimate, "p": estimate, "null": 0.0, "null_kind": "no difference between the models",
    }  # fmt: skip


def _side(result: Result, model: str, place: str | None) -> Result:
    """Rows of one model that another one can have too, at one place or at all."""
    own = result.where(model=model, model_b=None)
    own = own if place is None else own.where(place=place)
    if own.replicates is None:
        raise T2TError(f"the rows of {result.measure} keep no replicates: no models can be paired by it")
    return own.rows(np.flatnonzero(own.frame["head"].isna() & (own.replicates.groups > 0)))


def _keys(side: Result, alone: bool) -> list[tuple[Any, ...]]:
    """What each row is about; without its place where one place was asked for."""
    names = [*_ABOUT] if alone else [*_ABOUT, "place", "layer"]
    frame = side.frame[names].astype(object)
    return list(frame.where(frame.notna(), None).itertuples(index=False, name=None))


def _paired(first: Result, second: Result) -> np.ndarray:
    """Rows for which both rest on the same units in the same groups."""
    assert first.replicates is not None
    assert second.replicates is not None
    return (first.replicates.sizes == second.replicates.sizes).all(0)


def _why(result: Result, first: Result, second: Result, model: str, model_b: str) -> str:
    if not len(first.frame):
        return f"{model} and {model_b} have no row of {result.measure} in common that keeps replicates"
    n, n_b = (int(side.frame["n"].max()) for side in (first, second))
    return (
        f"cannot pair models measured on different images: {n} of {model} and {n_b} of {model_b}, or in other groups; "
        "measure both models in one call"
    )


def _conditions(result: Result, model: str, model_b: str) -> Iterator[str]:
    """A note where the two were not asked the same: ``meta["conditions"]`` of each."""
    parts = [result.meta, *result.meta.get("parts", [])]
    known = {label: asked for part in parts for label, asked in part.get("conditions", {}).items()}
    first, second = known.get(model, {}), known.get(model_b, {})
    for name in first:
        if name in second and first[name] != second[name]:
            yield f"{model} and {model_b} differ in what they were asked: {name} {first[name]} and {second[name]}"


def twin_differences(result: Result, models: Iterable[str], place: str | None = None) -> list[Result]:
    """What training changed: each model minus its random twin, paired over units; none where there is no twin."""
    measured = set(result.frame["model"])
    return [difference(result, name, name + TWIN, place) for name in models if name + TWIN in measured]


def paired(result: Result, models: Iterable[str], place: str | None = None) -> Result | None:
    """Model minus baseline, the two of ``models``; None where there is one model alone, or nothing was measured."""
    model, *others = models
    return difference(result, model, others[0], place) if len(others) == 1 and len(result.frame) else None
