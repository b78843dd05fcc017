"""What does one token of one image see? One forward pass of one image, kept, so that it can be looked at by hand.

Nothing here is a measure: one image and one head are a description without an interval. The numbers are those of the
measures, by the same functions, each beside what it would be if there were nothing to see.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
_UNIFORM, _EVEN = "uniform attention", "gradient spread evenly over the image"
_NO_INTERVAL = "none: one image"


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
    image : (3, H, W), stretched to values 0 to 1. cell : top, left, height, width of the token's own pixels; None
        for the class token.
    attention : (h, w) weights of the query on every patch, multiples of uniform attention.
    feature : (h, w) the channel, multiples of the layer's level (median root mean square of its channels).
    field : (H, W) size of the token's input gradient, largest value 1.
    state : the channel in a word: "ordinary", "zero", "flat" or "too large".
    missing : why there is no attention or field. rows : the numbers, with the columns of a result.
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
    rows: list[dict[str, Any]]


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
            found[short] = _Place(name, "", view.places.missing.get(pattern, _reason(short)))
    return found


def _reason(place: str) -> str:
    return "this is the tokeniser's output" if place == "embed" else "nothing attends at this place"


class Subject:
    """A model with some images: runs each image once and keeps what the run showed.

    Parameters
    ----------
    model : a vision transformer. images : (n, 3, H, W), preprocessed as it wants them. label : its name.
    budget : bytes of activations to keep; the image that was looked at longest ago goes first.
    directions : random directions of the input gradient; each costs a backward pass.

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

    def __init__(
        self, model: nn.Module, images: Tensor, label: str | None = None, *, budget: int = 1 << 30,
        directions: int = 4,
    ) -> None:  # fmt: skip
        parameter = next(model.parameters())
        self.images = images.to(parameter.device, parameter.dtype)
        self.view = View(model, label, self.images[:1])
        self.places = _places(self.view)
        self.budget, self.directions = budget, directions
        self._passes: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._graph: tuple[int, Tensor, dict[str, Tensor]] | None = None
        self._fields: OrderedDict[Any, Tensor] = OrderedDict()
        if not self.images.isfinite().all():
            raise DataError("the images hold pixels that are not finite")
        with evaluating(model):
            self._probe([n for place in self.places.values() for n in (place.tokens, place.pattern) if n])

    def _probe(self, names: list[str]) -> None:
        try:
            self.view.probe(names)
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

    @property
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        return getattr(self.view.model, "cls_token", None) is not None

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

    def check(self, look: Look) -> Look:
        """Return ``look`` if the model has such a place, head and channel, else UnknownNameError or DataError.

        Where there is no attention map, the number of the head means nothing and is not checked.
        """
        available = {"channel": (look.channel, self.channels(look.place))}
        if heads := self.heads(look.place):
            available["head"] = (look.head, heads)
        for what, (number, count) in available.items():
            if not 0 <= number < count:
                there = f"{look.place} of {self.label} has {count}"
                raise DataError(f"{what} {number}: {there}, numbered from 0")
        return look

    # -------------------------------------------------------------------------------- running the model

    def activations(self, image: int) -> dict[str, Tensor]:
        """Tokens (N, D) and attention maps (H, N, N) of every place, from one forward pass per image."""
        if image not in self._passes:
            self._run(image, graph=False)
        self._passes.move_to_end(image)
        return self._passes[image]

    def _run(self, image: int, graph: bool) -> None:
        """Keep what one forward pass shows; with its graph, only that of the last such image."""
        if not 0 <= image < len(self.images):
            raise DataError(f"image {image}: there are {len(self.images)}, numbered from 0")
        patterns = [place.pattern for place in self.places.values() if place.pattern]
        tokens = [place.tokens for place in self.places.values()]
        pixels = self.images[image : image + 1].detach().clone().requires_grad_(graph)
        with (
            evaluating(self.view.model),
            torch.set_grad_enabled(graph),
            capture.capture(self.view, patterns) as maps,
            capture.capture(self.view, tokens, graph=graph) as seen,
        ):
            self.view.model(pixels)
        if graph:
            self._graph = (image, pixels, dict(seen))
        self._passes[image] = {name: value.detach()[0] for name, value in (*maps.items(), *seen.items())}
        self._forget()

    def _forget(self) -> None:
        def held() -> int:
            return sum(v.numel() * v.element_size() for kept in self._passes.values() for v in kept.values())

        while len(self._passes) > 1 and held() > self.budget:
            self._passes.popitem(last=False)

    def energy(self, image: int, place: str, token: int) -> Tensor | None:
        """Squared input gradient (H, W) of a token, mean over random directions; None where it has no graph."""
        key = (image, place, token)
        if key not in self._fields:
            if self._graph is None or self._graph[0] != image:
                self._run(image, graph=True)
            assert self._graph is not None
            _, pixels, seen = self._graph
            tokens = seen[self._at(place).tokens]
            if not tokens.requires_grad:
                return None
            self._fields[key] = self._energy(tokens, pixels, token)
            if len(self._fields) > 64:
                self._fields.popitem(last=False)
        return self._fields[key]

    def _energy(self, tokens: Tensor, pixels: Tensor, token: int) -> Tensor:
        chosen = torch.tensor([token])

        def direction(number: int) -> Callable[[int], torch.Generator]:
            return lambda _: torch.Generator().manual_seed(number)

        with torch.enable_grad():
            draws = [pixel_energy(tokens, pixels, chosen, direction(n)) for n in range(self.directions)]
        return torch.stack(draws).mean(0)[0].cpu()

    # -------------------------------------------------------------------------------- what there is to see

    def scene(self, image: int, point: tuple[float, float] | str, look: Look) -> Scene:
        """Return the maps and numbers of one token.

        Parameters
        ----------
        image : its number. point : (down, across) as fractions of the image, or ``CLASS`` for the class token; the
            token is the one whose cell holds that point, on whatever grid the place has.
        look : place, head and channel.
        """
        self.check(look)
        spot = _Spot.of(point, self.layout(look.place), self.has_class_token, self.size)
        energy = None if spot.token is None else self.energy(image, look.place, spot.token)
        tokens = self.activations(image)[self._at(look.place).tokens].float().cpu()
        attention, numbers, reason = self._attention(image, look, spot)
        feature, state, channel_rows = _channel(tokens[spot.layout.prefix :], look.channel, spot.layout.grid)
        missing = {"attention": reason} if attention is None else {}
        if energy is None:
            missing["field"] = spot.reason or "this place cannot be differentiated by the image"
        rows = [*numbers, *channel_rows, *(() if energy is None else _field_rows(energy, spot))]
        return Scene(
            self.label, self.view.weights, spot.words, look, stretched(self.images[image].float().cpu()),
            spot.cell, attention, feature, None if energy is None else _amplitude(energy), state, missing,
            [self._row(look, row) for row in rows],
        )  # fmt: skip

    def _row(self, look: Look, row: dict[str, Any]) -> dict[str, Any]:
        common: dict[str, Any] = {"measure": "explore", "model": self.label, "weights": self.view.weights}
        common |= {"place": look.place, "layer": layer_of(f"{look.place}."), "n": 1, "unit": "image"}
        return common | {"interval": _NO_INTERVAL} | row

    def _attention(
        self, image: int, look: Look, spot: _Spot
    ) -> tuple[Tensor | None, list[dict[str, Any]], str]:
        """Map (h, w) of the query in multiples of uniform attention, its numbers, or why there is none."""
        place = self._at(look.place)
        if not place.pattern or spot.token is None:
            return None, [], place.reason or spot.reason
        maps = self.activations(image)[place.pattern].float().cpu()
        row = maps[look.head, spot.token, spot.layout.prefix :]
        numbers = [*_query_rows(maps[look.head], spot), *_head_rows(maps[look.head], spot)]
        numbers += self._most_similar(image, maps, look, spot)
        named = [number | {"head": look.head} for number in numbers]
        return (row * maps.shape[-1]).unflatten(0, spot.layout.grid), named, ""

    def _most_similar(self, image: int, maps: Tensor, look: Look, spot: _Spot) -> list[dict[str, Any]]:
        """Centred cosine to the head of the layer that is most like this one, and the same on another image.

        None for the only head of a layer, and for one that attends uniformly: it has no direction.
        """
        patches = renormalised(maps, spot.layout.prefix)
        cosines = head_cosine(patches[look.head, None], patches)[0].nan_to_num(-math.inf)
        cosines[look.head] = -math.inf
        best = int(cosines.argmax())
        if not cosines[best].isfinite():
            return []
        null: dict[str, Any] = {}
        if len(self.images) > 1:
            pattern = self._at(look.place).pattern
            other = self.activations((image + 1) % len(self.images))[pattern][best].float().cpu()
            paired = head_cosine(patches[look.head, None], renormalised(other[None], spot.layout.prefix))
            null = {"null": float(paired), "null_kind": "the other head on the next image"}
        return [null | {
            "quantity": "cosine_centred", "value": float(cosines[best]), "head_b": best, "value_unit": "none",
            "estimator": "largest over the other heads of the layer", "tokens": "patch",
        }]  # fmt: skip


@dataclass(frozen=True)
class _Spot:
    """A token of one place: its number with prefix, where it is, in words; or why the place has no such token."""

    layout: capture.TokenLayout
    size: tuple[int, int]
    token: int | None
    words: str
    patch: tuple[int, int] | None = None
    reason: str = ""

    @classmethod
    def of(
        cls,
        point: tuple[float, float] | str,
        layout: capture.TokenLayout,
        has_class: bool,
        size: tuple[int, int],
    ) -> _Spot:
        if isinstance(point, str):
            if point != CLASS:
                raise UnknownNameError("token", point, [CLASS])
            there = has_class and layout.prefix > 0
            return cls(
                layout,
                size,
                0 if there else None,
                "class token",
                None,
                "" if there else "no class token here",
            )
        if not all(0 <= p < 1 for p in point):
            raise DataError(
                f"point {point}: expected fractions of the image, from 0 up to but not including 1"
            )
        row, column = (int(p * n) for p, n in zip(point, layout.grid, strict=True))
        token = layout.prefix + row * layout.grid[1] + column
        return cls(layout, size, token, f"token at row {row}, column {column}", (row, column))

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

    @property
    def side(self) -> float:
        """Side of the square that has the image's area, in pixels."""
        return math.sqrt(self.size[0] * self.size[1])


def _query_rows(head_map: Tensor, spot: _Spot) -> Iterator[dict[str, Any]]:
    """Entropy, distance and attention on prefix tokens of one query; ``head_map`` is (N, N)."""
    prefix, keys = spot.layout.prefix, head_map.shape[-1]
    row = head_map[spot.token, prefix:]
    columns = {"null_kind": _UNIFORM, "tokens": spot.words}
    yield columns | {
        "quantity": "attention_entropy", "value": float(entropy(row / row.sum())),
        "null": math.log(spot.layout.num_patches), "value_unit": "nats",
        "estimator": "this query; patch keys only, renormalised",
    }  # fmt: skip
    if spot.patch is not None:
        assert spot.token is not None
        query = slice(spot.token - prefix, spot.token - prefix + 1)
        distance = key_distance(spot.layout.grid, spot.pitch, query) / spot.side
        yield columns | {
            "quantity": "attention_distance", "value": float(attention_distance(row[None], distance)),
            "null": float(distance.mean()), "value_unit": "fraction of image side",
            "estimator": "this query; patch keys only, renormalised",
        }  # fmt: skip
    if prefix:
        yield columns | {
            "quantity": "prefix_mass", "value": float(head_map[spot.token, :prefix].sum()), "null": prefix / keys,
            "value_unit": "fraction", "estimator": "attention of this query to all prefix tokens",
        }  # fmt: skip


def _head_rows(head_map: Tensor, spot: _Spot) -> Iterator[dict[str, Any]]:
    """Entropy and distance of a head, mean over all patch queries; ``head_map`` is (N, N)."""
    prefix = spot.layout.prefix
    patches = head_map[prefix:, prefix:]
    columns = {"null_kind": _UNIFORM, "tokens": "patch", "estimator": "mean over patch queries"}
    yield columns | {
        "quantity": "attention_entropy", "value": float(attention_entropy(patches)),
        "null": math.log(spot.layout.num_patches), "value_unit": "nats",
    }  # fmt: skip
    distance = key_distance(spot.layout.grid, spot.pitch) / spot.side
    yield columns | {
        "quantity": "attention_distance", "value": float(attention_distance(patches, distance)),
        "null": float(distance.mean()), "value_unit": "fraction of image side",
    }  # fmt: skip


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


def _channel(maps: Tensor, channel: int, grid: tuple[int, int]) -> tuple[Tensor, str, list[dict[str, Any]]]:
    """Map (h, w) of a channel in multiples of the layer's level, its state, its numbers; ``maps`` is (P, C)."""
    ratios, shuffled = channel_ratios(maps), channel_ratios(mixed(maps[None])[0])
    largest = int(ratios.peak.argmax())
    level = maps[:, largest].abs().max() / ratios.peak[largest].clamp_min(1e-300)
    feature = (maps[:, channel] / level if ratios.peak[largest] > 0 else maps[:, channel]).unflatten(0, grid)
    rows = []
    for quantity, ratio, null in (
        ("channel_peak", ratios.peak, shuffled.peak),
        ("channel_spread", ratios.flat, shuffled.flat),
    ):
        low, middle, high = null.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=null.dtype)).tolist()
        rows.append({
            "quantity": quantity, "value": float(ratio[channel]), "null": middle, "null_low": low, "null_high": high,
            "null_kind": MIXED, "value_unit": "multiples of the layer's level", "tokens": "patch", "head": channel,
            "estimator": f"channel {channel}, {channel_state(ratios, channel)}",
        })  # fmt: skip
    return feature.float(), channel_state(ratios, channel), rows


def _amplitude(energy: Tensor) -> Tensor:
    """Size of the gradient, largest value 1: (H, W) squares -> (H, W)."""
    amplitude = energy.sqrt()
    return (amplitude / amplitude.max().clamp_min(torch.finfo(amplitude.dtype).tiny)).float()


def _field_rows(energy: Tensor, spot: _Spot) -> Iterator[dict[str, Any]]:
    """How far the input gradient of a patch token reaches; ``energy`` is (H, W)."""
    total = float(energy.sum())
    if spot.patch is None or not (math.isfinite(total) and total > 0):
        return
    columns = {"null_kind": _EVEN, "tokens": spot.words}
    outside = distance_to_cell(spot.size, spot.layout.grid, torch.tensor(_patch_number(spot))) > 0
    yield columns | {
        "quantity": "gradient_outside", "value": float(energy[outside].sum()) / total,
        "null": float(outside.double().mean()), "value_unit": "fraction",
        "estimator": "share of squared input gradient outside the own cell",
    }  # fmt: skip
    top, left, height, width = spot.cell  # type: ignore[misc]
    ring = rings(spot.size, (top + (height - 1) / 2, left + (width - 1) / 2)).flatten()
    profile = torch.bincount(ring, weights=energy.flatten())
    even = torch.bincount(ring).double()
    for share in (0.5, 0.95):
        yield columns | {
            "quantity": f"erf_radius_{share * 100:.0f}", "value": float(energy_radius(profile, share)),
            "null": float(energy_radius(even, share)), "value_unit": "pixels",
            "estimator": f"radius that holds {share:.0%} of the squared input gradient",
        }  # fmt: skip


def _patch_number(spot: _Spot) -> int:
    assert spot.token is not None
    return spot.token - spot.layout.prefix
