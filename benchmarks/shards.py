"""Do two processes measure twice as fast as one, and the same? Shards under torchrun, against one process.

    python benchmarks/shards.py [--model deit_small_patch16_224] [--images 128] [--rounds 3]

Every process has one thread. One process and two take turns; the time is that of measuring and of the tables, from
when all are ready. Ends with status 1 if a number differs by more than 1e-10 of its size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from t2t_analysis import load_model
from t2t_analysis.measures import measure
from t2t_analysis.measures.latency import machine

MEASURES = ("head_similarity", "head_output_cka", "layer_cka", "invalid_channels", "attention_geometry")
TOLERANCE = 1e-10


def main() -> int:
    given = arguments()
    if given.worker:
        return work(given)
    print("; ".join(f"{key}: {value}" for key, value in machine("cpu").items() if key != "threads"))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for processes in seconds:
                seconds[processes].append(launch(given, processes, Path(folder)))
        apart = largest_difference(*(pd.read_parquet(Path(folder) / f"{n}.parquet") for n in seconds))
    one, two = (np.array(seconds[n]) for n in (1, 2))
    rates = " and ".join(f"{given.images / np.median(taken):.2f}" for taken in (one, two))
    print(f"{given.model}, {given.images} images, one process and two: {rates} images a second")
    ratio = one / two
    print(f"{np.median(ratio):.2f} times as fast, rounds from {ratio.min():.2f} to {ratio.max():.2f}")
    print(f"largest difference of a number: {apart:.0e} of its size")
    return int(not apart <= TOLERANCE)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def launch(given: argparse.Namespace, processes: int, folder: Path) -> float:
    """Measure in so many processes; seconds, as the first of them took them."""
    out = folder / f"{processes}.parquet"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        __file__,
    ]
    command += [
        "--model",
        given.model,
        "--images",
        str(given.images),
        "--batch",
        str(given.batch),
        "--worker",
        str(out),
    ]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return float(out.with_suffix(".seconds").read_text())


class Batch(NamedTuple):
    images: Tensor
    labels: None
    index: Tensor


class Shard:
    """Every second batch of images that all processes could make; numbered as in the whole."""

    def __init__(self, given: argparse.Namespace, side: int, rank: int, world: int) -> None:
        self.dataset = range(given.images)
        self.side, self.mine = side, torch.arange(given.images).split(given.batch)[rank::world]

    def __iter__(self) -> Iterator[Batch]:
        for index in self.mine:
            images = [
                torch.randn(3, self.side, self.side, generator=torch.Generator().manual_seed(int(i)))
                for i in index
            ]
            yield Batch(torch.stack(images), None, index)


def work(given: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = load_model(given.model, "random", device="cpu")
    shard = Shard(given, model.default_cfg["input_size"][-1], dist.get_rank(), dist.get_world_size())
    dist.barrier()
    start = time.perf_counter()
    found = measure(model, shard, MEASURES, progress=False)
    if dist.get_rank() == 0:
        Path(given.worker).with_suffix(".seconds").write_text(str(time.perf_counter() - start))
        found.frame.to_parquet(given.worker)
    dist.destroy_process_group()
    return 0


def largest_difference(one: pd.DataFrame, two: pd.DataFrame) -> float:
    """Of any number of two frames with the same rows, as a share of the number."""
    numbers = [name for name in one.columns if pd.api.types.is_float_dtype(one[name])]
    pd.testing.assert_frame_equal(one.drop(columns=numbers), two.drop(columns=numbers))
    a, b = (frame[numbers].to_numpy(float, na_value=np.nan) for frame in (one, two))
    if (np.isnan(a) != np.isnan(b)).any():
        return float("nan")
    return float(np.nanmax(np.abs(a - b) / np.maximum(np.abs(a), 1)))


if __name__ == "__main__":
    sys.exit(main())
