"""How many of the "zero channels" come from the path that the released notebook takes instead of the forward pass.

The authors' notebook for ViT features resizes an image to 512 px, scales it to values 0 to 1 and chains the children
of the model by hand: patch embedding, dropout, block after block. Parameters are no children, so there is no class
token and no position table; and the image is not normalised by the mean and standard deviation that the weights
were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from .. import capture
from ..errors import T2TError, UnknownNameError
from ..models.t2t import T2T_ViT
from ..results import Result
from .base import ImageMeans, MeasureBatch, View
from .channels import AREAS, stacked_areas
from .feature_maps import ChannelMaps, channel_ratios, correlation, picture, stretched
from .token_pixels import windows_to

#: side of the image in the released notebook, and from which native size on a model is fed with it
NOTEBOOK_SIZE, LARGE = 512, 128
Values = Literal["model", "stretch", "auto"]


# ------------------------------------------------------------------------------------------ the path


def unit_values(images: Tensor, model: nn.Module) -> Tensor:
    """Undo the model's normalisation: (B, 3, H, W) as it wants them -> values 0 to 1.

    Raises
    ------
    T2TError : the model does not tell its mean and standard deviation (``pretrained_cfg``), or the images were
        not normalised by them.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        raise T2TError(f"{type(model).__name__} does not tell the mean and std of its input (pretrained_cfg)")
    mean, std = (images.new_tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    values = images * std + mean
    low, high = float(values.min()), float(values.max())
    if low < -0.02 or high > 1.02:
        raise T2TError(
            f"without the model's normalisation the images run from {low:.2f} to {high:.2f}, not 0 to 1: they "
            "were normalised otherwise; values='stretch' gives each image its own scale"
        )
    return values.clamp(0, 1)


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    bigger = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return bigger.clamp(float(images.min()), float(images.max()))  # bicubic overshoots


def chainable(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of ``models`` (label -> model) that the released notebook could be run with."""
    return {name: model for name, model in models.items() if _plain(model) and _native(model) >= LARGE}


def _native(model: nn.Module) -> int:
    """Shorter side of the images that a model was made for; the notebook's own where it takes any."""
    size = getattr(capture.layout.tokeniser(model), "img_size", None)
    return NOTEBOOK_SIZE if size is None else int(min(size))


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


@torch.no_grad()
def shortcut_features(
    model: nn.Module, images: Tensor, size: int = NOTEBOOK_SIZE
) -> dict[str, capture.Observation]:
    """Features of ``images`` by the released notebook's path.

    Parameters
    ----------
    model : a timm ViT or DeiT with absolute positions, or one of our T2T-ViTs, in eval mode.
    images : (B, 3, H, W), values 0 to 1, whatever the model's normalisation.
    size : side in pixels of the square that they are resized to.

    Returns
    -------
    Observations (value (B, N, D) and layout) of "embed" and of every "blocks.L.resid_post", without graph.

    Raises
    ------
    T2TError : a model that is more than its children in a row (rotary embeddings, other patch embeddings).

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    >>> seen = shortcut_features(model, torch.rand(2, 3, 32, 32), size=32)
    >>> {name: tuple(obs.value.shape) for name, obs in seen.items()}
    {'embed': (2, 4, 192), 'blocks.0.resid_post': (2, 4, 192)}
    """
    net: Any = model
    _require_plain(net)
    x, grid = _patches(net, _resized(images, size))
    layout = capture.TokenLayout(0, grid)
    seen = {"embed": capture.Observation("embed", x, layout)}
    x = getattr(net, "norm_pre", nn.Identity())(net.pos_drop(x))
    for i, block in enumerate(net.blocks):
        x = block(x)
        name = f"blocks.{i}.resid_post"
        seen[name] = capture.Observation(name, x, layout)
    return seen


def path_maps(
    model: nn.Module, image: Tensor, place: str, *, label: str | None = None, values: Values | None = None,
    size: int = NOTEBOOK_SIZE,
) -> ChannelMaps:  # fmt: skip
    """Feature maps of one image at one place by the notebook's path; compare `channel_maps`.

    Parameters
    ----------
    image : (3, H, W), with values 0 to 1 or as ``values`` says.
    values : how an image preprocessed for the model gets back to values 0 to 1, as in `ShortcutShare`: "model" or
        "stretch"; None for one that has them.
    size : as in `shortcut_features`.

    Raises
    ------
    UnknownNameError : a place that is not on the path.
    """
    images = image.unsqueeze(0)
    if values is not None:
        images = stretched(images) if values == "stretch" else unit_values(images, model)
    seen = shortcut_features(model, images, size)
    if place not in seen:
        raise UnknownNameError("place", place, seen, hint="on the notebook's path")
    view = View(model, label)
    words = (view.label, view.weights, f"{place}, by the notebook path")
    return picture(
        seen[place].value[0], seen[place].layout, stretched(image), words, windows_to(model, place)
    )


# ------------------------------------------------------------------------------------------ the share


class ShortcutShare(ImageMeans):
    """Which part of the invalid channels in the released notebook's features is made by its path.

    For patch embedding and residual stream, by `InvalidChannels`' definition and on the same images:

    ``zero_area_shortcut`` and ``zero_area_real``: the area by either path; ``zero_area_made_by_shortcut``: shortcut
    minus real, paired over images, with p (two-sided, t on the jackknife standard error) and the real forward pass as
    null; and the same for flat, dead, too_large and invalid.

    ``map_correlation``: are they the same pictures at all? Correlation over positions of the path's map with the real
    one of the same channel and image, mean over channels and images; the null takes the path's map of another image.

    Parameters
    ----------
    values : how images get back to values 0 to 1: "model" undoes its normalisation; "stretch" gives each image
        its own scale, for images that were standardised one by one; "auto" stretches ``photo_crops`` only.
    size : side in pixels that the images are resized to, the notebook's by default.
    """

    name: ClassVar[str] = "shortcut_share"
    places = ("embed", "blocks.*.resid_post")
    invariances: ClassVar[frozenset[str]] = frozenset({"scale", "permute_channels", "permute_images"})

    def __init__(self, *, values: Values = "auto", size: int = NOTEBOOK_SIZE, groups: int = 32) -> None:
        super().__init__(groups=groups)
        if values not in ("model", "stretch", "auto"):
            raise UnknownNameError("values", values, ("model", "stretch", "auto"))
        self.values, self.size = values, size

    def bind(self, views: Sequence[View]) -> None:
        """Areas and likeness by the real pass and by the path."""
        _require_plain(views[0].model)
        self.add_means(views[0].select(self.places), 2, len(AREAS) + 1)

    def reduce(self, obs: capture.Observation) -> tuple[Tensor, Tensor]:
        """Areas (B, 5) and maps (B, C, h, w) of one place."""
        return stacked_areas(channel_ratios(obs.patches)).mean(-1), obs.maps

    def update(self, batch: MeasureBatch) -> None:
        """Run the images through the path too, and add up what both show."""
        model, real = self.views[0].model, batch.seen[0]
        with torch.autocast(batch.images.device.type, enabled=False):
            path = shortcut_features(model, self._unit(batch.images.float(), model), self.size)
        for i, name in enumerate(self.names):
            if name in real and bool(torch.isfinite(path[name].value).all()):
                self.add(i, self.group(batch), _beside(real[name], self.reduce(path[name])))

    def _unit(self, images: Tensor, model: nn.Module) -> Tensor:
        data = (self.run.get("data") or {}).get("name")
        stretch = self.values == "stretch" or (self.values == "auto" and data == "photo_crops")
        return stretched(images) if stretch else unit_values(images, model)

    def compute(self) -> Result:
        """Areas by both, their difference, and how alike the maps are."""
        self.note(f"notebook path at {self.size}x{self.size} px; values 0 to 1: {self.values}")
        found = self.means()  # (L, real and path, 5 + 1)
        areas, alike = found[..., :-1], found[..., -1]
        places = np.array(self.names, dtype=object)[:, None]
        row = self.row(places, tokens="patch", value_unit="fraction of channels", null=0.0)
        made = areas[:, 1] - areas[:, 0]
        by_path = {"null": areas[:, 0], "null_kind": "the real forward pass"}
        invalid = {"null_kind": "no invalid channels; see invalid_channels for shuffled values"}
        rows = [
            row | _areas("shortcut") | {"estimate": areas[:, 1], "estimator": _AREA} | by_path,
            row | _areas("real") | {"estimate": areas[:, 0], "estimator": _AREA} | invalid,
            row | _areas("made_by_shortcut") | {
                "estimate": made, "p": made, "null_kind": "the real forward pass",
                "estimator": "paired difference of normalised areas",
            },
            row | {
                "quantity": "map_correlation", "estimate": alike[:, [0]], "null": alike[:, [1]], "value_unit": "none",
                "null_kind": "map of another image by the notebook's path",
                "estimator": "mean over channels and images",
            },
        ]  # fmt: skip
        return self.result(rows, values=self.values)


_AREA = "normalised area under the curve"


def _areas(ending: str) -> dict[str, np.ndarray]:
    return {"quantity": np.array([f"{area}_{ending}" for area in AREAS], dtype=object)}


def _beside(real: tuple[Tensor, Tensor], path: tuple[Tensor, Tensor]) -> Tensor:
    """Areas of both, (B, 2, 5 + 1); last, how alike the maps of both are: of the same image, then of another one.

    Correlations over positions, mean over channels; missing where the batch has no other image.
    """
    areas = torch.stack([real[0], path[0]], dim=1)
    alike = areas.new_full((len(areas), 2, 1), torch.nan)
    if len(areas) > 1:
        maps = F.adaptive_avg_pool2d(path[1], (real[1].shape[-2], real[1].shape[-1]))
        both = [correlation(real[1].flatten(2), x.flatten(2)).mean(-1) for x in (maps, maps.roll(1, 0))]
        alike[..., 0] = torch.stack(both, dim=-1).to(alike)
    return torch.cat([areas, alike], dim=-1)
