"""Photographs that ship inside scikit-learn, scikit-image and matplotlib: real images without a download.

The files are read from the installed packages' folders directly, so nothing is ever fetched. Left out on
purpose: drawings and renderings, the second half of the stereo pair, and pictures under 128 pixels.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .._commit import versions
from .._files import csv_rows
from ..errors import DataError, UnknownNameError


class Photo(NamedTuple):
    """One embedded photograph and what its package says about it."""

    name: str
    package: str
    file: str
    licence: str


#: package -> its module, and the folder of its pictures
_FOLDER = {
    "scikit-learn": ("sklearn", "datasets/images"),
    "scikit-image": ("skimage", "data"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}


#: In the order of their names. Licence notes come from the packages' own README files and docstrings;
#: "see package" where those say nothing.
PHOTOS = tuple(Photo(**row) for row in csv_rows(Path(__file__).with_suffix(".csv")))
_BY_NAME = {photo.name: photo for photo in PHOTOS}


@cache
def photo_path(name: str) -> Path:
    """Where a photograph lies in its installed package.

    Raises ``UnknownNameError`` for a name that is not in ``PHOTOS``, and ``DataError`` if the installed
    version of the package does not bring the file.
    """
    if name not in _BY_NAME:
        raise UnknownNameError("photograph", name, _BY_NAME)
    photo = _BY_NAME[name]
    module, folder = _FOLDER[photo.package]
    spec = find_spec(module)  # finds the package without importing it
    path = Path(spec.origin).parent / folder / photo.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"the photograph {name!r} should be {folder}/{photo.file} inside {photo.package}, but the "
            f"version that is installed, {versions(photo.package)[photo.package]}, has no such file; install the "
            "version that constraints.txt names"
        )
    return path


def load_photo(name: str) -> Image.Image:
    """Return one embedded photograph as an RGB image.

    >>> load_photo("chelsea").size, load_photo("camera").mode
    ((451, 300), 'RGB')
    """
    with Image.open(photo_path(name)) as image:
        return image.convert("RGB")
