"""Do tokens tell where people draw boundaries? Human boundaries read from the tokens of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from .._progress import progress as counted
from ..data.boundaries import Drawn
from ..data.loading import preprocessing, transform_of
from ..errors import DataError, T2TError
from ..estimates import Estimate
from ..results import Result
from .base import View, layer_of
from .edges import REFERENCES, inner_tokens, luminance, reference_windows
from .ridge import pair_half, random_projection
from .token_pixels import token_footprint
from .view import FIRST_THIRD, evaluating, first_third, result_of, views_of

#: candidate penalties, for standardised features
PENALTIES = np.logspace(-1, 5, 13)
#: images that pass a model at a time
_AT_ONCE = 16


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision over recall, in steps at distinct scores; NaN without a positive or without a negative.

    >>> average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]))
    0.8333333333333333
    """
    if positive.all() or not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # the last of each score
    hits = hits[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])


def boundaries(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    drawn: Drawn,
    *,
    places: Sequence[str] = ("embed", "tokens.*.out", "blocks.*.resid_post"),
    dim: int = 64,
    directions: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """How well tokens tell through which cells the boundaries run that people drew, place by place.

    The share of annotators whose boundary runs through a cell is read from the cell's token by ridge regression, each
    half of the photographs from the other. Features are projected to ``dim`` dimensions and joined by |w . x| along
    random ``directions``, since an edge and its negative bound alike. ``boundary_precision`` is the average precision
    with which the readout ranks the cells of a photograph against one annotator, mean over annotators, then over
    photographs; cells lie around the centre of what tokens see (`token_footprint`), the outermost are left out.

    The null ranks the cells against the boundaries of another photograph; p is paired, for "no more than that". The
    ceiling ranks them by the other annotators, where there are several. References: the same readout of raw pixels of
    the cell (``pixels.cell``) and of the token's field (``pixels.field``), and of edge energies (``edges.cell``).
    ``boundary_precision_over_reference`` is the mean over the first third of the blocks minus each reference, paired.
    Every model sees the photographs through its own preprocessing; intervals leave out photographs.

    Parameters
    ----------
    models : give a `random_twin` as one more model to see what the architecture alone tells.
    drawn : of `find_boundaries`, at least 8 photographs.

    Raises
    ------
    DataError : too few photographs.
    T2TError : a grid that has no inner cells.
    """
    if len(drawn) < 8:
        raise DataError(f"{len(drawn)} photographs with boundaries; a readout needs 8 at least")
    views = views_of(models)
    rows = [row for v in views for row in _of_model(v, drawn, places, dim, directions, seed, progress)]
    return result_of(
        "boundaries", views, rows, n_images=len(drawn), seed=seed, dim=dim, directions=directions
    )


def _of_model(
    view: View, drawn: Drawn, places: Sequence[str], dim: int, directions: int, seed: int, progress: bool
) -> Iterator[dict[str, Any]]:
    features, people, width = _gather(view, drawn, places, dim, seed, progress)
    wanted = np.stack([each.mean(0) for each in people])  # (n, T)
    half = pair_half(torch.arange(len(drawn))).numpy()
    ceiling = Estimate.of_units(_agreement(people))
    found = {}
    for name, x in features.items():
        scores = _read(x, wanted, half, directions, seed)
        kept = [np.array([_precision(s, p) for s, p in zip(scores, other, strict=True)])
                for other in (people, [*people[1:], people[0]])]  # fmt: skip
        found[name] = kept
    if first := first_third(list(found)):
        found[FIRST_THIRD] = [np.mean([found[name][k] for name in first], 0) for k in (0, 1)]
    base: dict[str, Any] = view.about | {"tokens": "patch", "value_unit": "none"}
    for name, (own, other) in found.items():
        how = f"ridge on {width.get(name, 'features')}, with {directions} absolute values; mean over photographs"
        yield base | {
            "place": name, "layer": layer_of(name), "quantity": "boundary_precision",
            "estimate": Estimate.of_units(own), "null": Estimate.of_units(other),
            "p": Estimate.of_units(own - other), "null_kind": "boundaries of another photograph",
            "estimator": how, "ceiling": float(ceiling.value),
            "ceiling_kind": "a left-out annotator ranked by the others",
        }  # fmt: skip
    for name in REFERENCES if first else ():
        less = Estimate.of_units(found[FIRST_THIRD][0] - found[name][0])
        yield base | {
            "place": FIRST_THIRD, "place_b": name, "quantity": "boundary_precision_over_reference", "estimate": less,
            "p": less, "null": 0.0, "null_kind": "no more than in the reference",
            "estimator": f"average precision, mean over blocks minus {name}, paired",
        }  # fmt: skip


def _gather(
    view: View, drawn: Drawn, places: Sequence[str], dim: int, seed: int, progress: bool
) -> tuple[dict[str, np.ndarray], list[np.ndarray], dict[str, str]]:
    """Features (n, T, k) of every place and reference, annotators' cells (A, T) of every photograph, and widths."""
    config = preprocessing(view.model)
    prepare = transform_of(config)
    size = tuple(config["input_size"][1:])
    view.example = torch.zeros(1, *config["input_size"], device=next(view.model.parameters()).device)
    layout = view.layout_of("embed")
    if layout is None or min(layout.grid) < 3:
        raise T2TError(f"{view.label}: boundaries need at least 3x3 tokens, got {layout and layout.grid}")
    grid, names = layout.grid, view.offered(places)
    foot = token_footprint(view, "embed", (size[0], size[1]), grid, config["input_size"][0])
    seen: dict[str, list[Tensor]] = {name: [] for name in (*names, *REFERENCES)}
    width: dict[str, str] = {}
    people: list[np.ndarray] = []

    def keep(name: str, x: Tensor) -> None:
        projection = random_projection(x.shape[-1], dim, 1, seed)[0].to(x)
        width[name] = f"{x.shape[-1]} dimensions" + f" projected to {dim}" * (x.shape[-1] > dim)
        seen[name].append((x @ projection).float().cpu())

    def hook(obs: capture.Observation) -> None:
        assert obs.layout is not None  # only such places were chosen
        keep(obs.name, inner_tokens(obs.patches.float(), obs.layout.grid, grid))

    starts = counted(range(0, len(drawn), _AT_ONCE), f"boundaries, {view.label}", shown=progress)
    with evaluating(view.model), torch.no_grad():
        for start in starts:
            numbers = range(start, min(start + _AT_ONCE, len(drawn)))
            images = torch.stack([prepare(drawn.image(i)) for i in numbers]).to(view.example)
            with capture.observe(view, dict.fromkeys(names, hook)):
                view.model(images)
            grey = luminance(images, config["std"])
            for name, x in reference_windows(grey, grid, foot).items():
                keep(name, x)
            cells = [drawn.cells(i, config, grid, foot.offset)[:, 1:-1, 1:-1] for i in numbers]
            people += [each.reshape(len(each), -1) for each in cells]
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}, people, width


def _read(x: np.ndarray, wanted: np.ndarray, half: np.ndarray, directions: int, seed: int) -> np.ndarray:
    """Scores (n, T) of all cells, each half of the photographs read by what was fitted on the other."""
    from sklearn.linear_model import RidgeCV

    drawn = np.random.default_rng(seed).standard_normal((x.shape[-1], directions)).astype(np.float32)
    scores = np.empty_like(wanted)
    for h in (0, 1):
        fit, judged = half != h, half == h
        mean, spread = x[fit].mean((0, 1)), x[fit].std((0, 1))
        scale = np.where(spread > 0, spread, 1)

        def rich(part: np.ndarray, mean: np.ndarray = mean, scale: np.ndarray = scale) -> np.ndarray:
            z = ((part - mean) / scale).reshape(-1, part.shape[-1])
            return np.concatenate([z, np.abs(z @ drawn)], 1)

        model = RidgeCV(PENALTIES).fit(rich(x[fit]), wanted[fit].ravel())
        scores[judged] = model.predict(rich(x[judged])).reshape(-1, wanted.shape[1])
    return scores


def _precision(score: np.ndarray, people: np.ndarray) -> float:
    """Mean over annotators (A, T) who drew through some of the cells and not through all."""
    each = [average_precision(score, one) for one in people]
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def _agreement(people: Sequence[np.ndarray]) -> np.ndarray:
    """How well each annotator is told by the others, mean of a photograph: (n,), NaN for a single one."""
    return np.array([_left_out(each) for each in people])


def _left_out(people: np.ndarray) -> float:
    if len(people) < 2:
        return float("nan")
    each = [average_precision(np.delete(people, a, 0).mean(0), one) for a, one in enumerate(people)]
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
