"""T2T-ViTs against the same networks in plain words: time as ratios, and rounding errors of the soft splits.

Plain words: unfold, layer norm, linear layer one after the other, attention with its map in memory, PyTorch's own
dropout. Both forms run in turns in one process, so the ratios hold on a busy machine too; seconds would not.

    python benchmarks/soft_split.py [--models t2t_vit_7 t2t_vit_14 t2t_vit_t_14] [--batch 4] [--repeats 11]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from _textbook import plain_splits
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2t_analysis.measures.latency import interleaved, machine, median_interval
from t2t_analysis.models.tokens import Dropout, T2TModule


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        print("; ".join(f"{k}: {v}" for k, v in machine(device).items()))
        print(f"batch {given.batch}: time of the plain form over ours, median and 95 % interval")
        for name in given.models:
            print(f"  {name:18}" + "   ".join(ratios(name, given, device)))
        print("largest error against float64 over the largest output, 224 px")
        for kind in ("performer", "transformer"):
            for line in errors(kind, device):
                print(f"  {kind:12}{line}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["t2t_vit_7", "t2t_vit_14", "t2t_vit_t_14"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=11, help="6 or more, for an interval")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def plain(model: nn.Module) -> nn.Module:
    """A copy in plain words; equal numbers, up to rounding and to the dropout's random stream."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, T2TModule):
            plain_splits(module)
        if isinstance(module, Attention):
            module.fused_attn = False  # type: ignore[misc]
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


def ratios(name: str, given: argparse.Namespace, device: str) -> Iterator[str]:
    """Whole model, and tokeniser alone: inference and training step."""
    torch.manual_seed(0)
    ours: Any = timm.create_model(name).to(device)
    side = ours.default_cfg["input_size"][-1]
    images = torch.randn(given.batch, 3, side, side, device=device)
    for training in (False, True):
        work = {}
        for form, model in (("ours", copy.deepcopy(ours)), ("plain", plain(ours))):
            model.train(training)
            work[form] = step(model, images, training, form == "plain")
            work[f"{form} tokeniser"] = step(model.tokens_to_token, images, training, form == "plain")
        seconds = interleaved(work, repeats=given.repeats, warmup=1, device=device)
        what = "training step" if training else "inference"
        for part in ("", " tokeniser"):
            median, low, high = median_interval(seconds[f"plain{part}"] / seconds[f"ours{part}"])
            yield f"{what}{part and ', tokeniser'} {median:.2f} [{low:.2f}, {high:.2f}]"


def step(module: nn.Module, images: Tensor, training: bool, mapped: bool) -> Callable[[], None]:
    def run() -> None:
        attention = sdpa_kernel(SDPBackend.MATH) if mapped else contextlib.nullcontext()
        with attention, torch.set_grad_enabled(training):
            out = module(images)
            if training:
                out.sum().backward()
        module.zero_grad(set_to_none=True)

    return run


def errors(kind: str, device: str, side: int = 224) -> Iterator[str]:
    """Noise, and images whose windows are flat, where the deviation that is divided by vanishes."""
    torch.manual_seed(0)
    module = T2TModule((side, side), kind, embed_dim=384).to(device).eval()
    exact = plain_splits(copy.deepcopy(module).double())
    forms = {False: plain_splits(copy.deepcopy(module)), True: module}
    for name, image in pictures(side).items():
        with torch.no_grad():
            truth = exact(image.to(device))
            found = {}
            for fused, form in forms.items():
                for half in (False, True):
                    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                        out = form(image.float().to(device))
                    found[fused, half] = float((out.double() - truth).abs().max() / truth.abs().max())
        shown = ", ".join(
            f"{'ours' if fused else 'plain'}{' in bf16' if half else ''} {value:.0e}"
            for (fused, half), value in found.items()
        )
        yield f"{name:16}{shown}"


def pictures(side: int) -> dict[str, Tensor]:
    """Two float64 images of each kind, (2, 3, side, side)."""
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    border = torch.full_like(noise, 2.6)  # white, after normalisation
    inner = slice(side // 4, -(side // 4))
    border[..., inner, inner] = noise[..., inner, inner]
    return {"noise": noise, "white border": border, "constant": torch.full_like(noise, -1.8)}


if __name__ == "__main__":
    main()
