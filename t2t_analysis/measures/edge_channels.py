"""What feature maps show of their image: its brightness, its outline, its edges. Counted, not picked.

A grid of feature maps shows some channels of one image. Here every channel of every image is compared with its image,
and with another one, so that "follows the edges" has a rate at which it happens by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import capture
from ..data.loading import batches_of, gather_images
from ..errors import DataError, T2TError
from ..models.tokens import Window
from ..results import Result
from .base import Estimate, ImageMeans, MeasureBatch, View, add_by_group, grouped_estimate
from .channels import FeatureMapView, channel_places
from .edges import ImageBefore
from .feature_maps import correlation, gradient_size
from .head_measure import with_mean
from .token_pixels import pixels_to_tokens, windows_to
from .view import FIRST_THIRD, first_third

#: what a channel may follow, in the order of all states
KINDS = ("outline", "edge", "brightness")
#: numbers of an image at a place: of its channels compared with itself and with another image; of the shrunken image,
#: compared with itself; of its maps, compared with another image's
NUMBERS: tuple[Any, ...] = (
    *product(KINDS, ("own", "other"), ("correlation", "best")), "copy", "position",
)  # fmt: skip
#: channels that follow another image as closely, by the definition of the threshold
CHANCE = 0.05
BINS = 400
#: grid on which networks without tokens are compared: that of 224 px in cells of 16
GRID = (14, 14)
LEAST = 3
_PLACES = ("embed", "tokens.*.out", "blocks.*.resid_post")


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


class EdgeChannels(ImageMeans):
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
        self.before = ImageBefore()

    # -- before the pass

    def bind(self, views: Sequence[View]) -> None:
        """Histograms, sums and maxima for every place."""
        (view,) = views
        names = self._places(view)
        if not names:
            raise T2TError(f"{view.label}: no place with maps of at least {LEAST}x{LEAST} positions")
        layout = view.layout_of("embed") if "embed" in view.names else None
        onto = GRID if layout is None else layout.grid
        self.grids = {n: _coarser(self._own_grid(view, n), onto) for n in names}
        self.windows = {n: windows_to(view.model, n) for n in names}
        self.add_means(names, len(NUMBERS))
        self.add_sum("histogram", self.groups, len(names), len(KINDS), 2, BINS)
        self.add_sum("flat", dtype=torch.int64)
        self.add_sum("unpaired", dtype=torch.int64)

    def _places(self, view: View) -> list[str]:
        """Places whose maps have a gradient to speak of."""
        if self.places is not None or isinstance(view, FeatureMapView):
            names = channel_places(view, self.places)
        else:
            names = view.offered(_PLACES)
        return [name for name in names if min(self._own_grid(view, name)) >= LEAST]

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
        maps = obs.value if obs.layout is None else obs.maps
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
        before = self.before(images)
        if before is None:  # no other image to compare it with
            self.unpaired += 1
            return
        others = torch.cat([before, images[:-1]])
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
        small = own.brightness.unflatten(1, maps.shape[-2:])
        copy = correlation(gradient_size(small).flatten(1), own.edges)
        alike = torch.full_like(copy, torch.nan)
        if len(maps) > 1:
            alike = correlation(maps.flatten(2), maps.roll(1, 0).flatten(2)).mean(-1)
        both = torch.stack([found.mean(-1), found.amax(-1)], -1).flatten(1)
        self.add(i, group, torch.cat([both, copy[:, None], alike[:, None]], -1))

    # -- after the pass

    def compute(self) -> Result:
        """Rows of every place and of the first third of the blocks."""
        if int(self.flat):
            self.note(f"{int(self.flat)} images without any gradient were left out")
        if int(self.unpaired):
            self.note(
                "the first image was left out: batches of one image give it no other to be compared with"
            )
        first = [self.names.index(name) for name in first_third(self.names)]
        grids = {name: list(grid) for name, grid in self.grids.items()}
        asked = {"cells": next(reversed(grids.values()))}
        rows = list(self._rows(self._estimates(first), bool(first)))
        return self.result(rows, grids=grids, conditions={self.views[0].label: asked})

    def _estimates(self, first: list[int]) -> Estimate:
        """Shares of channels by kind, then `NUMBERS`, of all places and of the mean over ``first``: (P + 1, 3 + 14)."""

        def values(histogram: Tensor, total: Tensor, count: Tensor) -> Tensor:
            return torch.cat([share_above(histogram[..., 0, :], histogram[..., 1, :]), total / count], -1)

        images = self.count[..., :1].expand(-1, -1, len(KINDS) + len(NUMBERS))
        found = grouped_estimate(values, (self.histogram, self.total, self.count), images)
        return with_mean(found, first) if first else found

    def _rows(self, found: Estimate, with_first: bool) -> Iterator[dict[str, Any]]:
        """Rows of all places at once."""
        names = [*self.names, *[FIRST_THIRD] * with_first]
        over = np.array([", mean over blocks" * (name == FIRST_THIRD) for name in names], dtype=object)
        row = self.row(np.array(names, dtype=object), tokens="patch", value_unit="none")
        numbers = {what: found[:, len(KINDS) + i] for i, what in enumerate(NUMBERS)}
        for k, kind in enumerate(KINDS):
            share = found[:, k]
            yield row | {
                "quantity": f"{kind}_channels", "estimate": share, "p": share - CHANCE, "null": CHANCE,
                "value_unit": "fraction of channels",
                "null_kind": "another image of the run; 5 % by definition of the threshold",
                "estimator": "share above the 95 % point of the null, over channels and images" + over,
                # a share lies between 0 and 1, with few images Student's t does not
                "low": np.maximum(share.low, 0.0), "high": np.minimum(share.high, 1.0),
            }  # fmt: skip
            for what, words in (("correlation", "mean over channels"), ("best", "largest over channels")):
                own, other = numbers[kind, "own", what], numbers[kind, "other", what]
                columns = {
                    "null_kind": "another image of the run",
                    "estimator": f"{words}, mean over images" + over,
                }
                if (kind, what) == ("outline", "correlation"):
                    columns |= {"ceiling": numbers["copy"].value, "ceiling_kind": "the shrunken image itself"}
                yield row | columns | {
                    "quantity": f"{kind}_{what}", "estimate": own, "p": own - other, "null": other,
                }  # fmt: skip
        alike = numbers["position"]
        yield row | {
            "quantity": "position_correlation", "estimate": alike, "p": alike, "null": 0.0,
            "null_kind": "nothing shared by different images",
            "estimator": "correlation of two images' maps, mean over channels" + over,
        }  # fmt: skip


def _coarser(own: tuple[int, int], onto: tuple[int, int]) -> tuple[int, int]:
    return min(own[0], onto[0]), min(own[1], onto[1])


def image_for(model: nn.Module, loader: Any, number: int) -> Tensor:
    """Image ``number`` of the loader as ``model`` sees it, (3, H, W), where the model is."""
    return gather_images(model, loader, number + 1)[0][number].to(next(model.parameters()))


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
            return number, gather_images(None, loader, number + 1)[0][number]
        except DataError as error:
            raise DataError(
                f"image {number} is not among the images of the run, counted from 0; {error}"
            ) from error
    images = next(batches_of(loader)).images.cpu()
    side = min(GRID[0], images.shape[-1] // 4)
    seen = Targets.of(images, (side, side))
    steep = gradient_size(seen.brightness.unflatten(1, (side, side))).flatten(1)
    best = int(correlation(steep, seen.edges).argmax())
    return best, images[best]
