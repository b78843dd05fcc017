"""Where images come from: embedded photographs, folders, trees, tars and timm's data sets, all by number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from .._paths import cache_dir
from ..errors import DataError, UnknownNameError, nearest
from .digits import digits_source
from .files import EXTENSIONS, FileSource, files_source
from .info import Source
from .photos import PHOTOS, load_photo
from .reading import read_rgb, to_rgb

EMBEDDED = ("photos", "photo_crops", "digits")
TIMM_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
_TORCH = "cifar10 cifar100 flowers102 mnist kmnist fashion_mnist qmnist inaturalist places365 imagenet image_folder"
_TIMM_LICENCE = "see the data set's own page"


class PhotoSource(Source):
    """The embedded photographs, in the order of ``PHOTOS``; they have no class labels."""

    def image(self, number: int) -> Image.Image:
        """Photograph ``number`` as RGB."""
        return load_photo(PHOTOS[number].name)

    def label_of(self, number: int) -> str:
        """Its name."""
        return PHOTOS[number].name


class TimmSource(Source):
    """A map-style data set made by timm's ``create_dataset``, in ``items``."""

    def image(self, number: int) -> Image.Image:
        """Image ``number`` as RGB."""
        reader = getattr(self.items, "reader", None)
        if reader is None:
            return to_rgb(self.items[number][0], self.label_of(number))
        # Not through timm's ImageDataset: that returns the next image, silently, when one cannot be read.
        return read_rgb(reader[number][0], self.label_of(number))


@dataclass(frozen=True)
class StreamSource:
    """A timm data set that can only be read from its beginning; ``dataset`` yields (image, label)."""

    name: str
    dataset: Any
    notes: tuple[str, ...] = ()


def _from_path(data: str, path: Path, split: str, strict: bool) -> FileSource:
    if path.is_dir() or path.suffix.lower() == ".tar":
        return files_source(data, path, split, strict)
    if path.suffix.lower() in EXTENSIONS:
        return FileSource(data, np.array([-1]), items=(path,))
    raise DataError(f"{path} is neither a folder, nor a .tar, nor an image ({' '.join(sorted(EXTENSIONS))})")


def _timm_labels(dataset: Any) -> np.ndarray | None:
    """Labels without decoding an image, or None if the set does not offer them."""
    if (labels := getattr(dataset, "_labels", None)) is not None:  # of Flowers102, which has no public list
        return np.asarray(labels)
    if (targets := getattr(dataset, "targets", None)) is not None:
        return np.asarray(targets) if np.ndim(targets) == 1 else None
    reader = getattr(dataset, "reader", None)
    if (samples := getattr(reader, "samples", None)) is not None:
        return np.array([target for _, target in samples])
    table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
    if table is not None and key in getattr(table, "column_names", ()):
        return np.asarray(table[key])
    return None


def _timm_classes(dataset: Any) -> tuple[str, ...]:
    known = (getattr(one, "class_to_idx", None) for one in (dataset, getattr(dataset, "reader", None)))
    if mapping := next(filter(None, known), None):
        return tuple(sorted(mapping, key=mapping.__getitem__))
    return tuple(getattr(dataset, "classes", ()))


def _create(data: str, split: str, root: Path, download: bool) -> Any:
    """Call timm's factory; for torchvision's sets, look on disk before the network is asked."""
    from timm.data import create_dataset

    if not data.lower().startswith("torch/"):
        return create_dataset(data, root=str(root), split=split, download=download)
    if data.lower() == "torch/flowers102":  # timm's factory does not know it
        from torchvision.datasets import Flowers102

        make, named = Flowers102, {"root": root, "split": split}
    else:  # "validation" is timm's word for torchvision's test sets
        named = {"name": data, "root": str(root), "split": "validation" if split == "test" else split}
        make = create_dataset
    try:
        return make(**named, download=False)
    except RuntimeError:
        if not download:
            raise
    root.mkdir(parents=True, exist_ok=True)
    return make(**named, download=True)


def open_timm(data: str, split: str, root: str | Path | None, download: bool) -> tuple[Any, tuple[str, ...]]:
    """The data set that timm's factory makes of ``data``, and a note if another split had to stand in."""
    folder = Path(root).expanduser() if root else cache_dir() / "datasets" / data.replace("/", "--")
    try:
        try:
            return _create(data, split, folder, download), ()
        except ValueError as error:  # many sets keep the labels of their test images to themselves
            if split != "test" or "split" not in str(error).lower():
                raise
        return _create(data, "validation", folder, download), (f"{data} has no split test: validation used",)
    except AssertionError as error:
        raise UnknownNameError("timm data set", data, [f"torch/{name}" for name in _TORCH.split()]) from error
    except Exception as error:  # the factory's readers raise whatever their libraries raise
        how = "" if download else "; download=True would fetch it"
        raise DataError(f"timm could not open {data!r} ({split}) in {folder}: {error}{how}") from error


def _from_timm(data: str, dataset: Any, notes: tuple[str, ...]) -> TimmSource | StreamSource:
    if isinstance(dataset, IterableDataset):
        return StreamSource(data, dataset, notes)
    labels = _timm_labels(dataset)
    if labels is None:
        notes = (*notes, f"{data} does not list its labels: none are given, n_images is not balanced")
        return TimmSource(data, np.full(len(dataset), -1), (), notes, _TIMM_LICENCE, dataset)
    return TimmSource(data, labels, _timm_classes(dataset), notes, _TIMM_LICENCE, dataset)


def is_timm_name(data: str) -> bool:
    """Whether ``data`` looks like a name for timm's data set factory."""
    return "/" in data and data.split("/", 1)[0].lower() in TIMM_PREFIXES


def _not_found(data: str, path: Path) -> DataError | UnknownNameError:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    if len(path.parts) > 1 or path.suffix:
        close = nearest(path.name, siblings, n=1)
        guess = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
        missing = "" if path.parent.is_dir() else f" (the folder {path.parent} does not exist either)"
        return DataError(f"no such file or folder: {data!r}{missing}{guess}")
    hint = "or a folder, a .tar, or a name for timm such as torch/cifar10, hfds/NAME, wds/NAME"
    return UnknownNameError("data", data, [*EMBEDDED, *nearest(path.name, siblings)], hint)


def find_source(
    data: str | Path,
    *,
    split: str,
    strict: bool = False,
    root: str | Path | None = None,
    download: bool = True,
) -> Source | StreamSource:
    """Return the images that ``data`` names.

    ``strict`` demands split folders of a folder or tar (training may not borrow its test images).

    Raises
    ------
    DataError
        No such file or folder, nothing in it, or classes and splits that contradict each other.
    UnknownNameError
        A name that is neither a path nor one of the known sets.
    """
    text = str(data)
    if not text.strip():
        raise DataError(f"data={text!r} names nothing; a full stop stands for the current folder")
    if text == "photos":
        return PhotoSource("photos", np.full(len(PHOTOS), -1), licence="each its own, see data/README.md")
    if text == "digits":
        return digits_source(split)
    path = Path(text).expanduser()
    if os.path.exists(path):  # which takes a name that no file can have for one that is not there
        return _from_path(text, path, split, strict)
    if is_timm_name(text):
        return _from_timm(text, *open_timm(text, split, root, download))
    raise _not_found(text, path)
