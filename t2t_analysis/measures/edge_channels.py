"""What feature maps show of their image: its brightness, its outline, its edges. Counted, not picked.

A grid of feature maps shows some channels of one image. Here every channel of every image is compared with its image,
and with another one, so that "follows the edges" has a rate at which it happens by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import capture
from ..data.loading import as_seen_by, gather_images
from ..errors import DataError, T2TError
from ..models.tokens import Window
from ..results import Result
from .base import Estimate, Measure, MeasureBatch, View, add_by_group, layer_of
from .channels import FeatureMapView, channel_places
from .feature_maps import correlation, gradient_size
from .head_maps import thirds
from .locality import FIRST_THIRD
from .sums import left_out
from .token_pixels import pixels_to_tokens, windows_to

#: what a channel may follow, in the order of all states
KINDS = ("outline", "edge", "brightness")
#: channels that follow another image as closely, by the definition of the threshold
CHANCE = 0.05
BINS = 400
#: grid on which networks without tokens are compared: that of 224 px in cells of 16
GRID = (14, 14)
LEAST = 3
_PLACES = ("embed", "tokens.*.out", "blocks.*.resid_post")

#: see `t2t_analysis.measures.base.INVARIANCES`
INVARIANCES = {"content": ("scale", "translation", "permute_channels")}


@dataclass(frozen=True)
class Targets:
    """Of each image, on the grid of the tokens, (B, h w): mean brightness and mean size of its gradient."""

    brightness: Tensor
    edges: Tensor

    @classmethod
    def of(cls, images: Tensor, grid: tuple[int, int], windows: Sequence[Window] = ()) -> Targets:
        """Of images (B, C, H, W), averaged over the pixels of each token."""
        grey = images.double().mean(1)
        parts = (pixels_to_tokens(x, grid, windows).flatten(1) for x in (grey, gradient_size(grey)))
        return cls(*parts)


def content(maps: Tensor, targets: Targets) -> Tensor:
    """How closely each channel follows its image: (B, C, h, w) -> (B, 3, C), each in [-1, 1].

    outline: correlation of |gradient of the map| with the image's edges e. edge: |correlation| of the map itself
    with e, after brightness b has been regressed out of both. brightness: |correlation| of the map with b.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    b, e = (t.unsqueeze(1).to(maps.dtype) for t in (targets.brightness, targets.edges))
    x = maps.flatten(2)
    outline = correlation(gradient_size(maps).flatten(2), e)
    edge = correlation(_without(x, b), _without(e, b)).abs()
    return torch.stack([outline, edge, correlation(x, b).abs()], dim=1)


def _without(x: Tensor, b: Tensor) -> Tensor:
    """``x`` with the linear part of ``b`` taken off, over the last axis; 0 where nothing but rounding is left."""
    x, b = x - x.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    size = b.square().sum(-1, keepdim=True)
    rest = x - b * torch.where(size > 0, (x * b).sum(-1, keepdim=True) / size, 0.0)
    rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * x.square().sum(-1, keepdim=True)
    real = rest.square().sum(-1, keepdim=True) > rounding
    return torch.where(real, rest, 0.0)


def share_above(counts: Tensor, null: Tensor, chance: float = CHANCE) -> Tensor:
    """Share of ``counts`` above the value that a share ``chance`` of ``null`` exceeds: (..., K) each -> (...).

    Both are histograms over the same bins; inside a bin values are taken to be spread evenly. NaN where empty.

    >>> null = torch.tensor([95.0, 5.0, 0.0])
    >>> share_above(torch.tensor([40.0, 40.0, 20.0]), null).item()
    0.6
    """
    real, other = (
        F.pad((h / h.sum(-1, keepdim=True)).cumsum(-1), (1, 0))  # cumulated share at the edges of the bins
        for h in (counts.double(), null.double())
    )
    at = torch.searchsorted(other[..., 1:].contiguous(), torch.full_like(other[..., :1], 1 - chance))
    at = at.clamp(max=counts.shape[-1] - 1)
    below, above = other.gather(-1, at), other.gather(-1, at + 1)
    part = torch.where(above > below, (1 - chance - below) / (above - below), 1.0).clamp(0, 1)
    below, above = real.gather(-1, at), real.gather(-1, at + 1)
    return (1 - (below + part * (above - below))).squeeze(-1)


class EdgeChannels(Measure):
    """Share of channels that follow their image's outline, edges or brightness, by place.

    For every image and channel, over the positions of the grid, with b the mean brightness and e the mean size of the
    image's gradient over the pixels that a token stands for (its window of a soft split, its cell of a hard one):

    - ``outline``: r(|gradient of the map|, e): the map is steep where the image is, as a small copy of it would be;
    - ``edge``: |r(map, e)| after b has been regressed out of both: the map itself marks edges, beyond brightness;
    - ``brightness``: |r(map, b)|.

    The null compares the same maps with another image of the run. ``..._channels`` is the share of channels
    (of all images) above the value that 5 % of them reach by this null: 0.05 is chance, whatever the grid.
    ``..._correlation`` is the mean over channels; ``..._best`` the largest over the channels of an image, which is
    what a picked example shows, with the same for another image as null. The ceiling of ``outline_correlation`` is
    the shrunken image itself. ``position_correlation`` is the mean over channels of the correlation of a map with the
    same channel's map of another image: what does not depend on the image, as a position table. For each place, and as
    mean over the first third of the blocks. Maps finer than the
    tokens' grid are averaged onto it; networks without tokens are averaged onto 14 x 14. Images without any gradient
    are left out. The paper (Yuan et al. 2021, figure 2) shows such maps and counts nothing; this definition is ours.

    A second null is a `random_twin` measured beside the model: random filters copy an image too.

    Parameters
    ----------
    places : names or patterns; by default patch embedding, T2T stages and residual stream.
    """

    name: ClassVar[str] = "edge_channels"
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "translation", "permute_channels"})

    def __init__(self, places: str | Sequence[str] | None = None, *, groups: int = 32) -> None:
        super().__init__(groups=groups)
        self.places = places
        self._previous: Tensor | None = None

    # -- before the pass

    def wants(self, view: View) -> list[str]:
        """Places whose maps have a gradient to speak of."""
        if self.places is not None or isinstance(view, FeatureMapView):
            names = channel_places(view, self.places)
        else:
            names = view.select([p for p in _PLACES if p.replace("*", "0") in view.names])
        return [name for name in names if min(self._own_grid(view, name)) >= LEAST]

    def bind(self, views: Sequence[View]) -> None:
        """Histograms, sums and maxima for every place."""
        (view,) = views
        self.names = self.wants(view)
        places = len(self.names)
        self.add_sum("count", self.groups, places)
        if not places:
            raise T2TError(f"{view.label}: no place with maps of at least {LEAST}x{LEAST} positions")
        layout = view.layout_of("embed") if "embed" in view.names else None
        onto = GRID if layout is None else layout.grid
        self.grids = {n: _coarser(self._own_grid(view, n), onto) for n in self.names}
        self.windows = {n: windows_to(view.model, n) for n in self.names}
        self.add_sum("histogram", self.groups, places, len(KINDS), 2, BINS)
        self.add_sum("mean_and_best", self.groups, places, len(KINDS), 2, 2)
        self.add_sum("copy", self.groups, places)
        self.add_sum("position", self.groups, places)
        self.add_sum("pairs", self.groups, places)
        self.add_sum("flat", dtype=torch.int64)
        self.add_sum("unpaired", dtype=torch.int64)

    @staticmethod
    def _own_grid(view: View, name: str) -> tuple[int, int]:
        layout, shape = view.layout_of(name), view.shape_of(name)
        if layout is not None:
            return layout.grid
        if len(shape) != 3:
            raise T2TError(f"{view.label}: {name} has no grid, so it has no feature maps")
        return shape[1], shape[2]

    # -- during the pass

    def reduce(self, obs: capture.Observation) -> Tensor:
        """Feature maps on the common grid, (B, C, h, w)."""
        maps = obs.value
        if obs.layout is not None:
            maps = maps[:, obs.layout.prefix :].mT.unflatten(2, obs.layout.grid)
        return (
            maps
            if maps.shape[-2:] == self.grids[obs.name]
            else F.adaptive_avg_pool2d(maps, self.grids[obs.name])
        )

    def update(self, batch: MeasureBatch) -> None:
        """Compare the maps of every image that is not flat with that image and with the one before it."""
        varied = (batch.images.amax((-3, -2, -1)) > batch.images.amin((-3, -2, -1))).cpu()
        self.flat += int((~varied).sum())
        images = batch.images[varied.to(batch.images.device)]
        if not len(images):
            return
        previous = images[-1:] if self._previous is None else self._previous.to(images)
        alone = self._previous is None and len(images) == 1
        self._previous = images[-1:].clone()
        if alone:  # no other image to compare it with
            self.unpaired += 1
            return
        others = torch.cat([previous, images[:-1]])
        group = self.group(batch)[varied]
        known: dict[Any, tuple[Targets, Targets]] = {}
        for i, name in enumerate(self.names):
            if name in batch.seen[0]:
                how = self.grids[name], self.windows[name]
                if how not in known:
                    known[how] = Targets.of(images, *how), Targets.of(others, *how)
                maps = batch.seen[0][name]
                self._add(i, group, maps[varied.to(maps.device)], *known[how])

    def _add(self, i: int, group: Tensor, maps: Tensor, own: Targets, other: Targets) -> None:
        found = torch.stack([content(maps, own), content(maps, other)], dim=2)  # (B, 3, 2, C)
        bins = ((found + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        counts = found.new_zeros(*found.shape[:-1], BINS).scatter_add_(-1, bins, torch.ones_like(found))
        add_by_group(self.histogram[:, i], group, counts)
        add_by_group(self.mean_and_best[:, i], group, torch.stack([found.mean(-1), found.amax(-1)], -1))
        small = own.brightness.unflatten(1, maps.shape[-2:])
        add_by_group(self.copy[:, i], group, correlation(gradient_size(small).flatten(1), own.edges))
        add_by_group(self.count[:, i], group, torch.ones(len(group)))
        if len(maps) > 1:
            alike = correlation(maps.flatten(2), maps.roll(1, 0).flatten(2)).mean(-1)
            add_by_group(self.position[:, i], group, alike)
            add_by_group(self.pairs[:, i], group, torch.ones(len(group)))

    # -- after the pass

    def compute(self) -> Result:
        """Rows of every place and of the first third of the blocks."""
        if int(self.flat):
            self.note(f"{int(self.flat)} images without any gradient were left out")
        if int(self.unpaired):
            self.note(
                "the first image was left out: batches of one image give it no other to be compared with"
            )
        found = {name: self._estimates(i) for i, name in enumerate(self.names)}
        if blocks := [name for name in self.names if layer_of(name) is not None]:
            first = [found[blocks[k]] for k in (thirds(len(blocks))[0] if len(blocks) > 1 else range(1))]
            found[FIRST_THIRD] = {q: Estimate.concatenate([one[q] for one in first]).mean() for q in first[0]}
        rows = [row for name, of in found.items() for row in self._rows(name, of)]
        grids = {name: list(grid) for name, grid in self.grids.items()}
        asked = {"cells": next(reversed(grids.values()))}
        return self.result(rows, grids=grids, conditions={self.views[0].label: asked})

    def _estimates(self, i: int) -> dict[str, Estimate]:
        """By quantity, and by quantity with "|null" or "|ceiling", of one place."""
        states = (self.histogram, self.mean_and_best, self.copy, self.count, self.position, self.pairs)
        histogram, sums, copy, n, position, pairs = (left_out(state[:, i].cpu()) for state in states)
        shares = share_above(histogram[:, :, 0], histogram[:, :, 1])  # (1 + G, 3)
        sums = sums / n[:, None, None, None]  # (1 + G, 3, real and null, mean and best)
        found = {}
        for k, kind in enumerate(KINDS):
            found[f"{kind}_channels"] = shares[:, k]
            for q, what in enumerate(("correlation", "best")):
                found[f"{kind}_{what}"], found[f"{kind}_{what}|null"] = sums[:, k, 0, q], sums[:, k, 1, q]
        found["outline_correlation|ceiling"] = copy / n
        found["position_correlation"] = position / pairs
        sizes = self.count[:, i].cpu().numpy()
        return {key: Estimate(v[0].numpy(), v[1:].numpy(), sizes) for key, v in found.items()}

    def _rows(self, place: str, found: dict[str, Estimate]) -> Iterator[dict[str, Any]]:
        for quantity in (key for key in found if "|" not in key):
            columns = {"estimate": found[quantity]} | _against_null(quantity, found)
            columns["estimator"] += ", mean over blocks" if place == FIRST_THIRD else ""
            if ceiling := found.get(f"{quantity}|ceiling"):
                columns |= {"ceiling": float(ceiling.value), "ceiling_kind": "the shrunken image itself"}
            yield self.row(place, quantity=quantity, tokens="patch", **columns)


_WHAT = {"correlation": "mean over channels", "best": "largest over channels"}


def _against_null(quantity: str, found: dict[str, Estimate]) -> dict[str, Any]:
    """Columns that say what the value would be by chance, and how likely it is then."""
    own = found[quantity]
    if quantity.endswith("_channels"):
        return {
            "p": own - CHANCE, "null": CHANCE, "value_unit": "fraction of channels",
            "null_kind": "another image of the run; 5 % by definition of the threshold",
            "estimator": "share above the 95 % point of the null, over channels and images",
            # a share lies between 0 and 1, with few images Student's t does not
            "low": float(np.maximum(own.low, 0.0)), "high": float(np.minimum(own.high, 1.0)),
        }  # fmt: skip
    if (other := found.get(f"{quantity}|null")) is None:
        return {
            "p": own, "null": 0.0, "null_kind": "nothing shared by different images", "value_unit": "none",
            "estimator": "correlation of two images' maps, mean over channels",
        }  # fmt: skip
    return {
        "p": own - other, "value_unit": "none", "null": other, "null_kind": "another image of the run",
        "estimator": f"{_WHAT[quantity.split('_')[1]]}, mean over images",
    }  # fmt: skip


def _coarser(own: tuple[int, int], onto: tuple[int, int]) -> tuple[int, int]:
    return min(own[0], onto[0]), min(own[1], onto[1])


def image_for(model: nn.Module, loader: Any, number: int) -> Tensor:
    """Image ``number`` of the loader as ``model`` sees it, (3, H, W), where the model is."""
    return gather_images(as_seen_by(loader, model), number + 1)[0][number].to(next(model.parameters()))


def example_image(loader: Any, number: int | None = None) -> tuple[int, Tensor]:
    """One image of the loader to be looked at, (3, H, W), with its number.

    The one asked for or, without a ``number``, that of the first batch whose shrunken copy has the clearest outline:
    a rule that favours no network, and pictures with edges to see.

    Raises
    ------
    DataError : a number that is not there.
    """
    if number is not None:
        try:
            return number, gather_images(loader, number + 1)[0][number]
        except DataError as error:
            raise DataError(
                f"image {number} is not among the images of the run, counted from 0; {error}"
            ) from error
    images = next(iter(loader)).images.cpu()
    side = min(GRID[0], images.shape[-1] // 4)
    seen = Targets.of(images, (side, side))
    steep = gradient_size(seen.brightness.unflatten(1, (side, side))).flatten(1)
    best = int(correlation(steep, seen.edges).argmax())
    return best, images[best]
