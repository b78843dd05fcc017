"""Where a model's weights came from, and what may be said of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from .._repr import Shown

Kind = Literal["published", "bundled", "random", "file", "timm"]


class Accuracy(NamedTuple):
    """Top-1 accuracy as a fraction; ends of its interval and number of images where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, repr=False)
class Provenance(Shown):
    """Origin of the weights of one model; it travels into every result.

    Attributes
    ----------
    kind : "published" (the authors' release), "bundled" (ships with this package), "timm" (timm's own
        pretrained weights), "file" (a path that the caller gave) or "random" (never trained).
    source : address, or file name, or "seed 0" for random weights.
    sha256 : of the file, in hexadecimal; None for random weights.
    recipe : how they were trained, in words, if known.
    accuracy : measured or reported top-1 accuracy of the weights *as loaded*: None once the head was
        replaced, the position table resized or the input channels adapted.
    notes : what was changed on the way from the file into the model.
    model, data, seed : name of the model, data set it was trained on, seed of that training (or of random
        weights).
    new_head : the classifier was drawn at random: features are trained, logits are not.
    """

    kind: Kind
    source: str
    sha256: str | None = None
    recipe: str | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()
    model: str = ""
    data: str | None = None
    seed: int | None = None
    new_head: bool = False

    def _line(self) -> str:
        return self.label

    def _facts(self) -> dict[str, Any]:
        accuracy = f"{100 * self.accuracy.value:.1f} %" if self.accuracy else ""
        return {
            "kind": self.kind, "source": self.source, "sha256": self.sha256, "data": self.data, "seed": self.seed,
            "recipe": self.recipe, "accuracy": accuracy, "changed": "; ".join(self.notes),
        }  # fmt: skip

    @property
    def untrained(self) -> bool:
        """Whether the weights are random, so that nothing may be concluded about the trained model."""
        return self.kind == "random"

    @property
    def label(self) -> str:
        """One phrase for titles and captions.

        >>> Provenance("random", "seed 0", seed=0).label
        'UNTRAINED (random weights, seed 0)'
        >>> Provenance("bundled", "a.safetensors", model="small_hard_deep", data="photo_crops", seed=0).label
        'bundled small_hard_deep (photo_crops, seed 0)'
        >>> Provenance("published", "https://host/81.5_T2T_ViT_14.pth.tar", model="t2t_vit_14").label
        'published t2t_vit_14 (81.5_T2T_ViT_14.pth.tar)'
        """
        if self.kind == "random":
            return f"UNTRAINED (random weights, seed {self.seed})"
        detail = re.split(r"[/\\]", self.source.rstrip("/"))[-1]
        if self.kind == "bundled":
            detail = f"{self.data}, seed {self.seed}"
        head = ", classifier UNTRAINED" if self.new_head else ""
        return f"{self.kind} {self.model} ({detail}){head}"

    def adapted(self, *notes: str, new_head: bool = False) -> Provenance:
        """The same origin after changes, if any, that the recorded accuracy does not survive."""
        if not notes:
            return self
        return replace(self, accuracy=None, notes=(*self.notes, *notes), new_head=self.new_head or new_head)


def confounds(one: Provenance, other: Provenance) -> list[str]:
    """What else than the model differs between two trainings, or is not known of them, in words.

    >>> one = Provenance("bundled", "", recipe="AdamW, 12 epochs, lr 0.001", data="digits")
    >>> confounds(one, Provenance("bundled", "", recipe="AdamW, 12 epochs, lr 0.002", data="photo_crops"))
    ['data (digits against photo_crops)', 'recipe (lr 0.001 against lr 0.002)']
    """
    found = []
    for what in ("data", "recipe"):
        pair = [getattr(origin, what) for origin in (one, other)]
        if None in pair:
            found.append(f"{what} not known of both")
        elif pair[0] != pair[1]:
            parts = [text.split(", ") for text in pair]
            own = [", ".join(w for w in a if w not in b) or "nothing more" for a, b in (parts, parts[::-1])]
            found.append(f"{what} ({' against '.join(own)})")
    return found
