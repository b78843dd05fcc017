"""Which device of torch a name means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ParameterError, nearest

if TYPE_CHECKING:
    import torch


def torch_device(device: str | torch.device, *, here: bool = True) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Parameters
    ----------
    here : whether it has to be in this machine.

    Raises
    ------
    ParameterError
        Torch knows no such device, or there is none here.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        close = nearest(device, ("cpu", "cuda", "mps"), n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise ParameterError(f"device={device!r}: no device of torch{guess}") from error
    if here and found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"device={str(device)!r}: no such CUDA device here; take 'cpu' or 'auto'")
    return found
