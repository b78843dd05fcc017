"""Folders named by WordNet ids under a head of ImageNet's: labels as the head numbers its classes."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
from torch import nn

from ..errors import DataError
from .info import Source

_WNID = re.compile(r"n\d{8}")


def number_as_head(source: Source, model: nn.Module | None) -> Source:
    """``source`` with labels as the model's head numbers them, where that is known from the class names.

    That is the case for classes named by WordNet ids (``n01440764``) and a head of as many classes as ImageNet-1k
    or one of timm's larger ImageNet sets: a subset keeps the numbers of the whole.

    Raises
    ------
    DataError
        A folder is named by an id that is not among the head's classes.
    """
    outputs = getattr(model, "num_classes", None)
    named = source.classes and all(_WNID.fullmatch(name) for name in source.classes)
    if not named:
        return source
    from timm.data import infer_imagenet_subset

    if (subset := infer_imagenet_subset({"num_classes": outputs})) is None:
        return source
    ids, names = _classes(subset)
    unknown = [name for name in source.classes if name not in ids]
    if unknown and outputs == len(source.classes):
        return source  # a head of its own that happens to be as wide
    if unknown:
        raise DataError(
            f"{source.name} has class folders that are no class of {subset}, which the model's {outputs} outputs "
            f"stand for: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}"
        )
    number = np.array([*(ids[name] for name in source.classes), -1])  # the last stands for no label
    note = f"{len(source.classes)} class folders named by WordNet ids, numbered as in {subset}"
    return replace(source, labels=number[source.labels], classes=names, notes=(*source.notes, note))


def class_names(outputs: int) -> tuple[str, ...]:
    """Names of the classes of a head of so many outputs, if that is one of ImageNet's; else none.

    >>> class_names(1000)[281], class_names(19)
    ('tabby', ())
    """
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return _classes(subset)[1] if subset else ()


@cache
def _classes(subset: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number of every id, and a name of every class: its first word, with the id where two share it."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    ids = info.label_names()
    words = [info.label_name_to_description(one).split(",")[0] for one in ids]
    each = zip(words, ids, strict=True)
    names = tuple(word if words.count(word) == 1 else f"{word} ({one})" for word, one in each)
    return {one: number for number, one in enumerate(ids)}, names
