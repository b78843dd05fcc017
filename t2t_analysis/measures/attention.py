"""How far and how widely does each head look? Attention distance, entropy, and what goes to a few tokens.

Distance and entropy are those of patch queries over patch keys: the columns of class token, distillation
token and registers are dropped *and the rows renormalised*. Left unnormalised, a head that spends its
attention on the class token would look local.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import capture
from ..capture.places import Inside
from ..results import Result
from .base import Estimate, ImageMeans, MeasureBatch, View
from .head_maps import entropy
from .head_measure import LAYERS, HeadIndex, nanmean, over_depth

Pair = tuple[float, float]

#: Numbers of an attention map that are worked on at a time: 16 MiB in single precision.
_CHUNK = 2**22


# ---------------------------------------------------------------------------------------- pure functions


def key_distance(
    grid: tuple[int, int], pitch: Pair, queries: slice = slice(None), device: Any = None
) -> Tensor:
    """Distance in pixels from the centre of each query patch to that of each key patch.

    Parameters
    ----------
    grid : rows and columns of patches, which need not be equal.
    pitch : pixels from one row, and from one column, to the next.
    queries : which of the patches ask; all of them when left out.

    Returns
    -------
    (Q, P), float32.

    >>> key_distance((1, 3), (16, 16))
    tensor([[ 0., 16., 32.],
            [16.,  0., 16.],
            [32., 16.,  0.]])
    """
    rows, columns = (
        torch.arange(n, device=device) * float(step) for n, step in zip(grid, pitch, strict=True)
    )
    places = torch.cartesian_prod(rows, columns)  # (P, 2), row by row
    return (places[queries, None] - places).norm(dim=-1)


def uniform_distance(grid: tuple[int, int], pitch: Pair) -> float:
    """Mean distance in pixels under uniform attention: the null of `attention_distance`.

    >>> round(uniform_distance((14, 14), (16, 16)), 2), round(uniform_distance((8, 8), (4, 4)), 2)
    (116.49, 16.55)
    """

    def offsets(n: int, step: float) -> tuple[Tensor, Tensor]:
        """Every distance along one axis, and how many ordered pairs of patches have it."""
        apart = torch.arange(n, dtype=torch.float64)
        return apart * step, torch.where(apart == 0, n, 2 * (n - apart))

    (down, times), (across, times_across) = (offsets(n, s) for n, s in zip(grid, pitch, strict=True))
    length = (down[:, None] ** 2 + across**2).sqrt()
    return float((length * times[:, None] * times_across).sum() / (grid[0] * grid[1]) ** 2)


def attention_distance(maps: Tensor, distance: Tensor) -> Tensor:
    """Mean distance from a query to what it attends to (Dosovitskiy et al. 2021, appendix D.7).

    d = mean over queries q of sum_k A[q, k] |q - k| / sum_k A[q, k], k over patches.

    Parameters
    ----------
    maps : (..., Q, P) attention of patch queries to patch keys; rows are renormalised here.
    distance : (Q, P) from `key_distance`.

    Returns
    -------
    (...), in the unit of ``distance``; queries that attend to no patch at all are left out.

    >>> identity, uniform = torch.eye(9), torch.full((9, 9), 1 / 9)
    >>> distance = key_distance((3, 3), (16, 16))
    >>> [round(attention_distance(a, distance).item(), 2) for a in (identity, uniform)]
    [0.0, 23.25]
    """
    return _distance(*_renormalised(maps), distance)


def attention_entropy(maps: Tensor) -> Tensor:
    """Mean entropy in nats of the attention rows, renormalised: (..., Q, P) -> (...), from 0 to ln P.

    >>> round(attention_entropy(torch.ones(4, 4)).item(), 4), round(math.log(4), 4)
    (1.3863, 1.3863)
    """
    return _entropy(*_renormalised(maps))


def _renormalised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., Q, P) that sum to 1, zeros where a query attends to no patch, and how many do attend (...)."""
    mass = maps.sum(-1, keepdim=True)
    return maps / torch.where(mass > 0, mass, 1.0), (mass > 0).sum((-2, -1))


def _distance(rows: Tensor, queries: Tensor, distance: Tensor) -> Tensor:
    return rows.flatten(-2) @ distance.to(rows.dtype).flatten() / queries


def _entropy(rows: Tensor, queries: Tensor) -> Tensor:
    return entropy(rows).sum(-1) / queries


def prefix_attention(maps: Tensor, prefix: int) -> Tensor:
    """Share of the attention of patch queries that goes to prefix tokens: (..., Q, N) -> (...).

    ``maps`` hold all keys; uniform attention gives prefix / N.
    """
    return maps[..., :prefix].sum(-1).mean(-1)


# ---------------------------------------------------------------------------------------- the measure


class Site(NamedTuple):
    """Where one layer's maps come from: its place, what to observe there, and how it is laid out."""

    place: str  # blocks.3.attn
    sources: tuple[str, ...]  # the pattern, or q and k where the pattern is large
    layout: capture.TokenLayout
    heads: int
    scale: float


_RENORMALISED = "patch keys only, rows renormalised"
#: Numbers per head and image: quantity, tokens, unit, estimator.
QUANTITIES = (
    ("attention_distance", "patch", "fraction of image side", _RENORMALISED),
    ("attention_entropy", "patch", "nats", _RENORMALISED),
    ("attention_entropy", "class", "nats", f"class query; {_RENORMALISED}"),
    ("class_mass", "patch", "fraction", "attention of patch queries to the class token"),
    ("prefix_mass", "patch", "fraction", "attention of patch queries to all prefix tokens"),
    ("sink_mass", "patch", "fraction", "attention of patch queries to the key that gets most"),
)


def head_numbers(patches: Tensor, cls: Tensor | None, layout: capture.TokenLayout, pitch: Pair) -> Tensor:
    """All `QUANTITIES` of some maps in order: (B, H, P, N) and class rows (B, H, N) -> (B, H, 6), float64.

    NaN where a quantity does not exist (no class token, no prefix).
    """
    distance = key_distance(layout.grid, pitch, device=patches.device)
    prefix = layout.prefix
    rows, queries = _renormalised(patches[..., prefix:])
    none = patches.new_full(patches.shape[:2], math.nan)
    return torch.stack(
        [
            _distance(rows, queries, distance) / _side(layout.grid, pitch),
            _entropy(rows, queries),
            none if cls is None else attention_entropy(cls[..., None, prefix:]),
            none if cls is None else prefix_attention(patches, 1),
            prefix_attention(patches, prefix) if prefix else none,
            patches.mean(-2).amax(-1),
        ],
        dim=-1,
    ).double()


def _side(grid: tuple[int, int], pitch: Pair) -> float:
    """Side of the image in pixels; of an oblong one, the side of the square of the same area."""
    return math.sqrt(grid[0] * pitch[0] * grid[1] * pitch[1])


def nulls(layout: capture.TokenLayout, pitch: Pair) -> list[float]:
    """What uniform attention gives for each of `QUANTITIES`."""
    distance = uniform_distance(layout.grid, pitch) / _side(layout.grid, pitch)
    spread, keys = math.log(layout.num_patches), layout.num_tokens
    return [distance, spread, spread, 1 / keys, layout.prefix / keys, 1 / keys]


def stage_numbers(q: Tensor, k: Tensor, scale: float, layout: capture.TokenLayout, pitch: Pair) -> Tensor:
    """As `head_numbers`, from queries and keys (H, P, d) of one image without prefix tokens: (H, 6).

    Some queries at a time: the first token transformer of a T2T-ViT has a map of 3136 x 3136.
    """
    heads, patches = q.shape[:2]
    step = max(1, _CHUNK // (heads * patches))
    totals = q.new_zeros(heads, 2, dtype=torch.float64)
    columns = q.new_zeros(heads, patches, dtype=torch.float64)
    for start in range(0, patches, step):
        rows = slice(start, min(start + step, patches))
        maps = ((q[:, rows].float() * scale) @ k.float().transpose(-2, -1)).softmax(-1)  # (H, rows, P)
        distance = key_distance(layout.grid, pitch, rows, q.device)
        means = torch.stack([attention_distance(maps, distance), attention_entropy(maps)], dim=-1)
        totals += means.double() * (rows.stop - rows.start)
        columns += maps.double().sum(-2)
    pixels, spread = (totals / patches).unbind(-1)
    none = torch.full_like(pixels, math.nan)
    share = columns.amax(-1) / patches
    return torch.stack([pixels / _side(layout.grid, pitch), spread, none, none, none, share], -1)


class AttentionGeometry(ImageMeans):
    """Attention distance, entropy, and attention paid to class token, prefix and sink, per head and layer.

    ``attention_distance``: mean distance between the centres of a patch and of the patches it attends to, as a
    fraction of the image side, so that the token transformers of a T2T module (56 x 56 and 28 x 28 tokens at 224 px)
    compare with blocks on 14 x 14. For an oblong image the side is that of a square of the same area.
    ``attention_entropy`` in nats, of patch queries and of the class query. ``class_mass``, ``prefix_mass``: share that
    patch queries give to the class token, to all prefix tokens. ``sink_mass``: share that the most attended key gets.
    All are means over queries, then images; rows without a head number are means over the heads of a layer, those of
    ``blocks.*.attn`` over all layers of the backbone; ``..._last_minus_first`` is the last third of them minus the
    first. The null is uniform attention, in closed form. A Performer has no attention map and is left out.

    Source: Dosovitskiy et al. 2021, appendix D.7, and Raghu et al. 2021, figure 3, for the distance; the
    renormalisation after dropping the prefix is ours.
    """

    name = "attention_geometry"
    invariances = frozenset({"permute_heads", "permute_images"})

    def bind(self, views: Sequence[View]) -> None:
        """Find all attention maps of the model: those of its blocks, and of token transformers."""
        (view,) = views
        height, width = view.example.shape[-2:] if view.example is not None else (0, 0)
        self.sites = _sites(view)
        self.pitch = {s.place: (height / s.layout.grid[0], width / s.layout.grid[1]) for s in self.sites}
        self.by_source = {name: site for site in self.sites for name in site.sources}
        self.with_class = getattr(view.model, "cls_token", None) is not None
        self.add_means([s.place for s in self.sites], max(s.heads for s in self.sites), len(QUANTITIES))

    def wants(self, view: View) -> list[str]:
        """Patterns of the blocks; queries and keys of token transformers."""
        return list(self.by_source)

    def reduce(self, obs: capture.Observation) -> Tensor:
        """All numbers of a block's heads, (B, H, 6); a token transformer's q or k, copied."""
        site = self.by_source[obs.name]
        if len(site.sources) == 2:
            return obs.value.clone()
        patches = obs.value[:, :, site.layout.prefix :]  # (B, H, P, N)
        cls = obs.value[:, :, 0] if self.with_class else None
        return head_numbers(patches, cls, site.layout, self.pitch[site.place])

    def update(self, batch: MeasureBatch) -> None:
        """Add what the hooks made, and work through the maps of token transformers image by image."""
        groups = self.group(batch)
        for i, site in enumerate(self.sites):
            made = [batch.seen[0][name] for name in site.sources if name in batch.seen[0]]
            if len(made) == len(site.sources):
                self.add(i, groups, made[0] if len(made) == 1 else self._of_stage(site, *made))

    def _of_stage(self, site: Site, q: Tensor, k: Tensor) -> Tensor:
        pitch = self.pitch[site.place]
        each = zip(q, k, strict=True)
        return torch.stack([stage_numbers(a, b, site.scale, site.layout, pitch) for a, b in each])

    def compute(self) -> Result:
        """Rows for every head, for the mean over the heads of every layer, and over all layers."""
        heads = self.means()  # (L, H, 6)
        layers = heads.map(lambda x: nanmean(np.moveaxis(x, -2, -1)), heads.sizes.max(-2))
        self._note_stages()
        return self.result([*self._rows(heads, layers), *self._depth_rows(layers)])

    def _rows(self, heads: Estimate, layers: Estimate) -> Iterator[dict[str, Any]]:
        """By quantity: the mean over the heads of every layer, then every head."""
        uniform = np.array([nulls(site.layout, self.pitch[site.place]) for site in self.sites])
        places = np.array([site.place for site in self.sites], dtype=object)
        of, head = HeadIndex(tuple(range(len(self.sites))), tuple(s.heads for s in self.sites)).table.T
        for q in range(len(QUANTITIES)):
            there = np.flatnonzero(layers.n[:, q])
            row = _columns(q)
            how = f"{row['estimator']}; mean over heads"
            null, estimate = uniform[there, q], layers[there, q]
            yield self.row(places[there], **row) | {"estimator": how, "null": null, "estimate": estimate}
            each = np.isin(of, there)
            layer, number = of[each], head[each]
            numbers = {"head": number, "null": uniform[layer, q], "estimate": heads[layer, number, q]}
            yield self.row(places[layer], **row) | numbers

    def _depth_rows(self, layers: Estimate) -> Iterator[dict[str, Any]]:
        """Means over the layers of the backbone, and how they change with depth."""
        blocks = [i for i, site in enumerate(self.sites) if site.place.startswith("blocks.")]
        if not blocks:
            return
        null = nulls(self.sites[blocks[0]].layout, self.pitch[self.sites[blocks[0]].place])
        for q in range(len(QUANTITIES)):
            for (end, found), reference in zip(
                over_depth(layers[blocks, q]).items(), (null[q], 0.0), strict=True
            ):
                if not np.isfinite(found.value):  # one layer has no first and last third
                    continue
                words = "last third - first third of layers" if end else "mean over layers"
                row = self.row(LAYERS, null=reference, estimate=found, **_columns(q))
                row["estimator"] += f"; mean over heads; {words}"
                yield row | {"quantity": row["quantity"] + end}

    def _note_stages(self) -> None:
        """Say which token transformers are left out, and why."""
        (view,) = self.views
        for name, reason in view.places.missing.items():
            stage = name.removesuffix(".attn.pattern")
            if stage.startswith("tokens.") and f"{stage}.attn.z" in view.names:
                self.note(f"{view.label}: {stage}.attn: {reason}")


def _columns(q: int) -> dict[str, Any]:
    columns = dict(zip(("quantity", "tokens", "value_unit", "estimator"), QUANTITIES[q], strict=True))
    return {"null_kind": "uniform attention", **columns}


def _sites(view: View) -> list[Site]:
    """Every layer with an attention map, from the image on."""
    patterns = view.select("*.attn.pattern")
    places = {name.removesuffix(".pattern"): name for name in patterns}
    wanted = {
        place: (f"{place}.q", f"{place}.k") if place.startswith("tokens.") else (pattern,)
        for place, pattern in places.items()
    }
    view.probe([sources[0] for sources in wanted.values()])  # all of them in one forward pass
    sites = []
    for place, sources in wanted.items():
        layout, inside = view.layout_of(sources[0]), view.places.found[sources[0]].source
        assert layout is not None  # every attention place has tokens
        assert isinstance(inside, Inside)
        heads, scale = inside.attention.num_heads, inside.attention.scale
        sites.append(Site(place, sources, layout, heads, scale or math.nan))
    return sites
