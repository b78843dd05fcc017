"""Do tokens keep the edges of their image patch, and of those beside it? Ridge regression from features to edges.

The paper shows feature maps and says that a hard split loses edges and lines. Here that is a number: how well the
edge energy of a cell, and of its neighbours, can be read linearly from its token, on images not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..data.loading import preprocessing
from ..errors import T2TError, UnknownNameError
from ..results import Result
from .base import Estimate, Measure, MeasureBatch, View, add_by_group, left_out
from .edges import (
    ORIENTATIONS,
    REFERENCES,
    TARGETS,
    ImageBefore,
    edge_targets,
    inner_tokens,
    luminance,
    pink_noise,
    reference_windows,
    strength_and_orientation,
)
from .ridge import held_out_errors, moments, pair_half, random_projection
from .token_pixels import Footprint, token_footprint
from .view import FIRST_THIRD, first_third

ASPECTS = ("", "_strength", "_orientation")
QUANTITIES = np.array(
    [f"edge_r2_{where}{aspect}" for aspect in ASPECTS for where in (*TARGETS, "neighbour")], dtype=object
)
#: What is dealt out to the halves, of which one is predicted from the other.
HALVES = ("photographs", "images")


def _r2(errors: Tensor, total: Tensor) -> Tensor:
    """1 - errors / total, NaN where nothing varies."""
    return torch.where(total > 0, 1 - errors / total, torch.nan)


class EdgeDecodability(Measure):
    """R^2 with which edge energy is read linearly from a token, on held-out images, by place.

    Targets are those of `edge_targets`, on the grid of the last tokens for every place, around the centre of what the
    tokens of the place see (`token_footprint`): a soft split's tokens sit half a stride off their cells. Ridge
    regression with intercept from streamed sums, each half of the photographs predicted from the other
    (`held_out_errors`), errors summed over orientations. Quantities ``edge_r2_own``, ``_before``, ``_after``,
    ``_boundary`` and ``_neighbour`` (mean of before and after), each also in two parts (`strength_and_orientation`):
    ``_strength``, how strong the edges are, and ``_orientation``, which way they run, which a layer norm over the
    window cannot take away. Per place, and the mean over the first third of the blocks.

    The null pairs each image with the targets of the image that came before it, at the same position: what remains is
    what position alone tells. The interval, and ``p`` for "no more than the null", leave each group of photographs out
    of fit and test (delete-a-group jackknife). A second null is a `random_twin` measured beside the model.

    The readout is linear and edge energy is not: an edge and its negative have the same. So raw pixels, and a hard
    split's embedding, which is linear in them, give R^2 near 0 whatever they keep. Compare what lies behind a
    nonlinearity, and see `RectifiedEdgeDecodability`.

    References, as rows of their own: the same ridge on the raw pixels of the aligned cell (``pixels.cell``) and of all
    that the embedding sees (``pixels.field``), and on the cell's own edge energies (``edges.cell``): what edges tell
    of neighbouring edges in natural images. ``edge_r2_own_over_reference`` and so on are the first third of the blocks
    minus the reference that stands as second place.

    Parameters
    ----------
    dim : features are projected to this many dimensions by random orthogonal projections, so that wide and narrow
        tokens compare; places no wider are left as they are. None: never project.
    draws : random projections; R^2 is the mean over them.
    places : shell-style patterns; those that a model lacks are passed over.
    halves : "photographs", or "images": then crops of one photograph lie on both sides, and a readout may know the
        photograph rather than edges.

    Source: this package; ridge and generalised cross-validation after Golub, Heath & Wahba 1979.
    """

    name: ClassVar[str] = "edge_decodability"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation"})
    directions = 0  # features that are made of the projected ones

    def __init__(
        self,
        *,
        dim: int | None = 64,
        draws: int = 3,
        places: Sequence[str] = ("embed", "tokens.*.out", "blocks.*.resid_post"),
        halves: str = "photographs",
        seed: int = 0,
        groups: int = 16,
    ) -> None:
        super().__init__(groups=groups)
        if halves not in HALVES:
            raise UnknownNameError("kind of halves", halves, HALVES)
        if (dim is not None and dim < 1) or draws < 1:
            raise T2TError(
                f"expected dim of at least 1 (or None) and draws of at least 1, got {dim} and {draws}"
            )
        self.dim, self.draws, self.places, self.seed = dim, draws, tuple(places), seed
        self.halves = halves
        self.before = ImageBefore()
        self._basis = strength_and_orientation()

    # -- before the pass

    def bind(self, views: Sequence[View]) -> None:
        """One state of products and one of squares per place and reference."""
        (view,) = views
        self.names = view.offered(self.places)
        self.grid = self._grid(view)
        self.feet = self._footprints(view)
        self.std = _normalisation(view)
        self.projections: dict[str, Tensor] = {}
        for i, name in enumerate((*self.names, *REFERENCES)):
            width = self._width(view, name)
            onto = width if self.dim is None else self.dim
            self.projections[name] = random_projection(width, onto, self.draws, self.seed)
            draws, _, k = self.projections[name].shape
            k += self.directions
            q = 2 * len(TARGETS) * ORIENTATIONS
            self.add_sum(f"products_{i}", self.groups, 2, draws, 1 + k, 1 + k + q)
            self.add_sum(f"squares_{i}", self.groups, 2, 1, q)
        self.add_sum("dropped", dtype=torch.int64)
        self.add_sum("photographs", self.run.get("photographs", 0))

    def _grid(self, view: View) -> tuple[int, int]:
        layout = view.layout_of("embed")
        if layout is None or min(layout.grid) < 3:
            raise T2TError(
                f"{view.label}: edge decodability needs at least 3x3 tokens, so that one has neighbours; "
                f"got {None if layout is None else layout.grid}; use larger images"
            )
        return layout.grid

    def _footprints(self, view: View) -> dict[str, Footprint]:
        """What the tokens of every place see; those of the blocks what the embedding sees."""
        assert view.example is not None  # the engine supplies one
        channels, *size = view.example.shape[1:]
        stages = [name for name in self.names if name.startswith("tokens.")]
        found = {
            n: token_footprint(view, n, (size[0], size[1]), self.grid, channels) for n in ("embed", *stages)
        }
        return dict.fromkeys((*self.names, *REFERENCES), found["embed"]) | found

    def _width(self, view: View, name: str) -> int:
        boxes = {"pixels.cell": self.feet["embed"].aligned_cell, "pixels.field": self.feet["embed"].field}
        if name in boxes:
            top, left, bottom, right = boxes[name]
            return (bottom - top) * (right - left)
        return ORIENTATIONS if name == "edges.cell" else view.shape_of(name)[-1]

    # -- during the pass

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Projected features of the inner cells, (B, draws, T, k)."""
        if obs.layout is None:
            raise T2TError(f"{obs.name} has no grid; choose places that hold patch tokens")
        return self._projected(obs.name, inner_tokens(obs.patches, obs.layout.grid, self.grid))

    def _projected(self, name: str, x: Tensor) -> Tensor:
        projection = self.projections[name].to(x.device)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unsqueeze(1) @ projection.to(x.dtype)

    def update(self, batch: MeasureBatch) -> None:
        """Add the products of features and targets, every image in its group and half."""
        grey = luminance(batch.images.float(), self.std)
        before = self.before(grey)
        if before is None:  # no other image to pair it with
            self.dropped += 1
            return
        targets = {o: self._targets(grey, before, o) for o in {foot.offset for foot in self.feet.values()}}
        if len(self.photographs):
            self.photographs[batch.photographs] = 1.0
        features = dict(batch.seen[0])
        if features.keys() >= set(first_third(self.names)):  # else there is nothing to hold pixels against
            features |= {
                n: self._projected(n, x)
                for n, x in reference_windows(grey, self.grid, self.feet["embed"]).items()
            }
        for i, name in enumerate((*self.names, *REFERENCES)):
            if name in features:
                self._add(i, batch, features[name], targets[self.feet[name].offset])

    def _targets(self, grey: Tensor, before: Tensor, offset: tuple[float, float]) -> Tensor:
        """Edges of every image, and of the one before it: (B, 1, T, 2 q)."""
        found = edge_targets(torch.cat([before, grey]), self.grid, offset)
        both = torch.cat([found[1:], found[:-1]], dim=-1).unsqueeze(1)
        return (both.unflatten(-1, (-1, ORIENTATIONS)) @ self._basis.to(both)).flatten(-2)

    def _add(self, i: int, batch: MeasureBatch, x: Tensor, targets: Tensor) -> None:
        products, squares = moments(x, targets)
        group = batch.photographs // 2 % self.groups  # a pair of them, one of each half, stays together
        slot = group * 2 + pair_half(batch.photographs if self.halves == "photographs" else batch.index)
        add_by_group(getattr(self, f"products_{i}").flatten(0, 1), slot, products)
        add_by_group(getattr(self, f"squares_{i}").flatten(0, 1), slot, squares)

    # -- after the pass

    def compute(self) -> Result:
        """Rows per place and target, the first third of the blocks, and the references."""
        if int(self.dropped):
            self.note("the first image was left out: batches of one image give it no other to be paired with")
        r2 = {name: self._r2(i) for i, name in enumerate((*self.names, *REFERENCES))}
        counts = {name: self._images(i) for i, name in enumerate((*self.names, *REFERENCES))}
        first = first_third(self.names)
        if first:
            r2[FIRST_THIRD] = torch.stack([r2[name] for name in first]).mean(0)
            counts[FIRST_THIRD] = torch.stack([counts[name] for name in first]).amin(0)
        found = {name: self._estimate(values, counts[name]) for name, values in r2.items()}
        rows = [self._row(name, of) for name, of in found.items()]
        if first:
            rows += [self._over_row(name, found[FIRST_THIRD][0] - found[name][0]) for name in REFERENCES]
        asked = {"cells": list(self.grid)}
        return self.result(rows, conditions={self.views[0].label: asked}, **asked)

    def _images(self, i: int) -> Tensor:
        """Images of each group at one place, (G,): tokens over those of an image."""
        tokens = getattr(self, f"products_{i}")[:, :, 0, 0, 0].sum(1)
        return tokens / ((self.grid[0] - 2) * (self.grid[1] - 2))

    def _r2(self, i: int) -> Tensor:
        """(1 + G, 2, Q): for all images and without each group, real and null, for each of `QUANTITIES`."""
        products, squares = (left_out(getattr(self, f"{kind}_{i}").cpu()) for kind in ("products", "squares"))
        starts = range(0, squares.shape[-1], ORIENTATIONS)
        blocks = [part for n in starts for part in (slice(n, n + 1), slice(n + 1, n + ORIENTATIONS))]
        found = [
            each.expand(-1, products.shape[2], -1).unflatten(-1, (2, len(TARGETS), ORIENTATIONS))
            for each in held_out_errors(products, squares, blocks)
        ]  # errors and total: (1 + G, draws, 2, 4, 8)
        parts = []
        for aspect in (slice(0, None), slice(0, 1), slice(1, None)):
            four = _r2(*(each[..., aspect].sum(-1) for each in found)).mean(1)
            parts += [four, four[..., 1:3].mean(-1, keepdim=True)]
        return torch.cat(parts, -1)

    def _estimate(self, r2: Tensor, count: Tensor) -> Estimate:
        """Value and null of every quantity (2, Q) over photographs, from (1 + G, 2, Q)."""
        sizes, unit = count.cpu(), "image"
        if len(self.photographs):
            group = torch.arange(len(self.photographs)) // 2 % self.groups
            seen = torch.zeros(self.groups).index_add_(0, group, (self.photographs.cpu() > 0).float())
            sizes, unit = torch.where(sizes > 0, seen.to(sizes), 0.0), "photograph"
        return Estimate(r2[0].numpy(), r2[1:].numpy(), sizes.numpy(), unit)

    def _row(self, name: str, found: Estimate) -> dict[str, Any]:
        """Every quantity of one place."""
        return self.row(
            name, quantity=QUANTITIES, estimate=found[0], p=found[0] - found[1], null=found[1],
            null_kind="edges of another image at the same position", tokens="patch", value_unit="none", ceiling=1.0,
            ceiling_kind="all variance", estimator=self._estimator(name),
        )  # fmt: skip

    def _over_row(self, name: str, over: Estimate) -> dict[str, Any]:
        """First third of the blocks minus a reference, paired over images."""
        return self.row(
            FIRST_THIRD, name, quantity=QUANTITIES + "_over_reference", estimate=over, p=over, null=0.0,
            null_kind="no more than in the reference", tokens="patch", value_unit="none",
            estimator=f"difference of held-out ridge R^2, mean over blocks minus {name}",
        )  # fmt: skip

    def _estimator(self, name: str) -> str:
        if name == FIRST_THIRD:
            return "mean of held-out ridge R^2 over blocks"
        draws, width, k = self.projections[name].shape
        how = f"{width} dimensions" if width == k else f"{width} dimensions projected to {k}, {draws} draws"
        pooled = " (averaged over cells)" if name.startswith("tokens.") else ""
        return f"held-out ridge R^2, {how}{pooled}"


class RectifiedEdgeDecodability(EdgeDecodability):
    """R^2 with which edge energy is read from a token by a readout that knows absolute values, by place.

    As `EdgeDecodability`, but ridge regression is also given |w . (x - c)| along random directions w, with c the mean
    token of the same position over random images with a spectrum of 1/f. An edge and its negative look alike to it, so
    it sees some of the edges in raw pixels, and in a hard split's embedding, where the linear readout sees none. What
    it does not read may be there all the same: compare with its own references, ``pixels.cell``, which hold all edges
    of the cell, and ``pixels.field``, which hold them too, among others that random directions mix in.

    Parameters
    ----------
    directions : absolute values per place.
    dim, places, halves, seed, groups : as in `EdgeDecodability`.

    Source: this package; random features after Rahimi & Recht 2007.
    """

    name: ClassVar[str] = "rectified_edge_decodability"

    def __init__(
        self,
        *,
        directions: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(draws=1, **kwargs)
        if directions < 1:
            raise T2TError(f"expected directions of at least 1, got {directions}")
        self.directions = directions

    def bind(self, views: Sequence[View]) -> None:
        """Draw the directions, and find the centres of all features on random images."""
        super().bind(views)
        self.drawn = {name: self._directions(name, p.shape[-1]) for name, p in self.projections.items()}
        self.centres = self._centres(views[0])

    def _directions(self, name: str, k: int) -> Tensor:
        """(k, directions) random directions, the same for a place of one name in every model."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + crc32(name.encode()))
        return torch.randn(k, self.directions, generator=draw)

    def _centres(self, view: View, images: int = 32, at_once: int = 8) -> dict[str, Tensor]:
        """Mean features (1, T, k) of every place and reference."""
        assert view.example is not None
        total: dict[str, Tensor] = {}
        for part in pink_noise(images, view.example.shape[1:], self.seed).split(at_once):
            part = part.to(view.example)
            with torch.no_grad(), capture.capture(view, self.names) as seen:
                view.model(part)
            found = reference_windows(luminance(part.float(), self.std), self.grid, self.feet["embed"])
            for name in self.names:
                obs = seen.observation(name)
                assert obs.layout is not None  # reduce refuses places without
                found[name] = inner_tokens(obs.patches, obs.layout.grid, self.grid)
            for name, x in found.items():
                sums = super()._projected(name, x).sum(0) / images
                total[name] = total[name] + sums if name in total else sums
        return total

    def _projected(self, name: str, x: Tensor) -> Tensor:
        z = super()._projected(name, x)
        return torch.cat([z, ((z - self.centres[name]) @ self.drawn[name].to(z)).abs()], dim=-1)

    def _estimator(self, name: str) -> str:
        return f"{super()._estimator(name)}; with absolute values of {self.directions} random directions"


def _normalisation(view: View) -> tuple[float, ...] | None:
    """Standard deviations of the model's own preprocessing."""
    return preprocessing(view.model)["std"] if getattr(view.model, "pretrained_cfg", None) else None
