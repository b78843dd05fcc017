"""Taking attention heads out of a model: what does it compute without them.

A head is taken out where the joined head outputs z (B, N, H d) enter the output projection: its slice of the
channels is scaled, or replaced. Attention itself runs as it always does, fused, so this holds for every model
whose heads can be observed.

Zero is not what the rest of the network expects of a silent head. The mean over images keeps what a head says
whatever the image; another image's z (resample) keeps its distribution too. Source: Michel, Levy & Neubig 2019
(1905.10650), where a head is MHA_xi = sum_h xi_h Att_h with xi_h = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import capture
from ..data.loading import batches_for
from ..errors import CaptureError, DataError, T2TError, UnknownNameError

Head = tuple[int, int]  # layer, head
Mode = Literal["zero", "mean", "resample"]
MODES: tuple[Mode, ...] = ("mean", "zero", "resample")
#: A mode, a factor xi of the head's output, or what to put in its place, broadcastable to (B, N, d).
Change = str | float | Tensor
#: Changes head outputs (B, N, H, d) of one layer in place.
Edit = Callable[[Tensor], None]

#: Tokens, over images and variants, that are run at a time.
_MOST_TOKENS = 2**14


# ------------------------------------------------------------------------------------------- where heads are


@dataclass(frozen=True)
class Site:
    """The output projection of one layer and how many heads it joins."""

    layer: int
    proj: nn.Module
    num_heads: int

    def hook(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Put ``change(z)`` in the place of the joined head outputs z (B, N, H d); returns the handle."""

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (change(args[0]), *args[1:])

        return self.proj.register_forward_pre_hook(before)

    def heads(self, z: Tensor) -> Tensor:
        """(..., H d) -> (..., H, d)."""
        return z.unflatten(-1, (self.num_heads, -1))


def sites(model: nn.Module | capture.ModelView) -> dict[int, Site]:
    """Where the heads of every layer of the backbone can be taken out.

    Raises CaptureError (no vision transformer) or UnknownNameError (attention of an unknown kind, with the
    reason).
    """
    view = capture.view(model)
    found = {layer: view.attention(layer) for layer in view.blocks}
    return {layer: Site(layer, attention.proj, attention.num_heads) for layer, attention in found.items()}


def _check(known: Mapping[int, Site], heads: Iterable[Head]) -> None:
    for layer, head in heads:
        if layer not in known:
            raise UnknownNameError("layer", str(layer), map(str, known))
        if not 0 <= head < known[layer].num_heads:
            choices = map(str, range(known[layer].num_heads))
            raise UnknownNameError("head", str(head), choices, hint=f"in layer {layer}")


# ------------------------------------------------------------------------------------------ data-set means


@dataclass
class HeadMeans:
    """Mean head output of every layer, per position: ``mean[layer]`` is (N, H, d), over ``n`` images."""

    mean: dict[int, Tensor]
    n: int

    @classmethod
    def of(cls, model: nn.Module, batches: Tensor | Iterable[Any], limit: int = 512) -> HeadMeans:
        """Average over at most ``limit`` images: a tensor (B, C, H, W), a loader or a list of tensors.

        Raises DataError without images, or where their numbers of tokens differ.

        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
        >>> means = HeadMeans.of(model, torch.randn(4, 3, 32, 32))
        >>> tuple(means.mean[0].shape), means.n
        ((5, 3, 64), 4)
        """
        known, total, n = sites(model), dict[int, Tensor](), 0
        weight = next(model.parameters())
        for images, _, _ in batches_for(model, batches):
            if n >= limit:
                break
            images = images[: limit - n].to(weight)
            for layer, z in head_outputs(model, known, images).items():
                _add(total, layer, z.double().sum(0))
            n += len(images)
        return cls({layer: known[layer].heads(z / n).float() for layer, z in total.items()}, n)


def _add(total: dict[int, Tensor], layer: int, value: Tensor) -> None:
    if layer in total and total[layer].shape != value.shape:
        raise DataError(
            f"images of different sizes: {len(total[layer])} tokens, then {len(value)}; a mean per position "
            "needs one size"
        )
    total[layer] = total[layer] + value if layer in total else value


@torch.no_grad()
def head_outputs(model: nn.Module, known: Mapping[int, Site], images: Tensor) -> dict[int, Tensor]:
    """Joined head outputs (B, N, H d) of the given layers, as they enter the projection."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer, site in known.items():
            keep = _keeper(seen, layer)
            stack.callback(site.hook(keep).remove)
        model(images)
    if len(seen) < len(known):
        raise CaptureError(f"layers {sorted(set(known) - set(seen))} were never reached")
    return seen


def _keeper(seen: dict[int, Tensor], layer: int) -> Callable[[Tensor], Tensor]:
    def keep(z: Tensor) -> Tensor:
        seen[layer] = z
        return z

    return keep


# ------------------------------------------------------------------------------------ one set of heads out


@contextmanager
def ablated(
    model: nn.Module, heads: Mapping[Head, Change], *, means: HeadMeans | None = None, seed: int = 0
) -> Iterator[nn.Module]:
    """Take heads out of ``model`` for the length of a ``with`` block; hooks are gone afterwards.

    What `capture` sees as ``attn.out`` and later is without the heads; ``attn.z`` may still hold them.

    Parameters
    ----------
    heads : (layer, head) -> what becomes of the head's output: ``"zero"``; ``"mean"`` (per position, from
        ``means``); ``"resample"`` (that of another image of the same batch, the same one for all heads,
        drawn with ``seed``); a factor xi, where 1.0 changes no bit; or a tensor to put in its place,
        broadcastable to (B, N, d).
    means : from ``HeadMeans.of(model, images)``.

    Raises
    ------
    UnknownNameError : a layer, head or mode that does not exist.
    T2TError : ``"mean"`` without ``means``.
    DataError : ``"resample"`` with a batch of one image.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    >>> images = torch.randn(2, 3, 32, 32)
    >>> with torch.no_grad(), ablated(model, {(1, 0): "zero", (1, 2): "zero"}):
    ...     logits = model(images)
    >>> bool((logits != model(images)).any())
    True
    """
    known = sites(model)
    _check(known, heads)
    with ExitStack() as stack:
        for (layer, head), change in heads.items():
            how = _known_mode(change, means) if isinstance(change, str) else change
            edit = partial(_change, head, how, None if means is None else means.mean[layer], seed)
            stack.callback(known[layer].hook(_editing(known[layer], [edit])).remove)
        yield model


def _known_mode(mode: str, means: HeadMeans | None) -> str:
    if mode not in MODES:
        raise UnknownNameError("kind of ablation", mode, MODES)
    if mode == "mean" and means is None:
        raise T2TError("mean ablation needs means=HeadMeans.of(model, images)")
    return mode


def _change(head: int, how: Change, mean: Tensor | None, seed: int, z: Tensor) -> None:
    z[:, :, head] = _changed(z[:, :, head].clone(), how, mean, head, seed)  # (B, N, H, d)


def _changed(z: Tensor, how: Change, mean: Tensor | None, head: int, seed: int) -> Tensor:
    """What becomes of one head's output z (B, N, d)."""
    if isinstance(how, Tensor) and how.ndim:
        return how.to(z).expand_as(z)
    if not isinstance(how, str):
        return z * how
    if how == "resample":
        return z[derangement(len(z), seed).to(z.device)]
    return torch.zeros_like(z) if how == "zero" or mean is None else mean[:, head].to(z).expand_as(z)


def derangement(n: int, seed: int) -> Tensor:
    """A random permutation of n that leaves nothing in its place (one cycle).

    >>> derangement(5, seed=0).sort().values.tolist(), bool((derangement(5, 0) == torch.arange(5)).any())
    ([0, 1, 2, 3, 4], False)
    """
    if n < 2:
        raise DataError("resample ablation needs another image: a batch of at least 2")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    to = torch.empty(n, dtype=torch.long)
    to[order] = order.roll(1)
    return to


# --------------------------------------------------------------------------- many sets, from some layer on


@dataclass(frozen=True)
class Start:
    """One batch at the door of the first block, how the blocks were called, and what the model gave."""

    tokens: Tensor  # (B, N, D)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # what each block got beside its tokens
    output: Tensor  # (B, K)


class Replay:
    """The blocks of one model, run again from stored tokens with heads changed.

    What comes before a changed layer is not computed twice: all single heads of an L-layer model with H heads
    a layer cost (L + 1) / 2 x H forward passes instead of L x H. Variants are stacked along the batch axis,
    ``most_tokens`` at a time.

    Parameters
    ----------
    model : blocks that run one after the other on (B, N, D), then ``norm`` and ``forward_head``; call
        `verify` once to make sure. Whatever else a block is given (rotary or relative positions) is recorded.
    """

    def __init__(self, model: nn.Module | capture.ModelView, most_tokens: int = _MOST_TOKENS) -> None:
        self.view = capture.view(model)
        self.model: Any = self.view.model
        self.sites = sites(self.view)
        self.steps: list[nn.Module] = list(self.view.model.blocks)  # type: ignore[arg-type]
        self.most_tokens = most_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> Replay:
        return self  # copying an accumulator must not copy the model

    def start(self, images: Tensor) -> Start:
        """Run the model once and keep what enters its first block; (B, C, H, W) images."""
        tokens: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens[:] = tokens or [args[0]]
            calls.append((args[1:], kwargs))

        with torch.no_grad(), ExitStack() as stack:
            for step in self.steps:
                stack.callback(step.register_forward_pre_hook(note, with_kwargs=True).remove)
            output = self.model(images)
        if len(calls) != len(self.steps) or not isinstance(output, Tensor) or output.ndim != 2:
            raise self._refusal(
                f"{len(calls)} of its {len(self.steps)} blocks ran, or its output is no table"
            )
        return Start(tokens[0], calls, output)

    def step(self, i: int, x: Tensor, start: Start) -> Tensor:
        """Run entry ``i`` of the blocks."""
        args, kwargs = start.calls[i]
        return self.steps[i](x, *args, **kwargs)

    def observed_step(self, i: int, x: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """As `step`, with the head outputs (B, N, H, d) on the way."""
        seen: dict[int, Tensor] = {}
        handle = self.sites[i].hook(_keeper(seen, i))
        try:
            after = self.step(i, x, start)
        finally:
            handle.remove()
        return after, self.sites[i].heads(seen[i])

    def finish(self, x: Tensor) -> Tensor:
        """Output (B, K) from the tokens after the last block."""
        return self.model.forward_head(self.model.norm(x))

    @torch.no_grad()
    def run(
        self, layer: int, x: Tensor, start: Start, variants: Sequence[Mapping[int, Edit]]
    ) -> Iterator[Tensor]:
        """Outputs (B, K) of each variant, in order, from the tokens x (B, N, D) that enter ``layer``.

        A variant says for some layers, none before ``layer``, how head outputs (B, N, H, d) are changed.
        """
        most = max(1, self.most_tokens // (x.shape[0] * x.shape[1]))
        for first in range(0, len(variants), most):
            chunk = variants[first : first + most]
            y = x.repeat(len(chunk), 1, 1)  # (V B, N, D)
            with self._edited(chunk):
                for i in range(layer, len(self.steps)):
                    y = self.step(i, y, start)
            yield from self.finish(y).unflatten(0, (len(chunk), -1))

    @contextmanager
    def _edited(self, chunk: Sequence[Mapping[int, Edit]]) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in sorted({layer for variant in chunk for layer in variant}):
                site = self.sites[layer]
                stack.callback(site.hook(_editing(site, [v.get(layer) for v in chunk])).remove)
            yield

    def verify(self, start: Start, tolerance: float = 1e-4) -> None:
        """CaptureError unless replaying two stacked copies of a batch gives the model's own output."""
        copies = list(self.run(0, start.tokens, start, [{}, {}]))
        scale = 1 + float(start.output.abs().max())
        worst = max(float((copy - start.output).abs().max()) for copy in copies) / scale
        if not worst <= tolerance and bool(torch.isfinite(start.output).all()):
            raise self._refusal(f"the output differs by {worst:.1e} of its size")

    def _refusal(self, why: str) -> CaptureError:
        return CaptureError(
            f"{self.view.label}: running its blocks, `norm` and `forward_head` one after the other does not "
            f"repeat its forward pass ({why}); take heads out with `ablated` and whole forward passes instead"
        )


def _editing(site: Site, edits: Sequence[Edit | None]) -> Callable[[Tensor], Tensor]:
    def change(joined: Tensor) -> Tensor:
        z = site.heads(joined).unflatten(0, (len(edits), -1)).clone()  # (V, B, N, H, d)
        for i, edit in enumerate(edits):
            if edit is not None:
                edit(z[i])
        return z.flatten(0, 1).flatten(-2)

    return change
