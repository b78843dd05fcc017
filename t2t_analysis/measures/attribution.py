"""Which pixels and which tokens does an answer rest on? Attribution maps by captum, the same for ViT and T2T-ViT.

Pixels are attributed directly or through tokens; tokens are laid back on pixels by the splits that made them
(`token_pixels`). What a map is worth is asked in `attribution_checks`. captum is imported on first use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import capture
from ..capture.layout import Grids
from ..errors import DataError, T2TError, UnknownNameError
from .base import View
from .rollout import reader_row, rollout_maps
from .token_pixels import split_windows, tokens_to_pixels
from .view import as_json

__all__ = [
    "METHODS",
    "Attribution",
    "Explained",
    "Settings",
    "attribute",
    "explain",
    "grid_tap",
    "reference_images",
]

Target = Literal["predicted", "label"]
BASELINES = ("mean", "blurred", "zero")


@dataclass(frozen=True)
class Settings:
    """What a map depends on besides model, image and class.

    The default baseline is a blur, not one colour: a soft split normalises every window of pixels, so a path
    that starts at a flat image does all its work next to it. Measured on a soft split with random weights, 32
    steps: completeness error 90 % of the change of the logit from the mean colour, 0.1 % from a blur.

    Attributes
    ----------
    steps : points of the path of integrated gradients (Gauss-Legendre).
    baseline : what "not there" means, see `reference_images`.
    place : block output that Grad-CAM reads; None: the last whose patch tokens reach the logits.
    batch : most images that go through the model at once, perturbed copies counted.
    """

    steps: int = 32
    baseline: str = "blurred"
    place: str | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise UnknownNameError("baseline", self.baseline, BASELINES)
        if self.steps < 1 or self.batch < 1:
            raise T2TError(f"steps={self.steps} and batch={self.batch} must be at least 1")


class Attribution(NamedTuple):
    """Maps of a batch by one method.

    ``pixels`` (B, H, W); ``tokens`` (B, h, w), or None where pixels were attributed directly; ``error`` and
    ``change`` (B,) for integrated gradients: sum of the map minus f(x) - f(baseline), and that difference.
    """

    pixels: Tensor
    tokens: Tensor | None = None
    error: Tensor | None = None
    change: Tensor | None = None


class Raw(NamedTuple):
    """What a method gives: (B, H, W) or, by tokens, (B, h, w); the completeness error (B,) if it has one."""

    values: Tensor
    error: Tensor | None = None


# ------------------------------------------------------------------------------------------ preparations


def reference_images(images: Tensor, baseline: str) -> Tensor:
    """Images (B, C, H, W) without their content: each one's mean colour, a blur of it, or zeros.

    "mean" is the mean over positions of each channel of the image itself; "blurred" a Gaussian of standard
    deviation 1/10 of the shorter side; "zero" the mean colour of the data that the model was normalised by.

    >>> reference_images(torch.tensor([[[[1.0, 3.0]]]]), "mean")
    tensor([[[[2., 2.]]]])
    """
    if baseline not in BASELINES:
        raise UnknownNameError("baseline", baseline, BASELINES)
    if baseline == "zero":
        return torch.zeros_like(images)
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images).clone()
    from torchvision.transforms.functional import gaussian_blur

    sigma = min(images.shape[-2:]) / 10
    return gaussian_blur(images, 2 * math.ceil(2 * sigma) + 1, sigma)


@contextmanager
def grid_tap(model: nn.Module, place: str) -> Iterator[nn.Identity]:
    """Pass the patch tokens of ``place`` ("embed" or a block's output) through a module as (B, D, h, w).

    The module does nothing; it is there for captum to hook, which expects channels second and positions
    after them. Prefix tokens go past it. The model computes the same numbers.

    Raises UnknownNameError for a place that the model lacks, or that is not what a module puts out.
    """
    view = capture.view(model)
    outputs = [name for name in view.names if name == "embed" or name.endswith(".resid_post")]
    if place not in outputs:
        raise UnknownNameError("place to attribute tokens at", place, outputs)
    found: Any = view.places.found[place]
    tap, grids = nn.Identity(), Grids(model)

    def route(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        layout = grids.checked(place, found.tokens, output)
        image = output[:, layout.prefix :].transpose(1, 2).unflatten(2, layout.grid)  # (B, D, h, w)
        patches = tap(image).flatten(2).transpose(1, 2)
        return torch.cat([output[:, : layout.prefix], patches], dim=1)

    handles = [*grids.attach(), found.source.module.register_forward_hook(route)]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, with gradients; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def reads_class_token(model: nn.Module) -> bool:
    """Whether the logits are made from the class token alone."""
    return getattr(model, "global_pool", "token") == "token" and getattr(model, "num_prefix_tokens", 0) > 0


def grad_cam_place(model: nn.Module) -> str:
    """Last block output whose patch tokens reach the logits: the last but one where a class token is read.

    >>> import timm
    >>> grad_cam_place(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3))
    'blocks.1.resid_post'
    """
    outputs = capture.view(model).select("blocks.*.resid_post")
    if not reads_class_token(model):
        return outputs[-1]
    return outputs[-2] if len(outputs) > 1 else "embed"


def chosen_logit(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Logit of each image's class: (B,)."""
    logits = model(images)
    if logits.ndim != 2 or logits.shape[1] <= int(target.max()):
        raise T2TError(f"class {int(target.max())} asked of logits of shape {tuple(logits.shape)}")
    return logits.gather(1, target[:, None])[:, 0]


# ------------------------------------------------------------------------------------------ methods


def _integrated_gradients(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    from captum.attr import IntegratedGradients

    values, error = IntegratedGradients(model).attribute(
        images,
        reference_images(images.detach(), how.baseline),
        target=target,
        n_steps=how.steps,
        internal_batch_size=max(how.batch, len(images)),
        return_convergence_delta=True,
    )
    return Raw(values.sum(1), error)


def _token_integrated_gradients(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    from captum.attr import LayerIntegratedGradients

    with grid_tap(model, "embed") as tap:
        values, error = LayerIntegratedGradients(model, tap).attribute(
            images,
            reference_images(images.detach(), how.baseline),
            target=target,
            n_steps=how.steps,
            internal_batch_size=max(how.batch, len(images)),
            return_convergence_delta=True,
        )
    return Raw(values.sum(1), error)


def _cell(model: nn.Module) -> int:
    """Side of the cell of one token in pixels: the product of the strides."""
    return math.prod(window.stride for window in split_windows(model))


def _occlusion(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    from captum.attr import Occlusion

    window = (images.shape[1], _cell(model), _cell(model))
    with torch.no_grad():
        values = Occlusion(model).attribute(
            images,
            window,
            strides=window,
            baselines=reference_images(images.detach(), how.baseline),
            target=target,
            perturbations_per_eval=max(1, how.batch // len(images)),
            show_progress=False,
        )
    return Raw(values.mean(1))


def _token_occlusion(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    """One token at a time becomes the mean token of its image."""
    from captum.attr import LayerFeatureAblation

    with torch.no_grad(), grid_tap(model, "embed") as tap:
        seen: list[Tensor] = []
        handle = tap.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            model(images)
        finally:
            handle.remove()
        height, width = seen[0].shape[-2:]
        # captum repeats the images for several perturbations at once, but in a layer not the classes
        values = LayerFeatureAblation(
            lambda x: chosen_logit(model, x, target.repeat(len(x) // len(target))), tap
        ).attribute(
            images,
            layer_baselines=seen[0].mean((2, 3), keepdim=True).expand_as(seen[0]).contiguous(),
            layer_mask=torch.arange(height * width, device=images.device).view(1, 1, height, width),
            perturbations_per_eval=max(1, how.batch // len(images)),
        )
    return Raw(values[:, 0])  # the same for every channel of a token


def _grad_cam(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    from captum.attr import LayerGradCam

    place = how.place or grad_cam_place(model)
    with grid_tap(model, place) as tap:
        values = LayerGradCam(model, tap).attribute(images, target=target, relu_attributions=True)
    return Raw(values[:, 0])


def _rollout(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    return Raw(rollout_maps(model, images))


def _attention_gradient(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Raw:
    view = capture.view(model)
    layers = [f"blocks.{layer}.attn" for layer in view.blocks]
    names = [f"{layer}.{part}" for layer in layers for part in ("z", "v", "pattern")]
    with capture.capture(view, names, graph=True) as seen:
        score = chosen_logit(model, images, target).sum()
    gradients = torch.autograd.grad(score, [seen[f"{layer}.z"] for layer in layers])
    rolled: Tensor | None = None
    for layer, gradient in zip(layers, gradients, strict=True):
        relevant = gradient_weighted(seen[f"{layer}.pattern"].detach(), gradient, seen[f"{layer}.v"].detach())
        eye = torch.eye(relevant.shape[-1], device=relevant.device, dtype=relevant.dtype)
        rolled = eye + relevant if rolled is None else rolled + relevant @ rolled
    layout = seen.layout(f"{layers[-1]}.pattern")
    assert rolled is not None
    assert layout is not None
    row = reader_row(rolled, layout.prefix, reads_class_token(model))
    return Raw(row.unflatten(-1, layout.grid))


def gradient_weighted(pattern: Tensor, gradient: Tensor, v: Tensor) -> Tensor:
    """Mean over heads of (A * df/dA)^+ : patterns (B, H, N, N), df/dz and v (B, H, N, d) -> (B, N, N).

    df/dA = (df/dz) v' since z = A v, so fused attention may stay on.
    """
    return (pattern * (gradient @ v.mT)).clamp_min(0).mean(1)


class Method(NamedTuple):
    """How a map is made, whether it is one of tokens, and whether its sign means something."""

    make: Callable[[nn.Module, Tensor, Tensor, Settings], Raw]
    by_token: bool
    signed: bool
    words: str


#: Integrated gradients: Sundararajan, Taly & Yan 2017. Occlusion: Zeiler & Fergus 2014. Grad-CAM: Selvaraju et
#: al. 2017. Rollout: Abnar & Zuidema 2020. Gradient-weighted attention: Chefer, Gur & Wolf 2021.
METHODS: dict[str, Method] = {
    "integrated_gradients": Method(_integrated_gradients, False, True, "integrated gradients of pixels"),
    "token_integrated_gradients": Method(
        _token_integrated_gradients, True, True, "integrated gradients of tokens"
    ),
    "occlusion": Method(_occlusion, False, True, "occlusion of pixel cells"),
    "token_occlusion": Method(_token_occlusion, True, True, "occlusion of tokens"),
    "grad_cam": Method(_grad_cam, True, False, "Grad-CAM"),
    "attention_gradient": Method(_attention_gradient, True, False, "gradient-weighted attention"),
    "rollout": Method(_rollout, True, False, "attention rollout"),
}


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
            score = chosen_logit(model, images, target)
            change = score - chosen_logit(model, reference_images(images, how.baseline), target)
        raw = METHODS[method].make(model, images.requires_grad_(), target, how)
    values = raw.values.detach()
    if not METHODS[method].by_token:
        return Attribution(values, None, raw.error, None if raw.error is None else change)
    pixels = tokens_to_pixels(model, values, (images.shape[-2], images.shape[-1]))
    return Attribution(pixels, values, raw.error, None if raw.error is None else change)


# ------------------------------------------------------------------------------------------ many images


@dataclass(frozen=True, eq=False)
class Explained:
    """Attribution maps of one model over a set of images, ready to be checked, compared and drawn.

    Attributes
    ----------
    images : (n, C, H, W) as the model saw them; ``labels``, ``target`` (n,), the class attributed.
    clusters : (n,) images of one cluster (crops of one block) are not independent; else each its own.
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
    named = _named(models)
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("attribution method", method, METHODS)
    if target not in ("predicted", "label"):
        raise UnknownNameError("target", target, ("predicted", "label"))
    images, labels, clusters = gather_images(loader, n_images)
    if target == "label" and bool((labels < 0).any()):
        raise DataError("target='label', but there are images without a label; target='predicted' needs none")
    meta = {"data": as_json(getattr(loader.dataset, "info", None))} if hasattr(loader, "dataset") else {}
    how = settings or Settings()
    return [
        _explain_one(View(model, label), images, labels, clusters, methods, target, how, meta, progress)
        for label, model in named.items()
    ]


def _named(models: Any) -> dict[str, nn.Module]:
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
