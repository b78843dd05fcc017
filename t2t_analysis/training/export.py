"""Weights with a card from a finished run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from .._commit import commit
from .._paths import data_dir
from ..data import load_images
from ..models import save_weights
from .accuracy import score
from .module import Classifier
from .rows import card, quality


def rounded(model: Any) -> nn.Module:
    """The model as half precision keeps it, computing in float32: what a reader of the file will have."""
    return copy.deepcopy(model).half().float().eval()


def export(
    module: Classifier, data: str, *, command: str, path: str | Path | None = None, device: str = "cpu"
) -> Path:
    """Write the averaged weights of ``module`` in half precision, with a card that says how good they are.

    The accuracy on the card is that of the rounded weights on the whole test split.

    Parameters
    ----------
    path : of the safetensors file; the default is where ``load_model`` finds bundled weights.
    command : what a reader types to train the same again.
    """
    name, recipe, length = module.hparams["model"], module.recipe, module.length
    model: Any = rounded(module.averaged())
    loader: Any = load_images(data, model=model, batch_size=256)
    scores = score(model, loader, device)
    row = quality(scores, scores) | {"model": name, "data": data, "recipe": recipe.describe()}
    row |= {"seed": recipe.seed, "commit": commit(), "command": command, "steps": length.total}
    row |= {"images_seen": length.total * recipe.batch_size}
    row |= {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    suffix = "" if data == "photo_crops" else f"__{Path(data).name}"
    target = Path(path) if path else data_dir() / "weights" / f"{name}{suffix}.safetensors"
    return save_weights(model.state_dict(), target, card(row, model, loader.dataset.info))
