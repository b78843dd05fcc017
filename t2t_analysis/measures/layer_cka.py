"""Which layers hold the same representation? Maps of unbiased CKA, within one model and between two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from .. import capture
from ..errors import DataError, T2TError, UnknownNameError
from ..results import Result
from ..stats import calibrated, max_statistic_p, null_columns
from .base import Estimate, Measure, MeasureBatch, View
from .cka import LEAST
from .cka_batches import Batches
from .cka_exact import Exact

Tokens = Literal["pooled", "class", "flattened"]
TOKENS = ("pooled", "class", "flattened")


class LayerCKA(Measure):
    """Unbiased linear CKA of every layer with every other layer of a model.

    Parameters
    ----------
    tokens : what one image is: the mean of its patch tokens ("pooled"), its class token ("class"), or all its
        patch tokens side by side ("flattened"). The three answer different questions.
    places : shell-style pattern of the places to compare.
    retain : for pooled and class tokens, most images whose features are kept; of more, evenly spread ones are. Value,
        interval (jackknife over images) and null (permuted pairing) are theirs.
    permutations : draws of the null; each permutes all cells of the map alike.
    robust : also report the map without the images of largest norm (1 %, at least one) and without the first
        and the first five principal components, for values that a few images or directions make alone.

    Flattened tokens are compared by batches: Gram matrices of each batch, sums over batches, ratio at the end
    (Nguyen, Raghu & Kornblith 2021); the interval is then a jackknife over batches.

    Rows: ``cka_unbiased`` with interval, null, calibrated ``p`` (max statistic over the map);
    ``cka_calibrated`` (beyond chance anywhere in the map); and the robust ones. The map is
    square within a model, its diagonal is 1 and has no p. The ceiling is 1, a representation with itself; a
    stricter one is `CrossLayerCKA` of two seeds of one architecture. For pooled and class tokens, ``cka_mean`` is
    the mean over the map, within a model over two different layers, from the images that were kept.
    """

    name: ClassVar[str] = "layer_cka"
    invariances: ClassVar[frozenset[str]] = frozenset(
        {"orthogonal", "scale", "translation", "permute_images", "permute_channels"}
    )

    def __init__(
        self,
        tokens: Tokens = "pooled",
        places: str = "blocks.*.resid_post",
        *,
        retain: int = 1024,
        permutations: int = 200,
        robust: bool = True,
        seed: int = 0,
        groups: int = 32,
    ) -> None:
        super().__init__(groups=groups)
        if tokens not in TOKENS:
            raise UnknownNameError("tokens", tokens, TOKENS)
        if retain < LEAST + 1 or permutations < 1:
            raise T2TError(
                f"retain={retain} must be at least {LEAST + 1}, permutations={permutations} at least 1"
            )
        self.tokens, self.places, self.robust = tokens, places, robust
        self.retain, self.permutations, self.seed = retain, permutations, seed
        self.how: Exact | Batches = Batches(self) if tokens == "flattened" else Exact(self)
        if tokens == "flattened":
            self.without_nonfinite = "the place is left out"

    def wants(self, view: View) -> Sequence[str]:
        """The places that match."""
        return view.select(self.places)

    def bind(self, views: Sequence[View]) -> None:
        """Ask for widths and make the states."""
        self.sides = [views[0]] if self.arity == 1 else list(views)
        self.names = [self.wants(view) for view in self.sides]
        self.widths = [[self._width(view, name) for name in view.select(self.places)] for view in self.sides]
        self.how.bind()

    def _width(self, view: View, name: str) -> int:
        shape, layout = view.shape_of(name), view.layout_of(name)
        if self.tokens == "class" and (layout is None or layout.prefix < 1):
            raise T2TError(
                f"{view.label} has no class token at {name}; tokens='pooled' or 'flattened' would do"
            )
        return shape[-1]

    def reduce(self, obs: capture.Observation) -> Tensor:
        """(B, N, D) -> features (B, D), or the batch's Gram matrix (B, B) for flattened tokens."""
        if self.tokens == "class":
            return obs.value[:, 0].double()
        prefix = obs.layout.prefix if obs.layout is not None else 0
        return self.how.reduce(obs.value[:, prefix:] if obs.value.ndim > 2 else obs.value)

    def update(self, batch: MeasureBatch) -> None:
        """Add one batch; a place that was not finite counts as zeros and is left out of the result."""
        self.how.update(batch)

    def compute(self) -> Result:
        """One map, as rows."""
        if int(self.n_images) < LEAST:
            raise DataError(f"{int(self.n_images)} images are too few for CKA, which needs at least {LEAST}")
        meta = {"tokens": self.tokens, "seed": self.seed, "permutations": self.permutations}
        rows = list(self.how.rows())
        return self.result(rows, **meta, **self.how.meta())

    # shared by both ways

    def finite(self, side: int) -> np.ndarray:
        """Which places of a side have values, (L,)."""
        return self.how.finite(side)

    def map_rows(self, value: Estimate, null: np.ndarray) -> Iterator[dict[str, Any]]:
        """Rows of the main map: values (La, Lb), and null (K, La, Lb)."""
        looked_at = self.compared()
        cells, null = np.where(looked_at, value.value, np.nan), np.where(looked_at, null, np.nan)
        largest = np.broadcast_to(np.nanmax(null, axis=(1, 2), initial=-np.inf)[:, None, None], null.shape)
        beyond = calibrated(cells, largest)
        drawn = null_columns(null)
        alone = np.isnan(
            drawn["null"]
        )  # a layer with itself: nothing to permute, but the estimator is unbiased
        kind = f"second side's images permuted, {len(null)} times"
        top = {"ceiling": 1.0, "ceiling_kind": "a representation with itself"}
        yield self.cells(value) | top | drawn | {
            "quantity": "cka_unbiased", "p": max_statistic_p(cells, null), "null": np.where(alone, 0.0, drawn["null"]),
            "null_kind": np.where(alone, "independent representations", kind).astype(object),
        }  # fmt: skip
        count = {"n": value.n[looked_at], "unit": value.unit}
        yield self.cells(beyond, looked_at) | count | top | {
            "quantity": "cka_calibrated", "null": 0.0, "null_kind": kind,
        }  # fmt: skip

    def compared(self) -> np.ndarray:
        """Which cells say something, (La, Lb): finite ones, and no layer with itself."""
        found = np.outer(self.finite(0), self.finite(-1))
        if self.arity == 1 or self.sides[0] is self.sides[-1]:
            found &= ~np.eye(len(found), dtype=bool)
        return found

    def cells(self, value: Estimate | np.ndarray, which: np.ndarray | None = None) -> dict[str, Any]:
        """Rows of the cells (La, Lb), or of some; values of places that were not finite are missing."""
        finite = np.outer(self.finite(0), self.finite(-1))
        places = (
            np.array(self.names[0], dtype=object)[:, None],
            np.array(self.names[-1], dtype=object)[None],
        )
        place, place_b = (np.broadcast_to(names, finite.shape) for names in places)
        row = {"tokens": self.tokens, "value_unit": "none", "estimator": self.how.estimator}
        known: Any
        if isinstance(value, Estimate):
            known = {"estimate": value.map(lambda x: np.where(finite, x, np.nan))}
        else:
            known = {"value": np.where(finite, value, np.nan)}
        if which is not None:
            place, place_b = place[which], place_b[which]
            known = {name: part[which] for name, part in known.items()}
        return self.row(place, place_b, **row, **known)


class CrossLayerCKA(LayerCKA):
    """Unbiased linear CKA of every layer of one model with every layer of another.

    Parameters are those of `LayerCKA`. Given one model alone it compares the model with itself, whose
    diagonal is 1.
    """

    name: ClassVar[str] = "cross_layer_cka"
    arity: ClassVar[int] = 2
    alone: ClassVar[bool] = True
