"""The soft split as a convolution, against unfold + layer norm + linear: time as ratios, and rounding errors.

Both forms run in turns in one process, so the ratios hold on a busy machine too; seconds would not.

    python benchmarks/soft_split.py [--batch 16] [--side 224] [--repeats 7] [--tokens performer transformer]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from t2t_analysis.measures.latency import interleaved, machine, median_interval
from t2t_analysis.models.tokens import T2TModule

WIDTH = 384


def main() -> None:
    given = arguments()
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        print("; ".join(f"{k}: {v}" for k, v in machine(device).items()))
        for kind in given.tokens:
            module = made(kind, given.side).to(device)
            print(f"\n{kind}, batch {given.batch}, {given.side} px: time over that of unfold + norm + linear")
            print(f"{'':30}{'median':>8}   95 % interval")
            for line in ratios(module, given, device):
                print(line)
            print("largest error against float64 over the largest output")
            for line in errors(module, given.side, device):
                print(line)
        print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=7, help="6 or more, for an interval")
    parser.add_argument("--tokens", nargs="+", default=["performer", "transformer"])
    return parser.parse_args()


def made(kind: str, side: int) -> T2TModule:
    torch.manual_seed(0)
    return T2TModule((side, side), kind, embed_dim=WIDTH)


def ratios(module: T2TModule, given: argparse.Namespace, device: str) -> Iterator[str]:
    """One line per form and kind of work."""
    images = torch.randn(given.batch, 3, given.side, given.side, device=device)
    for training in (False, True):
        work = {}
        for name, fused, layout in (
            ("unfold", False, torch.contiguous_format),
            ("convolution", True, torch.contiguous_format),
            ("convolution, channels last", True, torch.channels_last),
        ):
            form = copy.deepcopy(module).to(memory_format=layout).train(training)
            form.set_fused(fused)
            work[name] = step(form, images.to(memory_format=layout), training)
        seconds = interleaved(work, repeats=given.repeats, warmup=1, device=device)
        for name in list(work)[1:]:
            median, low, high = median_interval(seconds[name] / seconds["unfold"])
            what = "training step" if training else "inference"
            yield f"  {name:28}{median:8.2f}   {low:.2f} to {high:.2f}   {what}"


def step(module: T2TModule, images: Tensor, training: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(training):
            out = module(images)
        if training:
            out.sum().backward()
            module.zero_grad(set_to_none=True)

    return run


def errors(module: T2TModule, side: int, device: str) -> Iterator[str]:
    """Noise, and images whose windows are flat, where the variance that is divided by vanishes."""
    module = module.eval()
    exact = copy.deepcopy(module).double()
    exact.set_fused(False)
    for name, image in images(side).items():
        with torch.no_grad():
            truth = exact(image.to(device))
            found = {}
            for form in (False, True):
                module.set_fused(form)
                for half in (False, True):
                    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                        out = module(image.float().to(device))
                    found[form, half] = float((out.double() - truth).abs().max() / truth.abs().max())
        module.set_fused(True)
        shown = ", ".join(
            f"{'convolution' if form else 'unfold'}{' in bf16' if half else ''} {value:.0e}"
            for (form, half), value in found.items()
        )
        yield f"  {name:16}{shown}"


def images(side: int) -> dict[str, Tensor]:
    """Two float64 images of each kind, (2, 3, side, side)."""
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    border = torch.full_like(noise, 2.6)  # white, after normalisation
    inner = slice(side // 4, -(side // 4))
    border[..., inner, inner] = noise[..., inner, inner]
    return {"noise": noise, "white border": border, "constant": torch.full_like(noise, -1.8)}


if __name__ == "__main__":
    main()
