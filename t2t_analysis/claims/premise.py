"""What claims take for granted of a single model: endpoints of one model alone, beside its untrained control.

The bounds that turn them into verdicts stand in ``entries/`` and were fixed before any model was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from .._names import TWIN
from ..data.boundaries import find_boundaries
from ..errors import DataError, T2TError
from ..estimates import Estimate
from ..results import Result
from .headlines import ALL, Headline, as_dict, measured

#: what is measured together; a killed run loses the one at work, no more
GROUPS = tuple(dict.fromkeys(one.group for one in ALL.values() if one.group))
#: groups that are measured of the untrained control too
_WITH_CONTROL = ("heads",)

Results = Mapping[str, Result]
Row = dict[str, Any]
#: makes the row of a model, by its label, from results
Endpoint = Callable[[Headline, Results, str], Row | None]


def _row(one: Headline, results: Results, label: str) -> Row | None:
    found = one.row(results[one.measure].frame, label)
    return None if found is None else as_dict(found)


def _late_mean(one: Headline, results: Results, label: str) -> Estimate | None:
    """Similarity of the heads within a layer, mean over the last third of the layers."""
    from ..measures.head_maps import thirds

    whole = results[one.measure].where(model=label, **one.where)
    frame = whole.frame
    same = (frame["layer"] == frame["layer_b"]) & frame["head"].isna()
    within = np.flatnonzero(same & frame["value"].notna())
    layers = frame["layer"].iloc[within].to_numpy()
    if len(layers) < 2:
        return None
    order = within[np.argsort(layers)]
    return whole.rows(order[list(thirds(len(layers))[1])]).estimates().mean()


def _late(one: Headline, results: Results, label: str, trained: bool = False) -> Row | None:
    if not {label, label + TWIN * trained} <= set(results[one.measure].frame["model"]):
        return None  # batches too small for CKA, or no control
    late = _late_mean(one, results, label)
    words: Row = {"place": "last third of blocks", "tokens": one.where["tokens"], "value_unit": "none"}
    if late is None or not trained:
        return None if late is None else words | {"estimate": late, "estimator": "mean over layers"}
    control = _late_mean(one, results, label + TWIN)
    assert control is not None  # the same architecture
    words |= {"null": 0.0, "null_kind": "untrained control"}
    words["estimator"] = "mean over layers less the control's"
    return words | {"estimate": late - control}


def _without_sinks(one: Headline, results: Results, label: str) -> Row:
    """Similarity of maps without sinks, or how far it lies below that without random columns."""
    from ..measures.sinks import KEYS

    place = one.where["place"]
    late = results[one.measure].where(model=label, place=place, quantity="cosine_centred")
    without, random = (late.where(variant=variant).estimates()[0] for variant in KEYS[2:])
    words: Row = {"place": place, "tokens": "patch", "value_unit": "none"}
    words |= {"estimator": "mean over layers, sinks by image and layer"}
    if one.choose == "by sinks":
        return words | {"estimate": random - without, "null": 0.0, "null_kind": "as many random columns"}
    return words | {"estimate": without, "null": random, "null_kind": "without random columns"}


_MADE: dict[str, Endpoint] = {"late": _late, "without sinks": _without_sinks, "by sinks": _without_sinks}
#: name of an endpoint -> the group that it is measured with, and its row
ENDPOINTS: Mapping[str, tuple[str, Callable[[Results, str], Row | None]]] = {
    name: (one.group, partial(_MADE.get(one.choose, _row), one)) for name, one in ALL.items() if one.group
} | {
    f"{name}_trained": (one.group, partial(_late, one, trained=True))
    for name, one in ALL.items()
    if one.choose == "late"
}


def groups_for(images: Any) -> Iterator[str]:
    """Groups that these images can be asked: of drawn boundaries only where somebody drew them."""
    drawn = find_boundaries(images.dataset.info.name, 1)
    yield from (group for group in GROUPS if drawn or group != "boundaries")


def measure_endpoints(
    label: str, model: Any, images: Any, group: str, *, seed: int = 0, progress: bool = True
) -> list[Row]:
    """Rows of the endpoints of one group, one pass over the images.

    Parameters
    ----------
    label
        What the model is called.
    group
        One of `GROUPS`.
    seed
        Of nulls; the untrained control has the next one.

    Raises
    ------
    T2TError
        If none of the group's measures fits the model; it says why.
    DataError
        If there are no drawn boundaries to read.
    """
    from .. import measures as m

    if group == "boundaries":
        about = images.dataset.info
        drawn = find_boundaries(about.name, about.n, seed)
        if drawn is None:
            raise DataError(f"{about.name} holds no boundaries that people drew")
        found = {"boundaries": m.boundaries({label: model}, drawn, seed=seed, progress=progress)}
        return endpoint_rows(label, model, found, group)
    models = {label: model}
    if group in _WITH_CONTROL:
        models |= m.random_twins(models, seed=seed + 1)
    wanted = [one for one in ALL.values() if one.group == group]
    results, _ = measured(models, images, wanted, seed=seed, progress=progress)
    return endpoint_rows(label, model, results, group)


def endpoint_rows(label: str, model: Any, results: Results, group: str | None = None) -> list[Row]:
    """Rows of every endpoint that ``results`` hold, named by the endpoint; of one group, or of all."""
    rows = []
    for name, (belongs, row) in ENDPOINTS.items():
        if group not in (None, belongs):
            continue
        try:
            found = row(results, label)
        except KeyError:  # its measure was not asked for, or does not fit this model
            continue
        if found is not None:
            about = {"measure": "evidence", "quantity": name, "model": label}
            rows.append(found | about | {"weights": model.provenance.label})
    return rows


def premise_evidence(
    label: str, model: Any, images: Any, *, seed: int = 0, groups: Iterable[str] | None = None
) -> Result:
    """Endpoints of one trained model over the images, for `ledger`; nothing is measured of random weights."""
    images_of = f"{images.dataset.info.n} images of {images.dataset.info.name}"
    about = {"kind": "premise", "about": f"{label} alone, {images_of}"}
    if model.provenance.untrained:
        return Result.of_rows("evidence", [], about, (f"random weights in {label}: not measured",))
    rows: list[Row] = []
    notes = []
    for group in groups or groups_for(images):
        try:
            rows += measure_endpoints(label, model, images, group, seed=seed)
        except T2TError as error:
            notes.append(f"{group} not measured: {error}")
    return Result.of_rows("evidence", rows, about, tuple(notes))
