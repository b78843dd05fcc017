"""How much of "zero channels" comes from the path that the released notebook takes instead of the forward pass.

The authors' notebook for ViT features resizes an image to 512 px, scales it to values 0 to 1 and chains the children
of the model by hand: patch embedding, dropout, block after block. Parameters are no children, so there is no class
token and no position table; and the image is not normalised by the mean and standard deviation that the weights
were trained with. Each of these steps is a switch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError, UnknownNameError
from ..estimates import Estimate
from ..models.t2t import T2T_ViT
from ..results import Result
from .base import ImageMeans, MeasureBatch, View
from .channels import AREAS, curve_points, stacked_areas, stacked_curves
from .feature_maps import ChannelMaps, channel_ratios, correlation, picture, stretched
from .token_pixels import windows_to

__all__ = [
    "NOTEBOOK", "REAL", "Path", "ShortcutShare", "chainable", "path_maps", "shortcut_features", "shortcut_share",
    "unit_values",
]  # fmt: skip

#: side of the image in the released notebook, and from which native size on a model is fed with it
NOTEBOOK_SIZE, LARGE = 512, 128
Values = Literal["model", "stretch", "auto"]


@dataclass(frozen=True)
class Path:
    """Which steps of the real forward pass are kept. `NOTEBOOK` keeps none, `REAL` all.

    Attributes
    ----------
    normalise : mean and standard deviation of the model's input; otherwise values are 0 to 1.
    class_token : class token (and distillation and register tokens) in front of the patches.
    position : position table, resized to the grid where it differs.
    size : side of the square image in pixels. None is the notebook's: 512 for models made for 128 px or more; the
        model's own size for smaller ones, whose images have no more pixels to show.
    own_size : feed the images as they are.
    """

    normalise: bool = False
    class_token: bool = False
    position: bool = False
    own_size: bool = False
    size: int | None = None


NOTEBOOK = Path()
REAL = Path(normalise=True, class_token=True, position=True, own_size=True)
#: the notebook's path with one step put right
ONE_STEP = {
    step: replace(NOTEBOOK, **{step: True}) for step in ("normalise", "class_token", "position", "own_size")
}


# ------------------------------------------------------------------------------------------ the path


def unit_values(images: Tensor, model: nn.Module) -> Tensor:
    """Undo the model's normalisation: (B, 3, H, W) as it wants them -> values 0 to 1.

    Raises
    ------
    T2TError : the model does not tell its mean and standard deviation (``pretrained_cfg``), or the images were
        not normalised by them.
    """
    mean, std = _statistics(model, images)
    values = images * std + mean
    low, high = float(values.min()), float(values.max())
    if low < -0.02 or high > 1.02:
        raise T2TError(
            f"without the model's normalisation the images run from {low:.2f} to {high:.2f}, not 0 to 1: they "
            "were normalised otherwise; values='stretch' gives each image its own scale"
        )
    return values.clamp(0, 1)


def _statistics(model: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        raise T2TError(f"{type(model).__name__} does not tell the mean and std of its input (pretrained_cfg)")
    mean, std = (like.new_tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return mean, std


def _notebook_size(model: Any) -> tuple[int, int]:
    size = getattr(capture.layout.tokeniser(model), "img_size", None)
    native = (NOTEBOOK_SIZE, NOTEBOOK_SIZE) if size is None else (int(size[0]), int(size[1]))
    return (NOTEBOOK_SIZE, NOTEBOOK_SIZE) if min(native) >= LARGE else native


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    bigger = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return bigger.clamp(float(images.min()), float(images.max()))  # bicubic overshoots


def chainable(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of the models whose children can be chained by hand, that is for which the notebook's path exists."""
    return {name: model for name, model in models.items() if _plain(model)}


def _plain(model: Any) -> bool:
    """Chained by hand, the children are only the same network where blocks take tokens alone."""
    simple = isinstance(model, T2T_ViT) or isinstance(getattr(model, "patch_embed", None), PatchEmbed)
    return simple and getattr(model, "rope", None) is None and hasattr(model, "blocks")


def _require_plain(model: Any) -> None:
    if not _plain(model):
        raise T2TError(
            f"the children of {type(model).__name__} cannot be chained by hand: it needs a plain patch embedding "
            "(timm's PatchEmbed or a T2T module) and blocks that take tokens and nothing else"
        )


def _patches(model: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens of images of any size (B, N, D), and their grid."""
    if isinstance(model, T2T_ViT):
        module = model.tokens_to_token
        return module(images), module.grids(*images.shape[-2:])[-1]
    embed = model.patch_embed
    x = embed.proj(images)  # its forward refuses sizes other than the model's own
    rows, columns = x.shape[-2:]
    return embed.norm(x.flatten(2).transpose(1, 2)), (rows, columns)


def _prefix(model: Any, batch: int) -> list[Tensor]:
    """Class, distillation and register tokens, (B, 1 or more, D) each, as far as the model has them."""
    tokens = (getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token"))
    return [t.expand(batch, -1, -1) for t in tokens if isinstance(t, Tensor)]


def _positions(model: Any, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Position table of the prefix tokens (1, P', D) and of the patches (1, N, D), resized to ``grid``."""
    table = model.pos_embed
    kept = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    if table.shape[1] != kept + grid[0] * grid[1]:
        old = capture.layout.tokeniser(model).grid_size  # type: ignore[union-attr]
        table = resample_abs_pos_embed(table, list(grid), list(old), num_prefix_tokens=kept)  # type: ignore[arg-type]
    return table[:, :kept], table[:, kept:]


def _before_blocks(model: Any, patches: Tensor, grid: tuple[int, int], path: Path) -> Tensor:
    """Put prefix tokens and positions to the patches, as far as the path keeps them."""
    prefix = _prefix(model, len(patches)) if path.class_token else []
    if path.position and isinstance(getattr(model, "pos_embed", None), Tensor):
        of_prefix, of_patches = _positions(model, grid)
        patches = patches + of_patches
        if prefix and of_prefix.shape[1]:
            prefix = [torch.cat(prefix, dim=1) + of_prefix]
    return torch.cat([*prefix, patches], dim=1)


def shortcut_features(
    model: nn.Module, images: Tensor, path: Path = NOTEBOOK
) -> dict[str, capture.Observation]:
    """Features of ``images`` by the notebook's path, or by any path between it and the real forward pass.

    Parameters
    ----------
    model : a timm ViT or DeiT with absolute positions, or one of our T2T-ViTs, in eval mode.
    images : (B, 3, H, W), values 0 to 1, whatever the model's normalisation; resized here as ``path`` says.
    path : which steps of the real forward pass to keep.

    Returns
    -------
    Observations (value (B, N, D) and layout) of "embed" and of every "blocks.L.resid_post", without graph. With
    `REAL` they are those of the real forward pass.

    Raises
    ------
    T2TError : a model that is more than its children in a row (rotary embeddings, other patch embeddings).

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    >>> seen = shortcut_features(model, torch.rand(2, 3, 32, 32))
    >>> {name: tuple(obs.value.shape) for name, obs in seen.items()}
    {'embed': (2, 4, 192), 'blocks.0.resid_post': (2, 4, 192)}
    """
    net: Any = model
    _require_plain(net)
    if not path.own_size:
        images = _resized(images, _notebook_size(net) if path.size is None else (path.size, path.size))
    if path.normalise:
        mean, std = _statistics(net, images)
        images = (images - mean) / std
    with torch.no_grad():
        return _chain(net, images, path)


def _chain(model: Any, images: Tensor, path: Path) -> dict[str, capture.Observation]:
    patches, grid = _patches(model, images)
    seen = {"embed": capture.Observation("embed", patches, capture.TokenLayout(0, grid))}
    x = _before_blocks(model, patches, grid, path)
    x = getattr(model, "norm_pre", nn.Identity())(model.pos_drop(x))
    layout = capture.TokenLayout(x.shape[1] - patches.shape[1], grid)
    for i, block in enumerate(model.blocks):
        x = block(x)
        name = f"blocks.{i}.resid_post"
        seen[name] = capture.Observation(name, x, layout)
    return seen


def path_maps(
    model: nn.Module, image: Tensor, place: str, path: Path = NOTEBOOK, *, label: str | None = None,
    values: Values | None = None,
) -> ChannelMaps:  # fmt: skip
    """Feature maps of one image at one place by another path than the real one; compare `channel_maps`.

    Parameters
    ----------
    image : (3, H, W), with values 0 to 1 or as ``values`` says.
    values : how an image preprocessed for the model gets back to values 0 to 1, as in `ShortcutShare`: "model" or
        "stretch"; None for one that has them.

    Raises UnknownNameError for a place that is not on the path.
    """
    images = image.unsqueeze(0)
    if values is not None:
        images = stretched(images) if values == "stretch" else unit_values(images, model)
    seen = shortcut_features(model, images, path)
    if place not in seen:
        raise UnknownNameError("place", place, seen, hint="on the notebook's path")
    view = View(model, label)
    words = (view.label, view.weights, f"{place}, {describe(path)}")
    return picture(
        seen[place].value[0], seen[place].layout, stretched(image), words, windows_to(model, place)
    )


def describe(path: Path) -> str:
    """A path in words.

    >>> describe(NOTEBOOK), describe(REAL)
    ('by the notebook path', 'by the real forward pass')
    """
    kept = [step for step in ONE_STEP if getattr(path, step)]
    if not kept:
        return "by the notebook path"
    return (
        "by the real forward pass"
        if len(kept) == len(ONE_STEP)
        else f"by the notebook path with {', '.join(kept)}"
    )


# ------------------------------------------------------------------------------------------ the share


class ShortcutShare(ImageMeans):
    """Which part of the invalid channels in the released notebook's features is made by its path.

    For patch embedding and residual stream, by `InvalidChannels`' definition and on the same images:

    ``zero_area_shortcut`` and ``zero_area_real``: the headline by either path;
    ``zero_area_made_by_shortcut``: shortcut minus real, paired over images, with p (two-sided, t on the jackknife
    standard error) and the real forward pass as null; ``zero_area_share``: that difference as a fraction of what
    the shortcut shows, missing where it shows nothing; and the same for flat, dead, too_large and invalid. Curves
    over the threshold: ``zero_made_by_shortcut``. With ``steps``, ``zero_area_made_with_...`` is what the path
    makes beyond the real pass when that one step (normalise, class_token, position, own_size) is put right.

    ``map_correlation``: are they the same pictures at all? Correlation over positions of the path's map with the real
    one of the same channel and image, mean over channels and images; the null takes the path's map of another image.

    Parameters
    ----------
    values : how images get back to values 0 to 1: "model" undoes its normalisation; "stretch" gives each image
        its own scale, for images that were standardised one by one; "auto" stretches ``photo_crops`` only.
    steps : also put right one step of the path at a time (four more forward passes).
    size : side of the notebook's image; None as in `Path`.
    """

    name: ClassVar[str] = "shortcut_share"
    places = ("embed", "blocks.*.resid_post")
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "permute_channels", "permute_images"})

    def __init__(
        self, *, values: Values = "auto", steps: bool = False, size: int | None = None, groups: int = 32
    ) -> None:
        super().__init__(groups=groups)
        if values not in ("model", "stretch", "auto"):
            raise UnknownNameError("values", values, ("model", "stretch", "auto"))
        self.values = values
        self.paths = {"notebook": replace(NOTEBOOK, size=size)}
        self.paths |= {k: replace(p, size=size) for k, p in ONE_STEP.items()} if steps else {}

    def bind(self, views: Sequence[View]) -> None:
        """Make the states: the real path, then the others."""
        _require_plain(views[0].model)
        self.width = len(AREAS) + len(curve_points()["at"])
        self.add_means(self.wants(views[0]), 1 + len(self.paths), self.width + 1)

    def reduce(self, obs: capture.Observation) -> tuple[Tensor, Tensor]:
        """Areas and curves (B, 5 + T) and maps (B, C, h, w) of one place."""
        assert obs.layout is not None  # the path has tokens only
        patches = obs.value[:, obs.layout.prefix :]
        ratios = channel_ratios(patches)
        numbers = torch.cat([stacked_areas(ratios).mean(-1), stacked_curves(ratios)], dim=-1)
        return numbers, patches.mT.unflatten(2, obs.layout.grid)

    def update(self, batch: MeasureBatch) -> None:
        """Run the images through the other paths, and add up what both show."""
        model = self.views[0].model
        seen = [batch.seen[0]]
        with torch.autocast(batch.images.device.type, enabled=False):
            images = self._unit(batch.images.float(), model)
            for path in self.paths.values():
                features = shortcut_features(model, images, path)
                seen.append({n: self.reduce(features[n]) for n in self.names if _finite(features[n])})
        for i, name in enumerate(self.names):
            if all(name in found for found in seen):
                self.add(i, self.group(batch), _beside([found[name] for found in seen]))

    def _unit(self, images: Tensor, model: nn.Module) -> Tensor:
        data = (self.run.get("data") or {}).get("name")
        stretch = self.values == "stretch" or (self.values == "auto" and data == "photo_crops")
        return stretched(images) if stretch else unit_values(images, model)

    def compute(self) -> Result:
        """Headlines, steps, curves."""
        height, width = _notebook_size(self.views[0].model)
        size = self.paths["notebook"].size
        self.note(f"notebook path at {size or width}x{size or height} px; values 0 to 1: {self.values}")
        found = self.means()  # (L, paths, 5 + T + 1)
        areas, curves = found[..., : len(AREAS)], found[..., len(AREAS) : self.width]
        rows = [*self._both(areas), *self._made(areas), self._share(areas)]
        rows += [self._alike(found[:, :2, -1]), self._curves(curves)]
        return self.result(rows, paths=list(self.paths), values=self.values)

    def _start(self, **columns: Any) -> dict[str, Any]:
        places = np.array(self.names, dtype=object)[:, None]
        return self.row(places, tokens="patch", value_unit="fraction of channels") | columns

    def _both(self, areas: Estimate) -> Iterator[dict[str, Any]]:
        row = self._start(estimator="normalised area under the curve")
        yield row | _areas("shortcut") | {
            "estimate": areas[:, 1], "null": areas[:, 0], "null_kind": "the real forward pass",
        }  # fmt: skip
        yield row | _areas("real") | {
            "estimate": areas[:, 0], "null": 0.0,
            "null_kind": "no invalid channels; see invalid_channels for shuffled values",
        }  # fmt: skip

    def _made(self, areas: Estimate) -> Iterator[dict[str, Any]]:
        for p, step in enumerate(self.paths, start=1):
            made = areas[:, p] - areas[:, 0]
            yield self._start(
                **_areas("made_by_shortcut" if p == 1 else f"made_with_{step}"), estimate=made, p=made, null=0.0,
                null_kind="the real forward pass", estimator="paired difference of normalised areas",
            )  # fmt: skip

    def _share(self, areas: Estimate) -> dict[str, Any]:
        def share(mean: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):
                part = 1 - mean[..., 0, :] / mean[..., 1, :]
            return np.where(np.isfinite(part), part, np.nan)

        return self._start(
            **_areas("share"), estimate=areas.map(share, areas.sizes[:, :, 0]), null=0.0,
            null_kind="the real forward pass shows as many", value_unit="fraction of the shortcut's area",
            estimator="ratio of means: (shortcut - real) / shortcut",
        )  # fmt: skip

    def _alike(self, alike: Estimate) -> dict[str, Any]:
        return self._start(
            quantity="map_correlation", estimate=alike[:, [0]], null=alike[:, [1]], value_unit="none",
            null_kind="map of another image by the notebook's path", estimator="mean over channels and images",
        )  # fmt: skip

    def _curves(self, curves: Estimate) -> dict[str, Any]:
        return self._start(
            **curve_points("_made_by_shortcut"), estimate=curves[:, 1] - curves[:, 0], null=0.0,
            null_kind="the real forward pass", estimator="paired difference, mean over images",
        )  # fmt: skip


def _areas(ending: str) -> dict[str, np.ndarray]:
    return {"quantity": np.array([f"{area}_{ending}" for area in AREAS], dtype=object)}


def _beside(found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Numbers of all paths, (B, paths, 5 + T + 1); last, by path 0 and 1, how alike the maps of both are.

    At 0 for the same image and at 1 for another one of the batch: correlations over positions, mean over channels.
    """
    numbers = torch.stack([values for values, _ in found], dim=1)
    alike = numbers.new_full((*numbers.shape[:2], 1), torch.nan)
    real, path = (maps for _, maps in found[:2])
    if len(real) > 1:
        path = F.adaptive_avg_pool2d(path, (real.shape[-2], real.shape[-1]))
        both = [correlation(real.flatten(2), other.flatten(2)).mean(-1) for other in (path, path.roll(1, 0))]
        alike[:, :2, 0] = torch.stack(both, dim=-1).to(alike)
    return torch.cat([numbers, alike], dim=-1)


def _finite(obs: capture.Observation) -> bool:
    return bool(torch.isfinite(obs.value).all())


def shortcut_share(model: nn.Module, loader: Any, *, progress: bool = True, **parameters: Any) -> Result:
    """`ShortcutShare` of one model; ``parameters`` are those of the measure."""
    from .engine import measure

    return measure(model, loader, ShortcutShare(**parameters), progress=progress)[ShortcutShare.name]
