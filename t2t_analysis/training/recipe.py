"""The training recipe: one frozen set of numbers, the same for every model of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import sqrt
from numbers import Integral, Real
from typing import Any

from ..errors import ParameterError, UnknownNameError

#: name -> how it is written
OPTIMISERS = {"muon": "Muon", "adamw": "AdamW"}


def _knob(default: Any, low: float, high: float, words: str) -> Any:
    """A number with the smallest and the largest value that can be trained with, and what an option says of it."""
    return field(default=default, metadata={"range": (low, high), "words": words})


@dataclass(frozen=True)
class Recipe:
    """Warm-up, constant rate, decay; label smoothing, drop path, moving average; mixup and cutmix on request.

    Attributes
    ----------
    epochs, batch_size : length of the run and images per step, over all devices.
    optimizer : "muon" for the matrices inside the network and AdamW for the rest, or "adamw" for all.
    lr : peak learning rate.
    warmup : epochs in which it rises from 0. Not a share of the run, so that runs that differ in length alone are the
        same until the shorter one decays.
    decay : share of the run in which it falls to 0 at the end.
    weight_decay : not applied to biases, norms and what the model's ``no_weight_decay`` names.
    smoothing : of the labels.
    mixup, cutmix : their alphas; off by default, since the class of a 32 px crop is its texture.
    drop_path : stochastic depth of the last block.
    ema : decay of the averaged weights, which are the ones that are evaluated and exported; warmed up.
    clip : largest gradient norm; 0 is off, as in the authors' recipe.
    fraction : share of the training set.
    """

    epochs: int = _knob(12, 0, 1e6, "passes over the training set")
    batch_size: int = _knob(64, 1, 1e6, "images per step, over all devices")
    optimizer: str = field(default="muon", metadata={"words": "muon or adamw"})
    lr: float = _knob(2e-3, 1e-12, 1e3, "peak learning rate")
    warmup: float = _knob(0.3, 0, 1e6, "epochs in which the rate rises")
    decay: float = _knob(0.2, 0, 1, "share of the run in which it falls to 0 at the end")
    weight_decay: float = _knob(0.05, 0, 1e3, "not for biases, norms and the class token")
    smoothing: float = _knob(0.1, 0, 0.99, "of the labels")
    mixup: float = _knob(0.0, 0, 1e3, "alpha of mixup; 0 is off")
    cutmix: float = _knob(0.0, 0, 1e3, "alpha of cutmix; 0 is off")
    drop_path: float = _knob(0.05, 0, 0.99, "stochastic depth of the last block")
    ema: float = _knob(0.95, 0, 0.999999, "decay of the averaged weights")
    clip: float = _knob(0.0, 0, 1e9, "largest gradient norm; 0 is off")
    fraction: float = _knob(1.0, 1e-9, 1, "share of the training set")
    seed: int = _knob(0, 0, 2**63 - 1, "of weights, order, augmentation and dropout")

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises
        ------
        ParameterError
            A number outside its range, NaN among them, or none at all; both are named.
        UnknownNameError
            No such optimiser.
        """
        for knob in (knob for knob in fields(self) if "range" in knob.metadata):
            value, (low, high) = getattr(self, knob.name), knob.metadata["range"]
            whole = isinstance(knob.default, int)
            fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not (fits and low <= value <= high):
                number = "a whole number" if whole else "a number"
                raise ParameterError(f"{knob.name}={value!r}: expected {number} from {low:g} to {high:g}")
        if self.optimizer not in OPTIMISERS:
            raise UnknownNameError("optimizer", self.optimizer, OPTIMISERS)

    def describe(self) -> str:
        """One line for a card.

        >>> Recipe(epochs=3).describe()
        'Muon, 3 epochs, batch 64, lr 0.002, warm-up 0.3 epochs, decay over the last 0.2, weight decay 0.05, \
smoothing 0.1, drop path 0.05, EMA 0.95'
        """
        text = (
            f"{OPTIMISERS[self.optimizer]}, {self.epochs} epochs, batch {self.batch_size}, lr {self.lr:g}, "
            f"warm-up {self.warmup:g} epochs, decay over the last {self.decay:g}, "
            f"weight decay {self.weight_decay:g}, smoothing {self.smoothing:g}, drop path {self.drop_path:g}, "
            f"EMA {self.ema:g}"
        )
        extras = {"mixup": self.mixup, "cutmix": self.cutmix, "gradient clipping": self.clip}
        extras |= {"training fraction": self.fraction} if self.fraction < 1 else {}
        return text + "".join(f", {name} {value:g}" for name, value in extras.items() if value)


def rate_at(step: int, warm: int, branch: int, total: int) -> float:
    """Share of the peak rate at a step: linear warm-up, constant, 1 - sqrt to zero (Hägele et al., 2024).

    Parameters
    ----------
    warm, branch, total : first step after the warm-up, first step of the decay, number of steps.

    >>> [round(rate_at(step, 2, 6, 10), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.29, 0.13]
    """
    if step < warm:
        return (step + 1) / warm
    return 1.0 if step <= branch else max(0.0, 1 - sqrt((step - branch) / (total - branch)))
