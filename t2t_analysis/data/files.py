"""Images in folders and tars: which there are, which split they belong to, and what class each has."""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError
from .info import Source
from .reading import read_rgb

_KINDS = "png apng jpg jpeg jpe jfif jp2 j2k jpx bmp ppm pgm pbm pnm tif tiff webp gif avif tga"
EXTENSIONS = frozenset(f".{kind}" for kind in _KINDS.split())
#: What folders of a split are called, in lower case. Of those for testing the first that has labels is taken.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"),
}
_ANNOTATIONS = "_annotations.txt"  # Tiny-ImageNet's way to say the classes of a folder: file, class, box


class TarMember(NamedTuple):
    """A file inside an uncompressed tar, read by its place, so that workers need not share an open tar."""

    tar: Path
    path: str
    start: int
    size: int


Handle = Path | TarMember
Tree = dict[PurePosixPath, Handle]


class FileSource(Source):
    """Images of a folder or tar; ``items`` are their files."""

    def image(self, number: int) -> Image.Image:
        """Image ``number`` as RGB; raises ``DataError`` naming it if it cannot be read."""
        return read_rgb(_open(self.items[number]), self.label_of(number))

    def label_of(self, number: int) -> str:
        """Its path, in characters that can be shown."""
        file: Handle = self.items[number]
        return shown(str(file) if isinstance(file, Path) else f"{file.tar}:{file.path}")


def shown(name: str) -> str:
    """A file's name as text: bytes that are none, and what does not print, are written as escapes.

    >>> shown("blue sky.png"), shown("two" + chr(10) + "lines.png")
    ('blue sky.png', 'two\\\\nlines.png')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts numbers inside names by their value, as timm does with class folders.

    >>> sorted(["10", "9", "class 2", "class 10"], key=natural_key)
    ['9', '10', 'class 2', 'class 10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part) if index % 2 else -1, part) for index, part in enumerate(parts)]


def _open(file: Handle) -> Path | io.BytesIO:
    if isinstance(file, Path):
        return file
    with file.tar.open("rb") as stream:
        stream.seek(file.start)
        return io.BytesIO(stream.read(file.size))


# --- what there is ------------------------------------------------------------------------------------


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def _in_folder(root: Path) -> Iterator[tuple[str, Path]]:
    """Files below ``root``, through links to folders too (subsets are made of those), each folder once."""
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        seen.add(os.path.realpath(folder))
        below[:] = [name for name in sorted(below) if os.path.realpath(Path(folder, name)) not in seen]
        for name in files:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path


def _in_tar(path: Path) -> Iterator[tuple[str, TarMember | None]]:
    """Files of a tar, hard and symbolic links followed inside it; None for a link to nothing, or a sparse file."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if not member.isdir()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"cannot read {path} as an uncompressed tar: {error}") from error
    regular = {posixpath.normpath(m.name): m for m in members if m.isreg() and not m.issparse()}
    links = {posixpath.normpath(m.name): _target(m) for m in members if m.islnk() or m.issym()}
    for member in members:
        name = target = posixpath.normpath(member.name)
        for _ in range(8):  # a link may lead to a link, and to itself
            target = links.get(target, target)
        found = regular.get(target)
        yield name, TarMember(path, member.name, found.offset_data, found.size) if found else None


def _target(link: tarfile.TarInfo) -> str:
    folder = "" if link.islnk() else posixpath.dirname(link.name)
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _sort_out(found: Iterable[tuple[str, Handle | None]]) -> tuple[Tree, Tree, Counter[str]]:
    """Images, files that say their classes, and how many files of each other kind there are."""
    images: Tree = {}
    annotations: Tree = {}
    others: Counter[str] = Counter()
    for name, handle in found:
        path = PurePosixPath(name)
        if any(part.startswith(".") for part in path.parts):
            others["hidden"] += 1
        elif handle is None:
            others["broken link or sparse file"] += 1
        elif path.suffix.lower() in EXTENSIONS:
            images[path] = handle
        elif path.name.endswith(_ANNOTATIONS):
            annotations[path] = handle
        else:
            others[path.suffix.lower() or "without extension"] += 1
    return images, annotations, others


def _below(tree: Tree, top: str) -> Tree:
    return {PurePosixPath(*path.parts[1:]): file for path, file in tree.items() if path.parts[0] == top}


def _unwrapped(images: Tree, annotations: Tree, least: int) -> tuple[Tree, Tree]:
    """Without the folders that all images share, if each lies at least ``least`` folders deep."""
    while images and all(len(path.parts) > least for path in images):
        tops = {path.parts[0] for path in images}
        if len(tops) > 1 or _split_of(*tops):
            break
        images, annotations = _below(images, *tops), _below(annotations, *tops)
    return images, annotations


# --- splits and classes -------------------------------------------------------------------------------


def _split_of(folder: str) -> str:
    """The split that a folder of this name holds, empty if it is not called like one."""
    return next((split for split, names in _SPLITS.items() if folder.lower() in names), "")


def _classes_of(images: Tree, annotations: Tree, where: str) -> dict[PurePosixPath, str]:
    """Classes by the folders that images lie in, or by an annotation file; empty if there are none."""
    if annotations:
        table = _annotated(annotations)
        missing = [path.name for path in images if path.name not in table]
        if missing:
            names, first = ", ".join(str(path) for path in annotations), shown(missing[0])
            raise DataError(f"{where}: {len(missing)} images are not in {names}, the first is {first}")
        return {path: table[path.name] for path in images}
    found = {path: shown(path.parts[0]) for path in images if len(path.parts) > 1}
    return {} if set(found.values()) == {"images"} else found


def _annotated(annotations: Tree) -> dict[str, str]:
    """File name -> class, of tables with these in their first two columns."""
    table: dict[str, str] = {}
    for file in annotations.values():
        content = _open(file)
        found = content.read_bytes() if isinstance(content, Path) else content.getvalue()
        text = found.decode("utf-8", "replace")
        table |= {cells[0]: cells[1] for cells in map(str.split, text.splitlines()) if len(cells) > 1}
    return table


@dataclass(frozen=True)
class _Part:
    """The images of a split, and the class of each, if they have classes."""

    top: str
    images: Tree
    classes: dict[PurePosixPath, str]


def _parts(images: Tree, annotations: Tree, where: str, strict: bool) -> list[_Part]:
    """One part per split folder, or one of all images where there are none."""
    tops = sorted({path.parts[0] for path in images if len(path.parts) > 1})
    splits = {top: _split_of(top) for top in tops}
    if not tops or not all(splits.values()):
        others = ", ".join(shown(top) for top in tops if not splits[top])
        if {"train", "test"} <= set(splits.values()):
            raise DataError(f"{where} has folders beside those of its splits ({', '.join(tops)}): {others}")
        if strict:
            raise DataError(f"{where} has no split folders; put the images under train/ and test/ (or val/)")
        return [_Part("", images, _classes_of(images, annotations, where))]
    if len({top.lower() for top in tops}) < len(tops):
        raise DataError(f"{where} has split folders that differ in capitals only: {', '.join(tops)}")
    found = []
    for top in tops:
        part = _below(images, top)
        found.append(_Part(top, part, _classes_of(part, _below(annotations, top), f"{where}/{top}")))
    return found


def _choose(parts: list[_Part], split: str, where: str) -> tuple[_Part, tuple[str, ...]]:
    """The part of a split: of several for testing the first with labels. Notes say what was not taken."""
    if parts[0].top == "":
        return parts[0], (f"no split folders in {where}: all its images are used",)
    names = _SPLITS.get(split, (split.lower(),))
    fitting = sorted((p for p in parts if p.top.lower() in names), key=lambda p: names.index(p.top.lower()))
    if not fitting:
        tops = [part.top for part in parts]
        raise DataError(f"{where} has no images for split {split!r}; its split folders are {tops}")
    chosen = next((part for part in fitting if part.classes), fitting[0])
    passed = "" if chosen is fitting[0] else f"{fitting[0].top}/ has no labels: {chosen.top}/ is used"
    return chosen, (passed,) if passed else ()


def _check_trained(parts: list[_Part], where: str) -> None:
    """Refuse a class to be tested that training has no image of."""
    trained = {name for part in parts if _split_of(part.top) == "train" for name in part.classes.values()}
    for part in parts:
        if trained and (unseen := sorted(set(part.classes.values()) - trained, key=natural_key)):
            raise DataError(
                f"{where}: {len(unseen)} classes of {part.top}/ have no image to train on: {', '.join(unseen[:5])}"
            )


def _check_labelled(part: _Part, where: str) -> None:
    """Refuse images with and without a class in one split."""
    if part.classes and (loose := len(part.images) - len(part.classes)):
        folders = sorted(set(part.classes.values()))
        raise DataError(
            f"{where} has {loose} images beside {len(folders)} folders of images ({', '.join(folders[:5])}): "
            "either all images lie in class folders or none"
        )


def files_source(name: str, path: Path, split: str, strict: bool) -> FileSource:
    """The images of one split of a folder or tar, see ``find_source``."""
    tar = path.is_file()
    images, annotations, others = _sort_out(_in_tar(path) if tar else _in_folder(path))
    left = f"files that are not read: {', '.join(f'{n} {kind}' for kind, n in sorted(others.items()))}"
    if not images:
        looked = f"looked for {' '.join(sorted(EXTENSIONS))}" + (f"; {left}" if others else "")
        raise DataError(f"the {'tar' if tar else 'folder'} {path} holds no images ({looked})")
    images, annotations = _unwrapped(images, annotations, 1 if tar else 2)
    parts = _parts(images, annotations, str(path), strict)
    if strict:
        _check_trained(parts, str(path))
    part, notes = _choose(parts, split, str(path))
    _check_labelled(part, str(path / part.top))
    classes = sorted({name for one in parts for name in one.classes.values()}, key=natural_key)
    if classes != sorted(classes):
        notes += (f"class folders in the order of their numbers: {', '.join(classes[:3])} ...",)
    if others:
        notes += (left,)
    order = sorted(part.images)
    labels = np.array([classes.index(part.classes[one]) if part.classes else -1 for one in order])
    files = tuple(part.images[one] for one in order)
    return FileSource(name, labels, tuple(classes) if part.classes else (), notes, items=files)
