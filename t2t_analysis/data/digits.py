"""``digits``: handwritten digits that ship inside scikit-learn, 8x8 pixels, ten classes."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from ..errors import UnknownNameError
from .info import Source

SPLITS = ("train", "test")


class DigitsSource(Source):
    """One split of the digits; ``items`` (n, 8, 8) in 0..255."""

    def image(self, number: int) -> Image.Image:
        """Digit ``number`` as RGB, 8x8."""
        return Image.fromarray(self.items[number]).convert("RGB")


@cache
def digits_source(split: str) -> DigitsSource:
    """``train``: the first two thirds of each class in the order of the file; ``test``: the rest.

    >>> len(digits_source("train").labels), len(digits_source("test").labels)
    (1198, 599)
    """
    from sklearn.datasets import load_digits

    if split not in SPLITS:
        raise UnknownNameError("split of digits", split, SPLITS)
    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    test = np.zeros(len(pixels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(bunch.target == label)
        test[members[round(len(members) * 2 / 3) :]] = True
    chosen = test if split == "test" else ~test
    notes = ("8x8 pixels enlarged; the same writers may be in both splits",)
    licence = "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits; E. Alpaydin and C. Kaynak)"
    return DigitsSource("digits", bunch.target[chosen], tuple("0123456789"), notes, licence, pixels[chosen])
