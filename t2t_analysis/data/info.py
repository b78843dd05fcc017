"""What a source of images offers, and what a result must say about the images that it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .._repr import Shown


@dataclass(frozen=True)
class Source:
    """Images by number: what the user called them, labels (n,), -1 without, and class names by label.

    ``items`` is what `image` makes them of.
    """

    name: str
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    licence: str = "see where the files came from"
    items: Any = None

    def image(self, number: int) -> Image.Image:
        """Image ``number`` as RGB; raises ``DataError`` naming it if it cannot be read."""
        raise NotImplementedError

    def label_of(self, number: int) -> str:
        """What to call image ``number``."""
        return f"{self.name}[{number}]"


@dataclass(frozen=True, repr=False)
class DataInfo(Shown):
    """Name, size, classes and licence of a choice of images, and which of them they are.

    ``n`` is None for a stream of unknown length. ``chance`` is the accuracy of the best constant guess on
    these images (the share of their commonest class), NaN without labels. ``names[i]`` is what image
    ``index == i`` is called; ``skipped`` says of each unreadable image why.
    """

    name: str
    split: str
    n: int | None
    classes: tuple[str, ...]
    licence: str
    chance: float
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def _line(self) -> str:
        return f"{self.name}, {self.split}, {'a stream' if self.n is None else f'{self.n} images'}"

    def _facts(self) -> dict[str, Any]:
        return {
            "images": self.n, "split": self.split, "classes": len(self.classes), "licence": self.licence,
            "chance": f"{100 * self.chance:.1f} %" if self.chance == self.chance else "",
            "notes": "; ".join(self.notes), "left out": len(self.skipped),
        }  # fmt: skip


def chance_level(labels: np.ndarray) -> float:
    """Share of the commonest class; NaN if any label is missing.

    >>> chance_level(np.array([0, 0, 0, 1]))
    0.75
    """
    if len(labels) == 0 or (labels < 0).any():
        return float("nan")
    return float(np.bincount(labels).max() / len(labels))
