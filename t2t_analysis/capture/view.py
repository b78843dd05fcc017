"""What a model offers to be observed, for measures to ask before the first image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import nn

from ..errors import UnknownNameError
from ..models.wrappers import check_bare
from .attention import Attention, backbone_attention
from .layout import Grids, TokenLayout
from .places import Places, find_places, is_layer

NameFilter = str | Callable[[str], bool]


class MissingPlaceError(UnknownNameError):
    """Names that exist elsewhere but not in this model, with the reasons."""

    def __init__(self, given: object, reasons: Mapping[str, str], choices: Iterable[str]) -> None:
        super().__init__("place", given, choices)
        example: dict[str, str] = {}  # one name for each reason
        for name, reason in reasons.items():
            example.setdefault(reason, name)
        self.args = ("cannot observe " + "; ".join(f"{name}: {reason}" for reason, name in example.items()),)


class ModelView:
    """A model with its observed places.

    Attributes
    ----------
    model : the model itself.
    label : what to call it in results.

    """

    def __init__(self, model: nn.Module, label: str | None = None) -> None:
        check_bare(model)
        self.model = model
        self.places = self.find_places(model)
        self.label = label or _architecture(model)

    def find_places(self, model: nn.Module) -> Places:
        """What can be observed in ``model``; a view of another kind of network says otherwise."""
        return find_places(model)

    def __repr__(self) -> str:
        return f"ModelView({self.label!r}, {len(self.names)} places)"

    @cached_property
    def names(self) -> list[str]:
        """Names of all places, from the image to the logits."""
        return list(self.places.found)

    @property
    def layout(self) -> TokenLayout | None:
        """Layout of the backbone's tokens at the model's own image size; ``None`` if it has none."""
        return Grids(self.model).layout("blocks")

    def layout_of(self, name: str) -> TokenLayout | None:
        """Layout of the tokens of one place at the model's own image size; ``None`` for ``logits``."""
        self.select(name)
        tokens = self.places.found[name].tokens
        return None if tokens is None else Grids(self.model).layout(tokens)

    @property
    def blocks(self) -> dict[int, nn.Module]:
        """Transformer layers by number, the L of ``blocks.L``."""
        return {i: block for i, block in enumerate(self.model.blocks) if is_layer(block)}  # type: ignore[arg-type]

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return len(self.blocks)

    def num_heads(self, layer: int) -> int:
        """Number of attention heads of one layer."""
        block: Any = self.blocks.get(layer)
        if block is None:
            raise UnknownNameError("layer", str(layer), map(str, self.blocks))
        return int(getattr(block, "attn", block).num_heads)

    def attention(self, layer: int) -> Attention:
        """How the attention of one layer is put together.

        Raises
        ------
        UnknownNameError
            It is of a kind that is not known here; the message says so.
        """
        self.select(f"blocks.{layer}.attn.z")  # says why where there is none
        block = self.blocks[layer]
        found = backbone_attention(getattr(block, "attn", block))
        assert found is not None
        return found

    @property
    def provenance(self) -> Any:
        """Where the weights came from, ``None`` if the model does not tell."""
        return getattr(self.model, "provenance", None)

    def select(self, wanted: NameFilter | Iterable[NameFilter]) -> list[str]:
        """Names that match a pattern, a function, or any of several; each of them must match something.

        Raises
        ------
        UnknownNameError
            Nothing matches; if other models have such a place, with the reason why this one has not.
        """
        filters = [wanted] if isinstance(wanted, str) or callable(wanted) else list(wanted)
        chosen = {name for one in filters for name in self._matches(one)}
        return [name for name in self.names if name in chosen]

    def _matches(self, wanted: NameFilter) -> Iterator[str]:
        if isinstance(wanted, str) and wanted in self.places.found:  # no pattern: asked for with every batch
            yield wanted
            return
        test = wanted if callable(wanted) else lambda name: fnmatchcase(name, wanted)
        found = [name for name in self.names if test(name)]
        if not found:
            given = getattr(wanted, "__name__", wanted)
            if lacking := {name: why for name, why in self.places.missing.items() if test(name)}:
                raise MissingPlaceError(given, lacking, self.names)
            raise UnknownNameError("place", given, self.names, hint=f"in {self.label}")
        yield from found


def _architecture(model: nn.Module) -> str:
    """Name under which timm made the model, or its class."""
    config: Any = getattr(model, "pretrained_cfg", None)
    return (config or {}).get("architecture") or type(model).__name__


def view(model: nn.Module | ModelView, label: str | None = None) -> ModelView:
    """Ask what ``model`` offers; a view passes through unchanged.

    Raises
    ------
    CaptureError
        The model is no vision transformer, compiled, or inside a wrapper; the message says what is lacking.

    Examples
    --------
    >>> import timm
    >>> seen = view(timm.create_model("deit_tiny_distilled_patch16_224", img_size=(64, 32), depth=2))
    >>> seen, seen.depth, seen.num_heads(0), seen.layout
    (ModelView('deit_tiny_distilled_patch16_224', 27 places), 2, 3, TokenLayout(prefix=2, grid=(4, 2)))
    """
    if isinstance(model, ModelView):
        return model if label is None else ModelView(model.model, label)
    return ModelView(model, label)


def names(model: nn.Module | ModelView) -> list[str]:
    """Names of everything that can be observed in ``model``.

    >>> import timm
    >>> names(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1))[:4]
    ['embed', 'blocks.0.resid_pre', 'blocks.0.norm1', 'blocks.0.attn.q']
    """
    return view(model).names
