"""What a result must say about the images that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["DataInfo", "chance_level"]


@dataclass(frozen=True)
class DataInfo:
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


def chance_level(labels: np.ndarray) -> float:
    """Share of the commonest class; NaN if any label is missing.

    >>> chance_level(np.array([0, 0, 0, 1]))
    0.75
    """
    if len(labels) == 0 or (labels < 0).any():
        return float("nan")
    return float(np.bincount(labels).max() / len(labels))
