"""Photographs with the boundaries that people drew in them, and where those lie in what a model sees."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .files import EXTENSIONS, Handle, _in_folder, _in_tar, _open
from .loading import transform_of
from .reading import read_rgb

#: What folders of boundaries are called, in lower case.
FOLDERS = frozenset({"groundtruth", "boundaries", "edges"})


@dataclass(frozen=True)
class Drawn:
    """Photographs and their boundaries, number by number."""

    names: tuple[str, ...]
    images: tuple[Handle, ...]
    maps: tuple[Handle, ...]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, number: int) -> Image.Image:
        """The photograph as RGB."""
        return read_rgb(_open(self.images[number]), self.names[number])

    def boundaries(self, number: int) -> np.ndarray:
        """What each annotator drew: bool (annotators, height, width).

        Raises
        ------
        DataError : a file that is not as expected, or of another size than its photograph.
        """
        handle = self.maps[number]
        content = _open(handle)
        if str(handle if isinstance(handle, Path) else handle.path).endswith(".mat"):
            found = _from_mat(content, self.names[number])
        else:
            grey = np.asarray(Image.open(content).convert("L"))
            found = (2 * grey.astype(int) > max(int(grey.max()), 1))[None]
        size = self.image(number).size[::-1]
        if (drawn := found.shape[1:]) != size:
            raise DataError(f"{self.names[number]}: boundaries of {drawn} pixels, photograph of {size}")
        return found

    def cells(
        self, number: int, config: Mapping[str, Any], grid: tuple[int, int], offset: tuple[float, float] = (0, 0)
    ) -> np.ndarray:  # fmt: skip
        """Through which cells of what a model sees a boundary runs: bool (annotators, rows, columns).

        Boundaries are followed pixel by pixel through the geometry of the preprocessing, so that no thin line is lost
        in scaling.

        Parameters
        ----------
        config : of `data.loading.preprocessing`.
        grid : rows and columns of cells.
        offset : pixels down and right by which the cells are moved.
        """
        drawn = self.boundaries(number)
        seen = _coordinates(drawn.shape[1:], config)
        places = [_cell_of(*each) for each in zip(drawn.shape[1:], seen, grid, offset, strict=True)]
        found = np.zeros((len(drawn), *grid), dtype=bool)
        annotator, y, x = np.nonzero(drawn)
        row, column = places[0][y], places[1][x]
        inside = (row >= 0) & (column >= 0)
        found[annotator[inside], row[inside], column[inside]] = True
        return found


def _from_mat(content: Path | io.BytesIO, name: str) -> np.ndarray:
    """Boundaries of a file in the layout of BSDS500."""
    from scipy.io import loadmat

    try:
        people = loadmat(content)["groundTruth"].ravel()
        return np.stack([np.asarray(each[0, 0]["Boundaries"], dtype=bool) for each in people])
    except (KeyError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name}: expected groundTruth cells with Boundaries, as in BSDS500; {type(error).__name__}: {error}"
        ) from error


def _coordinates(size: tuple[int, ...], config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the photograph that every row and column of what the model sees comes from."""
    made: Any = transform_of(config)
    steps = [step for each in made.transforms for step in getattr(each, "transforms", [each])]
    geometry = [step for step in steps if type(step).__name__.startswith(("Resize", "CenterCrop"))]
    found = []
    for axis in (0, 1):
        ramp = np.broadcast_to(np.expand_dims(np.arange(size[axis], dtype=np.float32), 1 - axis), size)
        picture: Any = Image.fromarray(np.ascontiguousarray(ramp), mode="F")
        for step in geometry:
            picture = step(picture)
        found.append(np.asarray(picture).take(0, 1 - axis))
    return found[0], found[1]


def _cell_of(size: int, at: np.ndarray, cells: int, offset: float) -> np.ndarray:
    """Cell of every one of ``size`` pixels along an axis, -1 outside; ``at`` is where each pixel that is seen lies."""
    pixel, step = np.arange(size), (at[-1] - at[0]) / max(len(at) - 1, 1)
    seen = (pixel - at[0]) / step + 0.5  # what a model sees of it, in pixels from the border
    cell = np.floor((seen - offset) / (len(at) // cells)).astype(int)
    return np.where((seen >= 0) & (seen < len(at)) & (cell >= 0) & (cell < cells), cell, -1)


def find_boundaries(data: str | Path, n_images: int | None = None, seed: int = 0) -> Drawn | None:
    """Photographs of a folder or tar that have boundaries; None where it has none.

    BSDS500's layout (``images`` and ``groundTruth/*.mat``), or images beside a folder ``boundaries``, ``edges`` or
    ``groundTruth`` of pictures with the same names, bright where a boundary is.

    Parameters
    ----------
    n_images : at most so many, drawn with ``seed``; all without.
    """
    path = Path(data)
    if not path.exists():
        return None
    images: dict[str, Handle] = {}
    maps: dict[str, Handle] = {}
    for name, handle in _in_folder(path) if path.is_dir() else _in_tar(path) if path.suffix == ".tar" else ():
        place = PurePosixPath(name)
        drawn = FOLDERS & {part.lower() for part in place.parts[:-1]}
        if handle is not None and (place.suffix.lower() in EXTENSIONS or (drawn and place.suffix == ".mat")):
            (maps if drawn else images)[place.stem] = handle
    both = sorted(images.keys() & maps.keys())
    if not both:
        return None
    if n_images is not None:
        both = sorted(np.random.default_rng(seed).permutation(both)[:n_images].tolist())
    return Drawn(tuple(both), tuple(images[n] for n in both), tuple(maps[n] for n in both))
