"""The training recipe: one frozen set of numbers, the same for every model of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """AdamW, linear warm-up, cosine decay, label smoothing, drop path, EMA; mixup and cutmix on request.

    Attributes
    ----------
    epochs, batch_size : length of the run and images per step, over all devices.
    lr, min_lr, warmup : peak and final learning rate, and the share of all steps that warm up from ``min_lr``.
    weight_decay : not applied to biases, norms and what the model's ``no_weight_decay`` names.
    smoothing : of the labels.
    mixup, cutmix : their alphas; off by default, since the class of a 32 px crop is its texture.
    drop_path : stochastic depth of the last block.
    ema : decay of the averaged weights, which are the ones that are evaluated and exported; warmed up.
    clip : largest gradient norm; 0 is off, as in the authors' recipe.
    fraction : share of the training set.
    """

    epochs: int = 12
    batch_size: int = 64
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.05
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.05
    ema: float = 0.99
    clip: float = 0.0
    fraction: float = 1.0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a card."""
        return asdict(self)

    def describe(self) -> str:
        """One line for a card.

        >>> Recipe(epochs=3).describe()
        'AdamW, 3 epochs, batch 64, lr 0.001 cosine, warm-up 0.1, weight decay 0.05, smoothing 0.1, drop path 0.05, \
EMA 0.99'
        """
        text = (
            f"AdamW, {self.epochs} epochs, batch {self.batch_size}, lr {self.lr:g} cosine, warm-up {self.warmup:g}, "
            f"weight decay {self.weight_decay:g}, smoothing {self.smoothing:g}, drop path {self.drop_path:g}, "
            f"EMA {self.ema:g}"
        )
        extras = {"mixup": self.mixup, "cutmix": self.cutmix, "gradient clipping": self.clip}
        extras |= {"training fraction": self.fraction} if self.fraction < 1 else {}
        return text + "".join(f", {name} {value:g}" for name, value in extras.items() if value)
