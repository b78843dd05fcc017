"""CKA of two ViTs, layer by layer: ours beside the packages that do the same, against the plain forward passes.

    pip install --no-deps --target runs/peers pytorch-cka torch_cka
    PYTHONPATH=runs/peers python benchmarks/peers.py [--model vit_tiny_patch16_224] [--images 64] [--rounds 7] [--write]

Peers are installed for this alone, and what is not installed is left out, with a word. In every round each form takes
its turn over the same images, so ratios hold on a busy machine too. ``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from overhead import PAGE, peak, processor, replaced, shown
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from t2t_analysis import load_model
from t2t_analysis.measures import CrossLayerCKA, measure
from t2t_analysis.measures.latency import machine, median_interval

Form = Callable[[], object]


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    models = [load_model(given.model, "random", seed=seed) for seed in (0, 1)]
    side = models[0].default_cfg["input_size"][-1]
    images = torch.randn(given.images, 3, side, side, generator=torch.Generator().manual_seed(0))
    forms = {**ours(models, images, given.batch), **peers(models, images, given.batch)}
    table = "\n".join(report(given, forms))
    if given.write:
        PAGE.write_text(replaced(PAGE.read_text(), table))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7, help="6 or more, for an interval")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    return parser.parse_args()


def ours(models: Sequence[nn.Module], images: Tensor, batch: int) -> dict[str, Form]:
    """The plain passes, then our maps: with nulls, intervals and robust rows, and with one permutation alone."""
    loader = DataLoader(images, batch_size=batch)

    def plain() -> None:
        with torch.inference_mode():
            for part in loader:
                for model in models:
                    model(part)

    def form(tokens: str, **settings: object) -> Form:
        asked = CrossLayerCKA(tokens, **settings)
        return lambda: measure(list(models), loader, [asked], labels=["a", "b"], progress=False)

    return {
        "plain forward passes": plain,
        "ours, tokens flattened: nulls, intervals": form("flattened"),
        "ours, tokens flattened: one permutation": form("flattened", permutations=1),
        "ours, tokens pooled: nulls, intervals, robust": form("pooled"),
        "ours, tokens pooled: one permutation": form("pooled", permutations=1, robust=False),
    }


def peers(models: Sequence[nn.Module], images: Tensor, batch: int) -> dict[str, Form]:
    """The same map by packages that have it: of flattened tokens, one number a cell."""
    loader = DataLoader(TensorDataset(images), batch_size=batch)
    layers = [f"blocks.{i}" for i in range(len(models[0].blocks))]
    found: dict[str, Form] = {}
    with contextlib.suppress(ImportError):
        from cka import compute_cka

        found[f"pytorch-cka {version('pytorch-cka')}"] = lambda: compute_cka(
            *models, loader, layers=layers, device="cpu", progress=False
        )
    with contextlib.suppress(ImportError):
        from torch_cka import CKA

        def torch_cka() -> None:
            own = copy.deepcopy(models)  # it leaves its hooks behind
            with torch.inference_mode(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                CKA(*own, "a", "b", layers, layers).compare(loader)

        found[f"torch_cka {version('torch_cka')}"] = torch_cka
    if not found:
        print("no peer is installed: ours alone")
    return found


def report(given: argparse.Namespace, forms: dict[str, Form]) -> list[str]:
    """Every form once a round; the ratio is over the plain passes of its own round."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    memory = dict.fromkeys(forms, 0.0)
    for step in range(given.rounds + 1):
        for name, form in forms.items():
            with peak("cpu") as used:
                start = time.process_time()
                form()
                taken = time.process_time() - start
            memory[name] = max(memory[name], used[0])
            if step:  # the first round warms up
                seconds[name].append(taken)
    plain, *others = forms
    about = ", ".join(f"{key} {value}" for key, value in machine("cpu").items())
    lines = [
        f"### CKA of two `{given.model}`",
        f"\n{given.images} images, batches of {given.batch}, {given.rounds} rounds; {processor()}, {about}\n",
        "| form | ratio | memory, MiB |",
        "| --- | --- | --- |",
        f"| {plain} | 1, {sorted(seconds[plain])[given.rounds // 2]:.2f} s | {memory[plain]:.0f} |",
    ]
    for name in others:
        ratios = [a / b for a, b in zip(seconds[name], seconds[plain], strict=True)]
        value, low, high = median_interval(ratios)
        lines.append(f"| {name} | {value:.3f} [{low:.3f}, {high:.3f}] | {memory[name]:.0f} |")
    return [shown(line) for line in lines]


if __name__ == "__main__":
    main()
