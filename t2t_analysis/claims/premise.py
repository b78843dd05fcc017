"""What claims take for granted of a single model: endpoints of one model alone, beside its untrained control.

The bounds that turn them into verdicts stand in ``entries/`` and were fixed before any model was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .._names import TWIN
from ..data.boundaries import find_boundaries
from ..errors import DataError, T2TError
from ..estimates import Estimate
from ..results import Result
from .headlines import HEADLINES, Headline, as_dict, effects_alone

#: what is measured together: name -> names of the measures. A killed run loses the one at work, no more.
GROUPS: dict[str, tuple[str, ...]] = {
    "heads": ("HeadSimilarity", "HeadOutputCKA"),
    "edges": ("EdgeDecodability", "RectifiedEdgeDecodability"),
    "channels": ("InvalidChannels",),
    "rank": ("EffectiveRank",),
    "sinks": ("Sinks",),
    "redundancy": ("HeadSimilarity", "HeadAblation"),
    "boundaries": (),  # no measure of a pass: read from what people drew, see `groups_for`
}
#: groups that are measured of the untrained control too
_WITH_CONTROL = ("heads",)

Results = Mapping[str, Result]
Row = dict[str, Any]
#: finds the row of a model, by its label, in results
Endpoint = Callable[[Results, str], Row | None]


def _late(results: Results, label: str, measure: str, quantity: str, tokens: str) -> Estimate | None:
    """Similarity of the heads within a layer, mean over the last third of the layers."""
    from ..measures.head_maps import thirds

    whole = results[measure].where(model=label, quantity=quantity, tokens=tokens)
    frame = whole.frame
    same = (frame["layer"] == frame["layer_b"]) & frame["head"].isna()
    within = np.flatnonzero(same & frame["value"].notna())
    layers = frame["layer"].iloc[within].to_numpy()
    if len(layers) < 2:
        return None
    last = thirds(len(layers))[1]
    order = within[np.argsort(layers)]
    return whole.rows(order[list(last)]).estimates().mean()


def _likeness(measure: str, quantity: str, tokens: str, trained: bool) -> Endpoint:
    def row(results: Results, label: str) -> Row | None:
        if not {label, label + TWIN * trained} <= set(results[measure].frame["model"]):
            return None  # batches too small for CKA, or no control
        late = _late(results, label, measure, quantity, tokens)
        words: Row = {"place": "last third of blocks", "tokens": tokens, "value_unit": "none"}
        if late is None or not trained:
            return None if late is None else words | {"estimate": late, "estimator": "mean over layers"}
        control = _late(results, label + TWIN, measure, quantity, tokens)
        assert control is not None  # the same architecture
        words |= {"null": 0.0, "null_kind": "untrained control"}
        words["estimator"] = "mean over layers less the control's"
        return words | {"estimate": late - control}

    return row


def _by_sinks(subtract: bool) -> Endpoint:
    """Similarity of maps without sinks, or how far it lies below that without random columns."""

    def row(results: Results, label: str) -> Row | None:
        from ..measures.sinks import KEYS, LAST_THIRD

        late = results["sinks"].where(model=label, place=LAST_THIRD, quantity="cosine_centred")
        without, random = (late.where(variant=variant).estimates()[0] for variant in KEYS[2:])
        words: Row = {"place": LAST_THIRD, "tokens": "patch", "value_unit": "none"}
        words |= {"estimator": "mean over layers, sinks by image and layer"}
        null: Row = {"null": 0.0, "null_kind": "as many random columns"} if subtract else {"null": random}
        return words | {"null_kind": "without random columns"} | null | {
            "estimate": random - without if subtract else without
        }  # fmt: skip

    return row


def _sink_writes(results: Results, label: str) -> Row | None:
    from ..measures.sinks import LAST_THIRD

    late = results["sinks"].where(model=label, place=LAST_THIRD, quantity="sink_value_ratio")
    return as_dict(late.frame.iloc[0])


def _headline(headline: Headline) -> Endpoint:
    def row(results: Results, label: str) -> Row | None:
        found = headline.row(results[headline.measure].frame, label)
        return None if found is None else as_dict(found)

    return row


_COSINE = ("head_similarity", "cosine_centred", "patch")
_CKA = ("head_output_cka", "head_output_cka", "pooled")
_OVER_PIXELS = Headline(
    "rectified_edge_decodability", {"quantity": "edge_r2_own_over_reference", "place_b": "pixels.cell"}
)
_DRAWN = Headline("boundaries", {"quantity": "boundary_precision_over_reference", "place_b": "pixels.cell"})
#: name of an endpoint -> the group that it is measured with, and its row
ENDPOINTS: dict[str, tuple[str, Endpoint]] = {
    "late_cosine": ("heads", _likeness(*_COSINE, trained=False)),
    "late_cosine_trained": ("heads", _likeness(*_COSINE, trained=True)),
    "late_cka": ("heads", _likeness(*_CKA, trained=False)),
    "late_cka_trained": ("heads", _likeness(*_CKA, trained=True)),
    "late_cosine_without_sinks": ("sinks", _by_sinks(subtract=False)),
    "late_cosine_by_sinks": ("sinks", _by_sinks(subtract=True)),
    "late_sink_writes": ("sinks", _sink_writes),
    "edges_over_pixels": ("edges", _headline(_OVER_PIXELS)),
    "boundaries_over_pixels": ("boundaries", _headline(_DRAWN)),
    **{name: (one.group, _headline(one)) for name, one in HEADLINES.items() if one.group},
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
        Key of `GROUPS`.
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
    made = [effects_alone() if name == "HeadAblation" else getattr(m, name)() for name in GROUPS[group]]
    models = {label: model}
    if group in _WITH_CONTROL:
        models |= m.random_twins(models, seed=seed + 1)
    results = dict(m.measure(models, images, made, progress=progress))
    if group == "redundancy":
        heads, loss = results["head_similarity"], results["head_ablation"]
        results["similarity_redundancy"] = m.similarity_is_redundancy(heads, loss, model=label, seed=seed)
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
