"""Where images come from: embedded photographs, folders, trees, tars and timm's data sets, all by number."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from .._paths import cache_dir
from ..errors import DataError, UnknownNameError, nearest
from .digits import digits_source
from .photos import PHOTOS, load_photo
from .reading import read_rgb, to_rgb

__all__ = ["EMBEDDED", "TIMM_PREFIXES", "Source", "find_source"]

EMBEDDED = ("photos", "photo_crops", "digits")
TIMM_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"])
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "val", "valid", "validation", "eval", "evaluation"),
}
_SPLIT_FOLDERS = frozenset(name for names in _SPLITS.values() for name in names)
_SEE_PATH = "see where the files came from"


class Source(Protocol):
    """Images by number, with labels (-1 where there are none), names, class names and a licence note."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, (n,), -1 where there is none."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...

    @property
    def licence(self) -> str:
        """A note on the licence."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader should know."""
        ...

    def image(self, number: int) -> Image.Image:
        """Image ``number`` as RGB; raises ``DataError`` naming it if it cannot be read."""
        ...

    def label_of(self, number: int) -> str:
        """What to call image ``number``."""
        ...


class TarMember(NamedTuple):
    """A file inside an uncompressed tar, read by its place, so that workers need not share an open tar."""

    tar: Path
    path: str
    start: int
    size: int


@dataclass(frozen=True)
class PhotoSource:
    """The embedded photographs, in the order of ``PHOTOS``; they have no class labels."""

    name: str = "photos"
    classes: tuple[str, ...] = ()
    licence: str = "each its own, see data/README.md"
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        return np.full(len(PHOTOS), -1)

    def image(self, number: int) -> Image.Image:
        return load_photo(PHOTOS[number].name)

    def label_of(self, number: int) -> str:
        return PHOTOS[number].name


@dataclass(frozen=True)
class FileSource:
    """Images of a folder or tar."""

    name: str
    files: tuple[Path | TarMember, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    licence: str = _SEE_PATH

    def image(self, number: int) -> Image.Image:
        file = self.files[number]
        if isinstance(file, Path):
            return read_rgb(file, str(file))
        with file.tar.open("rb") as stream:
            stream.seek(file.start)
            return read_rgb(io.BytesIO(stream.read(file.size)), self.label_of(number))

    def label_of(self, number: int) -> str:
        file = self.files[number]
        return str(file) if isinstance(file, Path) else f"{file.tar}:{file.path}"


@dataclass(frozen=True)
class TimmSource:
    """A map-style data set made by timm's ``create_dataset``."""

    name: str
    dataset: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    licence: str = "see the data set's own page"

    def image(self, number: int) -> Image.Image:
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return to_rgb(self.dataset[number][0], self.label_of(number))
        # Not through timm's ImageDataset: that returns the next image, silently, when one cannot be read.
        return read_rgb(reader[number][0], self.label_of(number))

    def label_of(self, number: int) -> str:
        return f"{self.name}[{number}]"


@dataclass(frozen=True)
class StreamSource:
    """A timm data set that can only be read from its beginning; ``dataset`` yields (image, label)."""

    name: str
    dataset: Any
    notes: tuple[str, ...] = ()


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def _scan_folder(root: Path) -> dict[PurePosixPath, Path | TarMember]:
    """Images below ``root``, through links to folders too (subsets are made of those), each folder once."""
    found: dict[PurePosixPath, Path | TarMember] = {}
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        seen.add(os.path.realpath(folder))
        below[:] = [name for name in sorted(below) if os.path.realpath(Path(folder, name)) not in seen]
        for name in files:
            path = Path(folder, name)
            relative = PurePosixPath(path.relative_to(root).as_posix())
            if _is_image(relative):
                found[relative] = path
    return found


def _scan_tar(path: Path) -> dict[PurePosixPath, Path | TarMember]:
    """Members by path, less the folders that all of them share."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [(m.name, m.offset_data, m.size) for m in tar if m.isreg() and not m.issparse()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"cannot read {path} as an uncompressed tar: {error}") from error
    found: dict[PurePosixPath, Path | TarMember] = {}
    for name, start, size in members:
        relative = PurePosixPath(name.removeprefix("./"))
        if _is_image(relative):
            found[relative] = TarMember(path, name, start, size)
    while found and all(len(relative.parts) > 1 for relative in found):
        tops = {relative.parts[0] for relative in found}
        if len(tops) > 1 or tops <= _SPLIT_FOLDERS:
            break
        found = {PurePosixPath(*relative.parts[1:]): member for relative, member in found.items()}
    return found


def _keep_split(
    found: dict[PurePosixPath, Any], split: str, where: str, strict: bool
) -> tuple[dict[PurePosixPath, Any], tuple[str, ...], tuple[str, ...]]:
    """Images of one split, the classes of all splits, and a note if there are no split folders."""
    tops = {relative.parts[0] for relative in found if len(relative.parts) > 1}
    if not tops or not tops <= _SPLIT_FOLDERS:
        if strict:
            raise DataError(f"{where} has no split folders; put the images under train/ and test/ (or val/)")
        return found, _class_names(found), (f"no split folders in {where}: all its images are used",)
    wanted = [name for name in _SPLITS.get(split, (split,)) if name in tops]
    if not wanted:
        raise DataError(f"{where} has no images for split {split!r}; its split folders are {sorted(tops)}")
    classes = _class_names({PurePosixPath(*r.parts[1:]): f for r, f in found.items() if len(r.parts) > 1})
    kept = {PurePosixPath(*r.parts[1:]): f for r, f in found.items() if r.parts[0] == wanted[0]}
    return kept, classes, ()


def _class_names(found: dict[PurePosixPath, Any]) -> tuple[str, ...]:
    return tuple(sorted({relative.parts[0] for relative in found if len(relative.parts) > 1}))


def _from_files(name: str, path: Path, split: str, strict: bool) -> FileSource:
    found = _scan_tar(path) if path.is_file() else _scan_folder(path)
    if not found:
        kind = "tar" if path.is_file() else "folder"
        raise DataError(f"the {kind} {path} holds no images (looked for {' '.join(sorted(EXTENSIONS))})")
    found, classes, notes = _keep_split(found, split, str(path), strict)
    loose = sum(len(relative.parts) == 1 for relative in found)
    if classes and loose:
        raise DataError(
            f"{path} has {loose} images beside {len(classes)} folders of images ({', '.join(classes[:5])}): "
            "either all images lie in class folders or none"
        )
    order = sorted(found)
    labels = [classes.index(relative.parts[0]) if classes else -1 for relative in order]
    return FileSource(name, tuple(found[relative] for relative in order), np.array(labels), classes, notes)


def _from_path(data: str, path: Path, split: str, strict: bool) -> FileSource:
    if path.is_dir() or path.suffix.lower() == ".tar":
        return _from_files(data, path, split, strict)
    if path.suffix.lower() in EXTENSIONS:
        return FileSource(data, (path,), np.array([-1]), ())
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
    mapping = getattr(dataset, "class_to_idx", None) or getattr(
        getattr(dataset, "reader", None), "class_to_idx", None
    )
    return (
        tuple(sorted(mapping, key=mapping.__getitem__)) if mapping else tuple(getattr(dataset, "classes", ()))
    )


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
        raise UnknownNameError("timm data set", data, _torch_names()) from error
    except Exception as error:  # the factory's readers raise whatever their libraries raise
        how = "" if download else "; download=True would fetch it"
        raise DataError(f"timm could not open {data!r} ({split}) in {folder}: {error}{how}") from error


def _torch_names() -> list[str]:
    names = "cifar10 cifar100 flowers102 mnist kmnist fashion_mnist qmnist inaturalist places365 imagenet image_folder"
    return [f"torch/{name}" for name in names.split()]


def _from_timm(data: str, dataset: Any, notes: tuple[str, ...]) -> TimmSource | StreamSource:
    if isinstance(dataset, IterableDataset):
        return StreamSource(data, dataset, notes)
    labels = _timm_labels(dataset)
    if labels is None:
        notes = (*notes, f"{data} does not list its labels: none are given, n_images is not balanced")
        return TimmSource(data, dataset, np.full(len(dataset), -1), (), notes)
    return TimmSource(data, dataset, labels, _timm_classes(dataset), notes)


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
    Raises ``DataError`` or ``UnknownNameError``.
    """
    text = str(data)
    if text == "photos":
        return PhotoSource()
    if text == "digits":
        return digits_source(split)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(text, path, split, strict)
    if is_timm_name(text):
        return _from_timm(text, *open_timm(text, split, root, download))
    raise _not_found(text, path)
