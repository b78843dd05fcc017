"""Watch places inside a model for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ..errors import CaptureError, UnknownNameError
from .layout import Grids, TokenLayout
from .places import Place
from .view import ModelView, NameFilter, view


class Observation(NamedTuple):
    """One tensor from one place. It shares memory with the model's own: read it, never write to it."""

    name: str
    value: Tensor
    layout: TokenLayout | None

    @property
    def patches(self) -> Tensor:
        """The value without prefix tokens, (..., P, D)."""
        return self.value[..., 0 if self.layout is None else self.layout.prefix :, :]

    @property
    def maps(self) -> Tensor:
        """Patch tokens on their grid, (B, D, h, w); of places that have one."""
        assert self.layout is not None
        return self.patches.mT.unflatten(-1, self.layout.grid)


Handler = Callable[[Observation], None]


def _tensor(place: Place, value: Any) -> Tensor:
    """``value`` if it has the axes that the place promises, else a CaptureError."""
    if isinstance(value, Tensor) and value.ndim == place.ndim:
        return value
    given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise CaptureError(f"{place.name} should be a tensor with {place.ndim} axes, the model passes {given}")


class _Watch:
    """What one ``observe`` needs to know: who listens where, and which places were reached."""

    def __init__(self, model: nn.Module, graph: bool) -> None:
        self.grids, self.graph = Grids(model), graph
        self.listeners: dict[Place, list[Handler]] = {}
        self.reached: set[str] = set()

    def listen(self, place: Place, handler: Handler) -> None:
        self.listeners.setdefault(place, []).append(handler)

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks in place; ``stack`` takes them away again, whatever happens."""
        sources: dict[Any, list[Place]] = {}
        for place in self.listeners:
            sources.setdefault(place.source, []).append(place)
        for handle in self.grids.attach():
            stack.callback(handle.remove)
        for source, places in sources.items():
            for handle in source.attach(self._receiver(places), self.graph):
                stack.callback(handle.remove)

    def _receiver(self, places: list[Place]) -> Callable[[Any], None]:
        def receive(payload: Any) -> None:
            with torch.set_grad_enabled(self.graph and torch.is_grad_enabled()):
                for place in places:
                    self._emit(place, payload)

        return receive

    def _emit(self, place: Place, payload: Any) -> None:
        value = _tensor(place, place.read(payload))
        layout = None if place.tokens is None else self.grids.checked(place.name, place.tokens, value)
        seen = Observation(place.name, value if self.graph else value.detach(), layout)
        self.reached.add(place.name)
        for handler in self.listeners[place]:
            handler(seen)

    def unreached(self) -> list[str]:
        return [place.name for place in self.listeners if place.name not in self.reached]


def _raise_unreached(names: Sequence[str]) -> NoReturn:
    shown = ", ".join(names[:8]) + (f", ... {len(names)} in all" if len(names) > 8 else "")
    raise CaptureError(
        f"never reached: {shown}. No forward pass ran inside the `with` block, or it left these places out "
        "(only part of the model was called, or a compiled model skips hooks)"
    )


@contextmanager
def observe(
    model: nn.Module | ModelView, handlers: Mapping[str, Handler], *, graph: bool = False
) -> Iterator[ModelView]:
    """Call a handler with an ``Observation`` whenever a forward pass reaches its place.

    The model computes exactly what it computes unobserved, with fused attention. A handler may reduce the
    tensor and let it go: nothing is kept here. Non-finite values are passed on like any other. With gradient
    checkpointing, a backward pass inside the block reaches every place a second time.

    With ``graph=True`` a loss can be differentiated by everything that lies on the model's own path: all but
    ``attn.q``, ``.k``, ``.v`` and ``.pattern``, which are rebuilt beside it (they can be differentiated
    themselves), and ``embed`` in models for dynamic image sizes.

    Parameters
    ----------
    model : Module or ModelView
        A vision transformer, or a view of one.
    handlers : mapping
        Handler by name or shell-style pattern (``"blocks.*.attn.z"``), then called for every match.
    graph : bool
        Keep values in the autograd graph, where the forward pass makes one; otherwise they are detached.

    Raises
    ------
    UnknownNameError
        A name or pattern that matches nothing.
    CaptureError
        The model is no vision transformer; tokens do not fit their grid; a place was never reached.

    Examples
    --------
    >>> import timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    >>> rms = {}
    >>> def keep(seen):
    ...     rms[seen.name] = seen.value.square().mean().sqrt()
    >>> with torch.no_grad(), observe(model, {"blocks.*.resid_post": keep}):
    ...     _ = model(torch.randn(1, 3, 32, 32))
    >>> list(rms)
    ['blocks.0.resid_post', 'blocks.1.resid_post']

    """
    seen = view(model)
    watch = _Watch(seen.model, graph)
    for pattern, handler in handlers.items():
        for name in seen.select(pattern):
            watch.listen(seen.places.found[name], handler)
    with ExitStack() as stack:
        watch.attach(stack)
        yield seen
    if names := watch.unreached():
        _raise_unreached(names)


class _NotCapturedError(UnknownNameError, KeyError):
    __str__ = Exception.__str__


class Captured(Mapping[str, Tensor]):
    """Tensors by name, from the last forward pass, with their token layouts."""

    def __init__(self) -> None:
        self._seen: dict[str, Observation] = {}

    def _keep(self, seen: Observation) -> None:
        self._seen[seen.name] = seen

    def observation(self, name: str) -> Observation:
        """What was seen at ``name``."""
        if name not in self._seen:
            hint = "" if self._seen else "Nothing was captured: run the model inside the `with` block."
            raise _NotCapturedError("captured place", name, list(self._seen), hint)
        return self._seen[name]

    def __getitem__(self, name: str) -> Tensor:
        return self.observation(name).value

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def layout(self, name: str) -> TokenLayout | None:
        """Layout of the tokens of ``name``; ``None`` for ``logits``."""
        return self.observation(name).layout


@contextmanager
def capture(
    model: nn.Module | ModelView, names: NameFilter | Iterable[NameFilter], *, graph: bool = False
) -> Iterator[Captured]:
    """Keep the tensors of the named places, those of the last forward pass in the ``with`` block.

    Parameters
    ----------
    model : Module or ModelView
        A vision transformer, or a view of one.
    names : str, callable, or several
        Shell-style patterns, or functions from a name to True or False.
    graph : bool
        Keep values in the autograd graph, where the forward pass makes one; otherwise they are detached.

    Raises
    ------
    UnknownNameError
        A pattern or function that matches nothing.
    CaptureError
        As for ``observe``.
    """
    seen = view(model)
    captured = Captured()
    with observe(seen, dict.fromkeys(seen.select(names), captured._keep), graph=graph):
        yield captured
