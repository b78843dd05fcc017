"""``photo_crops``: small grey crops, labelled by the photograph that they were cut from.

The Brodatz protocol of texture analysis (train and test taken from disjoint parts of the same picture).
Each photograph is made grey and cut into 64x64 blocks; the blocks are dealt to train and test like the
black and white squares of a chessboard, and a 32x32 crop never leaves its block, so no pixel is shared
between the splits. Each crop is standardised (mean 0, standard deviation 1): colour, brightness and
contrast give nothing away, local structure has to carry the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import DataError, UnknownNameError
from .info import DataInfo, chance_level
from .photos import PHOTOS, load_photo

BLOCK, CROP = 64, 32
#: Of a fixed split: its quarters.
CROPS_PER_BLOCK = (BLOCK // CROP) ** 2
#: A larger photograph is reduced by the smallest whole factor that leaves at most so many blocks (means of
#: whole squares of pixels, so that no source pixel reaches two blocks); otherwise the largest would be a
#: quarter of the test.
MAX_BLOCKS = 100
#: Every class needs so many blocks in either split.
MIN_BLOCKS = 7
#: One grey level: a crop with less spread than this is not amplified, and a flat one becomes all zeros.
MIN_STD = 1 / 255
SPLITS = ("train", "test")


class Blocks(NamedTuple):
    """All blocks of one split: pixels (n, 64, 64) in 0..1 and labels (n,)."""

    pixels: Tensor
    labels: Tensor


def reduction(width: int, height: int) -> int:
    """The factor that a photograph is reduced by, see ``MAX_BLOCKS``."""
    factor = 1
    while (width // factor // BLOCK) * (height // factor // BLOCK) > MAX_BLOCKS:
        factor += 1
    return factor


@cache
def _cut(name: str) -> dict[str, Tensor]:
    """Split -> blocks (n, 64, 64) of one photograph."""
    grey = load_photo(name).convert("L")
    factor = reduction(*grey.size)
    if factor > 1:
        grey = grey.reduce(factor)
    pixels = torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255)
    rows, cols = (size // BLOCK for size in pixels.shape)
    grid = pixels[: rows * BLOCK, : cols * BLOCK].reshape(rows, BLOCK, cols, BLOCK).transpose(1, 2)
    test = (torch.arange(rows)[:, None] + torch.arange(cols)) % 2 == 1  # the chessboard
    return {"train": grid[~test], "test": grid[test]}


def _large_enough(name: str) -> bool:
    return all(len(_cut(name)[split]) >= MIN_BLOCKS for split in SPLITS)


@cache
def crop_classes() -> tuple[str, ...]:
    """Names of the photographs that give both splits enough blocks, in order: label k is the k-th."""
    return tuple(photo.name for photo in PHOTOS if _large_enough(photo.name))


def left_out() -> tuple[str, ...]:
    """Photographs too small to be a class."""
    return tuple(photo.name for photo in PHOTOS if photo.name not in crop_classes())


@cache
def blocks(split: str) -> Blocks:
    """All blocks of ``split`` ("train" or "test"), class after class."""
    if split not in SPLITS:
        raise UnknownNameError("split of photo_crops", split, SPLITS)
    parts = [_cut(name)[split] for name in crop_classes()]
    labels = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
    return Blocks(torch.cat(parts), labels)


def standardise(crops: Tensor) -> Tensor:
    """Shift and scale each crop (..., H, W) to mean 0 and standard deviation 1; a flat crop becomes zeros.

    >>> standardise(torch.full((1, 32, 32), 0.5)).abs().max().item()
    0.0
    """
    centred = crops - crops.mean((-2, -1), keepdim=True)
    std = centred.square().mean((-2, -1), keepdim=True).sqrt()
    return centred / std.clamp_min(MIN_STD)


def cut_crops(
    pixels: Tensor,
    block: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: tuple[int, int] = (CROP, CROP),
) -> Tensor:
    """Gather crops (n, h, w, ...) from ``pixels`` (blocks, ..., H, W) at once; the other arguments have shape (n,)."""
    down, across = (torch.arange(side, device=top.device) for side in size)
    rows = top[:, None] + down  # (n, h)
    cols = left[:, None] + torch.where(flip[:, None], size[1] - 1 - across, across)
    return pixels[block[:, None, None], ..., rows[:, :, None], cols[:, None, :]]


def as_images(crops: Tensor, img_size: tuple[int, int], channels: int = 3) -> Tensor:
    """Standardise (n, 32, 32), resize if asked, and repeat the grey channel: (n, channels, H, W)."""
    images = standardise(crops)[:, None]
    if tuple(img_size) != (CROP, CROP):
        images = F.interpolate(images, size=tuple(img_size), mode="bicubic", antialias=True)
    return images.expand(-1, channels, -1, -1)


def crops_info(
    split: str,
    labels: np.ndarray,
    size: tuple[int, int],
    names: tuple[str, ...] = (),
    n_blocks: int | None = None,
) -> DataInfo:
    """What to say about ``photo_crops``; ``n_blocks`` is how many blocks the crops come from, if it matters."""
    notes = [f"left out as too small for both splits: {', '.join(left_out())}"] if left_out() else []
    if size != (CROP, CROP):
        notes.append(f"crops of {CROP}x{CROP} enlarged to {size[0]}x{size[1]} (bicubic) after standardising")
    if n_blocks is not None and n_blocks < len(labels):
        notes.append(
            f"{len(labels)} crops of {n_blocks} blocks: crops of one block resemble each other, "
            "and intervals over images take them as independent"
        )
    licence, chance = "each photograph its own, see data/README.md", chance_level(labels)
    return DataInfo("photo_crops", split, len(labels), crop_classes(), licence, chance, tuple(notes), names)


class FixedCrops(Dataset):
    """The four quarters of every block of a split, in order; items are (image (3, H, W), label)."""

    def __init__(self, split: str = "test", img_size: tuple[int, int] = (CROP, CROP)) -> None:
        self.pixels, block_labels = blocks(split)
        self.img_size = img_size
        self.labels = block_labels.repeat_interleave(CROPS_PER_BLOCK)
        self.clusters = np.arange(len(self.labels)) // CROPS_PER_BLOCK  # crops of a block are not independent
        self.info = crops_info(split, self.labels.numpy(), img_size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        images = as_images(self.cut(indices), self.img_size)
        return list(zip(images, self.labels[list(indices)].tolist(), strict=True))

    def cut(self, indices: Sequence[int]) -> Tensor:
        """Pixels of crops, (n, 32, 32) in 0..1."""
        index = torch.as_tensor(indices)
        block, quarter = index // CROPS_PER_BLOCK, index % CROPS_PER_BLOCK
        no_flip = torch.zeros(len(index), dtype=torch.bool)
        return cut_crops(self.pixels, block, quarter // 2 * CROP, quarter % 2 * CROP, no_flip)


def choose_fraction(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions of a ``fraction`` of every class, ascending; at least one each.

    With the same seed, a smaller fraction is a subset of a larger one.

    >>> choose_fraction(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0).size
    3
    """
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise DataError(f"fraction={fraction!r} must be above 0 and at most 1")
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def shared_zero() -> Tensor:
    """An epoch: in shared memory, so that workers that persist see a change of it too."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


class EpochCrops(Dataset):
    """Random crops of the training blocks, balanced over classes; items are (image (3, H, W), label).

    Sample ``index`` of epoch ``e`` is a function of (seed, e, index) only, whatever the workers and
    whatever was drawn before, so a killed run can replay any epoch exactly. Classes take turns (index
    modulo their number) and the blocks of a class take turns too; the place inside the block and the
    horizontal flip are drawn.

    Parameters
    ----------
    fraction : share of the training blocks of every class; smaller shares are subsets of larger ones.
    seed : of the draws and of the fraction.
    augment : if False, the crop is the middle of its block, not flipped.
    crops_per_block : an epoch has about this many crops per chosen block.
    img_size : (H, W); other than 32x32 the standardised crop is resized (bicubic).
    device : where the blocks lie and crops are cut; a whole batch at once, see `batch`.
    """

    unit = "block of 64x64 pixels"

    def __init__(
        self, *, fraction: float = 1.0, seed: int = 0, augment: bool = True, crops_per_block: float = 12,
        img_size: tuple[int, int] = (CROP, CROP), device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.seed, self.augment, self.img_size = seed, augment, img_size
        pixels, labels = blocks("train")
        self.pixels = pixels.to(device)
        chosen = torch.from_numpy(choose_fraction(labels.numpy(), fraction, seed))
        self.block_index, kept = chosen.to(device), labels[chosen].to(device)
        self.num_classes, self.different = len(crop_classes()), len(chosen)
        self._count = torch.bincount(kept, minlength=self.num_classes)  # blocks of each class
        self._first = self._count.cumsum(0) - self._count
        self.per_class = max(1, round(len(kept) * crops_per_block / self.num_classes))
        self._epoch = shared_zero()
        self._drawn: tuple[int, Tensor] | None = None
        self.info = crops_info("train", np.arange(len(self)) % self.num_classes, img_size)

    def __len__(self) -> int:
        return self.per_class * self.num_classes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose crops are drawn from now on."""
        self._epoch.fill_(epoch)

    def _draws(self) -> Tensor:
        """Top, left and flip of every sample of this epoch: (len, 3) integers."""
        epoch = int(self._epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            table = rng.integers(0, [BLOCK - CROP + 1, BLOCK - CROP + 1, 2], size=(len(self), 3))
            self._drawn = epoch, torch.from_numpy(table).to(self.pixels.device)
        return self._drawn[1]

    def _block_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Block and label of each sample; the turn goes on from epoch to epoch so that none is preferred."""
        label = index % self.num_classes
        turn = index // self.num_classes + int(self._epoch) * self.per_class
        return self.block_index[self._first[label] + turn % self._count[label]], label

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,) on the device."""
        index = torch.as_tensor(indices).to(self.pixels.device)
        block, label = self._block_of(index)
        if self.augment:
            top, left, flip = self._draws()[index].unbind(1)
        else:
            top = left = torch.full_like(index, (BLOCK - CROP) // 2)
            flip = torch.zeros_like(index)
        return as_images(
            cut_crops(self.pixels, block, top, left, flip.bool()), self.img_size
        ).contiguous(), label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        images, labels = self.batch(indices)
        return list(zip(images, labels.tolist(), strict=True))
