"""``python -m t2t_analysis evaluate``: accuracy of a model on a labelled data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..cli import LABELLED, WEIGHTS, positive
from ..errors import ParameterError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add("--model", required=True, help="name of a model")
    add("--weights", default="auto", help=WEIGHTS)
    add("--data", default="photo_crops", help=LABELLED)
    add("--split", default="test", help="of the data set (default: %(default)s)")
    add("--n-images", type=positive, metavar="N", help="only so many, balanced over classes")
    add("--img-size", type=positive, metavar="PX", help="default: the model's own")
    add("--batch-size", type=positive, default=64)
    add("--workers", type=int, default=0)
    add("--device", default="auto", help="cpu, cuda, mps; auto takes a GPU where there is one")
    add("--out", type=Path, metavar="FILE", help="also write the numbers to this .csv or .parquet")


def run(arguments: argparse.Namespace) -> int:
    """Print top-1, top-5 and calibration error with intervals, and the published number where there is one."""
    from .._device import torch_device
    from .._files import writable_folder
    from ..data import load_images
    from ..models import load_model
    from ..quantities import quantity
    from .accuracy import accuracy, in_words

    if arguments.out:
        if arguments.out.suffix not in (".csv", ".parquet"):
            raise ParameterError(f"--out {arguments.out}: expected a name that ends in .csv or .parquet")
        writable_folder(arguments.out.parent)
    device = torch_device(arguments.device)
    model: Any = load_model(arguments.model, arguments.weights, img_size=arguments.img_size, device=device)
    asked = ("n_images", "batch_size", "split", "workers")
    how = {name: getattr(arguments, name) for name in asked}
    loader: Any = load_images(arguments.data, model=model, device=device, **how)
    result = accuracy(model, loader, device)
    info = loader.dataset.info
    what, n = f"{info.name}, {info.split}", len(loader.dataset)
    print(f"{arguments.model} ({model.provenance.label}) on {what}, {n} images")
    for row in result.frame.to_dict("records"):
        print(in_words(row))
    for note in result.notes:
        print(f"note: {note}")
    stated = model.provenance.accuracy
    if stated is not None:
        print(
            f"stated: {quantity('top1').number(stated.value)} with these weights, on {model.provenance.data}"
        )
    if arguments.out:
        print(f"written to {result.save(arguments.out)}")
    return 0
