"""Names of models, read without importing torch, so that a notebook can refuse a typo at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from .errors import UnknownNameError

#: What the label of a model's twin with random weights ends in.
TWIN = ", random"


_REGISTERED = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_KINDS = re.compile(r"^(auto|random|(bundled|published)(/\S+)?)$")
_ENDING = re.compile(r"(\.(safetensors|pth|pt|ckpt|bin|tar))+$")
#: what names of models begin with that are read from a hub or a folder
HUB = ("hf-hub:", "hf_hub:", "local-dir:")


#: this package's own models: what is said of each without building it
TABLE = Path(__file__).parent / "models" / "table.json"


@cache
def model_table() -> dict[str, dict[str, Any]]:
    """Name of a model -> parameters, classes, input, tokeniser, published weights."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def our_models() -> tuple[str, ...]:
    """Names of this package's own models."""
    return tuple(model_table())


@cache
def known_models() -> tuple[str, ...]:
    """Every name that ``load_model`` takes: ours first, then timm's, read from its sources: to import it is slow."""
    spec = find_spec("timm")
    sources = (Path(spec.origin).parent / "models").glob("*.py") if spec and spec.origin else ()
    timms = {name for path in sources for name in _REGISTERED.findall(path.read_text(encoding="utf-8"))}
    return (*our_models(), *sorted(timms - set(our_models())))


def is_small(name: str) -> bool:
    """Whether this is one of the matched models for 32x32 images.

    >>> is_small("small_hard_deep"), is_small("t2t_vit_14")
    (True, False)
    """
    return name.startswith("small_") and name in our_models()


def known_model(name: str) -> str:
    """``name``, if a model is called so; a weights tag after a dot is checked when it is loaded.

    Raises
    ------
    UnknownNameError
        with the nearest name.

    >>> known_model("vit_tiny_patch16_224.augreg_in21k")
    'vit_tiny_patch16_224.augreg_in21k'
    """
    if not name.startswith(HUB) and name.split(".")[0] not in known_models():
        raise UnknownNameError("model", name, known_models(), "(python -m t2t_analysis models lists ours)")
    return name


def default_baseline(model: str) -> str:
    """Return what a model is compared with when nothing else is said: the nearest in size with a hard split.

    >>> default_baseline("small_performer_deep"), default_baseline("t2t_vit_24")
    ('small_hard_deep', 'deit_base_patch16_224')
    >>> default_baseline("small_performer_deep_se")
    'small_hard_deep_se'
    """
    if is_small(model):
        backbone = model.split("_", 2)[2]
        return f"small_{'performer' if model.startswith('small_hard') else 'hard'}_{backbone}"
    if model in {"t2t_vit_7", "t2t_vit_10", "t2t_vit_12"}:
        return "deit_tiny_patch16_224"
    if model in {"t2t_vit_19", "t2t_vit_24", "t2t_vit_t_19", "t2t_vit_t_24"}:
        return "deit_base_patch16_224"
    return "t2t_vit_14" if model.startswith("deit_small_patch16_224") else "deit_small_patch16_224"


def has_soft_split(name: str) -> bool:
    """Whether a model's tokeniser lets neighbouring tokens share pixels and attend to each other.

    >>> has_soft_split("t2t_vit_14"), has_soft_split("small_conv_deep")
    (True, False)
    """
    soft = ("t2t_vit_", "small_performer_", "small_transformer_")
    return name.startswith(soft) and not name.startswith("t2t_vit_c_")


def short_names(names: Mapping[str, str]) -> dict[str, str]:
    """What two models are called once they have been named in full: "T2T" and "ViT", where they are of those kinds.

    Parameters
    ----------
    names
        Label -> registered name. A label that somebody chose, so that it is not that name, stays.

    Returns
    -------
    dict
        Label -> short name, of those that have one. Two of one kind keep what differs in their names.

    >>> short_names({"small_performer_deep": "small_performer_deep", "small_hard_deep": "small_hard_deep"})
    {'small_performer_deep': 'T2T', 'small_hard_deep': 'ViT'}
    >>> short_names({"t2t_vit_14": "t2t_vit_14", "t2t_vit_t_24": "t2t_vit_t_24"})
    {'t2t_vit_14': 'T2T 14', 't2t_vit_t_24': 'T2T t 24'}
    >>> short_names({"before": "t2t_vit_14", "t2t_vit_14": "t2t_vit_14"}), short_names({"t2t_vit_14": "t2t_vit_14"})
    ({}, {})
    """
    kinds = {label: _kind(name) for label, name in names.items()}
    parts = {label: re.split(r"[_.]", name) for label, name in names.items()}
    if len(names) < 2 or len(set(names.values())) < len(names):
        return {}
    one_kind = len(set(kinds.values())) == 1
    shared = set.intersection(*map(set, parts.values()))
    found = {
        label: " ".join([kind, *(part for part in parts[label] if one_kind and part not in shared)])
        for label, kind in kinds.items()
        if kind and label == names[label]
    }
    return found if len({*names, *found.values()}) == len(names) + len(found) else {}


def _kind(name: str) -> str:
    """Which of the two kinds of the paper a model is, if it is one."""
    if has_soft_split(name):
        return "T2T"
    return "ViT" if name.startswith(("vit_", "deit_", "deit3_", "small_hard_")) else ""


def what_differs(weights: str, weights_b: str) -> tuple[str, str]:
    """Short names that tell two sets of weights of one model apart.

    Files are called by the part of the path that differs, the last one if several do; long ones from the first word
    that differs.

    >>> what_differs("runs/seed0/best.pt", "runs/seed1/best.pt")
    ('seed0', 'seed1')
    >>> what_differs("t2t_vit_14_imagenet_lr5e-4_seed0.pt", "t2t_vit_14_imagenet_lr5e-4_seed1.pt")
    ('seed0', 'seed1')
    >>> what_differs("a/before.safetensors", "b/after.pth.tar"), what_differs("x.pt", "random")
    (('before', 'after'), ('x', 'untrained'))
    """
    parts = [_path_parts(one) for one in (weights, weights_b)]
    if all(parts):
        pairs = list(zip(*parts, strict=False))
        return _own_words(*next((two for two in pairs if two[0] != two[1]), pairs[0]))
    kinds = ["untrained" if one == "random" else one for one in (weights, weights_b)]
    if "untrained" in kinds:
        kinds = ["trained" if one == "auto" else one for one in kinds]
    first, second = (path[0] if path else kind for path, kind in zip(parts, kinds, strict=True))
    return first, second


def _own_words(a: str, b: str) -> tuple[str, str]:
    """Two names, without the words that both begin with if one has more than 24 letters."""
    words = [re.findall(r"[^_.\-\s]+[_.\-\s]*", one) for one in (a, b)]
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(*words, strict=False)))
    while same and not all(re.search(r"[^\W\d]", "".join(one[same:])) for one in words):
        same -= 1  # a number alone is no name
    first, second = ("".join(one[same:]) for one in words)
    return (first, second) if max(len(a), len(b)) > 24 else (a, b)


def _path_parts(weights: str) -> list[str]:
    """What a weights file can be called, from its own name up its path; nothing for weights that are no file."""
    if _KINDS.match(weights):
        return []
    path = Path(weights).expanduser().absolute()
    return [_ENDING.sub("", path.name), path.name, *reversed(path.parent.parts)]
