"""Which pixels does an answer rest on? Attribution maps by two methods of captum, the same for ViT and T2T-ViT.

Integrated gradients and occlusion: of the methods that were tried on the small models (with Grad-CAM, attention
weighted by its gradient and attention rollout) these two beat random orders of the pixels furthest, in deletion and
in insertion. What a map is worth is asked in `attribution_checks`. captum is imported on first use.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._progress import progress as counted
from ..data.loading import ImageLoader, gather_images, told
from ..errors import DataError, T2TError, UnknownNameError
from ..results import as_json
from .token_pixels import split_windows
from .view import evaluating, views_of

Target = Literal["predicted", "label"]
BASELINES = ("mean", "blurred", "zero")


@dataclass(frozen=True)
class Settings:
    """What a map depends on besides model, image and class.

    The default baseline is a blur, not one colour: a soft split normalises every window of pixels, so a path
    that starts at a flat image does all its work next to it. Measured on grey crops, a soft split with random
    weights and 32 steps: completeness error 90 % of the change of the logit from flat grey, 0.1 % from a blur.

    Attributes
    ----------
    steps : points of the path of integrated gradients (Gauss-Legendre).
    baseline : what "not there" means, see `reference_images`.
    batch : most images that go through the model at once, perturbed copies counted.
    squares : most squares that occlusion covers in turn; None: one per token. The square is the smallest multiple
        of a token's cell that keeps to it.

    Raises
    ------
    UnknownNameError : a baseline that is none of these.
    T2TError : a number below 1.
    """

    steps: int = 32
    baseline: str = "blurred"
    batch: int = 64
    squares: int | None = None

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise UnknownNameError("baseline", self.baseline, BASELINES)
        if min(self.steps, self.batch, 1 if self.squares is None else self.squares) < 1:
            raise T2TError(
                f"steps={self.steps}, batch={self.batch} and squares={self.squares} must be at least 1"
            )


class Attribution(NamedTuple):
    """Maps of a batch by one method.

    ``pixels`` (B, H, W); for integrated gradients ``change`` (B,), f(x) - f(baseline), and ``error`` (B,), the sum of
    the map minus that.
    """

    pixels: Tensor
    error: Tensor | None = None
    change: Tensor | None = None


# ------------------------------------------------------------------------------------------ the methods


def reference_images(images: Tensor, baseline: str) -> Tensor:
    """Images (B, C, H, W) without their content: each one's mean colour, a blur of it, or zeros.

    "mean" is the mean over positions of each channel of the image itself; "blurred" a Gaussian of standard
    deviation 1/10 of the shorter side; "zero" the mean colour of the data that the model was normalised by.

    >>> reference_images(torch.tensor([[[[1.0, 3.0]]]]), "mean")
    tensor([[[[2., 2.]]]])
    """
    if baseline == "zero":
        return torch.zeros_like(images)
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images).clone()
    from torchvision.transforms.functional import gaussian_blur

    sigma = min(images.shape[-2:]) / 10
    return gaussian_blur(images, 2 * math.ceil(2 * sigma) + 1, sigma)


def _chosen_logit(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Logit of each image's class: (B,)."""
    logits = model(images)
    if logits.ndim != 2 or logits.shape[1] <= int(target.max()):
        raise T2TError(f"class {int(target.max())} asked of logits of shape {tuple(logits.shape)}")
    return logits.gather(1, target[:, None])[:, 0]


def _integrated_gradients(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Attribution:
    from captum.attr import IntegratedGradients

    reference = reference_images(images, how.baseline)
    values, error = IntegratedGradients(model).attribute(
        images,
        reference,
        target=target,
        n_steps=how.steps,
        internal_batch_size=max(how.batch, len(images)),
        return_convergence_delta=True,
    )
    with torch.no_grad():
        change = _chosen_logit(model, images, target) - _chosen_logit(model, reference, target)
    return Attribution(values.sum(1).detach(), error.detach(), change)


def _square_side(cell: int, size: tuple[int, int], most: int | None) -> int:
    """Side in pixels of the square that occlusion moves over an image of ``size``.

    >>> _square_side(16, (224, 224), None), _square_side(16, (224, 224), 64), _square_side(4, (32, 32), 64)
    (16, 32, 4)
    """
    sides = itertools.count(cell, cell)
    return next(s for s in sides if most is None or math.ceil(size[0] / s) * math.ceil(size[1] / s) <= most)


@torch.no_grad()
def _occlusion(model: nn.Module, images: Tensor, target: Tensor, how: Settings) -> Attribution:
    from captum.attr import Occlusion

    cell = math.prod(window.stride for window in split_windows(model))
    side = _square_side(cell, (images.shape[-2], images.shape[-1]), how.squares)
    window = (images.shape[1], side, side)
    values = Occlusion(model).attribute(
        images,
        window,
        strides=window,
        baselines=reference_images(images, how.baseline),
        target=target,
        perturbations_per_eval=max(1, how.batch // len(images)),
        show_progress=False,
    )
    return Attribution(values.mean(1))


class Method(NamedTuple):
    """How a map is made, and what it is called."""

    make: Callable[[nn.Module, Tensor, Tensor, Settings], Attribution]
    words: str


#: Integrated gradients: Sundararajan, Taly & Yan 2017. Occlusion: Zeiler & Fergus 2014.
METHODS = {
    "integrated_gradients": Method(_integrated_gradients, "integrated gradients"),
    "occlusion": Method(_occlusion, "occlusion"),
}


def attribute(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    method: str = "integrated_gradients",
    settings: Settings | None = None,
) -> Attribution:
    """Attribute the logits of class ``target`` (B,) to ``images`` (B, C, H, W) by one of `METHODS`.

    The model runs in eval mode; its weights, modes, gradients and hooks are afterwards as before.

    Raises
    ------
    UnknownNameError : an unknown method.
    T2TError : a class that the model lacks.

    >>> from t2t_analysis import load_model
    >>> model = load_model("small_performer_deep", "random")
    >>> attribute(model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), "occlusion").pixels.shape
    torch.Size([2, 32, 32])
    """
    _known([method])
    images = images.detach().clone()
    with evaluating(model):
        with torch.no_grad():
            _chosen_logit(model, images[:1], target.amax()[None])  # is there such a class
        return METHODS[method].make(model, images, target, settings or Settings())


def _known(methods: Sequence[str]) -> None:
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("attribution method", method, METHODS)


# ------------------------------------------------------------------------------------------ many images


@dataclass(frozen=True, eq=False)
class Explained:
    """Attribution maps of one model over a set of images, ready to be checked, compared and drawn.

    Attributes
    ----------
    images : (n, C, H, W) as the model saw them; ``target`` (n,), the class attributed.
    clusters : (n,) images of one cluster (crops of one block) are not independent; else each its own.
    frame : share of the picture's shorter side that the model's crop shows.
    maps : method -> (n, H, W), float32. A map that was not finite is all NaN, and a note says so.
    errors : method -> (2, n): completeness error, and the change of the logit it is an error of.
    """

    model: nn.Module
    label: str
    weights: str
    images: Tensor
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
        """Images (n,) whose map ranks something."""
        return ranks_something(self.maps[method])

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the model's tokens on these images."""
        height, width = self.images.shape[-2:]
        for window in split_windows(self.model):
            height, width = window.grid(height, width)
        return height, width


def ranks_something(maps: Tensor) -> np.ndarray:
    """Which maps (n, H, W) are finite and not constant, (n,)."""
    values = maps.flatten(1)
    return (values.isfinite().all(1) & (values.amax(1) > values.amin(1))).numpy()


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
        passes: ``steps`` per image for integrated gradients, ``squares`` for occlusion.

    Raises
    ------
    UnknownNameError : an unknown method or target.
    DataError : no images, or target="label" where an image has none.
    """
    _known(methods)
    if target not in ("predicted", "label"):
        raise UnknownNameError("target", target, ("predicted", "label"))
    how, found = settings or Settings(), []
    for view in views_of(models):
        model = view.model
        images, labels, clusters = gather_images(model, loader, n_images)
        if target == "label" and bool((labels < 0).any()):
            raise DataError(
                "target='label', but there are images without a label; target='predicted' needs none"
            )
        meta = {
            "models": [view.describe()], "settings": as_json(how), "target": target,
            "data": as_json(told(loader)),
        }  # fmt: skip
        classes = labels if target == "label" else _predicted(model, images, how)
        config = loader.config_of(model) if isinstance(loader, ImageLoader) else {}
        one = Explained(model, view.label, view.weights, images, classes, clusters, {}, {}, how, target, meta)
        found.append(_with_maps(one, methods, view.notes, config.get("crop_pct", 1.0), progress))
    return found


def _with_maps(
    one: Explained, methods: Sequence[str], notes: list[str], frame: float, progress: bool
) -> Explained:
    chunks = torch.arange(len(one.images)).split(min(one.settings.batch, 16))
    work = [(method, chunk) for method in methods for chunk in chunks]
    parts: dict[str, list[Attribution]] = {method: [] for method in methods}
    for method, chunk in counted(work, f"attributing {one.label}", shown=progress):
        parts[method].append(maps_of(one.model, one.images[chunk], one.target[chunk], method, one.settings))
    maps = {method: torch.cat([p.pixels for p in found]) for method, found in parts.items()}
    errors = {
        method: torch.cat([torch.stack([p.error, p.change]).double() for p in found], dim=1)  # type: ignore[list-item]
        for method, found in parts.items()
        if found[0].error is not None
    }
    return replace(
        one, maps=maps, errors=errors, frame=frame, notes=(*_blank_nonfinite(one.label, maps), *notes)
    )


def maps_of(model: nn.Module, images: Tensor, target: Tensor, method: str, settings: Settings) -> Attribution:
    """`attribute` where the model is; what it gives in float32 on the CPU."""
    device = next(model.parameters()).device
    found = attribute(model, images.to(device), target.to(device), method, settings)
    return Attribution(*(None if part is None else part.float().cpu() for part in found))  # type: ignore[arg-type]


def _predicted(model: nn.Module, images: Tensor, how: Settings) -> Tensor:
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        return torch.cat([model(chunk.to(device)).argmax(1).cpu() for chunk in images.split(how.batch)])


def _blank_nonfinite(label: str, maps: dict[str, Tensor]) -> Iterator[str]:
    """Make maps with a non-finite value all NaN, and say how many."""
    for method, values in maps.items():
        bad = ~values.isfinite().flatten(1).all(1)
        if count := int(bad.sum()):
            values[bad] = math.nan
            yield f"{label}: {METHODS[method].words} not finite for {count} of {len(values)} images, left out"
