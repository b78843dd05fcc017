"""``load_model``: a model by name, with weights of known origin.

Sources, in the order in which ``weights="auto"`` tries them: files that ship with this package, the authors'
release or timm's pretrained weights, random numbers (then every output says UNTRAINED).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from torch import Tensor, nn

from .._device import torch_device
from .._names import HUB, our_models
from .._paths import DEFAULT_DATA, bundled_weights, cache_dir
from ..errors import CheckpointError, DownloadError, ParameterError, UnknownNameError
from .cards import card_beside, from_card, read_card
from .checkpoint import Checkpoint, fit, native_img_size, read_checkpoint
from .download import fetch, file_sha256
from .hub import hub_file, timm_file
from .provenance import Accuracy, Provenance
from .releases import PUBLISHED, release_url
from .small import SMALL_WINDOWS

_log = logging.getLogger("t2t_analysis")
# What a file may say of itself: channels and sides of an image, sides of a window.
_MOST_CHANNELS, _MOST_PIXELS, _MOST_WINDOW = 64, 8192, 64


class _NothingPublishedError(CheckpointError):
    """Nobody released weights for this model."""


def load_model(
    name: str,
    weights: str | os.PathLike[str] = "auto",
    *,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    timeout: float = 3.0,
    **kwargs: Any,
) -> nn.Module:
    """Build a model by name and load weights of known origin; in eval mode, with ``model.provenance``.

    Parameters
    ----------
    name : a model of this package or of timm, ``timm.list_models()``; a tag of timm's weights may follow a
        dot.
    weights : "bundled" or "bundled/<data set>" (ships with this package), "published" or
        "published/<variant>" (the authors' release, see ``PUBLISHED``; timm's weights for timm's models),
        "random", a path, or "auto": bundled, else published if cached or downloadable, else random, which one
        line on the log says.
    img_size, num_classes, in_chans : by default what the weights were trained with, otherwise the model's own
        defaults. Another size resizes the position table, another number of classes replaces the classifier
        by an untrained one (0: none); both are said in ``provenance.notes`` and in one line on the log.
    seed : of random weights and of a replaced classifier; the global random state is left as it was.
    timeout : seconds after which a server that has not begun to answer counts as no network;
        with the default, "auto" is through within five seconds for the largest T2T-ViT too.
    kwargs : passed on to ``timm.create_model``.

    Raises
    ------
    UnknownNameError
        Unknown model, kind of weights, variant, or data set; the nearest valid one is named.
    CheckpointError
        A file that is missing, damaged, refused (only tensors are unpickled) or does not fit; or nothing of
        the kind exists for this model.
    DownloadError
        "published" was asked for and cannot be had.
    ParameterError
        An argument that this model does not take, or a device that is not there.

    >>> model = load_model("small_hard_deep", "random", num_classes=5)
    >>> model.provenance.label
    'UNTRAINED (random weights, seed 0)'
    """
    device = torch_device(device)
    if not isinstance(weights, str | os.PathLike):
        raise UnknownNameError("weights", weights, ("auto", "random", "bundled", "published"), "or a path")
    for what, given, least in (("seed", seed, 0), ("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        whole = isinstance(given, int) and not isinstance(given, bool) and least <= given < 2**63
        if not whole and (given is not None or what == "seed"):
            raise ParameterError(f"{what}={given!r}: expected a whole number, {least} or more")
    if img_size is not None and _as_size(img_size) is None:
        raise ParameterError(
            f"img_size={img_size!r}: expected pixels, 1 to {_MOST_PIXELS}, or (height, width)"
        )
    sizes = {"img_size": img_size, "num_classes": num_classes, "in_chans": in_chans}
    request = _Request(name, {k: v for k, v in sizes.items() if v is not None}, seed, timeout, kwargs)
    _check_name(name)
    model, provenance = _resolve(request, os.fspath(weights))
    if provenance.new_head or (provenance.kind != "random" and provenance.notes and not provenance.accuracy):
        _log.warning("%s: %s", provenance.label, "; ".join(provenance.notes))
    model.provenance = provenance  # type: ignore[assignment]
    return model.to(device).eval()


@dataclass(frozen=True)
class _Request:
    """What the caller of ``load_model`` wants; ``sizes``: img_size, num_classes, in_chans, as far as they are said."""

    name: str
    sizes: Mapping[str, Any]
    seed: int
    timeout: float
    kwargs: Mapping[str, Any]

    def build(self, trained: Mapping[str, Any] | None = None, **more: Any) -> nn.Module:
        """Build the model; sizes that the caller did not say are those of training, else its own defaults."""
        known = {key: value for key, value in (trained or {}).items() if value is not None}
        given = {**known, **self.sizes, **self.kwargs}
        with _seeded(self.seed):
            try:
                model = timm.create_model(self.name, **given, **more)
            except TypeError as error:
                raise ParameterError(f"{self.name} cannot be built with {given}: {error}") from error
        _describe(model, given)
        return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of our own seed on the CPU, and put the global one back afterwards."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _describe(model: nn.Module, given: Mapping[str, Any], **changes: Any) -> None:
    """Make the configuration, which tells timm how to prepare images, agree with the model."""
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    channels, *size = config.get("input_size") or (3, 224, 224)
    if given.get("img_size") is not None:
        size = [given["img_size"]] * 2 if isinstance(given["img_size"], int) else list(given["img_size"])
    config["input_size"] = (given.get("in_chans") or channels, *size)
    config |= {key: value for key, value in changes.items() if value is not None}
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise UnknownNameError("model", name, our_models())
    if name.startswith(HUB):
        return
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        others = set(timm.list_models()) - set(our_models())
        raise UnknownNameError("model", name, [*our_models(), *sorted(others)])
    tags = [model.partition(".")[2] for model in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(f"weights tag of {arch}", tag, tags)


def _resolve(request: _Request, weights: str) -> tuple[nn.Module, Provenance]:
    kind, _, variant = weights.partition("/")
    if weights == "auto":
        return _auto(request)
    if not weights.strip():
        raise UnknownNameError("weights", weights, available_weights(request.name), "or a path")
    if weights == "random":
        return _random(request)
    if kind == "bundled":
        return _bundled(request, variant)
    if kind == "published":
        return _published(request, variant)
    if not re.search(r"[./\\]", weights) and not Path(weights).exists():
        raise UnknownNameError("weights", weights, available_weights(request.name), "or a path")
    return _file(request, weights)


def _auto(request: _Request) -> tuple[nn.Module, Provenance]:
    if request.name in bundled_weights():
        return _bundled(request, "")
    try:
        return _published(request, "")
    except (_NothingPublishedError, DownloadError) as error:
        if request.name.startswith(HUB):
            raise
        reason = " ".join(str(error).split())
    _log.warning("%s: UNTRAINED, weights drawn at random (seed %d): %s", request.name, request.seed, reason)
    return _random(request)


def _random(request: _Request) -> tuple[nn.Module, Provenance]:
    origin = Provenance("random", f"seed {request.seed}", model=request.name, seed=request.seed)
    return request.build(), origin


# --- files ------------------------------------------------------


def _file(request: _Request, path: str) -> tuple[nn.Module, Provenance]:
    checkpoint = read_checkpoint(path)
    card = card_beside(checkpoint.path)
    plain = Provenance("file", str(path), model=request.name)
    origin = from_card(card, "file", str(path)) if card else plain
    return _fitted(request, checkpoint, card or checkpoint.meta, origin)


def _fitted(
    request: _Request,
    checkpoint: Checkpoint,
    trained: Mapping[str, Any],
    origin: Provenance,
    drop: tuple[str, ...] = (),
) -> tuple[nn.Module, Provenance]:
    """Build the model as the weights were trained unless the caller says otherwise, and load them.

    What a file says of itself is believed only as far as its tensors bear it out.
    """
    said = _as_size(trained.get("img_size"))
    channels = trained.get("in_chans")
    windows = _windows_in(checkpoint)
    sizes: dict[str, Any] = {
        "num_classes": _classes_in(request.name, checkpoint.state, trained.get("num_classes")),
        "in_chans": channels if isinstance(channels, int) and 0 < channels <= _MOST_CHANNELS else None,
        "windows": windows,
    }
    model = request.build(sizes)
    if "img_size" not in request.sizes and (size := native_img_size(model, checkpoint.state, said)):
        model = request.build(sizes | {"img_size": size[0] if size[0] == size[1] else size})
    asked = "num_classes" in request.sizes
    changes, new_head = fit(model, checkpoint, replace_head=asked, old_img_size=said, drop=drop)
    notes = [f"weights taken from {checkpoint.entry!r}"] if checkpoint.entry else []
    if windows is not None and windows != [list(window) for window in SMALL_WINDOWS]:
        notes += [f"soft splits as trained: kernel, stride, padding {windows}"]
    origin = replace(origin, sha256=checkpoint.sha256, notes=tuple(notes))
    return model, origin.adapted(*changes, new_head=new_head)


def _windows_in(checkpoint: Checkpoint) -> list[list[int]] | None:
    """Kernel, stride and padding of the soft splits, a row each, where the file holds them."""
    if (geometry := checkpoint.state.get("tokens_to_token.geometry")) is None:
        return None
    least = torch.tensor([1, 1, 0])
    if geometry.shape != (3, 3) or not ((geometry >= least) & (geometry <= _MOST_WINDOW)).all():
        raise CheckpointError(
            f"{checkpoint.path}: tokens_to_token.geometry holds no windows of three soft splits"
        )
    return geometry.int().tolist()


def _as_size(said: Any) -> tuple[int, int] | None:
    """Height and width that a card or a file gives, None if it gives none that an image could have."""
    pair = (said, said) if isinstance(said, int) else said
    fine = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(side, int) for side in pair)
    return (pair[0], pair[1]) if fine and 0 < min(pair) <= max(pair) <= _MOST_PIXELS else None


def _classes_in(name: str, state: Mapping[str, Tensor], said: Any) -> int | None:
    """Number of classes of the classifier in ``state``; 0 where it has none and says so."""
    config = timm.get_pretrained_cfg(name)
    names = (config.classifier if config else None) or "head"
    weight = state.get(f"{names if isinstance(names, str) else names[0]}.weight")
    if weight is not None and weight.ndim:
        return weight.shape[0]
    return 0 if said == 0 else None


# --- bundled ----------------------------------------------------


def _bundled(request: _Request, data: str) -> tuple[nn.Module, Provenance]:
    bundled = bundled_weights()
    if request.name not in bundled:
        known = ", ".join(bundled) or "none"
        raise CheckpointError(f"no bundled weights for {request.name}; there are: {known}")
    files = bundled[request.name]
    data = data or (DEFAULT_DATA if DEFAULT_DATA in files else next(iter(files)))
    if data not in files:
        raise UnknownNameError(f"data set of bundled {request.name} weights", data, files)
    path = files[data]
    card = read_card(path)
    if card["model"] != request.name:
        raise CheckpointError(f"the card of {path} is for {card['model']}; expected {request.name}")
    return _fitted(request, read_checkpoint(path), card, from_card(card, "bundled", path.name))


# --- published --------------------------------------------------


def available_weights(name: str) -> list[str]:
    """What ``load_model(name, weights=...)`` takes besides a path.

    >>> available_weights("t2t_vit_19")
    ['auto', 'random', 'published', 'published/cifar10', 'published/cifar100']
    """
    bundled = bundled_weights().get(name, {})
    names = ["auto", "random", *(["bundled"] if bundled else []), *(f"bundled/{data}" for data in bundled)]
    variants = list(PUBLISHED.get(name, [""] if _timm_has(name) else []))
    return names + ["/".join(filter(None, ("published", variant))) for variant in variants]


def _timm_has(name: str) -> bool:
    if name.startswith(HUB):
        return True
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.has_weights)


def _published(request: _Request, variant: str) -> tuple[nn.Module, Provenance]:
    if request.name in PUBLISHED:
        return _released(request, variant)
    if not _timm_has(request.name):
        raise _NothingPublishedError(f"nobody has published weights for {request.name}, and none are bundled")
    if variant:
        asked, hint = f"published/{variant}", "timm's tags follow a dot"
        raise UnknownNameError("published weights", asked, ["published"], hint)
    return _timm_pretrained(request)


def _released(request: _Request, variant: str) -> tuple[nn.Module, Provenance]:
    """The authors' release: from the cache, or downloaded into it."""
    releases = PUBLISHED[request.name]
    if variant not in releases:
        raise UnknownNameError(f"published variant of {request.name}", variant, [v for v in releases if v])
    release = releases[variant]
    url, path = release_url(release.file), cache_dir() / "releases" / release.file
    cached = path.is_file()
    fetch(url, path, timeout=request.timeout)
    accuracy = Accuracy(release.top1, n=release.n)
    about: dict[str, Any] = {"recipe": release.recipe, "data": release.data}
    about |= {"accuracy": accuracy, "model": request.name}
    found = _read_release(path, url, cached)
    origin = Provenance("published", url, **about)
    model, origin = _fitted(request, found, release._asdict(), origin, release.drop)
    _describe(model, {}, **release.normalisation)
    return model, origin


def _read_release(path: Path, url: str, cached: bool) -> Checkpoint:
    """Read it; if it was downloaded just now and is no weights file (a login page, say), delete it."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        if cached:
            raise
        path.unlink()
        raise DownloadError(f"{url} did not answer with a weights file, it was deleted: {error}") from error


def _timm_pretrained(request: _Request) -> tuple[nn.Module, Provenance]:
    """Timm's own weights; timm adapts classifier, channels and position table itself."""
    if request.name.startswith(HUB):
        return _hub_model(request)
    config: Any = timm.get_pretrained_cfg(request.name)
    path, source = timm_file(config, request.timeout)
    overlay = {"file": str(path), "custom_load": config.custom_load}
    try:
        model = request.build(pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError, safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be loaded into {request.name}: {str(error)[:500]}") from error
    origin = Provenance("timm", source, file_sha256(path), recipe=config.tag, model=request.name)
    notes, new_head = _timm_changes(request.sizes, config)
    return model, origin.adapted(*notes, new_head=new_head)


def _timm_changes(sizes: Mapping[str, Any], config: Any) -> tuple[list[str], bool]:
    """What timm adapted, in words, and whether the classifier is a new one."""
    notes, size = [], tuple(config.input_size[1:])
    wanted, classes = _as_size(sizes.get("img_size")) or size, sizes.get("num_classes", config.num_classes)
    channels = config.input_size[0], sizes.get("in_chans", config.input_size[0])
    if classes != config.num_classes:
        became = f"replaced by an UNTRAINED one of {classes}" if classes else "dropped"
        notes.append(f"classifier of {config.num_classes} classes {became}")
    if wanted != size:
        notes.append(f"built for {wanted[0]}x{wanted[1]} px, trained at {size[0]}x{size[1]}")
    if channels[0] != channels[1]:
        notes.append(f"first convolution adapted from {channels[0]} to {channels[1]} input channels")
    return notes, classes not in (0, config.num_classes)


def _hub_model(request: _Request) -> tuple[nn.Module, Provenance]:
    """``hf-hub:owner/name`` or ``local-dir:path``: the architecture too is only known from there."""
    place, _, where = request.name.partition(":")
    if place != "local-dir":
        hub_file(where, ["config.json"], request.timeout)
    try:
        model = request.build(pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{request.name} cannot be loaded: {str(error)[:500]}") from error
    changes = ["classifier may be replaced"] * ("num_classes" in request.sizes)
    return model, Provenance("timm", request.name, model=where).adapted(*changes)
