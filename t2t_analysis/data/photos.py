"""Photographs that ship inside scikit-learn, scikit-image and matplotlib: real images without a download.

The files are read from the installed packages' folders directly, so nothing is ever fetched. Left out on
purpose: drawings and renderings, the second half of the stereo pair, and pictures under 128 pixels.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import DataError, UnknownNameError


class Photo(NamedTuple):
    """One embedded photograph and what its package says about it."""

    name: str
    package: str
    file: str
    licence: str


_SKLEARN, _SKIMAGE, _MPL = "scikit-learn", "scikit-image", "matplotlib"
_FOLDER = {
    _SKLEARN: ("sklearn", "datasets/images"),
    _SKIMAGE: ("skimage", "data"),
    _MPL: ("matplotlib", "mpl-data/sample_data"),
}

#: In the order of their names. Licence notes come from the packages' own README files and docstrings;
#: "see package" where those say nothing.
PHOTOS: tuple[Photo, ...] = (
    Photo("astronaut", _SKIMAGE, "astronaut.png", "public domain, no known copyright restrictions (NASA)"),
    Photo("brick", _SKIMAGE, "brick.png", "CC0 (CC0Textures)"),
    Photo("camera", _SKIMAGE, "camera.png", "CC0 (Lav Varshney)"),
    Photo("chelsea", _SKIMAGE, "chelsea.png", "CC0 (Stefan van der Walt)"),
    Photo("china", _SKLEARN, "china.jpg", "CC BY 2.0 (danielbuechele)"),
    Photo("clock", _SKIMAGE, "clock_motion.png", "public domain (Stefan van der Walt)"),
    Photo("coffee", _SKIMAGE, "coffee.png", "CC0 (Rachel Michetti)"),
    Photo("coins", _SKIMAGE, "coins.png", "no known copyright restrictions (Brooklyn Museum)"),
    Photo(
        "flower", _SKLEARN, "flower.jpg", "CC BY 2.0 (vultilion's page; the README credits danielbuechele)"
    ),
    Photo("grace_hopper", _MPL, "grace_hopper.jpg", "see package"),
    Photo("grass", _SKIMAGE, "grass.png", "CC0 (linolafett)"),
    Photo("gravel", _SKIMAGE, "gravel.png", "CC0 (CC0Textures)"),
    Photo("hubble", _SKIMAGE, "hubble_deep_field.jpg", "free to use, public domain (NASA)"),
    Photo("moon", _SKIMAGE, "moon.png", "see package"),
    Photo("motorcycle", _SKIMAGE, "motorcycle_left.png", "see package (Middlebury 2014 stereo benchmark)"),
    Photo("page", _SKIMAGE, "page.png", "see package"),
    Photo("retina", _SKIMAGE, "retina.jpg", "CC0 (Mikael Häggström)"),
    Photo("rocket", _SKIMAGE, "rocket.jpg", "public domain (SpaceX)"),
    Photo("text", _SKIMAGE, "text.png", "public domain, no known copyright restrictions (Wikipedia)"),
    Photo("tissue", _SKIMAGE, "ihc.png", "no known copyright restrictions (CMMI)"),
)
_BY_NAME = {photo.name: photo for photo in PHOTOS}


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


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
            f"installed {_installed(photo.package)} has no such file; install the "
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
