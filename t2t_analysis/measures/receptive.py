"""Where in the image does a token look? Input gradients of the tokeniser's tokens and of the central token by layer.

Both measures differentiate: they run the model again, with a graph, on a bounded number of images. A gradient of token
features along random directions v gives, on average over v, the squared Frobenius norm of the Jacobian by pixel
(Hutchinson 1989): E_v |J' v|^2 = |J|_F^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import capture
from ..capture.layout import flatten_patches, tokeniser
from ..errors import T2TError
from ..results import Result
from .base import Estimate, RunAgain, View

#: of `BoundaryBlindness`, in cells
DISTANCES = (0, 0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8)


# ------------------------------------------------------------------------------------ squared gradients


def distance_to_cell(size: tuple[int, int], grid: tuple[int, int], token: Tensor) -> Tensor:
    """Chebyshev distance in pixels of every pixel to the cell of a token: 0 inside, 1 right beside it.

    Parameters
    ----------
    size : image height and width. grid : rows and columns of cells. token : (...) numbers, row by row.

    Returns
    -------
    (..., H, W), integers.

    >>> distance_to_cell((4, 6), (2, 3), torch.tensor(1))[0].tolist()
    [2, 1, 0, 0, 1, 2]
    """
    y, x = (
        _outside(size[a], grid[a], position) for a, position in enumerate((token // grid[1], token % grid[1]))
    )
    return torch.maximum(y.unsqueeze(-1), x.unsqueeze(-2))


def _outside(size: int, cells: int, position: Tensor) -> Tensor:
    """Distance of every pixel of an axis to cell number ``position`` (...), (..., size)."""
    cell = size // cells
    pixel, start = torch.arange(size, device=position.device), position.unsqueeze(-1) * cell
    return torch.maximum(start - pixel, pixel - (start + cell - 1)).clamp_min(0)


def pixel_energy(
    tokens: Tensor, images: Tensor, chosen: Tensor, generator: Callable[[int], torch.Generator]
) -> Tensor:
    """Squared gradient of one token per image along a random direction, summed over colours: (B, H, W) float64.

    Parameters
    ----------
    tokens : (B, N, D) with a graph back to ``images`` (B, C, H, W).
    chosen : (B,) number of the token.
    generator : of the direction of image b.
    """
    batch, _, width = tokens.shape
    direction = torch.stack([torch.randn(width, generator=generator(b)) for b in range(batch)]).to(tokens)
    picked = tokens[torch.arange(batch, device=tokens.device), chosen.to(tokens.device)]
    (gradient,) = torch.autograd.grad((picked * direction).sum(), images, retain_graph=True)
    return gradient.double().square().sum(1)


def energy_radius(profile: Tensor, share: float) -> Tensor:
    """Radius that holds ``share`` of the energy: (..., R) energy in rings [r, r + 1) to (...), in pixels.

    Linear inside the ring in which the share is reached; NaN without any energy.

    >>> energy_radius(torch.tensor([1.0, 1.0, 2.0]), 0.75)
    tensor(2.5000)
    """
    cumulative = profile.cumsum(-1)
    wanted = share * cumulative[..., -1:]
    ring = (cumulative < wanted).sum(-1, keepdim=True).clamp_max(profile.shape[-1] - 1)
    here = profile.gather(-1, ring)
    radius = ring + 1 - (cumulative.gather(-1, ring) - wanted) / here
    return torch.where(cumulative[..., -1] > 0, radius.squeeze(-1), torch.nan)


def radius_interval(low: np.ndarray, high: np.ndarray, share: float) -> tuple[float, float]:
    """Interval of `energy_radius` from the interval of the cumulative curve, both (R,), after ring 0, 1, ...

    The radii at which its upper and its lower end reach ``share`` (Woodruff 1952). A jackknife of the radius itself
    breaks down where the curve is flat and a small change of it moves the radius far.

    >>> radius_interval(np.array([0.1, 0.5, 1.0]), np.array([0.3, 0.7, 1.0]), 0.5)
    (1.5, 2.0)
    """
    if np.isnan(low).any() or np.isnan(high).any():
        return math.nan, math.nan
    edges = np.arange(len(low) + 1.0)
    ends = (np.interp(share, np.r_[0.0, np.maximum.accumulate(curve)], edges) for curve in (high, low))
    first, last = (float(end) for end in ends)
    return first, last


def rings(size: tuple[int, int], centre: tuple[float, float]) -> Tensor:
    """Number of the one-pixel ring around ``centre`` (row, column) that every pixel lies in: (H, W)."""
    y, x = (torch.arange(n, dtype=torch.float64) - c for n, c in zip(size, centre, strict=True))
    return torch.hypot(y[:, None], x[None, :]).floor().long()


def seeded(seed: int, index: Tensor, what: int) -> Callable[[int], torch.Generator]:
    """A generator per image that depends on its number, not on its batch."""
    return lambda b: torch.Generator().manual_seed((seed * 1009 + what) * 1_000_003 + int(index[b]))


def energy_share(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Energy (B, H, W) over its total, and which images have a finite one above 0, (B,)."""
    total = energy.sum((1, 2))
    ok = torch.isfinite(total) & (total > 0)
    return torch.where(ok[:, None, None], energy / total[:, None, None], 0.0), ok


# ------------------------------------------------------------------------------------ what both do


def _grid_of(view: View) -> tuple[int, int]:
    layout = view.layout_of("embed")
    if layout is None:
        raise T2TError(f"{view.label} tells no grid of tokens, so a token has no cell in the image")
    return layout.grid


def _size_of(view: View) -> tuple[int, int]:
    assert view.example is not None  # the engine supplies one
    height, width = view.example.shape[-2:]
    return int(height), int(width)


class _InputGradients(RunAgain):
    """Means over images that are run again with a graph, to be differentiated."""

    def __init__(self, max_images: int, seed: int, groups: int) -> None:
        super().__init__(max_images, groups)
        self.seed = seed

    def numbers(self, view: View, images: Tensor, index: Tensor) -> Iterator[Tensor]:
        """Numbers (B, ...) of every place, of images that can be differentiated by; NaN without a gradient."""
        raise NotImplementedError

    def run_again(self, view: View, images: Tensor, index: Tensor) -> None:
        """Differentiate."""
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            for i, values in enumerate(self.numbers(view, images, index)):
                self.add(i, index % self.groups, values)


# ------------------------------------------------------------------------------------ the tokeniser


class BoundaryBlindness(_InputGradients):
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

    Source: this package; random directions after Hutchinson 1989.
    """

    name: ClassVar[str] = "boundary_blindness"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation", "permute_images"})

    def __init__(self, *, n_tokens: int = 4, max_images: int = 64, seed: int = 0, groups: int = 32) -> None:
        super().__init__(max_images, seed, groups)
        if n_tokens < 1:
            raise T2TError(f"expected n_tokens above 0, got {n_tokens}")
        self.n_tokens = n_tokens

    def bind(self, views: Sequence[View]) -> None:
        """Find the tokeniser; one sum per distance, of the gradient and of one that is spread evenly."""
        self.grid, self.size = _grid_of(views[0]), _size_of(views[0])
        cell = max(side // cells for side, cells in zip(self.size, self.grid, strict=True))
        # Distances that part the same pixels are one.
        apart = {math.floor(d * cell): d for d in reversed(DISTANCES) if d * cell < max(self.size)}
        self.at = sorted(apart.values())
        self.add_means(["embed"], 2, len(self.at))
        self.radii = [d * cell for d in self.at]
        self.add_sum("lost", dtype=torch.int64)

    def numbers(self, view: View, images: Tensor, index: Tensor) -> Iterator[Tensor]:
        """Shares outside by distance, and of an even gradient, means over some tokens: (B, 2, D)."""
        chosen, tokens = self._choose(index), _tokens(view, images)
        energies = (
            pixel_energy(tokens, images, chosen[:, t], seeded(self.seed, index, t + 1))
            for t in range(self.n_tokens)
        )
        yield torch.stack([self._outside(e, chosen[:, t]) for t, e in enumerate(energies)]).nanmean(0)

    def _choose(self, index: Tensor) -> Tensor:
        """Numbers of inner tokens, (B, n_tokens), different ones as far as there are enough."""
        inner = torch.arange(self.grid[0] * self.grid[1]).view(self.grid)
        inner = inner[1:-1, 1:-1] if min(self.grid) > 2 else inner
        flat, draw = inner.flatten(), seeded(self.seed, index, 0)
        orders = [torch.randperm(len(flat), generator=draw(b)) for b in range(len(index))]
        return torch.stack([flat[order[torch.arange(self.n_tokens) % len(flat)]] for order in orders])

    def _outside(self, energy: Tensor, token: Tensor) -> Tensor:
        """(B, 2, D) of one token per image; NaN without a finite gradient other than 0."""
        share, ok = energy_share(energy)
        self.lost += (~ok).sum().to(self.lost.device)
        distance = distance_to_cell(self.size, self.grid, token).to(energy.device)
        beyond = [distance > r for r in self.radii]
        outside = torch.stack([(share * far).sum((1, 2)) for far in beyond], -1)
        even = torch.stack([far.double().mean((1, 2)) for far in beyond], -1)
        return torch.where(ok[:, None, None], torch.stack([outside, even], 1), torch.nan)

    def compute(self) -> Result:
        """One row per distance."""
        if lost := int(self.lost):
            self.note(f"{lost} tokens have no finite gradient other than 0 and are left out")
        outside, even = (self.means()[0, k] for k in (0, 1))
        there = even.value > 0  # otherwise there is no pixel so far away
        row = self.row(
            "embed", quantity="gradient_outside", tokens="patch", value_unit="fraction", at=np.array(self.at)[there],
            at_unit="distance, cells", estimate=outside[there], null=even.value[there],
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


class EffectiveReceptiveField(_InputGradients):
    """How far from the central token its input gradient reaches, by layer.

    Squared input gradient of the central patch token along a random direction for every image, summed over colours,
    normalised per image and averaged over images (Luo et al. 2016 average the gradient itself; squares do not cancel).
    Quantities ``erf_radius_50`` and ``erf_radius_95``: the radius around the centre of its cell that holds so much of
    the energy, in pixels, and the same ``_fraction`` of the image side (root of height times width). The null is a
    gradient spread evenly over the image; a second one is a `random_twin` measured beside the model. Directions weigh
    all features alike, so the residual path keeps the token's own cell in sight at every depth.

    Parameters
    ----------
    places : shell-style pattern of the layers; each costs a backward pass.
    max_images : only the first so many images of the data are used.
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
        map_size: int = 32,
        seed: int = 0,
        groups: int = 32,
    ) -> None:
        super().__init__(max_images, seed, groups)
        self.places = (places,) if isinstance(places, str) else tuple(places)
        self.map_size = map_size

    def bind(self, views: Sequence[View]) -> None:
        """Energy by ring and a coarse map, per place."""
        (view,) = views
        names, self.size, grid = view.select(self.places), _size_of(view), _grid_of(view)
        token = (grid[0] // 2) * grid[1] + grid[1] // 2
        self.token = {name: token + self._prefix(view, name, grid) for name in names}
        inside = distance_to_cell(self.size, grid, torch.tensor(token)) == 0
        rows, columns = (inside.any(1).nonzero().double(), inside.any(0).nonzero().double())
        self.ring = rings(self.size, (float(rows.mean()), float(columns.mean())))
        self.coarse = (min(self.map_size, self.size[0]), min(self.map_size, self.size[1]))
        self.add_means(names, int(self.ring.max()) + 1)
        self.add_sum("map", len(names), *self.coarse)

    def _prefix(self, view: View, name: str, grid: tuple[int, int]) -> int:
        layout = view.layout_of(name)
        if layout is None or layout.grid != grid:
            raise T2TError(f"{name} has no token on the {grid} grid; choose embed or places in the blocks")
        return layout.prefix

    def numbers(self, view: View, images: Tensor, index: Tensor) -> Iterator[Tensor]:
        """Share of the energy in every ring, (B, R): one forward pass with a graph, a backward pass per layer."""
        with capture.capture(view, self.names, graph=True) as seen:
            view.model(images)
        for i, name in enumerate(self.names):
            chosen = torch.full((len(index),), self.token[name])
            share, ok = energy_share(pixel_energy(seen[name], images, chosen, seeded(self.seed, index, i)))
            profile = share.new_zeros(len(share), self.total.shape[-1])
            profile.index_add_(1, self.ring.flatten().to(share.device), share.flatten(1))
            self.map[i] += F.adaptive_avg_pool2d(share.sum(0)[None], self.coarse)[0].to(self.map.device)
            yield torch.where(ok[:, None], profile, torch.nan)

    def compute(self) -> Result:
        """Radii per place; the maps are in the metadata, largest value 1."""
        found, used = self.means(), min(int(self.n_images), self.max_images)  # (L, R)
        for name, n in zip(self.names, found.n[:, 0], strict=True):
            lost = f"{used - n} images have no finite gradient other than 0 at {name}"
            self.note(lost if n < used else None)
        peak = self.map.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        maps = {
            name: [[round(v, 5) for v in row] for row in m.tolist()]
            for name, m in zip(self.names, (self.map / peak).cpu(), strict=True)
        }
        meta = {"image_size": list(self.size), "max_images": self.max_images}
        return self.result(list(self._rows(found)), maps={self.views[0].label: maps}, **meta)

    def _rows(self, found: Estimate) -> Iterator[dict[str, Any]]:
        """Radii, of the energy by ring (L, R) and of one that is spread evenly."""
        side = math.sqrt(self.size[0] * self.size[1])
        even = torch.bincount(self.ring.flatten()).double()
        curve = found.map(lambda x: x.cumsum(-1) / x.sum(-1, keepdims=True))
        self.note(curve.note)
        how = [text and f"{text}, inverted (Woodruff)" for text in curve.interval[:, 0]]
        row = self.row(
            np.array(self.names, dtype=object), tokens="patch", null_kind="gradient spread evenly over the image",
            estimator="squared input gradient of the central token, mean of shares over images",
            interval=np.array(how, dtype=object), n=curve.n[:, 0], unit="image",
        )  # fmt: skip
        for share in self.shares:
            value = energy_radius(torch.from_numpy(found.value), share).numpy()
            ends = np.array([radius_interval(*c, share) for c in zip(curve.low, curve.high, strict=True)]).T
            numbers = {
                "value": value,
                "low": ends[0],
                "high": ends[1],
                "null": float(energy_radius(even, share)),
            }
            for suffix, unit, scale in (("", "pixels", 1.0), ("_fraction", "fraction of image side", side)):
                yield row | {name: number / scale for name, number in numbers.items()} | {
                    "quantity": f"erf_radius_{share * 100:.0f}{suffix}", "value_unit": unit,
                }  # fmt: skip
