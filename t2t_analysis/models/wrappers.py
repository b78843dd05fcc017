"""Modules that hold a model and run it in another way: on several devices, averaged, compiled."""

from __future__ import annotations

from torch import nn

from ..errors import CaptureError


def way_inside(model: nn.Module) -> str:
    """The attributes that lead to the model inside its wrappers; empty if it has none.

    >>> way_inside(nn.DataParallel(nn.Linear(2, 2))), way_inside(nn.Linear(2, 2))
    ('.module', '')
    """
    inside = dict(model.named_children())
    name = next((name for name in ("_orig_mod", "module") if name in inside), "")
    return f".{name}{way_inside(inside[name])}" if name else ""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, which knows its preprocessing and where its weights came from."""
    for name in way_inside(model).split(".")[1:]:
        model = getattr(model, name)
    return model


def check_bare(model: nn.Module) -> None:
    """Refuse what hooks do not work in: data-parallel copies see parts of a batch, compiled code leaves hooks out.

    Raises
    ------
    CaptureError
        With the way to the model that can be observed; or for what is no model at all.
    """
    about = f"cannot observe {type(model).__name__}"
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{about}: expected a model, as load_model gives it")
    if way := way_inside(model):
        raise CaptureError(f"{about}: it is a wrapper; pass the model inside its wrapper (`{way}`)")
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in model.modules()):
        raise CaptureError(
            f"{about}: it is compiled, which leaves hooks out; pass copy.deepcopy(model), which is not"
        )
