"""Training images whose every random choice can be replayed from (seed, epoch, index)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from ..errors import DataError
from .crops import EpochCrops, FixedCrops, choose_fraction, shared_zero
from .info import DataInfo
from .loading import SMALL, as_pair, check_types, preprocessing, source_info
from .sources import Source, StreamSource, find_source


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed the global generators from ``key`` and put them back: timm's transforms draw from all three."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _EpochImages(Dataset):
    """Chosen images of a source, transformed at random; items are (image (3, H, W), label)."""

    def __init__(self, source: Source, chosen: np.ndarray, transform: Any, seed: int, info: DataInfo) -> None:
        self.source, self.chosen, self.transform, self.seed, self.info = source, chosen, transform, seed, info
        self._epoch = shared_zero()

    def __len__(self) -> int:
        return len(self.chosen)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose transforms are drawn from now on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = int(self.chosen[index])
        image = self.source.image(number)
        with _seeded(self.seed, int(self._epoch), int(index)):
            return self.transform(image), int(self.source.labels[number])


def _small_transform(config: dict[str, Any]) -> transforms.Compose:
    """Padding by 4, a random crop and a flip (He et al., 2016, section 4.2), for small images."""
    size = config["input_size"][1:]
    return transforms.Compose([
        transforms.Resize(min(size), transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.RandomCrop(size, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(config["mean"], config["std"]),
    ])  # fmt: skip


def _train_transform(config: dict[str, Any], augment: bool) -> Any:
    from timm.data import create_transform

    if not augment:
        return create_transform(**config)
    if min(config["input_size"][1:]) < SMALL:
        return _small_transform(config)
    recipe = {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "random"}
    return create_transform(**config | recipe, re_prob=0.25, re_mode="pixel", is_training=True)


def labelled_source(data: str | Path, split: str, **where: Any) -> Source:
    """Images that can be trained on: by number, with labels, of splits that are kept apart.

    Raises
    ------
    DataError : they are not.
    """
    source = find_source(data, split=split, strict=True, **where)
    if isinstance(source, StreamSource):
        raise DataError(f"{data!r} can only be read in its own order; training here needs images by number")
    if (source.labels < 0).any():
        raise DataError(f"{data!r} has no class labels to train on; photo_crops has, and so do class folders")
    return source


def train_data(
    data: str | Path = "photo_crops",
    *,
    split: str = "train",
    img_size: int | tuple[int, int] = 32,
    fraction: float = 1.0,
    seed: int = 0,
    augment: bool = True,
    crops_per_block: int = 12,
    model: torch.nn.Module | None = None,
    root: str | Path | None = None,
    download: bool = True,
) -> EpochCrops | FixedCrops | _EpochImages:
    """Return a map-style data set of (image (3, H, W), label) for training or for testing what was trained.

    What ``dataset[index]`` draws depends on (seed, epoch, index) only; call ``dataset.set_epoch(e)`` before
    each epoch. Any split but "train" is whole, fixed and not augmented. ``dataset.info`` is a ``DataInfo``.

    Parameters
    ----------
    data : as for ``load_images``, with labels; folders and tars need train/ and test/ (or val/) folders.
    fraction : share of every class; with one seed, smaller shares are subsets of larger ones.
    augment : from 64 pixels on, timm's training transform with the T2T-ViT recipe (Yuan et al., 2021):
        random resized crop, flip, RandAugment m9, random erasing 0.25; below, padding by 4, random crop and
        flip; for ``photo_crops`` a random place in the block and a flip.
    crops_per_block : length of an epoch of ``photo_crops`` over its number of blocks.
    model : takes mean and std from it, as ``load_images`` does; ImageNet's without one.

    >>> crops = train_data("photo_crops", fraction=0.1)
    >>> crops.set_epoch(3)
    >>> image, label = crops[0]
    >>> image.shape, crops.info.classes[label]
    (torch.Size([3, 32, 32]), 'astronaut')
    """
    check_types(data, model, split, seed=seed, crops_per_block=crops_per_block)
    size, training = as_pair(img_size), split == "train"
    if str(data) == "photo_crops":
        if not training:
            return FixedCrops(split, size)
        drawn: dict[str, Any] = {"augment": augment, "crops_per_block": crops_per_block}
        return EpochCrops(img_size=size, fraction=fraction, seed=seed, **drawn)
    source = labelled_source(data, split, root=root, download=download)
    share = fraction if training else 1.0
    chosen = choose_fraction(source.labels, share, seed)
    transform = _train_transform(preprocessing(model, size), augment and training)
    return _EpochImages(source, chosen, transform, seed, source_info(source, split, chosen))
