"""What does a model cost? Parameters, multiply-accumulates, memory, token counts: counted, not run.

Everything here is found on shapes alone (no weights are made, no arithmetic is done), so that the largest model
takes a second. How long things take is measured in `latency.py`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .. import models as _models  # noqa: F401 - puts the T2T family into timm's registry
from ..capture.layout import tokeniser
from ..data.loading import as_pair
from ..errors import CaptureError, ParameterError, UnknownNameError
from ..models.tokens import WINDOWS, Window
from ..results import Result
from .token_pixels import split_windows

# ------------------------------------------------------------------------------------------ models without weights


@dataclass(frozen=True)
class Shapes:
    """A model without weights: its structure on the meta device, and the size of its images."""

    name: str
    model: nn.Module
    img_size: tuple[int, int]
    in_chans: int = 3

    @classmethod
    def of(cls, name: str, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> Shapes:
        """Build the registered model ``name`` for images of ``img_size``, default its own."""
        if not timm.is_model(name):
            raise UnknownNameError("model", name, timm.list_models())
        config: Any = timm.get_pretrained_cfg(name)
        height, width = as_pair(config.input_size[1:] if img_size is None else img_size)
        # The family of this package takes any size; its position table is made for this one.
        fixed = (height, width) != tuple(config.input_size[1:]) and config.fixed_input_size
        if fixed or name.startswith(("t2t_", "small_")):
            kwargs = {"img_size": (height, width)} | kwargs
        with torch.device("meta"):
            model = timm.create_model(name, **kwargs).eval()
        return cls(name, model, (height, width), kwargs.get("in_chans", config.input_size[0]))

    @classmethod
    def like(cls, name: str, model: nn.Module, img_size: int | tuple[int, int] | None = None) -> Shapes:
        """Copy the structure of ``model``, with the head that it has; ``img_size`` as in `of`."""
        if img_size is None:
            config: Any = getattr(model, "pretrained_cfg", None) or {}
            img_size = tuple(config.get("input_size", (3, 224, 224))[1:])
        return cls(name, copy.deepcopy(model).eval().to("meta"), as_pair(img_size))

    def images(self, batch: int = 1, device: str = "cpu") -> Tensor:
        """A batch of images; its numbers are never looked at."""
        return torch.empty(batch, self.in_chans, *self.img_size, device=device)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Fake parameters and buffers on the CPU, to call ``module`` with."""
    made: dict[str, Tensor] = {}
    for name, p in module.named_parameters():
        made[name] = torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
    for name, b in module.named_buffers():
        made[name] = torch.empty(b.shape, dtype=b.dtype)
    return made


@contextmanager
def _pretending() -> Iterator[None]:
    """Tensors have shapes and no numbers in here."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


# ------------------------------------------------------------------------------------------ parameters and MACs


class Counts(NamedTuple):
    """Parameters of a model, and multiply-accumulates of one image.

    ``parameters`` counts all (a T2T-ViT's frozen position table and random features included), ``trainable``
    those that need a gradient. ``macs_all``: every product in linear layers, convolutions and batched matrix
    products (query-key, attention-value, a Performer's random features), half of what
    `torch.utils.flop_counter` calls floating-point operations. ``macs_linear``: linear layers and 2-D
    convolutions only, as tools that hook layers count; a soft split that runs as a convolution stands for a
    linear layer.
    """

    parameters: int
    trainable: int
    macs_all: int
    macs_linear: int


class _LinearLayers(TorchFunctionMode):
    """Counts the products of linear layers and 2-D convolutions, whoever calls them."""

    macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear:
            self.macs += out.numel() * args[0].shape[-1]
        elif func is torch.conv2d or func is torch.nn.functional.conv2d:
            self.macs += out.numel() * args[1][0].numel()
        return out


def count(model: str | Shapes, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> Counts:
    """Count parameters and multiply-accumulates of a registered model, for one image.

    Parameters
    ----------
    model : name that ``timm.create_model`` knows, of this package or of timm.
    img_size : side in pixels, or height and width; default the model's own.
    kwargs : arguments for the model.

    Raises
    ------
    UnknownNameError : a name that is not registered.

    >>> counts = count("t2t_vit_14")
    >>> counts.parameters, counts.trainable, round(counts.macs_all / 1e9, 2), round(counts.macs_linear / 1e9, 2)
    (21545550, 21465806, 4.78, 4.33)
    """
    shapes = model if isinstance(model, Shapes) else Shapes.of(model, img_size, **kwargs)
    flops, linear = FlopCounterMode(display=False), _LinearLayers()
    with torch.no_grad(), flops, linear:
        shapes.model(shapes.images(device="meta"))
    sizes = [(p.numel(), p.requires_grad) for p in shapes.model.parameters()]
    return Counts(
        sum(n for n, _ in sizes),
        sum(n for n, trains in sizes if trains),
        flops.get_total_flops() // 2,
        linear.macs,
    )


# ------------------------------------------------------------------------------------------ memory


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive after each operation, those that existed before left out; see ``peak``.

    Memory that a kernel takes and gives back within one operation is not seen. Works on tensors of any device,
    and on fake ones, which have none.
    """

    def __init__(self, existing: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {_storage(t)._cdata: None for t in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._meet(_storage(tensor))
        self.peak = max(self.peak, self.now)
        return out

    def _meet(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known[key] = weakref.finalize(storage, self._part, key, size)
            self.now += size

    def _part(self, key: int, size: int) -> None:
        self.now -= size
        self.known.pop(key, None)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def peak_bytes(shapes: Shapes, *, batch: int = 1, training: bool = False) -> int:
    """Most bytes alive at once beyond weights and images, in a forward pass or, if ``training``, a training step.

    Counted on shapes in float32 with `LiveBytes`: gradients and dropout's masks are in it, an optimiser's state is
    not, nor what a kernel needs for itself. On CUDA, `latencies` measures what the allocator really gave.
    """
    shapes.model.train(training)  # the masks of dropout are kept too
    try:
        with _pretending(), torch.set_grad_enabled(training):
            tensors, images = _tensors(shapes.model), shapes.images(batch)
            with LiveBytes([*tensors.values(), images]) as live:
                out = torch.func.functional_call(shapes.model, tensors, (images,))
                if training:
                    out.sum().backward()
    finally:
        shapes.model.eval()
    return live.peak


def saved_bytes(module: nn.Module, images: Tensor, tensors: Mapping[str, Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``module``, weights and images left out.

    Every storage counts once, however many views of it are kept.
    """
    weights = {_storage(t)._cdata for t in [*tensors.values(), images]}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)._cdata] = _storage(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = torch.func.functional_call(module, dict(tensors), (images,))
    size = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    del out
    return size


def tokeniser_saved_bytes(shapes: Shapes, *, batch: int = 1) -> int | None:
    """`saved_bytes` of the tokeniser alone (T2T module or patch embedding), in float32; None if there is none."""
    module = tokeniser(shapes.model)
    if module is None:
        return None
    try:
        with _pretending():
            return saved_bytes(module.train(), shapes.images(batch), _tensors(module))
    finally:
        module.eval()


# ------------------------------------------------------------------------------------------ tokens


def token_geometry(
    height: int, width: int, windows: Sequence[Window] = WINDOWS, channels: int = 64
) -> pd.DataFrame:
    """Tokens after every soft split, by the paper's formula (Yuan et al. 2021, equation 3).

    l = floor((h + 2p - k) / (k - s) + 1) floor((w + 2p - k) / (k - s) + 1), with kernel k, padding p and
    *overlap* s, so that k - s is the stride. A token holds C k^2 numbers; C is 3 at first, then ``channels``.

    >>> token_geometry(224, 224)[["rows", "columns", "tokens", "numbers"]].values.tolist()
    [[56, 56, 3136, 147], [28, 28, 784, 576], [14, 14, 196, 576]]
    """
    if min(height, width) < 1:
        raise ParameterError(f"an image has positive sides, got {height}x{width}")
    table, size, depth = [], (height, width), 3
    for stage, (kernel, stride, padding) in enumerate(windows):
        overlap = kernel - stride
        rows, columns = ((side + 2 * padding - kernel) // (kernel - overlap) + 1 for side in size)
        if min(rows, columns) < 1:
            raise ParameterError(f"an image of {height}x{width} px leaves no token after split {stage + 1}")
        table.append(
            {"stage": stage, "kernel": kernel, "overlap": overlap, "padding": padding, "rows": rows,
             "columns": columns, "tokens": rows * columns, "numbers": depth * kernel**2}
        )  # fmt: skip
        size, depth = (rows, columns), channels
    return pd.DataFrame(table)


Size = int | Sequence[int]


def _size_of(label: str, img_size: Size | Mapping[str, Size] | None) -> tuple[int, int] | None:
    """Height and width for one model, of a size for all or one for each label."""
    size = img_size[label] if isinstance(img_size, Mapping) else img_size
    return None if size is None else as_pair(size)


def token_stages(models: Mapping[str, nn.Module], img_size: Size | Mapping[str, Size]) -> pd.DataFrame:
    """`token_geometry` of every split of ``models`` (label -> model), one below the other.

    Models whose tokens cannot be placed on pixels are left out: an empty table where none can.
    """
    parts = []
    for label, model in models.items():
        size = _size_of(label, img_size)
        assert size is not None
        try:
            windows = split_windows(model)
        except CaptureError:
            continue
        channels = getattr(tokeniser(model), "token_dim", 0)  # of no account where there is one split
        parts.append(token_geometry(*size, windows, channels))
        parts[-1].insert(0, "model", label)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


# ------------------------------------------------------------------------------------------ as a result


#: columns of every number that is counted
EXACT = {
    "weights": "no weights: counted on shapes", "interval": "none: counted, not sampled", "n": 1, "unit": "model",
    "variant": "counted",
}  # fmt: skip
#: unit and estimator by quantity
UNITS = {
    "parameters": ("parameters", "all, the frozen position table included"),
    "trainable": ("parameters", "those that need a gradient"),
    "macs_all": ("multiply-accumulates", "all products, one image"),
    "macs_linear": ("multiply-accumulates", "linear layers and 2-D convolutions only, one image"),
    "peak_inference": ("bytes", "live tensors beyond weights and images, forward pass, float32"),
    "peak_training": ("bytes", "live tensors beyond weights and images, training step, float32"),
    "tokeniser_saved": ("bytes", "kept by autograd for the tokeniser's backward pass, float32"),
}


def costs(
    models: Sequence[str] | Mapping[str, nn.Module],
    *,
    baseline: str | None = None,
    img_size: Size | Mapping[str, Size] | None = None,
    batch: int = 16,
    memory: bool = True,
) -> Result:
    """Parameters, multiply-accumulates and memory of models, each against a baseline.

    Parameters
    ----------
    models : registered names, or label -> model, which is then counted with the head that it has.
    baseline : one of them, default the first. The null column holds its value: what a model would cost if it
        cost the same.
    img_size : the same for all, or by label; default each model's own.
    batch : images that memory is counted for (``at``).

    Raises
    ------
    UnknownNameError : a name that is not registered, or a baseline that is not among them.
    """
    names = list(dict.fromkeys(models))
    if not names:
        raise ParameterError("costs needs the name of at least one model")
    first = names[0] if baseline is None else baseline
    if first not in names:
        raise UnknownNameError("baseline", first, names)
    made = models if isinstance(models, Mapping) else {}
    sizes = {name: _size_of(name, img_size) for name in names}
    shapes = {
        name: Shapes.like(name, made[name], size) if name in made else Shapes.of(name, size)
        for name, size in sizes.items()
    }
    found = {name: _costs(shape, batch, memory) for name, shape in shapes.items()}
    reference = found[first]
    rows = [
        EXACT | {
            "measure": "cost", "model": name, "quantity": quantity, "value": value, "value_unit": UNITS[quantity][0],
            "estimator": UNITS[quantity][1], "null": reference.get(quantity), "null_kind": f"the same as {first}",
        } | ({"at": batch, "at_unit": "batch size"} if UNITS[quantity][0] == "bytes" else {})
        for name, values in found.items()
        for quantity, value in values.items()
    ]  # fmt: skip
    told = {name: size and list(size) for name, size in sizes.items()}
    return Result("cost", pd.DataFrame(rows), {"img_size": told, "batch": batch, "torch": torch.__version__})


def _costs(shapes: Shapes, batch: int, memory: bool) -> dict[str, int]:
    values: dict[str, Any] = count(shapes)._asdict()
    if not memory:
        return values
    values["peak_inference"] = peak_bytes(shapes, batch=batch)
    values["peak_training"] = peak_bytes(shapes, batch=batch, training=True)
    values["tokeniser_saved"] = tokeniser_saved_bytes(shapes, batch=batch)
    return {quantity: value for quantity, value in values.items() if value is not None}
