"""AdamW, and Muon in the precision that the device is good at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from .recipe import Recipe

#: Newton-Schulz coefficients of five iterations (Cesista et al., 2025), timm's default.
QUINTIC = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
           (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)]  # fmt: skip


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for groups with ``matrices`` set, fused AdamW for the others.

    The update of a matrix is its averaged gradient made orthogonal, scaled to the size of AdamW's (Liu et al., 2025),
    as in timm's ``muon``. That one works in bfloat16 one matrix at a time, which takes seconds a step on a CPU without
    bfloat16; here matrices of one shape are stacked, in float32 outside CUDA.
    """

    def __init__(self, groups: Any, lr: float, momentum: float = 0.95) -> None:
        for group in groups:
            group.setdefault("matrices", False)
        super().__init__(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step with the gradients, or with those that ``closure`` makes; gradients of matrices are let go."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)
        super().step()  # leaves out what has no gradient
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            if not self.state[p]:  # AdamW reads the step of every state when one is loaded
                self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            self.state[p]["momentum"].lerp_(p.grad, 1 - self.momentum)
            by_shape[(p.shape[0], p[0].numel())].append(p)
            p.grad = None
        for shape, members in by_shape.items():
            stack = torch.stack([self.state[p]["momentum"].view(shape) for p in members])
            dtype = torch.bfloat16 if stack.is_cuda else torch.float32
            updates = zeropower_via_newtonschulz(stack, len(QUINTIC), QUINTIC, dtype=dtype)
            scale = -group["lr"] * get_lr_scale(torch.Size(shape))
            for p, update in zip(members, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p).to(p), alpha=scale)


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe for ``model``; under Muon its classifier, vectors and tokens are AdamW's."""
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    # asked for with a decay, since without one timm does not tell the two apart
    rest, decayed = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)
    decayed["weight_decay"] = recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW([rest, decayed], lr=recipe.lr, fused=True)
    get_classifier: Any = getattr(model, "get_classifier", nn.Identity)
    head = {id(p) for p in get_classifier().parameters()}
    split: dict[bool, list[Tensor]] = {True: [], False: []}
    for p in decayed["params"]:
        split[id(p) not in head].append(p)
    matrices = decayed | {"params": split[True], "matrices": True}
    return Muon([rest, decayed | {"params": split[False]}, matrices], lr=recipe.lr)
