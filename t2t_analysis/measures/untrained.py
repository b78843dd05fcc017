"""What the architecture alone gives: the same network with weights that never saw an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._names import TWIN
from ..capture.layout import tokeniser
from ..errors import T2TError


def random_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """Build the architecture of ``model`` anew, initialised as its makers do, with weights of this seed.

    Measure it beside the model, over the same images: what both show belongs to the architecture, not to what
    was learned. The global random state is left as it was; ``model`` is not touched.

    Parameters
    ----------
    model : made by `load_model` or ``timm.create_model``; image size, classes and channels are taken from it.
    seed : of the weights.

    Returns
    -------
    The twin, in eval mode, on the device of ``model``; its provenance says UNTRAINED.

    Raises
    ------
    T2TError : the model cannot be rebuilt from its name, since it was made with other arguments too.

    >>> from t2t_analysis import load_model
    >>> model = load_model("small_hard_deep", "random", seed=1)
    >>> random_twin(model, seed=2).provenance.label
    'UNTRAINED (random weights, seed 2)'
    """
    from ..models import load_model

    name, arguments = _architecture(model), _arguments(model)
    first = next(model.parameters())
    twin = load_model(name, "random", seed=seed, **arguments).to(device=first.device, dtype=first.dtype)
    twin.pretrained_cfg = model.pretrained_cfg  # the same images, prepared in the same way
    expected, got = (_shapes(m) for m in (model, twin))
    for key in dict.fromkeys([*expected, *got]):
        if expected.get(key) != got.get(key):
            raise T2TError(
                f"no random twin of {name}: {key} is {expected.get(key)} in the model and {got.get(key)} in "
                "one that is built from its name; build the twin with the arguments of the model and "
                "weights='random'"
            )
    return twin


def random_twins(models: Mapping[str, nn.Module], seed: int = 0) -> dict[str, nn.Module]:
    """Twins of those models that are trained, labelled "NAME, random": none for a model that is random itself.

    >>> from t2t_analysis import load_model
    >>> random_twins({"small_hard_deep": load_model("small_hard_deep", "random")})
    {}
    """
    trained = {name: model for name, model in models.items() if not _untrained(model)}
    return {name + TWIN: random_twin(model, seed) for name, model in trained.items()}


def _untrained(model: nn.Module) -> bool:
    """Whether the model says that its weights are random."""
    return bool(getattr(getattr(model, "provenance", None), "untrained", False))


def _architecture(model: nn.Module) -> str:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    if not name:
        raise T2TError(f"no random twin of a {type(model).__name__}: it does not tell its registered name")
    return str(name)


def _arguments(model: nn.Module) -> dict[str, Any]:
    """Image size, classes, channels and windows of the soft splits, as far as the model tells them."""
    module: Any = tokeniser(model)
    kernels = (p for p in model.parameters() if p.ndim == 4)
    given = {
        "img_size": getattr(module, "img_size", None),
        "num_classes": getattr(model, "num_classes", None),
        "in_chans": getattr(model, "in_chans", None) or next((k.shape[1] for k in kernels), None),
        "windows": getattr(module, "windows", None) if hasattr(module, "geometry") else None,
    }
    return {key: value for key, value in given.items() if value is not None}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}
