"""What does a classifier need of an image? Its output when detail, form or place is taken away, by degrees."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._progress import progress as counted
from ..data.loading import batches_for, must_tell, told
from ..errors import DataError, T2TError, UnknownNameError
from ..estimates import Estimate
from ..results import Result, as_json
from .ablation_measure import kl_divergence
from .base import View
from .probes import accuracy_columns
from .view import evaluating, result_of, views_of

#: kind of distortion -> what its strength is, strengths; 0 is the image itself
DISTORTIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "low-pass": ("width of the blur, patches", (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)),
    "high-pass": ("patches per width of the blur taken off", (0, 1 / 4, 1 / 2, 1, 2, 4)),
    "edges": ("share of the edge drawing in the image", (0, 1 / 4, 1 / 2, 3 / 4, 1)),
    "shuffle": ("side of the cells shuffled inside, patches", (0, 1 / 4, 1 / 2, 1)),
    "shift": ("shift down and right, patches", (0, 1 / 4, 1 / 2, 3 / 4, 1)),
}


def distorted(images: Tensor, kind: str, strength: float, patch: int, seed: int = 0) -> Tensor:
    """Images (B, C, H, W) with one kind of `DISTORTIONS`, at a strength; at 0 the very same.

    "low-pass": Gaussian blur, its standard deviation in patches. "high-pass": a blur taken off, the image's mean kept.
    "edges": dark lines where luminance changes, in the image's mean and contrast, mixed with the image. "shuffle":
    pixels in random order inside square cells. "shift": moved down and right, what comes in is mirrored.

    Parameters
    ----------
    patch : side of a patch in pixels. seed : of the order of the pixels.

    Raises
    ------
    UnknownNameError : a kind that does not exist.
    """
    if kind not in DISTORTIONS:
        raise UnknownNameError("distortion", kind, DISTORTIONS)
    if strength == 0:
        return images
    if kind == "low-pass":
        return _blurred(images, strength * patch)
    if kind == "high-pass":
        return images - _blurred(images, patch / strength) + images.mean((2, 3), keepdim=True)
    if kind == "edges":
        return torch.lerp(images, _drawing(images), strength)
    if kind == "shuffle":
        return _shuffled(images, round(strength * patch), seed)
    step = round(strength * patch)
    return F.pad(images, (step, 0, step, 0), mode="reflect")[..., : images.shape[2], : images.shape[3]]


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, one axis after the other: a wide one over both at once costs more than the model."""
    reach = min(int(3 * sigma) + 1, min(images.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(images) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    padded = F.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(padded, kernel), kernel.mT).view_as(images)


def _drawing(images: Tensor) -> Tensor:
    grey = F.pad(images.mean(1, keepdim=True), (0, 1, 0, 1), mode="replicate")
    a, b, c, d = grey[..., :-1, :-1], grey[..., :-1, 1:], grey[..., 1:, :-1], grey[..., 1:, 1:]
    lines = -torch.hypot(a - d, b - c)  # Roberts 1963
    lines = (lines - lines.mean((2, 3), keepdim=True)) / lines.std((2, 3), keepdim=True).clamp_min(1e-6)
    whole = images.flatten(1)
    return (lines * whole.std(1)[:, None, None, None] + whole.mean(1)[:, None, None, None]).expand_as(images)


def _shuffled(images: Tensor, side: int, seed: int) -> Tensor:
    if side < 2:
        return images
    h, w = (size // side for size in images.shape[2:])
    cells = (
        images[..., : h * side, : w * side].unflatten(3, (w, side)).unflatten(2, (h, side)).transpose(3, 4)
    )
    flat = cells.flatten(4)  # (B, C, h, w, side^2)
    order = torch.rand(h, w, side * side, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    moved = (
        flat.gather(-1, order.to(images.device).expand_as(flat)).unflatten(-1, (side, side)).transpose(3, 4)
    )
    out = images.clone()
    out[..., : h * side, : w * side] = moved.flatten(4).flatten(2, 3)
    return out


def read_categories(path: str | Path) -> dict[str, list[int]]:
    """Which outputs of a head belong to each category: a CSV file with columns ``imagenet_index`` and ``category``.

    Raises
    ------
    DataError : a file without these columns, or without a number where one belongs.
    """
    found: dict[str, list[int]] = {}
    with Path(path).expanduser().open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"imagenet_index", "category"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path}: expected columns imagenet_index and category, got {reader.fieldnames}")
        for row in reader:
            if not str(row["imagenet_index"]).isdecimal():
                raise DataError(f"{path}: imagenet_index {row['imagenet_index']!r}: expected a whole number")
            found.setdefault(row["category"], []).append(int(row["imagenet_index"]))
    return found


def behaviour(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    loader: Any,
    *,
    distortions: Sequence[str] = tuple(DISTORTIONS),
    categories: Mapping[str, Sequence[int]] | None = None,
    max_images: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Accuracy and output of classifiers as images are distorted more and more, paired over images.

    For each kind of `distorted` and each strength, in units of the model's own patch: ``behaviour_accuracy`` (null: the
    label of another image) and ``behaviour_accuracy_change`` from the intact image (p: no change), where the labels are
    the model's classes; ``behaviour_kl``, KL(intact || distorted) of the predictions in nats, which needs no labels
    (null: the distorted image is another one). Every model sees the images through its own preprocessing and is
    distorted there. Intervals leave out images, or photographs where several images were cut from one; that of an
    accuracy of independent images is Wilson's.

    Parameters
    ----------
    loader : of `load_images`.
    distortions : names of `DISTORTIONS`, or none for the intact images alone.
    categories : names of the data's classes -> outputs that belong to each; then the answer is the category with the
        largest mean probability (Geirhos et al. 2019). See `read_categories`.
    max_images : at most so many, drawn with ``seed``.

    Raises
    ------
    UnknownNameError : a distortion or a class without category.
    DataError : a category of outputs that the model has not.
    T2TError : a model that is no classifier, or tells no patches.
    """
    for kind in distortions:
        if kind not in DISTORTIONS:
            raise UnknownNameError("distortion", kind, DISTORTIONS)
    views = views_of(models)
    rows = [
        row
        for view in views
        for row in _of_model(view, loader, distortions, categories, max_images, seed, progress)
    ]
    return result_of("behaviour", views, rows, data=as_json(told(loader)), max_images=max_images, seed=seed)


def _of_model(
    view: View, loader: Any, distortions: Sequence[str], categories: Mapping[str, Sequence[int]] | None,
    max_images: int, seed: int, progress: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    asked = [("none", 0.0)] + [(kind, s) for kind in distortions for s in DISTORTIONS[kind][1]]
    seen: dict[tuple[str, float], list[tuple[Tensor, Tensor]]] = {key: [] for key in asked}
    outputs = int(getattr(view.model, "num_classes", 0))
    info = must_tell(loader)
    members = _members(categories, info.classes, outputs)
    chosen = torch.randperm(info.n or max_images, generator=torch.Generator().manual_seed(seed))[:max_images]
    labels: list[Tensor] = []
    index: list[Tensor] = []
    shown = batches_for(view.model, loader)
    batches = counted(shown, f"distorting, {view.label}", len(loader), shown=progress)
    with evaluating(view.model), torch.no_grad():
        for batch in batches:
            kept = torch.isin(batch.index, chosen)
            if not kept.any():
                continue
            images = batch.images[kept].to(next(view.model.parameters()).device)
            patch = _patch(view, images)
            labels.append(batch.labels[kept])
            index.append(batch.index[kept])
            intact = _predicted(view, images)
            for kind, strength in asked:
                same = strength == 0
                log = intact if same else _predicted(view, distorted(images, kind, strength, patch, seed))
                answers = log if members is None else log.exp() @ members.T
                kl = torch.stack([kl_divergence(intact, x) for x in (log, log.roll(1, 0))], 1)
                seen[kind, strength].append((answers.argmax(-1), kl))
    yield from _rows(view, loader, seen, torch.cat(labels), torch.cat(index), members)


def _predicted(view: View, images: Tensor) -> Tensor:
    """Log-probabilities (B, K)."""
    out = view.model(images)
    if not isinstance(out, Tensor) or out.ndim != 2 or getattr(view.model, "num_classes", None) == 0:
        raise T2TError(f"{view.label} is no classifier: it gives {tuple(getattr(out, 'shape', ()))}")
    return out.float().log_softmax(-1).cpu()


def _patch(view: View, images: Tensor) -> int:
    """Pixels from one patch to the next."""
    view.example = images[:1]
    layout = view.layout_of("embed") if "embed" in view.names else None
    if layout is None:
        raise T2TError(f"{view.label} tells no patches to measure distortions by")
    return min(size // cells for size, cells in zip(images.shape[2:], layout.grid, strict=True))


def _members(
    categories: Mapping[str, Sequence[int]] | None, classes: Sequence[str], outputs: int
) -> Tensor | None:
    """(categories, K) weights that average the probabilities of each, in the order of the data's classes."""
    if categories is None:
        return None
    found = torch.zeros(len(classes), outputs)
    for row, name in zip(found, classes, strict=True):
        if name not in categories:
            raise UnknownNameError("category", name, categories, hint="for a class of the data")
        if not 0 <= min(categories[name]) <= max(categories[name]) < outputs:
            raise DataError(
                f"category {name!r} of outputs {categories[name]}: the model has 0 to {outputs - 1}"
            )
        row[list(categories[name])] = 1 / len(categories[name])
    return found


def _rows(
    view: View, loader: Any, seen: Mapping[tuple[str, float], list[tuple[Tensor, Tensor]]], labels: Tensor,
    index: Tensor, members: Tensor | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    classes = len(must_tell(loader).classes)
    width = int(getattr(view.model, "num_classes", 0)) if members is None else classes
    labelled = bool((labels >= 0).all()) and classes in (0, width) and int(labels.max()) < width
    photographs = getattr(loader.dataset, "photographs", None)
    group = index.numpy() if photographs is None else np.asarray(photographs)[index.numpy()]
    found = {key: [torch.cat(part) for part in zip(*parts, strict=True)] for key, parts in seen.items()}
    other = labels.roll(1)

    def mean(values: Any) -> Estimate:
        return Estimate.of_units(np.asarray(values, dtype=float), group=group)

    right = {key: (answers == labels).numpy().astype(float) for key, (answers, _) in found.items()}
    base = view.about | {"tokens": "all"}
    for (kind, strength), (answers, kl) in found.items():
        at = base | {"variant": kind, "at": strength, "at_unit": "strength"}
        how = f"; strength: {DISTORTIONS[kind][0]}" if kind in DISTORTIONS else ""
        moved = mean(kl[:, 0].clamp_min(0))
        yield at | {
            "quantity": "behaviour_kl", "estimate": moved.positive(), "null": mean(kl[:, 1]), "value_unit": "nats",
            "null_kind": "the distorted image is another one", "estimator": f"KL(intact || distorted){how}",
        }  # fmt: skip
        if not labelled:
            continue
        change = mean(right[kind, strength] - right["none", 0.0])
        wrong = mean((answers == other).numpy() * np.where((other == labels).numpy(), np.nan, 1.0))
        yield at | {
            "quantity": "behaviour_accuracy", "estimate": mean(right[kind, strength]), "value_unit": "fraction",
            "null": wrong, "null_kind": "label of another image", "estimator": f"top-1{how}",
        } | accuracy_columns(right[kind, strength], group)  # fmt: skip
        yield at | {
            "quantity": "behaviour_accuracy_change", "estimate": change, "p": change, "value_unit": "fraction",
            "null": 0.0, "null_kind": "no change", "estimator": f"top-1 less that of the intact image, paired{how}",
        }  # fmt: skip
