"""What does one token of one image see? One forward pass of one image, kept, so that it can be looked at by hand.

Nothing here is a measure: one image and one head are a description without an interval. The numbers are those of the
measures, by the same functions, each beside what it would be if there were nothing to see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import capture
from .errors import DataError, UnknownNameError
from .measures.attention import attention_distance, attention_entropy, key_distance
from .measures.channels import MIXED, mixed
from .measures.feature_maps import Ratios, channel_ratios, stretched
from .measures.head_maps import entropy, head_cosine, renormalised
from .measures.receptive import distance_to_cell, energy_radius, pixel_energy, rings
from .measures.view import View, evaluating, layer_of

__all__ = ["CLASS", "Look", "Scene", "Subject"]

#: the query that is no patch
CLASS = "class"
#: thresholds of the words for a channel, multiples of the layer's level; `InvalidChannels` has whole curves
ZERO, TOO_LARGE = 1e-2, 100.0
#: images whose pass is kept: the one looked at, and the one that the null of the similarity is taken from
_KEPT = 2
#: unit of a distance
_SIDE = "fraction of image side"
#: random directions of the input gradient; each costs a backward pass
_DIRECTIONS = 4
#: one number without its place: quantity, tokens, value, null ... with the columns of a result
Row = dict[str, Any]


class Look(NamedTuple):
    """What to look at in one model: a place as `Subject.places` names it, a head and a channel of it."""

    place: str
    head: int = 0
    channel: int = 0


@dataclass(frozen=True, eq=False)
class Scene:
    """One image, one token, one look: three maps and their numbers.

    Attributes
    ----------
    image : (3, H, W), stretched to values 0 to 1.
    cell : top, left, height, width of the token's own pixels; None for the class token.
    attention : (h, w) weights of the query on every patch, multiples of uniform attention.
    feature : (h, w) the channel, multiples of the layer's level (median root mean square of its channels).
    field : (H, W) size of the token's input gradient, largest value 1.
    state : the channel in a word: "ordinary", "zero", "flat" or "too large".
    missing : why there is no attention or field.
    rows : the numbers, with the columns of a result.
    """

    model: str
    weights: str
    token: str
    look: Look
    image: Tensor
    cell: tuple[int, int, int, int] | None
    attention: Tensor | None
    feature: Tensor
    field: Tensor | None
    state: str
    missing: dict[str, str]
    rows: list[Row]


class _Place(NamedTuple):
    """Where a layer's tokens and its attention maps are observed; ``pattern`` is empty where it has no map."""

    tokens: str
    pattern: str
    reason: str = ""


def _places(view: View) -> dict[str, _Place]:
    """Layers from the image on: ``embed``, ``tokens.S`` and ``blocks.L``."""
    tokens = [n for n in view.names if re.fullmatch(r"embed|tokens\.\d+\.out|blocks\.\d+\.resid_post", n)]
    found = {}
    for name in sorted(tokens, key=lambda name: ("tokens", "embed", "blocks").index(name.split(".")[0])):
        short = name.removesuffix(".out").removesuffix(".resid_post")
        pattern = f"{short}.attn.pattern"
        if pattern in view.names:
            found[short] = _Place(name, pattern)
        else:
            known = "this is the tokeniser's output" if short == "embed" else "nothing attends at this place"
            found[short] = _Place(name, "", view.places.missing.get(pattern, known))
    return found


class _Pass(NamedTuple):
    """What one image's forward pass showed: its pixels, tokens (1, N, D) with their graph, maps (1, H, N, N)."""

    pixels: Tensor
    tokens: dict[str, Tensor]
    maps: dict[str, Tensor]


class Subject:
    """A model with some images: runs each image once and keeps what the run showed.

    Parameters
    ----------
    model : a vision transformer.
    images : (n, 3, H, W), preprocessed as it wants them.
    label : its name.

    Raises
    ------
    CaptureError : the model is no vision transformer that can be observed.
    DataError : images that are no numbers, or that the model does not take.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    >>> subject = Subject(model, torch.rand(1, 3, 64, 64))
    >>> list(subject.places), subject.grid, subject.heads("blocks.1"), subject.channels("embed")
    (['embed', 'blocks.0', 'blocks.1'], (4, 4), 3, 192)
    >>> subject.scene(0, (0.5, 0.5), Look("blocks.1", head=2)).attention.shape
    torch.Size([4, 4])
    """

    def __init__(self, model: nn.Module, images: Tensor, label: str | None = None) -> None:
        parameter = next(model.parameters())
        self.images = images.to(parameter.device, parameter.dtype)
        self.view = View(model, label, self.images[:1])
        self.places = _places(self.view)
        self.has_class_token = getattr(model, "cls_token", None) is not None
        self.run = lru_cache(_KEPT)(self._run)
        self.energy = lru_cache(1)(self._energy)
        if not self.images.isfinite().all():
            raise DataError("the images hold pixels that are not finite")
        try:
            with evaluating(model):
                self.view.probe([n for place in self.places.values() for n in place[:2] if n])
        except AssertionError as error:  # how timm's models refuse a size
            size = "x".join(map(str, self.size))
            raise DataError(
                f"{self.label} does not take images of {size} pixels: {error} A file, a Pillow image or the name of "
                "a data set is preprocessed for each model"
            ) from error

    def add(self, images: Tensor) -> None:
        """Look at further images (n, 3, H, W) too, preprocessed and of the size of the others."""
        self.images = torch.cat([self.images, images.to(self.images)])

    @property
    def label(self) -> str:
        """Name of the model."""
        return self.view.label

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the backbone's patch tokens."""
        return self.layout(list(self.places)[-1]).grid

    def layout(self, place: str) -> capture.TokenLayout:
        """Prefix and grid of the tokens of one place."""
        layout = self.view.layout_of(self._at(place).tokens)
        assert layout is not None  # every place here has tokens
        return layout

    def heads(self, place: str) -> int:
        """How many heads have an attention map there; 0 where there is none."""
        pattern = self._at(place).pattern
        return self.view.shape_of(pattern)[0] if pattern else 0

    def channels(self, place: str) -> int:
        """How many channels the tokens have there."""
        return self.view.shape_of(self._at(place).tokens)[-1]

    def _at(self, place: str) -> _Place:
        if place not in self.places:
            raise UnknownNameError("layer", place, self.places, hint=f"in {self.label}")
        return self.places[place]

    def check(self, look: Look) -> None:
        """Raise UnknownNameError or DataError where the model has no such place, head or channel.

        Where there is no attention map, the number of the head means nothing and is not checked.
        """
        for what, number, count in (
            ("channel", look.channel, self.channels(look.place)),
            ("head", look.head, self.heads(look.place) or look.head + 1),
        ):
            if not 0 <= number < count:
                there = f"{look.place} of {self.label} has {count}"
                raise DataError(f"{what} {number}: {there}, numbered from 0")

    # -------------------------------------------------------------------------------- running the model

    def _run(self, image: int) -> _Pass:
        """What the forward pass of an image shows.

        Raises
        ------
        DataError : there is no such image.
        """
        if not 0 <= image < len(self.images):
            raise DataError(f"image {image}: there are {len(self.images)}, numbered from 0")
        pixels = self.images[image : image + 1].detach().clone().requires_grad_()
        with (
            evaluating(self.view.model),
            capture.capture(self.view, [p.pattern for p in self.places.values() if p.pattern]) as maps,
            capture.capture(self.view, [p.tokens for p in self.places.values()], graph=True) as tokens,
        ):
            self.view.model(pixels)
        return _Pass(pixels, dict(tokens), {n: x.detach() for n, x in maps.items()})

    def _energy(self, image: int, place: str, token: int) -> Tensor | None:
        """Squared input gradient (H, W) of a token, mean over random directions; None where it has no graph."""
        seen, chosen = self.run(image), torch.tensor([token])
        tokens = seen.tokens[self._at(place).tokens]
        if not tokens.requires_grad:
            return None
        with torch.enable_grad():
            draws = [pixel_energy(tokens, seen.pixels, chosen, _seed(n)) for n in range(_DIRECTIONS)]
        return torch.stack(draws).mean(0)[0].cpu()

    # -------------------------------------------------------------------------------- what there is to see

    def scene(self, image: int, point: tuple[float, float] | str, look: Look) -> Scene:
        """Return the maps and numbers of one token.

        Parameters
        ----------
        image : its number.
        point : (down, across) as fractions of the image, or ``CLASS`` for the class token; the token is the one whose
            cell holds that point, on whatever grid the place has.
        look : place, head and channel.
        """
        self.check(look)
        spot = _Spot.of(point, self.layout(look.place), self.has_class_token, self.size)
        place, seen = self._at(look.place), self.run(image)
        tokens = seen.tokens[place.tokens][0, spot.layout.prefix :].detach().float().cpu()
        feature, state, rows = _channel(tokens, look.channel, spot.layout.grid)
        attention, field, missing = None, None, {}
        if place.pattern and spot.token is not None:
            maps = seen.maps[place.pattern][0].float().cpu()
            row = maps[look.head, spot.token, spot.layout.prefix :]
            attention = (row * maps.shape[-1]).unflatten(0, spot.layout.grid)
            numbers = [*_attention(maps[look.head], spot), *self._most_similar(image, maps, look, spot)]
            rows = [number | {"head": look.head} for number in numbers] + rows
        else:
            missing["attention"] = place.reason or spot.reason
        energy = None if spot.token is None else self.energy(image, look.place, spot.token)
        if energy is not None:
            field = energy.sqrt()
            field = (field / field.max().clamp_min(torch.finfo(field.dtype).tiny)).float()
            rows += _field(energy, spot)
        else:
            missing["field"] = spot.reason or "this place cannot be differentiated by the image"
        common = {
            "measure": "explore", "model": self.label, "weights": self.view.weights, "place": look.place,
            "layer": layer_of(f"{look.place}."), "n": 1, "unit": "image", "interval": "none: one image",
        }  # fmt: skip
        return Scene(
            self.label, self.view.weights, spot.words, look, stretched(self.images[image].float().cpu()),
            spot.cell, attention, feature, field, state, missing, [common | row for row in rows],
        )  # fmt: skip

    def _most_similar(self, image: int, maps: Tensor, look: Look, spot: _Spot) -> Iterator[Row]:
        """Centred cosine to the head of the layer that is most like this one, and the same on another image.

        None for the only head of a layer, and for one that attends uniformly: it has no direction.
        """
        patches = renormalised(maps, spot.layout.prefix)
        cosines = head_cosine(patches[look.head, None], patches)[0].nan_to_num(-math.inf)
        cosines[look.head] = -math.inf
        best = int(cosines.argmax())
        if not cosines[best].isfinite():
            return
        how = "largest over the other heads of the layer"
        row = _row("cosine_centred", cosines[best], "none", how, variant="most similar head", head_b=best)
        if len(self.images) > 1:
            seen = self.run((image + 1) % len(self.images)).maps[self._at(look.place).pattern]
            other = renormalised(seen[0, best, None].float().cpu(), spot.layout.prefix)
            row["null"] = float(head_cosine(patches[look.head, None], other))
            row["null_kind"] = "the other head on the next image"
        yield row


def _seed(number: int) -> Callable[[int], torch.Generator]:
    return lambda _: torch.Generator().manual_seed(number)


class _Spot(NamedTuple):
    """A token of one place: its number with prefix, where it is, in words; or why the place has no such token."""

    layout: capture.TokenLayout
    size: tuple[int, int]
    token: int | None
    words: str
    patch: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        point: tuple[float, float] | str,
        layout: capture.TokenLayout,
        has_class: bool,
        size: tuple[int, int],
    ) -> _Spot:
        if point == CLASS:
            return cls(layout, size, 0 if has_class and layout.prefix else None, "class token")
        if isinstance(point, str):
            raise UnknownNameError("token", point, [CLASS])
        if not all(0 <= p < 1 for p in point):
            raise DataError(f"point {point}: expected fractions of the image, 0 or more and below 1")
        row, column = (int(p * n) for p, n in zip(point, layout.grid, strict=True))
        token = layout.prefix + row * layout.grid[1] + column
        return cls(layout, size, token, f"token at row {row}, column {column}", (row, column))

    @property
    def reason(self) -> str:
        """Why there is no token."""
        return "no class token here" if self.token is None else ""

    @property
    def number(self) -> int:
        """Of the patch, row by row."""
        assert self.token is not None
        return self.token - self.layout.prefix

    @property
    def pitch(self) -> tuple[float, float]:
        """Pixels from one row, and from one column, to the next."""
        return self.size[0] / self.layout.grid[0], self.size[1] / self.layout.grid[1]

    @property
    def cell(self) -> tuple[int, int, int, int] | None:
        """Top, left, height and width in pixels."""
        if self.patch is None:
            return None
        height, width = (int(p) for p in self.pitch)
        return self.patch[0] * height, self.patch[1] * width, height, width


# ------------------------------------------------------------------------------------------ the numbers


def _row(quantity: str, value: Any, unit: str, estimator: str, **columns: Any) -> Row:
    row = {"quantity": quantity, "value": float(value), "value_unit": unit, "estimator": estimator}
    return row | {"tokens": "patch"} | columns


def _attention(head_map: Tensor, spot: _Spot) -> Iterator[Row]:
    """Entropy, distance and attention on prefix tokens of one query, then of the whole head; (N, N)."""
    prefix, side = spot.layout.prefix, math.sqrt(math.prod(spot.size))
    row, patches = head_map[spot.token, prefix:], head_map[prefix:, prefix:]
    distance = key_distance(spot.layout.grid, spot.pitch) / side
    uniform: dict[str, Any] = {"null_kind": "uniform attention"}
    even = uniform | {"null": math.log(spot.layout.num_patches)}
    own = {"variant": "this token", "tokens": spot.words}
    how = "this query; patch keys only, renormalised"
    yield _row("attention_entropy", entropy(row / row.sum()), "nats", how, **own, **even)
    if spot.patch is not None:
        mine = distance[spot.number, None]
        null = uniform | {"null": float(mine.mean())}
        yield _row("attention_distance", attention_distance(row[None], mine), _SIDE, how, **own, **null)
    if prefix:
        null = uniform | {"null": prefix / head_map.shape[-1]}
        mass, how = head_map[spot.token, :prefix].sum(), "attention of this query to all prefix tokens"
        yield _row("prefix_mass", mass, "fraction", how, **own, **null)
    whole = {"variant": "whole head", "estimator": "mean over patch queries"}
    yield _row("attention_entropy", attention_entropy(patches), "nats", **whole, **even)
    null = uniform | {"null": float(distance.mean())}
    yield _row("attention_distance", attention_distance(patches, distance), _SIDE, **whole, **null)


def channel_state(ratios: Ratios, channel: int) -> str:
    """The channel in a word, at the thresholds of this module.

    >>> channel_state(channel_ratios(torch.tensor([[1.0, 0.0, 3.0], [-1.0, 0.0, 3.0]])), 1)
    'zero'
    """
    if ratios.peak[channel] <= ZERO:
        return "zero"
    if ratios.peak[channel] > TOO_LARGE:
        return "too large"
    return "flat" if ratios.flat[channel] <= ZERO else "ordinary"


def _channel(maps: Tensor, channel: int, grid: tuple[int, int]) -> tuple[Tensor, str, list[Row]]:
    """Map (h, w) of a channel in multiples of the layer's level, its state, its numbers; ``maps`` is (P, C)."""
    ratios, shuffled = channel_ratios(maps), channel_ratios(mixed(maps[None])[0])
    largest, state = int(ratios.peak.argmax()), channel_state(ratios, channel)
    level = maps[:, largest].abs().max() / ratios.peak[largest].clamp_min(1e-300)
    feature = maps[:, channel] / level if ratios.peak[largest] > 0 else maps[:, channel]
    rows, unit, how = [], "multiples of the layer's level", f"channel {channel}, {state}"
    for quantity, ratio, null in (
        ("channel_peak", ratios.peak, shuffled.peak),
        ("channel_spread", ratios.flat, shuffled.flat),
    ):
        low, middle, high = null.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=null.dtype)).tolist()
        columns = {"null": middle, "null_low": low, "null_high": high, "null_kind": MIXED, "head": channel}
        rows.append(_row(quantity, ratio[channel], unit, how, **columns))
    return feature.unflatten(0, grid).float(), state, rows


def _field(energy: Tensor, spot: _Spot) -> Iterator[Row]:
    """How far the input gradient of a patch token reaches; ``energy`` is (H, W)."""
    total = float(energy.sum())
    if spot.cell is None or not (math.isfinite(total) and total > 0):
        return
    even = {"null_kind": "gradient spread evenly over the image", "tokens": spot.words}
    outside = distance_to_cell(spot.size, spot.layout.grid, torch.tensor(spot.number)) > 0
    how, null = "share of squared input gradient outside the own cell", float(outside.double().mean())
    yield _row("gradient_outside", energy[outside].sum() / total, "fraction", how, null=null, **even)
    top, left, height, width = spot.cell
    ring = rings(spot.size, (top + (height - 1) / 2, left + (width - 1) / 2)).flatten()
    profile, flat = torch.bincount(ring, weights=energy.flatten()), torch.bincount(ring).double()
    for share in (0.5, 0.95):
        how = f"radius that holds {share:.0%} of the squared input gradient"
        radius, uniform = (energy_radius(energies, share) for energies in (profile, flat))
        yield _row(f"erf_radius_{share * 100:.0f}", radius, "pixels", how, null=float(uniform), **even)
