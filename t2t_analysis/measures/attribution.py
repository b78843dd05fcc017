"""Which pixels and which tokens does an answer rest on? Attribution maps by captum, the same for ViT and T2T-ViT.

Pixels are attributed directly or through tokens; tokens are laid back on pixels by the splits that made them
(`token_pixels`). What a map is worth is asked in `attribution_checks`. captum is imported on first use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import ImageLoader, as_seen_by
from ..errors import DataError, T2TError, UnknownNameError
from .attribution_methods import METHODS, Settings, chosen_logit, evaluating, reference_images
from .base import View
from .token_pixels import split_windows, tokens_to_pixels
from .view import as_json

__all__ = ["METHODS", "Attribution", "Explained", "Settings", "attribute", "explain"]

Target = Literal["predicted", "label"]


class Attribution(NamedTuple):
    """Maps of a batch by one method.

    ``pixels`` (B, H, W), from tokens by `tokens_to_pixels` with ``even`` shares; ``tokens`` (B, h, w), or None
    where pixels were attributed directly; ``error`` and
    ``change`` (B,) for integrated gradients: sum of the map minus f(x) - f(baseline), and that difference.
    """

    pixels: Tensor
    tokens: Tensor | None = None
    error: Tensor | None = None
    change: Tensor | None = None


def attribute(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    method: str = "integrated_gradients",
    settings: Settings | None = None,
) -> Attribution:
    """Attribute the logits of class ``target`` (B,) to ``images`` (B, C, H, W) by one of `METHODS`.

    The model runs in eval mode; its weights, modes, gradients and hooks are afterwards as before. Grad-CAM
    and the two attention maps are not signed; rollout does not look at the class.

    Raises UnknownNameError for an unknown method and T2TError for a class that the model lacks.

    >>> from t2t_analysis import load_model
    >>> model = load_model("small_performer_deep", "random")
    >>> found = attribute(model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), "grad_cam")
    >>> found.tokens.shape, found.pixels.shape
    (torch.Size([2, 8, 8]), torch.Size([2, 32, 32]))
    """
    if method not in METHODS:
        raise UnknownNameError("attribution method", method, METHODS)
    how = settings or Settings()
    images = images.detach().clone()
    with evaluating(model):
        with torch.no_grad():
            chosen_logit(model, images[:1], target.amax()[None])  # is there such a class
        raw = METHODS[method].make(model, images.requires_grad_(), target, how)
        change = None if raw.error is None else _change(model, images.detach(), target, how)
    values = raw.values.detach()
    if not METHODS[method].by_token:
        return Attribution(values, None, raw.error, change)
    pixels = tokens_to_pixels(model, values, (images.shape[-2], images.shape[-1]), even=True)
    return Attribution(pixels, values, raw.error, change)


@torch.no_grad()
def _change(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Tensor:
    """f(x) - f(baseline), (B,), which a map along a path should add up to."""
    reference = reference_images(images, how.baseline)
    return chosen_logit(model, images, target) - chosen_logit(model, reference, target)


# ------------------------------------------------------------------------------------------ many images


@dataclass(frozen=True, eq=False)
class Explained:
    """Attribution maps of one model over a set of images, ready to be checked, compared and drawn.

    Attributes
    ----------
    images : (n, C, H, W) as the model saw them; ``labels``, ``target`` (n,), the class attributed.
    clusters : (n,) images of one cluster (crops of one block) are not independent; else each its own.
    frame : share of the picture's shorter side that the model's crop shows.
    maps : method -> (n, H, W), float32. A map that was not finite is all NaN, and a note says so.
    errors : method -> (2, n): completeness error, and the change of the logit it is an error of.
    """

    model: nn.Module
    label: str
    weights: str
    images: Tensor
    labels: Tensor
    target: Tensor
    clusters: np.ndarray
    maps: dict[str, Tensor]
    errors: dict[str, Tensor]
    settings: Settings
    target_kind: str
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frame: float = 1.0

    def usable(self, method: str) -> np.ndarray:
        """Images (n,) whose map is finite and says something: a constant map ranks nothing."""
        values = self.maps[method].flatten(1)
        return (values.isfinite().all(1) & (values.amax(1) > values.amin(1))).numpy()

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the model's tokens on these images."""
        height, width = self.images.shape[-2:]
        for window in split_windows(self.model):
            height, width = window.grid(height, width)
        return height, width


def explain(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    loader: Any,
    methods: Sequence[str] = tuple(METHODS),
    *,
    n_images: int | None = 32,
    target: Target = "predicted",
    settings: Settings | None = None,
    progress: bool = True,
) -> list[Explained]:
    """Make maps of the first ``n_images`` of ``loader`` by ``methods``, for one model or several.

    Parameters
    ----------
    target : the class whose logit is attributed: the model's own first choice, or the label.
    n_images : None takes all. Pixels times images times methods are kept; costs are forward and backward
        passes: ``steps`` per image for integrated gradients, one per token for occlusion.

    Raises DataError without images, or with target="label" where an image has none.
    """
    named = named_models(models)
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("attribution method", method, METHODS)
    if target not in ("predicted", "label"):
        raise UnknownNameError("target", target, ("predicted", "label"))
    meta = {"data": as_json(getattr(loader.dataset, "info", None))} if hasattr(loader, "dataset") else {}
    how = settings or Settings()
    found = []
    for label, model in named.items():
        images, labels, clusters = gather_images(as_seen_by(loader, model), n_images)
        if target == "label" and bool((labels < 0).any()):
            raise DataError(
                "target='label', but there are images without a label; target='predicted' needs none"
            )
        one = _explain_one(View(model, label), images, labels, clusters, methods, target, how, meta, progress)
        config = loader.config_of(model) if isinstance(loader, ImageLoader) else {}
        found.append(replace(one, frame=config.get("crop_pct", 1.0)))
    return found


def named_models(models: Any) -> dict[str, nn.Module]:
    """Label -> model, of one model, several, or such a mapping; two of one name are refused."""
    if isinstance(models, Mapping):
        return dict(models)
    models = [models] if isinstance(models, nn.Module) else list(models)
    labels = [capture.view(model).label for model in models]
    if len(set(labels)) < len(labels):
        raise T2TError(f"two models have the same name {labels}; pass them as {{label: model}}")
    return dict(zip(labels, models, strict=True))


def gather_images(loader: Any, n_images: int | None) -> tuple[Tensor, Tensor, np.ndarray]:
    """The first ``n_images``: images (n, C, H, W), labels (n,), clusters (n,)."""
    images, labels, index = [], [], []
    count = 0
    for batch in loader:
        images.append(batch.images.cpu())
        labels.append(torch.as_tensor(batch.labels).cpu())
        index.append(torch.as_tensor(batch.index).cpu())
        count += len(batch.images)
        if n_images is not None and count >= n_images:
            break
    if count == 0 or (n_images is not None and (n_images < 1 or count < n_images)):
        raise DataError(f"n_images={n_images}: the loader gave {count} images")
    where = torch.cat(index)[:n_images].numpy()
    clusters = getattr(loader.dataset, "clusters", None)
    clusters = where if clusters is None else np.asarray(clusters)[where]
    return torch.cat(images)[:n_images], torch.cat(labels)[:n_images], clusters


def _explain_one(
    view: View,
    images: Tensor,
    labels: Tensor,
    clusters: np.ndarray,
    methods: Sequence[str],
    kind: str,
    how: Settings,
    meta: dict[str, Any],
    progress: bool,
) -> Explained:
    classes = _targets(view.model, images, how) if kind == "predicted" else labels
    chunks = list(torch.arange(len(images)).split(min(how.batch, 16)))
    parts: dict[str, list[Attribution]] = {method: [] for method in methods}
    work: Any = [(method, chunk) for method in methods for chunk in chunks]
    if progress:
        from .._progress import progress as shown

        work = shown(work, f"attributing {view.label}", total=len(work), unit="batch")
    device = _device(view.model)
    for method, chunk in work:
        found = attribute(view.model, images[chunk].to(device), classes[chunk].to(device), method, how)
        parts[method].append(found)
    maps = {method: torch.cat([p.pixels.float().cpu() for p in found]) for method, found in parts.items()}
    described = {**meta, "models": [view.describe()], "settings": as_json(how), "target": kind}
    notes = [*_blank_nonfinite(view.label, maps), *_untrained(view)]
    return Explained(
        view.model, view.label, view.weights, images, labels, classes, clusters, maps,
        {method: _errors(found) for method, found in parts.items() if found[0].error is not None},
        how, kind, described, tuple(notes),
    )  # fmt: skip


def _errors(parts: list[Attribution]) -> Tensor:
    """Completeness error and change of the logit, (2, n)."""
    both = [
        torch.stack([p.error.double(), p.change.double()])
        for p in parts
        if p.error is not None and p.change is not None
    ]
    return torch.cat(both, dim=1).detach().cpu()


def _targets(model: nn.Module, images: Tensor, how: Settings) -> Tensor:
    with evaluating(model), torch.no_grad():
        parts = [model(chunk.to(_device(model))).argmax(1).cpu() for chunk in images.split(how.batch)]
    return torch.cat(parts)


def _blank_nonfinite(label: str, maps: dict[str, Tensor]) -> Iterator[str]:
    """Make maps with a non-finite value all NaN, and say how many."""
    for method, values in maps.items():
        bad = ~values.isfinite().flatten(1).all(1)
        if count := int(bad.sum()):
            values[bad] = math.nan
            yield f"{label}: {METHODS[method].words} not finite for {count} of {len(values)} images, left out"


def _untrained(view: View) -> Iterator[str]:
    if view.untrained:
        yield f"{view.label}: UNTRAINED weights ({view.weights})"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
