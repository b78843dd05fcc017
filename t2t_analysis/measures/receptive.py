"""Where in the image does a token look? Input gradients of the tokeniser's tokens and of the central token by layer.

Both measures differentiate: they run the model again, with a graph, on a bounded number of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import capture
from ..capture.layout import flatten_patches, tokeniser
from ..errors import T2TError
from ..results import Result
from .base import Estimate, Measure, MeasureBatch, View
from .gradients import (
    distance_to_cell,
    energy_radius,
    energy_share,
    pixel_energy,
    radius_interval,
    rings,
    seeded,
)
from .sums import add_by_group, grouped_estimate


def _grid_of(view: View) -> tuple[int, int]:
    layout = view.layout_of("embed")
    if layout is None:
        raise T2TError(f"{view.label} tells no grid of tokens, so a token has no cell in the image")
    return layout.grid


def _size_of(view: View) -> tuple[int, int]:
    assert view.example is not None  # the engine supplies one
    height, width = view.example.shape[-2:]
    return int(height), int(width)


# ------------------------------------------------------------------------------------ the tokeniser


class BoundaryBlindness(Measure):
    """Share of a token's squared input gradient that lies outside its own cell, at the tokeniser.

    For random inner tokens (those with neighbours on all sides where there are any) and random directions in feature
    space; the share is taken per token, then averaged over tokens and images, so that flat images, whose gradients a
    layer norm blows up, count no more than others. Quantity ``gradient_outside``, at distances in cells: what lies
    farther from the cell than that (largest of row and column distance). At 0 it is 0 for a hard split, exactly, and
    more for a soft one. The null is a gradient spread evenly over the image. What attention couples to a flat window
    far away, where a layer norm magnifies gradients, can carry much of the share at large distances.

    Parameters
    ----------
    n_tokens : tokens per image; each costs a backward pass of the tokeniser.
    max_images : only the first so many images of the data are used.
    distances : in cells.

    Source: this package; random directions after Hutchinson 1989.
    """

    name: ClassVar[str] = "boundary_blindness"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation", "permute_images"})

    def __init__(
        self,
        *,
        n_tokens: int = 4,
        max_images: int = 64,
        distances: Sequence[float] = (0, 0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8),
        seed: int = 0,
        groups: int = 32,
    ) -> None:
        super().__init__(groups=groups)
        if n_tokens < 1 or max_images < 1 or min(distances) < 0:
            raise T2TError(
                "expected n_tokens and max_images above 0 and distances from 0, "
                f"got {n_tokens}, {max_images}, {distances}"
            )
        self.n_tokens, self.max_images, self.seed = n_tokens, max_images, seed
        self.distances = tuple(sorted(distances))

    def bind(self, views: Sequence[View]) -> None:
        """Find the tokeniser; one sum per distance."""
        self.grid, self.size = _grid_of(views[0]), _size_of(views[0])
        cell = max(side // cells for side, cells in zip(self.size, self.grid, strict=True))
        # Distances that part the same pixels are one.
        apart = {math.floor(d * cell): d for d in reversed(self.distances) if d * cell < max(self.size)}
        used = sorted(apart.values())
        self.radii = torch.tensor([d * cell for d in used], dtype=torch.float64)
        self.at = used
        self.add_sum("outside", self.groups, len(used))
        self.add_sum("even", self.groups, len(used))
        self.add_sum("tokens", self.groups)
        self.add_sum("images", self.groups)
        self.add_sum("lost", dtype=torch.int64)

    def wants(self, view: View) -> Sequence[str]:
        """Nothing: the tokeniser is run again with a graph."""
        return ()

    def update(self, batch: MeasureBatch) -> None:
        """Differentiate a few tokens of every image."""
        use = batch.index < self.max_images
        if not bool(use.any()):
            return
        index, images = batch.index[use], batch.images[use.to(batch.images.device)]
        chosen = self._choose(index)
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            tokens = _tokens(batch.views[0], images)
            for t in range(self.n_tokens):
                energy = pixel_energy(tokens, images, chosen[:, t], seeded(self.seed, index, t + 1))
                self._add(index % self.groups, energy, chosen[:, t])
        add_by_group(self.images, index % self.groups, torch.ones(len(index)))

    def _choose(self, index: Tensor) -> Tensor:
        """Numbers of inner tokens, (B, n_tokens), different ones as far as there are enough."""
        inner = torch.arange(self.grid[0] * self.grid[1]).view(self.grid)
        inner = inner[1:-1, 1:-1] if min(self.grid) > 2 else inner
        flat, draw = inner.flatten(), seeded(self.seed, index, 0)
        orders = [torch.randperm(len(flat), generator=draw(b)) for b in range(len(index))]
        return torch.stack([flat[order[torch.arange(self.n_tokens) % len(flat)]] for order in orders])

    def _add(self, group: Tensor, energy: Tensor, token: Tensor) -> None:
        share, ok = energy_share(energy)
        distance = distance_to_cell(self.size, self.grid, token).to(energy.device)
        beyond = [distance > r for r in self.radii.tolist()]
        outside = torch.stack([(share * far).sum((1, 2)) for far in beyond], -1)  # (B, distances)
        even = torch.stack([far.double().mean((1, 2)) for far in beyond], -1)
        self.lost += (~ok).sum().to(self.lost.device)
        add_by_group(self.outside, group, outside * ok[:, None])
        add_by_group(self.even, group, even * ok[:, None])
        add_by_group(self.tokens, group, ok.double())

    def compute(self) -> Result:
        """One row per distance."""
        if lost := int(self.lost):
            self.note(f"{lost} tokens have no finite gradient other than 0 and are left out")
        counts = self.images.unsqueeze(-1).expand(-1, len(self.at))
        found, even = (
            grouped_estimate(lambda s, n: s / n.unsqueeze(-1), (state, self.tokens), counts)
            for state in (self.outside, self.even)
        )
        there = even.value > 0  # otherwise there is no pixel so far away
        row = self.row(
            "embed", quantity="gradient_outside", tokens="patch", value_unit="fraction", at=np.array(self.at)[there],
            at_unit="distance, cells", estimate=found[there], null=even.value[there],
            null_kind="gradient spread evenly over the image", ceiling=1.0, ceiling_kind="everything outside",
            estimator=f"mean share of squared input gradient, {self.n_tokens} random tokens per image",
        )  # fmt: skip
        return self.result([row], max_images=self.max_images, n_tokens=self.n_tokens)


def _tokens(view: View, images: Tensor) -> Tensor:
    """Patch tokens (B, N, D) of the tokeniser alone."""
    module = tokeniser(view.model)
    assert module is not None  # a view has one
    tokens = flatten_patches(module, module(images))
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise T2TError(
            f"{view.label}: its tokeniser {type(module).__name__} does not put out (B, N, D) tokens"
        )
    return tokens


# ------------------------------------------------------------------------------------ every layer


class EffectiveReceptiveField(Measure):
    """How far from the central token its input gradient reaches, by layer.

    Squared input gradient of the central patch token along random directions, summed over colours, normalised per
    image and averaged over images (Luo et al. 2016 average the gradient itself; squares do not cancel). Quantities
    ``erf_radius_50`` and ``erf_radius_95``: the radius around the centre of its cell that holds so much of the energy,
    in pixels, and the same ``_fraction`` of the image side (root of height times width); and the curve
    ``erf_energy_within`` over radii. The null is a gradient spread evenly over the image; a second one is a
    `random_twin` measured beside the model. Directions weigh all features alike, so the residual path keeps the token's
    own cell in sight at every depth.

    Parameters
    ----------
    places : shell-style pattern of the layers; each costs a backward pass.
    max_images : only the first so many images of the data are used.
    directions : random directions per image and layer.
    map_size : the averaged map goes into the metadata at most so large.
    """

    name: ClassVar[str] = "effective_receptive_field"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation", "permute_images"})
    shares = (0.5, 0.95)

    def __init__(
        self,
        *,
        places: str | Sequence[str] = ("embed", "blocks.*.resid_post"),
        max_images: int = 32,
        directions: int = 1,
        map_size: int = 32,
        seed: int = 0,
        groups: int = 32,
    ) -> None:
        super().__init__(groups=groups)
        if max_images < 1 or directions < 1:
            raise T2TError(f"expected max_images and directions above 0, got {max_images} and {directions}")
        self.places = (places,) if isinstance(places, str) else tuple(places)
        self.max_images, self.directions, self.map_size, self.seed = max_images, directions, map_size, seed

    def bind(self, views: Sequence[View]) -> None:
        """Energy by ring and a coarse map, per place."""
        (view,) = views
        self.names, self.size, grid = view.select(self.places), _size_of(view), _grid_of(view)
        self.token = (grid[0] // 2) * grid[1] + grid[1] // 2
        self.layouts = {name: self._layout(view, name, grid) for name in self.names}
        inside = distance_to_cell(self.size, grid, torch.tensor(self.token)) == 0
        rows, columns = (inside.any(1).nonzero().double(), inside.any(0).nonzero().double())
        self.ring = rings(self.size, (float(rows.mean()), float(columns.mean())))
        self.coarse = (min(self.map_size, self.size[0]), min(self.map_size, self.size[1]))
        self.add_sum("profile", self.groups, len(self.names), int(self.ring.max()) + 1)
        self.add_sum("images", self.groups, len(self.names))
        self.add_sum("map", len(self.names), *self.coarse)
        self.add_sum("lost", len(self.names), dtype=torch.int64)

    def _layout(self, view: View, name: str, grid: tuple[int, int]) -> int:
        layout = view.layout_of(name)
        if layout is None or layout.grid != grid:
            raise T2TError(f"{name} has no token on the {grid} grid; choose embed or places in the blocks")
        return layout.prefix

    def wants(self, view: View) -> Sequence[str]:
        """Nothing: the model is run again with a graph."""
        return ()

    def update(self, batch: MeasureBatch) -> None:
        """One forward pass with a graph, and a backward pass per layer and direction."""
        use = batch.index < self.max_images
        if not bool(use.any()):
            return
        index, images = batch.index[use], batch.images[use.to(batch.images.device)]
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            with capture.capture(batch.views[0], self.names, graph=True) as seen:
                batch.views[0].model(images)
            for i, name in enumerate(self.names):
                self._add(i, index % self.groups, self._energy(seen[name], images, index, i, name))

    def _energy(self, tokens: Tensor, images: Tensor, index: Tensor, i: int, name: str) -> Tensor:
        chosen = torch.full((len(index),), self.token + self.layouts[name])
        draws = [
            pixel_energy(tokens, images, chosen, seeded(self.seed, index, i * self.directions + j))
            for j in range(self.directions)
        ]
        return torch.stack(draws).mean(0)

    def _add(self, i: int, group: Tensor, energy: Tensor) -> None:
        share, ok = energy_share(energy)
        profile = share.new_zeros(len(share), self.profile.shape[-1])
        profile.index_add_(1, self.ring.flatten().to(share.device), share.flatten(1))
        add_by_group(self.profile[:, i], group, profile)
        add_by_group(self.images[:, i], group, ok.double())
        self.map[i] += F.adaptive_avg_pool2d(share.sum(0)[None], self.coarse)[0].to(self.map.device)
        self.lost[i] += (~ok).sum().to(self.lost.device)

    def compute(self) -> Result:
        """Radii and curves per place; the maps are in the metadata, largest value 1."""
        for name, lost in zip(self.names, self.lost.tolist(), strict=True):
            self.note(f"{lost} images have no finite gradient other than 0 at {name}" if lost else None)
        even = torch.bincount(self.ring.flatten(), minlength=self.profile.shape[-1]).double()
        rows = [*self._radius_rows(even), *self._curve_rows(even)]
        peak = self.map.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        maps = {
            name: [[round(v, 5) for v in row] for row in m.tolist()]
            for name, m in zip(self.names, (self.map / peak).cpu(), strict=True)
        }
        meta = {
            "maps": {self.views[0].label: maps},
            "image_size": list(self.size),
            "max_images": self.max_images,
        }
        return self.result(rows, **meta)

    def _shared(self) -> dict[str, Any]:
        return {
            "tokens": "patch", "null_kind": "gradient spread evenly over the image",
            "estimator": "squared input gradient of the central token, mean of shares over images",
        }  # fmt: skip

    def _radius_rows(self, even: Tensor) -> Iterator[dict[str, Any]]:
        side = math.sqrt(self.size[0] * self.size[1])
        curve = self._within(torch.arange(self.profile.shape[-1]))
        self.note(curve.note)
        total = self.profile.sum(0).cpu()
        for share in self.shares:
            value, null = energy_radius(total, share).numpy(), float(energy_radius(even, share))
            ends = np.array([radius_interval(*c, share) for c in zip(curve.low, curve.high, strict=True)]).T
            how = [text and f"{text}, inverted (Woodruff)" for text in curve.interval[:, 0]]
            row = self.row(np.array(self.names, dtype=object)) | self._shared()
            row |= {"interval": np.array(how, dtype=object), "n": curve.n[:, 0], "unit": "image"}
            for suffix, unit, scale in (("", "pixels", 1.0), ("_fraction", "fraction of image side", side)):
                scaled = {
                    "value": value / scale,
                    "low": ends[0] / scale,
                    "high": ends[1] / scale,
                    "null": null / scale,
                }
                yield row | scaled | {"quantity": f"erf_radius_{share * 100:.0f}{suffix}", "value_unit": unit}

    def _within(self, ring: Tensor) -> Estimate:
        """Share of the energy up to and with each of some rings, by place."""
        return grouped_estimate(
            lambda profile: profile.cumsum(-1)[..., ring] / profile.sum(-1, keepdim=True),
            self.profile,
            self.images.unsqueeze(-1).expand(-1, -1, len(ring)),
        )

    def _curve_rows(self, even: Tensor) -> Iterator[dict[str, Any]]:
        """Share of the energy within at most 24 radii."""
        last = self.profile.shape[-1]
        edges = torch.unique(torch.linspace(1, last, min(24, last)).round().long())
        null = (even.cumsum(0)[edges - 1] / even.sum()).numpy()
        yield self.row(np.array(self.names, dtype=object)[:, None]) | self._shared() | {
            "quantity": "erf_energy_within", "estimate": self._within(edges - 1), "at": edges.double().numpy(),
            "at_unit": "radius, pixels", "null": null, "value_unit": "fraction",
        }  # fmt: skip
