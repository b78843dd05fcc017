"""The authors' released weights: which file holds what, and where it is; a line each in ``releases.csv``.

Accuracies are those of the authors' README; the spelling "cirfar100" is the release's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from .._files import csv_rows

#: The authors' release on GitHub; every published file lies under this address.
RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
#: Mean and standard deviation by which the authors normalise CIFAR at 224 px, and not by ImageNet's.
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Release(NamedTuple):
    """One file of the authors' release: what it was trained on, and the accuracy that their README states.

    ``drop`` begins the names of tensors that only training needs, such as the second classifier of token labelling.
    """

    file: str
    top1: float
    n: int
    data: str
    num_classes: int
    img_size: int
    recipe: str
    drop: tuple[str, ...]

    @property
    def normalisation(self) -> dict[str, tuple[float, float, float]]:
        """Mean and standard deviation of the images, where the model's configuration says others."""
        return dict(zip(("mean", "std"), _CIFAR, strict=True)) if self.data.startswith("CIFAR") else {}


def _read() -> dict[str, dict[str, Release]]:
    found: dict[str, dict[str, Release]] = {}
    for row in csv_rows(Path(__file__).with_suffix(".csv")):
        model, variant = row.pop("model"), row.pop("variant")
        about: dict[str, Any] = row | {name: int(row[name]) for name in ("n", "num_classes", "img_size")}
        about |= {"top1": float(row["top1"]), "drop": tuple(row["drop"].split())}
        found.setdefault(model, {})[variant] = Release(**about)
    return found


#: Model -> variant -> file. The variant "" is what ``weights="published"`` takes, "384" is ``"published/384"``.
PUBLISHED = _read()


def release_url(file: str) -> str:
    """Address of a released file; the environment variable ``T2T_ANALYSIS_RELEASES`` names a mirror.

    >>> release_url("71.7_T2T_ViT_7.pth.tar")  # doctest: +ELLIPSIS
    'https://.../71.7_T2T_ViT_7.pth.tar'
    """
    return f"{(os.environ.get('T2T_ANALYSIS_RELEASES') or RELEASES).rstrip('/')}/{file}"
