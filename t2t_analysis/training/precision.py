"""Products of linear layers in bfloat16 where the CPU has it; everything else stays in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: our name beside Lightning's: float32 weights, residual stream, norms, attention; bfloat16 in nn.Linear
LINEAR = "bf16-linear"


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; where it is emulated it is slower than float32."""
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def usual(cuda: bool) -> str:
    """Precision of training if none is asked for."""
    return "bf16-mixed" if cuda else LINEAR if native_bf16() else "32-true"


def describe(precision: str, cuda: bool) -> str:
    """The precision as a row of the study names it; says so where a CPU has no native bfloat16."""
    return precision if cuda or native_bf16() else f"{precision}, no native bfloat16"


class _Product(torch.autograd.Function):
    """x (..., in) times w (out, in) transposed, from bfloat16 factors, in and out float32, backward too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        x, w = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x, w)
        return (x @ w.t()).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, w), grad = ctx.saved_tensors, grads[0].bfloat16()
        dx = (grad @ w).float() if ctx.needs_input_grad[0] else None
        dw = (grad.flatten(0, -2).t() @ x.flatten(0, -2)).float() if ctx.needs_input_grad[1] else None
        return dx, dw


class _Linear(nn.Linear):
    """``nn.Linear`` that multiplies in bfloat16 while it is trained, and in float32 when it is evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y = _Product.apply(x, self.weight)
        return y if self.bias is None else y + self.bias


def with_bf16_products(model: nn.Module) -> nn.Module:
    """Change ``model`` in place so that its linear layers train in bfloat16; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
    return model
