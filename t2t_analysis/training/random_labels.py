"""A model that learned nothing but its own training images: the same architecture, trained on permuted labels.

Adebayo et al. (2018) compare its attribution maps with those of the model that learned the real labels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data import DataInfo
from .recipe import Recipe
from .resident import ResidentLoader, resident_loader

__all__ = ["RECIPE", "RandomLabels", "train_random_labels"]

#: made to learn by heart: nothing in it that holds a network back
RECIPE = Recipe(
    epochs=6, optimizer="adamw", lr=2e-3, weight_decay=0.0, smoothing=0.0, drop_path=0.0, ema=0.9, clip=1.0
)
#: different images; as many as a small model learns by heart in minutes on one core
IMAGES = 128
#: times that an epoch goes through them
PASSES = 15


class RandomLabels(NamedTuple):
    """The model in eval mode, how many images it saw, and the share of them whose permuted label it gives."""

    model: nn.Module
    images: int
    accuracy: float


class _Permuted:
    """Training images with the labels of other images, the same in every epoch; not augmented."""

    resident = True

    def __init__(self, loader: ResidentLoader, seed: int, passes: int) -> None:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(loader.labels)))
        self.images, self.labels, self.passes = loader.images, loader.labels[order], passes
        self.info: DataInfo = loader.dataset.info

    def __len__(self) -> int:
        return self.passes * len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices) % len(self.labels)
        return self.images[chosen], self.labels[chosen]

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch


def train_random_labels(
    model: str,
    data: str = "photo_crops",
    *,
    images: int = IMAGES,
    recipe: Recipe = RECIPE,
    passes: int = PASSES,
    seed: int = 0,
    device: str = "cpu",
) -> RandomLabels:
    """Train the architecture ``model`` on training images of ``data`` whose labels were permuted.

    Parameters
    ----------
    images : about so many, balanced over classes.
    recipe, passes : ``recipe.epochs`` times ``passes`` go through the images.

    Raises DataError for data without labels.
    """
    from .train import train  # Lightning takes seconds to import

    made: list[_Permuted] = []

    def permuted(data: str, *, img_size: int, model: nn.Module, **_: Any) -> _Permuted:
        found = resident_loader(data, split="train", img_size=img_size, model=model, most=images, seed=seed)
        made.append(_Permuted(found, seed, passes))
        return made[0]

    kind = torch.device(device).type
    with tempfile.TemporaryDirectory() as folder:
        run: dict[str, Any] = {"out": Path(folder), "dataset": permuted, "quiet": True}
        run |= {"accelerator": "gpu" if kind == "cuda" else kind, "devices": 1}
        module = train(model, data, recipe=recipe, **run)
    network, (seen,) = module.averaged().to(device), made
    with torch.no_grad():
        answers = torch.cat([network(part.to(device)).argmax(1).cpu() for part in seen.images.split(64)])
    return RandomLabels(network, len(answers), float((answers == seen.labels).double().mean()))
