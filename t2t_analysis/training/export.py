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
from .accuracy import accuracy
from .module import Classifier

__all__ = ["export", "rounded"]


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
    name, recipe = module.hparams["model"], module.recipe
    model: Any = rounded(module.averaged())
    loader: Any = load_images(data, model=model, batch_size=256)
    top1: Any = accuracy(model, loader, device).frame.set_index("quantity").loc["top1"]
    suffix = "" if data == "photo_crops" else f"__{Path(data).name}"
    card: dict[str, Any] = {
        "model": name,
        "data": data,
        "recipe": recipe.describe(),
        "seed": recipe.seed,
        "commit": commit(),
        "command": command,
        "test_accuracy": {key: round(float(top1[key]), 4) for key in ("value", "low", "high")}
        | {"n": int(top1["n"]), "unit": str(top1["unit"]), "interval": str(top1["interval"])},
        "chance": round(loader.dataset.info.chance, 4),
        "classes": list(loader.dataset.info.classes),
        "steps": module.total_steps,
        "images_seen": module.total_steps * recipe.batch_size,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "num_classes": module.num_classes,
        "img_size": model.tokens_to_token.img_size[0] if hasattr(model, "tokens_to_token") else None,
        "in_chans": getattr(model, "in_chans", 3),
        "data_licence": loader.dataset.info.licence,
    }
    target = Path(path) if path else data_dir() / "weights" / f"{name}{suffix}.safetensors"
    return save_weights(model.state_dict(), target, card)
