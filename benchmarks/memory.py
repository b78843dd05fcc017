"""Does measuring stream? Memory of the process after 64 and after 1,024 images, with all measures at once.

    python benchmarks/memory.py [--model small_performer_deep] [--images 1024] [--measures layer_cka ...]

Ends with status 1 if the two differ by 5 % or more.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import inspect
import os
import resource
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import t2t_analysis.measures as measures
from t2t_analysis import load_model
from t2t_analysis.errors import UnknownNameError
from t2t_analysis.measures import Measure, accumulate

EARLY, LIMIT = 64, 0.05


def main() -> int:
    given = arguments()
    torch.manual_seed(0)
    model = load_model(given.model, "random")
    asked = chosen(given.measures)
    print(
        f"{given.model}, batches of {given.batch} at {given.side} px; measures: {', '.join(m.name for m in asked)}"
    )
    at: dict[int, int] = {0: resident_bytes()}  # libraries and model
    done = accumulate(model, stream(model, given, at), asked, progress=False)
    for count, resident in at.items():
        print(f"after {count:5} images: {resident / 2**20:8.1f} MiB resident")
    states = sum(
        tensor.nbytes for m in done for tensor in m.state_dict().values() if isinstance(tensor, Tensor)
    )
    more = at[given.images] - at[EARLY]
    growth = more / at[EARLY]
    print(f"accumulators hold {states / 2**20:.1f} MiB")
    print(f"growth from {EARLY} to {given.images} images: {more / 2**20:+.1f} MiB, {growth:+.1%}")
    return int(growth >= LIMIT)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small_performer_deep")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument(
        "--measures", nargs="*", help="by name; default: all of one model that need no arguments"
    )
    return parser.parse_args()


def chosen(names: list[str] | None) -> list[Measure]:
    """All measures of one model, or those with these names."""
    kinds = [kind for kind in vars(measures).values() if isinstance(kind, type) and issubclass(kind, Measure)]
    found = {kind.name: kind for kind in kinds if kind.name and kind.arity == 1 and not needs(kind)}
    for name in names or ():
        if name not in found:
            raise UnknownNameError("measure", name, found)
    return [found[name]() for name in names or found]


def needs(kind: type[Measure]) -> list[str]:
    """Arguments that a measure cannot be made without."""
    parameters = inspect.signature(kind).parameters.values()
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def stream(model: nn.Module, given: argparse.Namespace, at: dict[int, int]) -> Iterator[Tensor]:
    """Batches of noise, normalised as the model wants images.

    Notes the memory when the first 64 and when all images have been worked through.
    """
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    for start in range(0, given.images, given.batch):
        if start == EARLY:
            at[start] = resident_bytes()
        yield (torch.rand(given.batch, 3, given.side, given.side, generator=generator) - mean) / std
    at[given.images] = resident_bytes()


def resident_bytes() -> int:
    """Resident set of this process, after what nothing refers to has been given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere only the peak can be had
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
