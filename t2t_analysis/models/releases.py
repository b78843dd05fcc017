"""The authors' released weights: which file holds what, and where it is."""

from __future__ import annotations

import os
from typing import NamedTuple

#: The authors' release on GitHub; every published file lies under this address.
RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"


class Release(NamedTuple):
    """One file of the authors' release: what it was trained on, and the accuracy that their README states."""

    file: str
    top1: float
    data: str = "ImageNet-1k"
    num_classes: int = 1000
    img_size: int = 224
    recipe: str = "300 epochs, AdamW, weight average"
    n: int = 50_000
    drop: tuple[str, ...] = ()  # tensors that only training needs
    # How the images were normalised; None: as the model's configuration says.
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def _cifar(file: str, top1: float, num_classes: int) -> Release:
    """The authors normalise CIFAR at 224 px by these statistics, not by ImageNet's."""
    return Release(
        file,
        top1,
        data=f"CIFAR-{num_classes}",
        num_classes=num_classes,
        recipe="60 epochs of SGD from the ImageNet weights",
        n=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )


#: Model -> variant -> file. The variant "" is what ``weights="published"`` takes, "384" is
#: ``"published/384"``. Accuracies are the README's; the spelling "cirfar100" is the release's.
PUBLISHED: dict[str, dict[str, Release]] = {
    "t2t_vit_7": {"": Release("71.7_T2T_ViT_7.pth.tar", 0.717)},
    "t2t_vit_10": {"": Release("75.2_T2T_ViT_10.pth.tar", 0.752)},
    "t2t_vit_12": {"": Release("76.5_T2T_ViT_12.pth.tar", 0.765)},
    "t2t_vit_14": {
        "": Release("81.5_T2T_ViT_14.pth.tar", 0.815),
        "384": Release("83.3_T2T_ViT_14.pth.tar", 0.833, img_size=384),
        "cifar10": _cifar("cifar10_t2t-vit_14_98.3.pth", 0.983, 10),
        "cifar100": _cifar("cirfar100_t2t-vit-14_88.4.pth", 0.884, 100),
    },
    "t2t_vit_19": {
        "": Release("81.9_T2T_ViT_19.pth.tar", 0.819),
        "cifar10": _cifar("cifar10_t2t-vit_19_98.4.pth", 0.984, 10),
        "cifar100": _cifar("cifar100_t2t-vit-19_89.0.pth", 0.890, 100),
    },
    "t2t_vit_24": {
        "": Release("82.3_T2T_ViT_24.pth.tar", 0.823),
        # About 0.5 M parameters more than the model: the second classifier, on patch tokens, that only
        # training uses.
        "token_labelling": Release(
            "84.2_T2T_ViT_24.pth.tar", 0.842, recipe="token labelling", drop=("aux_head.", "module.aux_head.")
        ),
    },
    "t2t_vit_t_14": {"": Release("81.7_T2T_ViTt_14.pth.tar", 0.817)},
    "t2t_vit_t_19": {"": Release("82.4_T2T_ViTt_19.pth.tar", 0.824)},
    "t2t_vit_t_24": {"": Release("82.6_T2T_ViTt_24.pth.tar", 0.826)},
}


def release_url(file: str) -> str:
    """Address of a released file; the environment variable ``T2T_ANALYSIS_RELEASES`` names a mirror.

    >>> release_url("71.7_T2T_ViT_7.pth.tar")  # doctest: +ELLIPSIS
    'https://.../71.7_T2T_ViT_7.pth.tar'
    """
    return f"{(os.environ.get('T2T_ANALYSIS_RELEASES') or RELEASES).rstrip('/')}/{file}"
