"""``load_images``: a loader of images in one deterministic order, preprocessed as the model wants them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..errors import DataError, UnknownNameError
from .crops import CROP, FixedCrops, crop_classes, crops_info
from .imagenet import number_as_head
from .info import DataInfo, chance_level
from .reading import to_rgb
from .sources import Source, StreamSource, find_source

__all__ = ["Batch", "load_images"]

#: Below this input size no border is cut off: a 32 px image has none to spare.
SMALL = 64


class Batch(NamedTuple):
    """Images (B, 3, H, W); labels (B,), -1 where there are none; index (B,) in the loader's order."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]


def balanced_order(
    labels: np.ndarray, seed: int, bad: Collection[int] = (), clusters: np.ndarray | None = None
) -> np.ndarray:
    """All positions but the ``bad``, so that the first n are balanced over classes for every n.

    Classes take turns in sorted order; the order inside a class is drawn with ``seed``. With ``clusters`` (one
    number per position; images of one cluster are not independent), those of a class take turns too: none
    gives a second image before all have given their first.

    >>> labels = np.array([0, 0, 0, 1])
    >>> labels[balanced_order(labels, seed=0)].tolist()
    [0, 1, 0, 0]
    >>> clusters = np.array([7, 7, 7, 7, 8, 9])
    >>> clusters[balanced_order(np.zeros(6), seed=0, clusters=clusters)][:3].tolist()
    [7, 9, 8]
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    queues = [queue[~np.isin(queue, list(bad))] for queue in drawn]
    if clusters is not None:
        queues = [queue[np.argsort(_repeats(clusters[queue]), kind="stable")] for queue in queues]
    turn = np.concatenate([np.arange(len(queue)) for queue in queues])
    owner = np.repeat(np.arange(len(queues)), [len(queue) for queue in queues])
    return np.concatenate(queues)[np.lexsort((owner, turn))]


def _repeats(values: np.ndarray) -> np.ndarray:
    """How often each value has come before.

    >>> _repeats(np.array([5, 6, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    repeats = np.empty(len(values), dtype=int)
    repeats[by_value] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return repeats


def _check_count(n_images: int | None, available: int, name: str) -> int:
    if n_images is None:
        return available
    if not 1 <= n_images <= available:
        raise DataError(f"n_images={n_images} of {name!r}: it has {available} images that can be used")
    return n_images


def _choose(
    labels: np.ndarray,
    n_images: int | None,
    seed: int,
    name: str,
    bad: Collection[int] = (),
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Positions of the chosen images, in the order of the loader."""
    count = _check_count(n_images, len(labels) - len(bad), name)
    chosen = balanced_order(labels, seed, bad, clusters)[:count]
    return np.sort(chosen) if (labels < 0).all() else chosen  # without labels, the order of the names


def _choose_readable(source: Source, n_images: int | None, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The choice among the readable images, and why the others are not; every chosen image is decoded once.

    Done before the first batch, so that batches, shards and counts do not depend on who meets a damaged file.
    """
    good: set[int] = set()
    bad: dict[int, str] = {}
    while True:
        if len(bad) == len(source.labels):
            raise DataError(
                f"none of the {len(bad)} images of {source.name!r} can be read; {next(iter(bad.values()))}"
            )
        chosen = _choose(source.labels, n_images, seed, source.name, bad)
        unseen = [int(number) for number in chosen if number not in good]
        if not unseen:
            return chosen, tuple(bad[number] for number in sorted(bad))
        for number in unseen:
            try:
                source.image(number)
                good.add(number)
            except DataError as error:
                bad[number] = str(error)


class _Images(Dataset):
    """Chosen images of a source, transformed."""

    def __init__(self, source: Source, chosen: np.ndarray, transform: Any, info: DataInfo) -> None:
        self.source, self.chosen, self.transform, self.info = source, chosen, transform, info

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Batch:
        number = int(self.chosen[index])
        return Batch(self.transform(self.source.image(number)), int(self.source.labels[number]), index)  # type: ignore[arg-type]


class _Crops(Dataset):
    """Chosen crops of ``photo_crops``, a whole batch at a time."""

    def __init__(self, crops: FixedCrops, chosen: np.ndarray, info: DataInfo) -> None:
        self.crops, self.chosen, self.info = crops, chosen, info
        self.clusters = crops.clusters[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        samples = self.crops.__getitems__(self.chosen[list(indices)].tolist())
        return [Batch(x, y, i) for (x, y), i in zip(samples, indices, strict=True)]  # type: ignore[arg-type]


class _Stream(IterableDataset):
    """The first images of a set that can only be read in its own order; whole batches are dealt to shards."""

    def __init__(
        self, dataset: Any, transform: Any, info: DataInfo, batch_size: int, shard: tuple[int, int]
    ) -> None:
        self.dataset, self.transform, self.info = dataset, transform, info
        self.batch_size, self.shard = batch_size, shard

    def __iter__(self) -> Iterator[Batch]:
        rank, world = self.shard
        index = -1
        for index, (image, label) in enumerate(islice(self.dataset, self.info.n)):
            if index // self.batch_size % world == rank:
                picture = self.transform(to_rgb(image, f"{self.info.name}[{index}]"))
                yield Batch(picture, int(label), index)  # type: ignore[arg-type]
        if self.info.n is not None and index + 1 < self.info.n:
            raise DataError(
                f"n_images={self.info.n} of {self.info.name!r}: it ended after {index + 1} images"
            )


class _DealtBatches(Sampler[list[int]]):
    """Every ``world``-th batch of consecutive indices, from ``rank`` on."""

    def __init__(self, n: int, batch_size: int, shard: tuple[int, int]) -> None:
        self.n, self.batch_size, (self.rank, self.world) = n, batch_size, shard

    def __len__(self) -> int:
        return len(range(self.rank, -(-self.n // self.batch_size), self.world))

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.rank * self.batch_size, self.n, self.world * self.batch_size):
            yield list(range(start, min(start + self.batch_size, self.n)))


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise DataError(f"img_size={size!r} must be a positive number of pixels, or (height, width)")
    return int(height), int(width)


def _model_size(model: nn.Module | None) -> tuple[int, int] | None:
    """The input size that a model was built for, if it says; its pretrained config may say another."""
    for owner in (model, getattr(model, "patch_embed", None)):
        size = getattr(owner, "img_size", None)
        if isinstance(size, int | tuple | list):
            return as_pair(size)
    return None


def preprocessing(
    model: nn.Module | None = None, img_size: int | Sequence[int] | None = None
) -> dict[str, Any]:
    """The model's own preprocessing as timm's ``create_transform`` takes it; ImageNet's without a model.

    The size is ``img_size``, else what the model was built for, else its pretrained config, else 224. Under
    64 pixels nothing is cut off the border.
    """
    from timm.data import resolve_data_config

    config = resolve_data_config({"img_size": 224}) if model is None else resolve_data_config(model=model)
    size = as_pair(img_size) if img_size is not None else _model_size(model) or config["input_size"][1:]
    config["input_size"] = (3, *size)
    config["interpolation"] = "bicubic" if model is None else config["interpolation"]
    if min(size) < SMALL:
        config["crop_pct"] = 1.0
    return config


def _check_loader(batch_size: int, on_error: str, shard: tuple[int, int] | None) -> tuple[int, int]:
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size} must be at least 1")
    if on_error not in ("raise", "skip"):
        raise UnknownNameError("on_error", on_error, ("raise", "skip"))
    rank, world = shard or (0, 1)
    if not 0 <= rank < world:
        raise DataError(f"shard={shard!r} must be (rank, world) with 0 <= rank < world")
    return rank, world


def _crops_dataset(
    split: str, model: nn.Module | None, img_size: Any, n_images: int | None, seed: int
) -> _Crops:
    """Standardised already, so the model's mean and std are not applied."""
    size = as_pair(img_size) if img_size is not None else _model_size(model) or (CROP, CROP)
    crops = FixedCrops(split, size)
    every = crops.labels.numpy()
    chosen = _choose(every, n_images, seed, "photo_crops", clusters=crops.clusters)
    labels = every[chosen]
    names = tuple(f"{crop_classes()[label]}, crop {i}" for label, i in zip(labels, chosen, strict=True))
    n_blocks = len(np.unique(crops.clusters[chosen]))
    return _Crops(crops, chosen, crops_info(split, labels, size, names, n_blocks))


def source_info(source: Source, split: str, chosen: np.ndarray, skipped: tuple[str, ...] = ()) -> DataInfo:
    """What to say about the chosen images of a source."""
    notes = source.notes
    if skipped:
        notes += (f"{len(skipped)} unreadable images skipped: {'; '.join(skipped[:3])}",)
    return DataInfo(
        name=source.name,
        split=split,
        n=len(chosen),
        classes=source.classes,
        licence=source.licence,
        chance=chance_level(source.labels[chosen]),
        notes=notes,
        names=tuple(source.label_of(int(number)) for number in chosen),
        skipped=skipped,
    )


def _images_dataset(
    source: Source, split: str, transform: Any, n_images: int | None, seed: int, on_error: str
) -> _Images:
    if on_error == "skip":
        chosen, skipped = _choose_readable(source, n_images, seed)
    else:
        chosen, skipped = _choose(source.labels, n_images, seed, source.name), ()
    return _Images(source, chosen, transform, source_info(source, split, chosen, skipped))


def _stream_info(source: StreamSource, split: str, n_images: int | None) -> DataInfo:
    order = "read in its own order: n_images takes the first images, not balanced over classes"
    notes = (f"{source.name} is {order}", *source.notes)
    return DataInfo(source.name, split, n_images, (), "see the data set's own page", float("nan"), notes)


def load_images(
    data: str | Path = "photos",
    *,
    model: nn.Module | None = None,
    n_images: int | None = None,
    batch_size: int = 16,
    split: str = "test",
    workers: int = 0,
    device: str | torch.device = "cpu",
    seed: int = 0,
    img_size: int | tuple[int, int] | None = None,
    on_error: str = "raise",
    shard: tuple[int, int] | None = None,
    root: str | Path | None = None,
    download: bool = True,
) -> DataLoader:
    """Return a loader of ``Batch(images, labels, index)``; ``loader.dataset.info`` is its ``DataInfo``.

    Parameters
    ----------
    data : "photos" (embedded photographs, no labels), "photo_crops" (labelled crops of them), a folder of
        images, a tree of class folders, a .tar of either, one image file, or a name for timm's data set
        factory (torch/cifar10, hfds/NAME, wds/NAME). Folders and tars may hold train/ and test/ (or val/)
        folders; without them all is used.
    model : its own preprocessing is used (size, crop, interpolation, mean and std); ImageNet's at 224
        without one. ``photo_crops`` are standardised already and only resized. Class folders named by WordNet
        ids get the numbers that an ImageNet head has for them, also where they are only some of its classes.
    n_images : so many, balanced over classes (and over the blocks of ``photo_crops``); the first n of one order, so
        smaller choices are subsets of larger ones. Without labels the choice is drawn with ``seed`` and keeps the
        order of the names.
    device : where the model is; batches come in pinned memory if that is a CUDA device.
    on_error : "raise" names the first unreadable image when it is reached; "skip" decodes every chosen
        image once beforehand, replaces the unreadable and lists them in ``info.skipped``.
    shard : (rank, world): this process gets every world-th batch, so all processes together see the same
        batches as one.
    root, download : for timm's data sets; the default root is in the cache, and the disk is looked at first.

    Raises ``DataError`` (missing path, no images, unreadable image, too few images) or ``UnknownNameError``.

    >>> batch = next(iter(load_images("photos", n_images=4, img_size=64)))
    >>> batch.images.shape, batch.index.tolist()
    (torch.Size([4, 3, 64, 64]), [0, 1, 2, 3])
    """
    from timm.data import create_transform

    shard = _check_loader(batch_size, on_error, shard)
    common: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": torch.device(device).type == "cuda",
        "generator": torch.Generator().manual_seed(seed),
    }
    if str(data) == "photo_crops":
        dataset: Any = _crops_dataset(split, model, img_size, n_images, seed)
    else:
        transform = create_transform(**preprocessing(model, img_size))
        source = find_source(data, split=split, root=root, download=download)
        if isinstance(source, StreamSource):
            info = _stream_info(source, split, n_images)
            stream = _Stream(source.dataset, transform, info, batch_size, shard)
            return DataLoader(stream, batch_size=batch_size, **{**common, "num_workers": 0})
        source = number_as_head(source, model)
        dataset = _images_dataset(source, split, transform, n_images, seed, on_error)
    return DataLoader(dataset, batch_sampler=_DealtBatches(len(dataset), batch_size, shard), **common)
