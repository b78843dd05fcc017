"""Training images that stay on the device: batches are cut, flipped and normalised there, all at once.

The same on a CPU and on a GPU. What a sample looks like is a function of (seed, epoch, index) only, so that a run that
was killed replays its epochs exactly. An epoch always has as many images as one of the whole training set: a
``fraction`` changes how many different images there are, not how many steps are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import DataInfo
from ..data.augmenting import labelled_source
from ..data.crops import (
    CROP,
    CROPS_PER_BLOCK,
    EpochCrops,
    FixedCrops,
    blocks,
    choose_fraction,
    crop_classes,
    cut_crops,
)  # fmt: skip
from ..data.loading import (
    SMALL,
    ImageLoader,
    as_pair,
    balanced_order,
    crops_of,
    dealt_batches,
    images_of,
    preprocessing,
    source_info,
)
from ..errors import DataError

PAD = 4  # pixels on every side before the random crop (He et al., 2016, section 4.2)


class ResidentImages:
    """Images of a small data set for training: padded by 4, cropped, flipped.

    Parameters
    ----------
    pixels : (N, 3, H, W) in 0..255, all training images at the size of the model.
    labels : (N,).
    normalise : makes of bytes what the model wants.
    fraction : share of the images of every class.
    seed : of the draws and of the fraction.
    device : where images live and are cropped.
    """

    unit = "image"

    def __init__(
        self, pixels: Tensor, labels: np.ndarray, info: DataInfo, *, normalise: Callable[[Tensor], Tensor],
        fraction: float = 1.0, seed: int = 0, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.seed, self.device, self.info, self._length = seed, torch.device(device), info, len(labels)
        self._normalise, self._size = normalise, (pixels.shape[-2], pixels.shape[-1])
        chosen = choose_fraction(labels, fraction, seed)
        self.different = len(chosen)
        self._pixels = F.pad(pixels[chosen], (PAD, PAD, PAD, PAD)).to(self.device)
        self._labels = torch.from_numpy(labels[chosen]).to(self.device)
        self.set_epoch(0)

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Draw image, top, left and flip of every sample, (len, 4) integers."""
        rng = np.random.default_rng([self.seed, epoch])
        table = rng.integers(0, [2 * PAD + 1, 2 * PAD + 1, 2], size=(len(self), 3))
        turn = np.arange(len(self)) % self.different  # a fraction is gone through several times
        self._draws = torch.from_numpy(np.column_stack((turn, table))).to(self.device)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,)."""
        image, top, left, flip = self._draws[torch.as_tensor(indices).to(self.device)].unbind(1)
        found = cut_crops(self._pixels, image, top, left, flip.bool(), self._size).permute(0, 3, 1, 2)
        return self._normalise(found.contiguous()), self._labels[image]


@lru_cache(maxsize=4)
def _decoded(data: str, split: str, size: tuple[int, int]) -> tuple[Tensor, np.ndarray, Any]:
    """All images of a split, (N, 3, H, W) in 0..255, their labels, and the source; decoded once in a process."""
    from timm.data import create_transform

    if min(size) >= SMALL:
        raise DataError(f"img_size={size}: whole data sets are held in memory below {SMALL} pixels only")
    source = labelled_source(data, split)
    labels = np.asarray(source.labels)
    fitted = create_transform(**preprocessing(img_size=size), normalize=False)  # (3, H, W), 0..255
    pixels = torch.empty((len(labels), 3, *size), dtype=torch.uint8)
    for number in range(len(labels)):
        pixels[number] = fitted(source.image(number))
    return pixels, labels, source


def _normaliser(
    model: torch.nn.Module | None, size: tuple[int, int], device: Any
) -> Callable[[Tensor], Tensor]:
    """What makes images (..., 3, H, W) as a model wants them of bytes on ``device``."""
    config = preprocessing(model, size)
    mean, std = (torch.tensor(config[key], device=device)[:, None, None] for key in ("mean", "std"))
    return lambda pixels: (pixels.float() / 255 - mean) / std


def resident_train(
    data: str | Path = "photo_crops",
    *,
    split: str = "train",
    img_size: int | tuple[int, int] = 32,
    fraction: float = 1.0,
    seed: int = 0,
    model: torch.nn.Module | None = None,
    device: str | torch.device = "cpu",
) -> EpochCrops | ResidentImages:
    """Training images on ``device``; arguments as for ``train_data``, which it stands in for.

    Raises ``DataError`` for data without labels, without split folders, or of 64 pixels and more.
    """
    size = as_pair(img_size)
    if str(data) == "photo_crops":
        if size != (CROP, CROP):
            raise DataError(f"img_size={size} of photo_crops: on the device they are {CROP}x{CROP}")
        labels = blocks("train").labels.numpy()
        often = 12 * len(labels) / len(choose_fraction(labels, fraction, seed))
        return EpochCrops(fraction=fraction, seed=seed, crops_per_block=often, device=device)
    pixels, labels, source = _decoded(str(data), split, size)
    info = source_info(source, split, np.arange(len(labels)))
    chosen: dict[str, Any] = {"fraction": fraction, "seed": seed, "device": device}
    return ResidentImages(pixels, labels, info, normalise=_normaliser(model, size, device), **chosen)


def fixed_images(
    data: str | Path = "photo_crops",
    *,
    split: str = "test",
    fraction: float = 1.0,
    seed: int = 0,
    model: torch.nn.Module | None = None,
    img_size: int | None = None,
    most: int | None = None,
    rest: bool = False,
    batch_size: int = 256,
) -> ImageLoader:
    """Images to evaluate on, not augmented.

    ``fraction`` and ``seed`` choose the training images that ``resident_train`` trains on; ``most`` keeps at most about
    so many, balanced over classes; ``rest`` takes the training images that were not chosen in place of those.
    """
    crops = FixedCrops(split) if str(data) == "photo_crops" else None
    source = None if crops else labelled_source(data, split)
    labels = source.labels if source else blocks(split).labels.numpy()
    kept = choose_fraction(labels, fraction, seed)
    if rest:
        kept = np.setdiff1d(np.arange(len(labels)), kept)
    if most is not None:
        most = most // CROPS_PER_BLOCK if crops else most
        kept = np.sort(kept[balanced_order(labels[kept], 0)[:most]])
    dataset: Any
    if source:
        dataset = images_of(source, kept, split=split)
    else:
        assert crops is not None
        dataset = crops_of(crops, np.flatnonzero(np.isin(crops.clusters, kept)), split, (CROP, CROP))
    batches = dealt_batches(len(dataset), batch_size, (0, 1))
    return ImageLoader(dataset, model, img_size, batch_sampler=batches)


def fingerprint(data: str | Path, img_size: int | tuple[int, int] = 32) -> str:
    """Twelve digits that tell whether two runs saw the same pixels and labels: re-encoded images differ.

    >>> fingerprint("photo_crops") == fingerprint("photo_crops")
    True
    """
    digest = hashlib.sha256()
    for split in ("train", "test"):
        if str(data) == "photo_crops":
            pixels, labels = blocks(split)
            digest.update(repr(crop_classes()).encode())
        else:
            pixels, numbers, _ = _decoded(str(data), split, as_pair(img_size))
            labels = torch.from_numpy(numbers)
        digest.update(pixels.numpy().tobytes() + labels.long().numpy().tobytes())
    return digest.hexdigest()[:12]
