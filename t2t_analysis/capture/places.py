"""The observed places of a model: their names, where each is found, and why a place is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import timm.models.beit
import timm.models.eva
import timm.models.vision_transformer
from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CaptureError
from ..models.blocks import DenseBlock, GhostMlp, Transition
from .attention import Attention, Call, Heads, backbone_attention, stage_attention
from .layout import flatten_patches, tokeniser

Callback = Callable[[Any], None]


class Source(Protocol):
    """Something that hooks can be put on; places that share one share its hooks."""

    def attach(self, callback: Callback, graph: bool) -> list[RemovableHandle]:
        """Call ``callback`` with what passes, every time; ``graph`` tells whether gradients are wanted."""
        ...


@dataclass(frozen=True)
class Into:
    """What goes into a module: its first argument."""

    module: nn.Module

    def attach(self, callback: Callback, graph: bool) -> list[RemovableHandle]:
        """Hook the module."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            callback(args[0] if args else next(iter(kwargs.values())))

        return [self.module.register_forward_pre_hook(hook, with_kwargs=True)]


@dataclass(frozen=True)
class JoinedHeads:
    """What goes into a module, taken apart into heads: (B, N, H d) -> (B, H, N, d)."""

    module: nn.Module
    num_heads: int

    def attach(self, callback: Callback, graph: bool) -> list[RemovableHandle]:
        """Hook the module."""

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            heads = args[0].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            callback(heads)
            # A view beside the path gets no gradient, so with a graph the model goes on from the heads: the
            # same numbers in the same memory, joined again.
            return (heads.transpose(1, 2).flatten(2), *args[1:]) if graph else None

        return [self.module.register_forward_pre_hook(hook)]


@dataclass(frozen=True)
class OutOf:
    """What a module puts out."""

    module: nn.Module

    def attach(self, callback: Callback, graph: bool) -> list[RemovableHandle]:
        """Hook the module."""
        return [self.module.register_forward_hook(lambda module, args, output: callback(output))]


@dataclass(frozen=True, eq=False)
class Inside:
    """What enters the product of an attention module, as ``Heads``."""

    attention: Attention

    def attach(self, callback: Callback, graph: bool) -> list[RemovableHandle]:
        """Hook the module before and after its call, and its projections in between."""
        calls: list[Call] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[:] = [Call.of(module, args, kwargs)]

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            callback(Heads(self.attention, calls.pop()))

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, output: calls[0].projected.__setitem__(name, output)

        handles = [self.attention.module.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [m.register_forward_hook(keep(name)) for name, m in self.attention.projections.items()]
        return [*handles, self.attention.module.register_forward_hook(after)]


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Place:
    """One observed place: ``read`` makes its tensor, with ``ndim`` axes, from what ``source`` hands out.

    ``tokens`` names the group of tokens along the second last axis (see ``Grids``), ``None`` without any.
    """

    name: str
    source: Source
    ndim: int = 3
    tokens: str | None = "blocks"
    read: Callable[[Any], Any] = _same


@dataclass(frozen=True)
class Places:
    """All places of a model by name, and the reason for each name that it lacks."""

    found: dict[str, Place] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, *places: Place) -> None:
        """Add what can be observed."""
        self.found.update({place.name: place for place in places})

    def lack(self, reason: str, *names: str) -> None:
        """Remember why something cannot be observed."""
        self.missing.update(dict.fromkeys(names, reason))


# Names inside a block or a stage, in the order in which a forward pass reaches them.
_ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.out")
_BRANCHES = ("norm1", *_ATTENTION, "resid_mid", "norm2", "mlp.hidden")


# --- parts that blocks and stages share


def _add_heads(places: Places, attention: Attention, prefix: str, tokens: str) -> None:
    """Queries, keys, values, pattern and head outputs."""
    inside = Inside(attention)
    places.add(
        Place(f"{prefix}.attn.q", inside, 4, tokens, lambda heads: heads.qkv[0]),
        Place(f"{prefix}.attn.k", inside, 4, tokens, lambda heads: heads.qkv[1]),
        Place(f"{prefix}.attn.v", inside, 4, tokens, lambda heads: heads.qkv[2]),
    )
    if attention.scale is not None:
        places.add(Place(f"{prefix}.attn.pattern", inside, 4, tokens, lambda heads: heads.pattern))
    places.add(Place(f"{prefix}.attn.z", JoinedHeads(attention.z, attention.num_heads), 4, tokens))


def _hidden(mlp: Any) -> Source | None:
    """Where hidden features are seen after the activation (and gate); ``None`` for an unknown kind of MLP."""
    if type(mlp).forward in {Mlp.forward, GluMlp.forward, SwiGLU.forward}:
        return Into(mlp.drop1)
    if isinstance(mlp, GhostMlp):
        return Into(mlp.fc2)
    if isinstance(mlp, nn.Sequential) and len(mlp) > 1 and isinstance(mlp[1], nn.GELU):
        return OutOf(mlp[1])
    return None


def _add_hidden(places: Places, mlp: nn.Module, prefix: str, tokens: str) -> None:
    name = f"{prefix}.mlp.hidden"
    if (source := _hidden(mlp)) is not None:
        places.add(Place(name, source, tokens=tokens))
    else:
        places.lack(f"the hidden features of {type(mlp).__name__} are not known here", name)


# --- blocks of the backbone

_VIT, _EVA, _BEIT = timm.models.vision_transformer, timm.models.eva, timm.models.beit
#: x + f(norm1(x)), then x + g(norm2(x))
_PRE_NORM = {_VIT.Block.forward, _EVA.EvaBlock.forward, _BEIT.Block.forward, DenseBlock.forward}
#: x + norm1(f(x)), then x + norm2(g(x))
_POST_NORM = {_VIT.ResPostBlock.forward, _EVA.EvaBlockPostNorm.forward}


def is_layer(block: nn.Module) -> bool:
    """Whether an entry of ``model.blocks`` is a transformer layer; a dense backbone has transitions too."""
    return not isinstance(block, Transition)


def _add_block(places: Places, block: Any, prefix: str) -> None:
    places.add(Place(f"{prefix}.resid_pre", Into(block)))
    if type(block).forward in _PRE_NORM:
        places.add(Place(f"{prefix}.norm1", OutOf(block.norm1)))
        _add_attention(places, block.attn, prefix)
        places.add(
            Place(f"{prefix}.resid_mid", Into(block.norm2)), Place(f"{prefix}.norm2", OutOf(block.norm2))
        )
        _add_hidden(places, block.mlp, prefix, "blocks")
    elif type(block).forward in _POST_NORM:
        _add_attention(places, block.attn, prefix)
        places.add(Place(f"{prefix}.resid_mid", Into(block.mlp)))
        _add_hidden(places, block.mlp, prefix, "blocks")
        reason = f"{type(block).__name__} normalises what a branch puts out, not what it takes in"
        places.lack(reason, f"{prefix}.norm1", f"{prefix}.norm2")
    else:
        reason = f"the branches inside {type(block).__name__} are not known here"
        places.lack(reason, *(f"{prefix}.{name}" for name in _BRANCHES))
    places.add(Place(f"{prefix}.resid_post", OutOf(block)))


def _add_attention(places: Places, attn: nn.Module, prefix: str) -> None:
    attention = backbone_attention(attn)
    if attention is None:
        reason = f"how {type(attn).__name__} combines queries and keys is not known here"
        places.lack(reason, *(f"{prefix}.{name}" for name in _ATTENTION))
        return
    _add_heads(places, attention, prefix, "blocks")
    places.add(Place(f"{prefix}.attn.out", OutOf(attention.proj)))


# --- before and after the blocks


def _add_stage(places: Places, stage: Any, prefix: str) -> None:
    """One token transformer of a T2T module."""
    attention = stage_attention(stage)
    _add_heads(places, attention, prefix, prefix)
    if attention.scale is None:
        reason = "has no attention matrix: its attention is linear in the number of tokens"
        places.lack(f"{type(stage).__name__} {reason}", f"{prefix}.attn.pattern")
    _add_hidden(places, stage.mlp, prefix, prefix)
    places.add(Place(f"{prefix}.out", OutOf(stage), tokens=prefix))


def _add_tokeniser(places: Places, start: nn.Module) -> None:
    for index in range(2):
        prefix, stage = f"tokens.{index}", getattr(start, f"attention{index + 1}", None)
        if stage is not None:
            _add_stage(places, stage, prefix)
        else:
            names = ("out", *_ATTENTION[:-1], "mlp.hidden")
            places.lack("its tokeniser has no token transformers", *(f"{prefix}.{name}" for name in names))
    places.add(Place("embed", OutOf(start), tokens="embed", read=partial(flatten_patches, start)))


def _add_ends(places: Places, model: Any) -> None:
    """The last norm and the logits."""
    if isinstance(getattr(model, "norm", nn.Identity()), nn.Identity):
        places.lack("its last norm does not act on tokens, or there is none", "norm")
    else:
        places.add(Place("norm", OutOf(model.norm)))
    if getattr(model, "num_classes", 0):
        places.add(Place("logits", OutOf(model), ndim=2, tokens=None))
    else:
        places.lack("it has no classifier (num_classes=0)", "logits")


def _require_vit(model: Any) -> nn.Module:
    """Return the tokeniser; CaptureError, naming what is missing, if the model keeps no tokens in blocks."""
    lacks, start = [], tokeniser(model)
    if start is None:
        lacks.append("a patch embedding (`patch_embed` or `tokens_to_token`)")
    if not isinstance(getattr(model, "blocks", None), nn.Sequential | nn.ModuleList):
        lacks.append("a stack of `blocks`")
    if not hasattr(model, "num_prefix_tokens"):
        lacks.append("a count of prefix tokens (`num_prefix_tokens`)")
    if lacks or start is None:
        raise CaptureError(f"cannot observe {type(model).__name__}: it lacks {' and '.join(lacks)}")
    return start


def find_places(model: Any) -> Places:
    """All places of ``model``, from the image to the logits; CaptureError if it is no vision transformer."""
    start, places = _require_vit(model), Places()
    _add_tokeniser(places, start)
    for index, block in enumerate(model.blocks):
        if is_layer(block):
            _add_block(places, block, f"blocks.{index}")
    _add_ends(places, model)
    return places
