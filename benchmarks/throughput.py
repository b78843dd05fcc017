"""How many images a second does one core measure? The part that grows with the images, and the part that does not.

    python benchmarks/throughput.py [--model t2t_vit_14] [--side 224] [--few 8] [--many 24] [--batch 8]

Seconds are of processor time on one thread, so that other work on the machine counts less than on the clock.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from t2t_analysis import load_model, measure
from t2t_analysis.measures import (
    AttentionGeometry,
    EffectiveRank,
    HeadOutputCKA,
    HeadSimilarity,
    InvalidChannels,
    LayerCKA,
    Measure,
    Spectrum,
)

SETS: dict[str, tuple[type[Measure], ...]] = {
    "one, LayerCKA": (LayerCKA,),
    "three of heads and layers": (HeadSimilarity, HeadOutputCKA, LayerCKA),
    "seven": (
        HeadSimilarity, HeadOutputCKA, LayerCKA, InvalidChannels, AttentionGeometry, EffectiveRank, Spectrum,
    ),
}  # fmt: skip


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    model = load_model(given.model, "random", img_size=given.side)
    images = torch.randn(given.many, 3, given.side, given.side, generator=torch.Generator().manual_seed(0))
    few, many = (list(images[:n].split(given.batch)) for n in (given.few, given.many))
    print(f"{given.model}, {given.side} px, batches of {given.batch}, float32, one thread")
    forward_pass(model, few)  # warm
    forward = seconds(lambda: forward_pass(model, many)) / given.many
    print(f"{'forward pass alone':30} {1 / forward:8.1f} images a second")
    for words, kinds in SETS.items():
        short, long = (seconds(lambda b=b, k=kinds: run(model, b, k)) for b in (few, many))
        each = (long - short) / (given.many - given.few)
        fixed = short - each * given.few
        print(
            f"{words:30} {1 / each:8.1f} images a second, {each / forward:5.1f} forward passes; fixed {fixed:5.1f} s"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small_performer_deep")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args()


def seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def forward_pass(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


def run(model: nn.Module, batches: list[Tensor], kinds: tuple[type[Measure], ...]) -> None:
    measure(model, batches, [kind() for kind in kinds], progress=False)


if __name__ == "__main__":
    main()
