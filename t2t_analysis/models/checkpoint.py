"""Read a weights file without running anything in it, and fit what it holds to a model.

Nothing but tensors and plain values is ever unpickled (``torch.load(weights_only=True)``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from ..errors import CheckpointError, nearest
from .download import file_sha256

# Where a state dict may sit in a file, best first: the authors report the moving average of the weights.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "net", "model")
_EMA, _PLAIN = "ema.", "model."  # how our Lightning module names its moving average and its model
_SHOWN = 5  # names listed in an error before "and n more"
_LONGEST = 200  # characters of a name that are shown
_MOST_PER_BYTE = 10  # bytes that a byte of a file may stand for, once unpacked
_MOST_PER_STEP = 100  # values that a step of a pickle may handle in the mean
# Opcodes of a pickle that remember, recall, and add to the thing before what they take
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_ADD = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}


class Checkpoint(NamedTuple):
    """What a weights file holds: tensors by name, their entry in the file, the plain values beside them."""

    path: Path
    state: dict[str, Tensor]
    entry: str
    meta: dict[str, Any]
    sha256: str


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the authors' ``.pth.tar``/``.pth``, a plain state dict, a Lightning checkpoint or safetensors.

    The moving average is taken where the file has one (``state_dict_ema``; ``ema.`` in our Lightning
    checkpoints). Prefixes left by data-parallel wrappers and ``torch.compile`` are removed.

    Raises
    ------
    CheckpointError
        No such file; not a weights file, a truncated or damaged one; it wants to import or run something; no
        tensors in it, or some that claim more values than the file has.
    """
    path = Path(path).expanduser()
    try:
        if not path.is_file():
            raise CheckpointError(_no_file(path))
        with open(path, "rb") as file:
            start = file.read(512)
        sha256 = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the weights file {path}: {error.strerror}") from error
    is_safetensors = path.suffix == ".safetensors" or start[8:9] == b"{"
    if foreign := _foreign(start):
        kind = "safetensors" if is_safetensors else "weights"
        raise CheckpointError(f"{path} is truncated or not a {kind} file: {foreign}")
    content = _read_safetensors(path) if is_safetensors else _unpickle(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds a {kind}; expected a state dict or a mapping with one")
    entry, state = find_state(content, path)
    _check_plain(state, path)
    return Checkpoint(path, state, entry, _meta(content), sha256)


def _foreign(start: bytes) -> str:
    """What else a file is that begins like this, in words; empty if it may hold weights."""
    kinds = {
        b"version https://git-lfs": "it is a Git LFS pointer, and git lfs pull fetches what it points to",
        b"<": "it holds a web page",
        b"\x1f\x8b": "it is compressed by gzip, unpack it first",
        b"\x89HDF": "it is an HDF5 file, as Keras writes them",
    }
    if not start.strip():
        return "it is empty"
    return next((words for magic, words in kinds.items() if start.lstrip().startswith(magic)), "")


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no plain numbers, or that claim more of them than the file can hold."""
    room = _MOST_PER_BYTE * path.stat().st_size
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex():
            raise CheckpointError(
                f"{path}: {name} is {_kind(value)}; expected a plain tensor of real numbers"
            )
        if value.numel() * value.element_size() > room:
            raise CheckpointError(
                f"{path}: {name} claims the shape {tuple(value.shape)}, {value.numel():,} values, which a file "
                f"of {path.stat().st_size:,} bytes does not hold"
            )


def _kind(value: Tensor) -> str:
    where = "" if value.device.type == "cpu" else f" on {value.device.type}"
    return f"{str(value.layout).removeprefix('torch.')} {str(value.dtype).removeprefix('torch.')}{where}"


def _meta(content: Mapping[str, Any]) -> dict[str, Any]:
    """What our Lightning checkpoints say of the model: its name and the arguments it was built with."""
    said: Any = content.get("hyper_parameters", {})
    arguments: Any = said.get("model_args", {}) if isinstance(said, Mapping) else {}
    return {**said, **arguments} if isinstance(said, Mapping) and isinstance(arguments, Mapping) else {}


def _no_file(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; expected a weights file"
    folder = path.parent
    close = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else []
    where = f"; close to it: {', '.join(close)}" if close else ""
    return f"no weights file {path}" + (where if folder.is_dir() else f"; its folder {folder} does not exist")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as error:  # besides its own errors: data types that torch does not know
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error


def _harmless() -> list[Any]:
    """What training scripts put beside the tensors and what does nothing when it is made.

    Names are given where another release of Python or numpy calls the thing differently.
    """
    scalar, kinds = np.float64(0).__reduce__()[0], vars(np.dtypes).values()
    paths = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
    named = [(made, f"pathlib{part}.{name}") for name, made in paths.items() for part in ("", "._local")]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [
        argparse.Namespace, PurePosixPath, PureWindowsPath, np.dtype, *named, *numbers,
        *(kind for kind in kinds if isinstance(kind, type)),
    ]  # fmt: skip


def _unpickle(path: Path) -> Any:
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols; the errors say enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file fails in any way: struct, zip, Unicode, index, attribute ...
        raise CheckpointError(_why_unreadable(path, error)) from error


def _check_archive(path: Path) -> None:
    """Refuse a program, an archive that unpacks to far more than it is, or whose parts differ from their checksums.

    Torch looks at neither; it stores tensors uncompressed.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            for _ in range(5):  # as many pickles stand at the beginning of a file in torch's old format
                _check_pickle(path, file)
        return
    with zipfile.ZipFile(path) as archive:
        if any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist()):
            raise CheckpointError(
                f"{path} is a TorchScript program, which is not run; save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), other_path)"
            )
        unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
        if unpacked > _MOST_PER_BYTE * size:
            raise CheckpointError(f"{path} is refused: its {size:,} bytes would unpack to {unpacked:,}")
        if damaged := archive.testzip():
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged!r} is wrong")
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                _check_pickle(path, io.BytesIO(archive.read(name)))


def _check_pickle(path: Path, stream: IO[bytes]) -> None:
    """Refuse a pickle that puts a thing twice into the next, that twice into the next ...: a bomb.

    A key that is such a nest of tuples is never done hashing.
    """
    for step, handled in enumerate(_values_handled(stream)):
        if handled > _MOST_PER_STEP * (step + 10_000):
            raise CheckpointError(f"{path} is refused: its first {step} steps handle {handled:,} values")


def _values_handled(stream: IO[bytes]) -> Iterator[int]:
    """Values that a pickle has handled after each of its steps, one counted wherever it is referred to.

    Opcodes are read, none is executed; what stands on the stack are counts.
    """
    stack: list[list[int]] = []
    memo: dict[Any, list[int]] = {}
    marks: list[int] = []
    handled = 0
    with contextlib.suppress(ValueError, LookupError):  # no pickle: torch says so better
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _PUT:
                memo[argument] = stack[-1]
            elif opcode.name in _GET:
                stack.append(memo[argument])
            elif opcode.name == "MARK":
                marks.append(len(stack))
            else:
                kept = opcode.name in _ADD  # what is added to stays where it is, and in the memo
                marked = pickletools.markobject in opcode.stack_before
                first = marks.pop() if marked else len(stack) - len(opcode.stack_before) + kept
                handled += (taken := sum(count for (count,) in stack[first:]))
                del stack[first:]
                if kept:
                    stack[-1][0] += taken
                else:
                    stack += [[1 + taken] for _ in opcode.stack_after]
            yield handled


def _why_unreadable(path: Path, error: Exception) -> str:
    wanted = _wanted_globals(path, error)
    if not wanted:
        return f"{path} is truncated or not a weights file ({path.stat().st_size} bytes): {_detail(error)}"
    return (
        f"{path} is refused: reading it would run or import {', '.join(wanted)}, and only tensors and plain "
        "values are read; nothing was executed. If you made the file yourself, save its weights alone: "
        'torch.save({"state_dict": model.state_dict()}, path)'
    )


def _detail(error: Exception) -> str:
    """What torch says, without its advice to read the file unsafely."""
    text = str(error).strip()
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    first = found[1] if found else (text.splitlines() or [""])[0]
    return type(error).__name__ if not first or first.startswith("Weights only load failed") else first[:200]


def _wanted_globals(path: Path, error: Exception) -> list[str]:
    """Names that a pickle asks for and that are not allowed; opcodes are read, none is executed."""
    found = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    with contextlib.suppress(Exception):  # only understands torch's zip format
        found |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return sorted(found or _stack_globals(path))


def _stack_globals(path: Path) -> set[str]:
    """Names asked for by a plain pickle of protocol 4 or later, which torch never writes."""
    found: set[str] = set()
    texts: list[str] = []
    with contextlib.suppress(Exception), open(path, "rb") as file:  # ends with an error where it is no pickle
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                found.add(".".join(texts[-2:]))
            texts += [argument] if isinstance(argument, str) else []
    return found


def find_state(content: Mapping[str, Any], path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The entry of a file that holds weights, the moving average first, and those without prefixes of wrappers."""
    for entry in _ENTRIES:
        if isinstance(content.get(entry), Mapping) and (state := _tensors(content[entry])):
            return _pick_copy(entry, clean_state_dict(state))
    if state := _tensors(content):
        return _pick_copy("", clean_state_dict(state))
    held = ", ".join(map(_name, list(content)[:12])) or "nothing"
    wanted = f"expected tensors, or one of {', '.join(_ENTRIES)}"
    raise CheckpointError(f"{path} has no weights: {wanted}; it has {held}")


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {_name(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _name(key: object) -> str:
    """A key as text that can be shown: the file may come from anywhere, and its keys be of any kind and length."""
    text = str(key) if isinstance(key, str | int) else f"a {type(key).__name__}"
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return text if text.isprintable() else ascii(text)


def _pick_copy(entry: str, state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Choose among the copies that our Lightning module holds: ``ema.`` if it is there, else ``model.``."""
    if not any(key.startswith(_PLAIN) for key in state):
        return entry, state
    for prefix in (_EMA, _PLAIN):
        chosen = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if chosen:
            return f"{entry}: {prefix}*", clean_state_dict(chosen)
    return entry, state


# --- fitting ----------------------------------------------------


def grid_of(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of patch tokens that the model's position table is made for, if it has a grid."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid else None


def _grid_at(model: nn.Module, img_size: tuple[int, int]) -> tuple[int, int]:
    """The grid that images of another size (height, width) are cut into."""
    tokeniser: Any = model.patch_embed
    return tuple(tokeniser.dynamic_feat_size(img_size))


class _Table(NamedTuple):
    """A position table (1, prefix + rows, D) in a file, beside the model's."""

    old: Tensor
    new: Tensor
    grid: tuple[int, int]

    @property
    def prefix(self) -> int:
        return self.new.shape[1] - math.prod(self.grid)

    @property
    def rows(self) -> int:
        return self.old.shape[1] - self.prefix

    @property
    def square(self) -> tuple[int, int] | None:
        side = math.isqrt(max(self.rows, 0))
        return (side, side) if side * side == self.rows > 0 else None


def _table(model: nn.Module, state: Mapping[str, Tensor]) -> _Table | None:
    """None where there are none to compare: no table, other widths, no grid."""
    grid, old, new = grid_of(model), state.get("pos_embed"), model.state_dict().get("pos_embed")
    if grid is None or old is None or new is None or old.ndim != 3 or old.shape[-1] != new.shape[-1]:
        return None
    return _Table(old, new, grid)


def native_img_size(
    model: nn.Module, state: Mapping[str, Tensor], said: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """Image size that ``state`` was trained at, or None: the model's own, or not known.

    What the file says of itself counts where its position table has as many rows; else the table is taken for a
    square's.
    """
    if (table := _table(model, state)) is None:
        return said
    if said is not None and math.prod(_grid_at(model, said)) == table.rows:
        return None if _grid_at(model, said) == table.grid else said
    size: Any = getattr(model.patch_embed, "img_size", None)
    if size is None or table.square is None or table.old.shape == table.new.shape:
        return None
    side = table.square[0] * (size[0] // table.grid[0])
    return side, side


def fit(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    replace_head: bool = False,
    old_img_size: tuple[int, int] | None = None,
    drop: Iterable[str] = (),
) -> tuple[list[str], bool]:
    """Load the checkpoint into the model; what was changed for it, in words, and whether the classifier is a new one.

    The position table is resized (bicubic; class and other prefix rows kept), the first convolution adapted
    to another number of channels, and, with ``replace_head``, a classifier of other size left out, so that
    the model keeps its own.

    Parameters
    ----------
    old_img_size : image size that the weights were trained at, where it is known; otherwise a square is
        assumed.
    drop : beginnings of names of tensors that the model does not need.

    Raises
    ------
    CheckpointError
        Names missing on either side, shapes that differ, or weights that are not finite.
    """
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith(tuple(drop))}
    adapted, notes, new_head = _adapt(model, state, replace_head, old_img_size)
    if _misfits(model, adapted) and (converted := _convert_like_timm(model, state)):
        other, other_notes, other_head = _adapt(model, converted, replace_head, old_img_size)
        if not _misfits(model, other):
            adapted, notes, new_head = other, [*other_notes, "names converted by timm's filter"], other_head
    if misfits := _misfits(model, adapted):
        entry = f" (entry {checkpoint.entry!r})" if checkpoint.entry else ""
        raise CheckpointError(f"{checkpoint.path}{entry} does not fit the model:\n  " + "\n  ".join(misfits))
    model.load_state_dict(adapted)
    _check_finite(model, checkpoint.path)
    return notes, new_head


def _adapt(
    model: nn.Module, state: dict[str, Tensor], replace_head: bool, old_img_size: tuple[int, int] | None
) -> tuple[dict[str, Tensor], list[str], bool]:
    state, own = dict(state), model.state_dict()
    notes = resize_positions(model, state, old_img_size) + _adapt_channels(state, own)
    head = _replace_head(model, state, own) if replace_head else []
    return state, notes + head, bool(head) and bool(_head_keys(model, own))


def _head_keys(model: nn.Module, keys: Iterable[str]) -> list[str]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return [key for key in keys if key.startswith(prefixes)]


def _replace_head(model: nn.Module, state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Where the classifiers differ, put the model's own, freshly drawn one into ``state``."""
    in_file, in_model = _head_keys(model, state), _head_keys(model, own)
    if all(key in state and state[key].shape == own[key].shape for key in in_model) and in_model:
        return []
    rows = max(((state.pop(key).shape or (1,))[0] for key in in_file), default=0)
    state |= {key: own[key] for key in in_model}
    if not in_model:
        return [f"classifier of {rows} classes dropped"] if in_file else []
    was = f"classifier of {rows} classes replaced by" if rows else "no classifier in the file:"
    return [f"{was} an UNTRAINED one of {max(own[key].shape[0] for key in in_model)}"]


def resize_positions(
    model: nn.Module, state: dict[str, Tensor], old_img_size: tuple[int, int] | None = None
) -> list[str]:
    """Resize the position table in ``state`` to the model's grid, in place; what was done or guessed, in words."""
    if (table := _table(model, state)) is None:
        return []
    said = old_img_size and _grid_at(model, old_img_size)
    exact = table.grid if table.old.shape == table.new.shape else None
    fits = said if said and math.prod(said) == table.rows else None
    notes = []
    if said and not fits:
        notes.append(f"a position table of {table.rows} rows, though the file says {_by(said)} tokens")
    grid, old_grid = table.grid, fits or exact or table.square
    if old_grid is None:
        raise CheckpointError(
            f"the position table in the file has {table.old.shape[1]} rows, which are no square grid and "
            f"{table.prefix} prefix tokens; expected {table.new.shape[1]} rows for {_by(grid)} tokens"
        )
    if old_grid != grid:
        state["pos_embed"] = resample_abs_pos_embed(table.old, list(grid), list(old_grid), table.prefix)
        return [*notes, f"position table resized from {_by(old_grid)} to {_by(grid)} tokens"]
    if grid[0] != grid[1] and not fits:
        others = " or ".join(_by(other) for other in (grid[::-1], table.square) if other)
        notes.append(
            f"position table of {table.rows} rows taken as {_by(grid)} tokens, which the file does not say: one "
            f"trained at {others} tokens would be transposed or garbled"
        )
    return notes


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


def _adapt_channels(state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Give the convolution that reads the image another number of input channels, as timm does."""
    stem = next((key for key, value in own.items() if value.ndim == 4), None)
    if stem is None or stem not in state:
        return []
    old, new = state[stem], own[stem]
    rest = [(weight.shape[0], *weight.shape[2:]) for weight in (old, new)]
    if old.ndim != 4 or old.shape[1] == new.shape[1] or rest[0] != rest[1]:
        return []
    state[stem] = adapt_input_conv(new.shape[1], old, base_chans=old.shape[1])
    return [f"{stem} adapted from {old.shape[1]} to {new.shape[1]} input channels"]


def _convert_like_timm(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """``state`` in today's names, for older and foreign layouts that timm's loader of this family knows."""
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None or not module.__name__.startswith("timm."):
        return None
    try:
        return _tensors(convert(dict(state), model))
    except Exception:  # not a layout it knows either: the caller then lists what is missing or too much
        return None


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """One line for each way in which ``state`` does not fit, both sides named; empty if it does."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    common = [key for key in own if key in state]
    other = [key for key in common if own[key].shape != state[key].shape]
    coded = [key for key in common if own[key].is_floating_point() and not state[key].is_floating_point()]
    shapes = [f"{key}: model {tuple(own[key].shape)}, file {tuple(state[key].shape)}" for key in other]
    lines = [
        (missing, f"{len(missing)} of {len(own)} missing from the file: {_some(missing)}"),
        (extra, f"{len(extra)} of {len(state)} unknown to the model: {_some(_with_nearest(extra, missing))}"),
        (shapes, f"{len(shapes)} of other shape: {_some(shapes, '; ')}"),
        (coded, f"{len(coded)} whole numbers where the model has real ones (quantised?): {_some(coded)}"),
    ]
    hint = _hint(model, missing, other, extra)
    return [line for names, line in lines if names] + [hint] * bool(hint)


def _hint(model: nn.Module, absent: list[str], other: list[str], extra: list[str]) -> str:
    """What the caller can do about it, where that is clear."""
    wrong = [*absent, *other]
    if wrong and not extra and _head_keys(model, wrong) == wrong:
        return "only the classifier does not fit: give num_classes, and an untrained one takes its place"
    if "tokens_to_token.geometry" in absent:
        return "the file does not say which windows its soft splits slid: train the model again"
    if any(key.startswith("tokens_to_token.attention1.norm1") for key in other):
        return (
            "a soft split cannot be adapted to other input channels, since its norm runs over them: keep the "
            "channels of the weights (repeat grey images three times), or take weights='random'"
        )
    return ""


def _with_nearest(extra: list[str], missing: list[str]) -> list[str]:
    shown = [(key, nearest(key, missing, n=1)) for key in extra[:_SHOWN]]  # slow for thousands of names
    return [f"{key} (nearest: {found[0]})" if found else key for key, found in shown] + extra[_SHOWN:]


def _some(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more


def _check_finite(model: nn.Module, path: Path) -> None:
    held = model.state_dict().items()
    bad = [name for name, value in held if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path} holds values that are not finite (a diverged run?), in {_some(bad)}")
