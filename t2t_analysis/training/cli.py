"""``python -m t2t_analysis train``."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..cli import LABELLED
from .recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to its parser."""
    add = parser.add_argument
    add("--model", default="small_performer_deep", help="name of a model (default: %(default)s)")
    add("--data", default="photo_crops", help=LABELLED)
    add("--out", type=Path, metavar="FOLDER", help="run folder: weights; a killed run goes on from there")
    add("--img-size", type=int, metavar="PX", help="image side; default: the model's own")
    add("--devices", default="auto", help="number of devices; more than one trains by DDP")
    add("--precision", help="Lightning's name or bf16-linear; default: what suits the device")
    add("--workers", type=int, default=0, help="processes that load images")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--restart", action="store_true", help="throw away a checkpoint in the run folder")
    recipe = parser.add_argument_group("recipe")
    for field in fields(Recipe):
        kind: Any = type(field.default)
        text = f"{field.metadata['words']} (default: {field.default})"
        recipe.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=text)


def command_line(arguments: argparse.Namespace) -> str:
    """What to type to train the same again: only what differs from the defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = vars(parser.parse_args([]))
    words = ["python", "-m", "t2t_analysis", "train"]
    for name in ("model", "data", "img_size", *(field.name for field in fields(Recipe))):
        if (value := getattr(arguments, name)) != usual[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def run(arguments: argparse.Namespace) -> int:
    """Train, say how good the result is, and leave its weights with a card in the run folder."""
    from ..data import load_images
    from ..models import save_weights
    from . import rows
    from .accuracy import score
    from .design import WEIGHTS
    from .train import train

    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    name = f"{arguments.model}__{Path(str(arguments.data)).name}__seed{recipe.seed}"
    out = arguments.out or Path("runs") / name
    devices = int(arguments.devices) if str(arguments.devices).isdigit() else arguments.devices
    asked = ("img_size", "precision", "workers", "restart", "compile")
    how = {name: getattr(arguments, name) for name in asked}
    module = train(arguments.model, arguments.data, recipe=recipe, out=out, devices=devices, **how)
    if module.global_rank != 0:
        return 0
    model: Any = rows.rounded(module.averaged())
    device = "cuda" if next(module.parameters()).is_cuda else "cpu"
    loader: Any = load_images(
        arguments.data, model=model, batch_size=256, workers=how["workers"], device=device
    )
    scores, info = score(model, loader, device), loader.dataset.info
    row = rows.quality(scores, scores) | rows.made() | rows.effort(module, model) | {"chance": info.chance}
    row |= {
        "model": arguments.model,
        "data": arguments.data,
        "seed": recipe.seed,
        "recipe": recipe.describe(),
    }
    row["command"] = command_line(arguments)
    path = save_weights(model.state_dict(), out / WEIGHTS, rows.card(row, model, info))
    print(f"{arguments.model} on {arguments.data}: {rows.said(row)}; weights and card: {path}")
    return 0
