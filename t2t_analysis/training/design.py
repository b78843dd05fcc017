"""What the study runs: cells, recipes, lengths, seeds and fractions, and the name under which each run is known.

Loads no torch, so that a plan is there at once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from .._names import our_models
from ..errors import ParameterError, UnknownNameError
from . import rates
from .recipe import Recipe

TOKENISERS, BACKBONES = ("hard", "performer", "transformer", "conv"), ("deep", "wide")
IDEAS = ("se", "dense", "resnext", "ghost")
#: The factorial at the heart of the study.
CORNERS = tuple(f"small_{tokens}_{shape}" for tokens in ("hard", "performer") for shape in BACKBONES)
#: One part of the T2T module each, beside the wide corners: its layer norm, its overlap, overlap with nonlinearity, all
#: but its attention.
PARTS = tuple(f"small_{tokens}_wide" for tokens in ("hardnorm", "conv", "convgelu", "mlp"))
MATCHED = tuple(f"small_{tokens}_{shape}" for tokens in TOKENISERS for shape in BACKBONES)
VARIANTS = tuple(f"small_{tokens}_deep_{idea}" for tokens in ("hard", "performer") for idea in IDEAS)
#: Words that ``--cells`` understands besides patterns of names.
GROUPS = {"corner": CORNERS, "parts": PARTS, "matched": MATCHED, "cnn": VARIANTS}
GROUPS["all"] = tuple(dict.fromkeys(name for group in GROUPS.values() for name in group))
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
#: Cells that also train on fractions of the data.
FRACTION_CELLS = ("small_hard_deep", "small_performer_deep")
TASKS = ("train", "finetune", "probe")
#: data -> epochs at which runs end, each with its own decay; effects are judged at the last.
HORIZONS = {"photo_crops": (3, 6, 12, 24), "cifar10": (3, 6, 12), "torch/cifar10": (3, 6, 12)}
#: Weights of a finished run, in its folder.
WEIGHTS = "weights.safetensors"


class Cell(NamedTuple):
    """A place in the design."""

    tokeniser: str
    backbone: str
    variant: str


def cell_of(model: str) -> Cell:
    """Where a model stands in the design; empty words for one that stands outside.

    >>> cell_of("small_performer_deep_se")
    Cell(tokeniser='performer', backbone='deep', variant='se')
    """
    if model not in GROUPS["all"]:
        return Cell("", "", "")
    words = model.split("_")[1:]
    return Cell(words[0], words[1], words[2] if len(words) > 2 else "plain")


def horizons_of(data: str) -> tuple[int, ...]:
    """Lengths at which runs on ``data`` end; sets outside the design have one.

    >>> horizons_of("photo_crops"), horizons_of("digits")
    ((3, 6, 12, 24), (40,))
    """
    return HORIZONS.get(data_label(data), (40,) if data == "digits" else (12,))


def recipe_for(model: str, data: str, optimizer: str = "muon", task: str = "train") -> Recipe:
    """What is done if nothing is varied: fixed before any run, at the last horizon and the rate that ``rates`` chose.

    Fine-tuning takes a quarter of the epochs at half the rate; a probe has no epochs, and no rate.
    """
    if task == "probe":
        return Recipe(epochs=0)
    epochs = horizons_of(data)[-1]
    rate = rates.chosen(rates_cell(model), data_label(data), optimizer) or rates.START[optimizer]
    if task == "finetune":
        epochs, rate = max(1, epochs // 4), rate / 2
    return Recipe(epochs=epochs, optimizer=optimizer, lr=rate)


def demand_rate(run: Run) -> None:
    """Refuse a run of the design whose rate was not chosen yet.

    Raises
    ------
    ParameterError
        with the command that chooses it.
    """
    cell, data, optimizer = rates_cell(run.model), data_label(run.data), run.recipe.optimizer
    inside = run.model in GROUPS["all"] and data in HORIZONS and run.task == "train" and not run.sweep
    if inside and rates.chosen(cell, data, optimizer) is None:
        words = f"--rates --cells {cell} --data {shlex.quote(data)}"
        words += f" --optimizer {optimizer}" if optimizer != "muon" else ""
        raise ParameterError(
            f"no {optimizer} rate was chosen for {cell} on {data}: python -m t2t_analysis study {words}"
        )


def rates_cell(model: str) -> str:
    """The corner cell whose rate a model takes: same backbone, and the T2T one unless the split is hard.

    >>> rates_cell("small_conv_wide"), rates_cell("small_hard_deep_se"), rates_cell("t2t_vit_14")
    ('small_performer_wide', 'small_hard_deep', 't2t_vit_14')
    """
    cell = cell_of(model)
    if not cell.backbone:
        return model
    return f"small_{'hard' if cell.tokeniser.startswith('hard') else 'performer'}_{cell.backbone}"


def data_label(data: str) -> str:
    """What the table calls a data set: a path is known by its last part.

    >>> data_label("torch/cifar10"), data_label("/somewhere/sets/flowers.tar")
    ('torch/cifar10', 'flowers.tar')
    """
    path = Path(data).expanduser()
    return path.name if path.is_absolute() or path.exists() or path.suffix == ".tar" else data


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes
    ----------
    model, data, recipe : what is trained on what, and how; the recipe holds seed, fraction and epochs.
    task : "train" from random weights, "finetune" or "probe" from trained ones.
    source : of a transfer: the data set that the study's own weights were trained on.
    weights : of a transfer: weights as ``load_model`` takes them, in place of the study's own.
    """

    model: str
    data: str
    recipe: Recipe
    task: str = "train"
    source: str = ""
    weights: str = ""

    @property
    def origin(self) -> str:
        """Where a transfer starts from, in one word."""
        return data_label(self.weights or self.source) if self.task != "train" else ""

    @property
    def fixed(self) -> Recipe:
        """What the recipe would be if nothing were varied but seed, fraction and optimiser."""
        base = recipe_for(self.model, self.data, self.recipe.optimizer, self.task)
        return replace(base, seed=self.recipe.seed, fraction=self.recipe.fraction)

    @property
    def reduced(self) -> bool:
        """Whether it ends before the last horizon."""
        return self.recipe.epochs < self.fixed.epochs

    @property
    def sweep(self) -> bool:
        """Whether more than the number of epochs differs from the fixed recipe."""
        return bool(self.changes)

    @property
    def changes(self) -> dict[str, float]:
        """Numbers of the recipe, other than epochs, that differ from the fixed one."""
        fixed = self.fixed
        pairs = {f.name: (getattr(self.recipe, f.name), getattr(fixed, f.name)) for f in fields(Recipe)}
        return {name: ours for name, (ours, usual) in pairs.items() if ours != usual and name != "epochs"}

    @property
    def name(self) -> str:
        """Readable and unique: the same words always mean the same run.

        >>> Run("small_hard_deep", "my_photos", Recipe(epochs=4)).name
        'small_hard_deep__my_photos__f100__e4__s0__5cf0e21c'
        """
        recipe, label = self.recipe, data_label(self.data)
        varied = [recipe.seed, recipe.fraction, recipe.describe()]
        identity = [self.model, label, self.task, self.origin, *varied]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        words = [self.model, label.replace("/", "-"), f"f{100 * recipe.fraction:g}"]
        words += [] if self.task == "train" else [self.task, "from", self.origin.replace("/", "-")]
        words += [recipe.optimizer] if recipe.optimizer != "muon" else []
        words += [f"e{recipe.epochs}", f"s{recipe.seed}", *(f"{k}{v:g}" for k, v in self.changes.items())]
        return "__".join([*words, digest])

    def words(self, data: str | None = None) -> list[str]:
        """Arguments of ``study`` that plan this run and no other."""
        words = ["--data", data or self.data, "--cells", self.model, "--seeds", str(self.recipe.seed)]
        words += ["--fractions", f"{self.recipe.fraction:g}"]
        words += ["--epochs", str(self.recipe.epochs)] if self.recipe.epochs else []
        words += ["--optimizer", self.recipe.optimizer] if self.recipe.optimizer != "muon" else []
        for key, number in self.changes.items():
            words += ["--sweep", f"{key}={number:g}"]
        if self.task != "train":
            words += ["--task", self.task, *(["--source", self.source] if self.source else [])]
            words += ["--weights", self.weights] if self.weights else []
        return words

    def command(self) -> str:
        """What repeats the run, into a table of its own; paths are shortened to their last part."""
        shown = replace(self, weights=data_label(self.weights)) if self.weights else self
        words = shown.words(data_label(self.data))
        return shlex.join(["python", "-m", "t2t_analysis", "study", *words, "--out", "study_again"])


def choose_cells(wanted: str) -> tuple[str, ...]:
    """Models that a comma-separated list of groups, names or patterns means, in the order of the design.

    The ``small_`` in front may be left out; a model outside the design needs its full name.

    >>> choose_cells("hard_deep,performer_w*")
    ('small_hard_deep', 'small_performer_wide')
    """
    chosen: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in wanted.split(","))):
        found = GROUPS.get(word) or tuple(
            name for name in GROUPS["all"] if fnmatchcase(name, word) or fnmatchcase(name, f"small_{word}")
        )
        found = found or tuple(name for name in our_models() if name == word)
        if not found:
            raise UnknownNameError("cell", word, [*GROUPS, *GROUPS["all"]])
        chosen |= dict.fromkeys(found)
    if not chosen:
        raise ParameterError("--cells names no cell")
    return tuple(sorted(chosen, key=lambda name: (*GROUPS["all"], *our_models()).index(name)))


def _recipes(base: Recipe, sweep: Mapping[str, Sequence[float]]) -> list[Recipe]:
    """``base`` with each value of each field in turn; without a sweep just ``base``."""
    if not sweep:
        return [base]
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Recipe)}
    return [replace(base, **{key: kinds[key](n)}) for key, numbers in sweep.items() for n in numbers]


def plan(
    models: Iterable[str],
    data: str,
    *,
    seeds: Sequence[int] | None = None,
    fractions: Sequence[float] | None = None,
    epochs: Sequence[int] | None = None,
    sweep: Mapping[str, Sequence[float]] | None = None,
    task: str = "train",
    source: str = "",
    weights: str = "",
    optimizer: str = "muon",
) -> list[Run]:
    """All runs, in the order in which they are worth having: corners first, whole data first, seed by seed, shorter
    first, since a longer run goes on where a shorter one began to decay.

    Corners have five seeds, other cells three; the two cells that the question is about have all fractions; on the
    whole data corners and parts have all lengths, else the last is run. With a sweep each cell has its first seed.
    """
    runs = []
    for model in models:
        base = recipe_for(model, data, optimizer, task)
        chosen = tuple(seeds or range(5 if model in CORNERS else 3))
        several = model in FRACTION_CELLS and task == "train" and not sweep
        for fraction in fractions or (FRACTIONS if several else (1.0,)):
            followed = task == "train" and fraction == 1 and model in (*CORNERS, *PARTS)
            lengths = epochs or (horizons_of(data) if followed else (base.epochs,))
            for seed, length in product(chosen[:1] if sweep else chosen, lengths):
                one = replace(base, seed=seed, fraction=fraction, epochs=length if task != "probe" else 0)
                recipes = _recipes(one, sweep or {})
                runs += [Run(model, data, recipe, task, source, weights) for recipe in recipes]
    order = {name: i for i, name in enumerate(GROUPS["all"])}
    return sorted(runs, key=lambda run: _worth(run, order))


def _worth(run: Run, order: dict[str, int]) -> tuple[float, ...]:
    first = 0 if run.model in CORNERS else 1
    recipe = run.recipe
    return first, -recipe.fraction, recipe.seed, recipe.epochs, order.get(run.model, len(order)), recipe.lr


def design_hash() -> str:
    """Twelve digits of the design as ``docs/study.md`` has it; "unknown" in a wheel, which has no docs."""
    path = Path(__file__).resolve().parents[2] / "docs" / "study.md"
    if not path.exists():
        return "unknown"
    written = path.read_text(encoding="utf-8").partition("## Design")[2].partition("\n## ")[0]
    return hashlib.sha256(written.encode()).hexdigest()[:12]
