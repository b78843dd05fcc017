"""What one photograph shows in a model, beside the same network with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from ..measures.glance import Glance
from .base import PALETTE, SEQUENTIAL, Figure, new_axes, series_styles, title_block, use_style


def glance_maps(seen: Sequence[Glance]) -> Figure:
    """A row a network: the photograph, attention in three blocks, norms, and principal components as colours."""
    depth = len(seen[0].attention)
    blocks = sorted({0, depth // 2, depth - 1})
    columns = len(blocks) + 3
    with use_style():
        fig, axes = new_axes(len(seen), columns, width=1.9 * columns, height=2.3 * len(seen), squeeze=False)
        most = max(float(one.attention[blocks].max()) for one in seen)
        scale = LogNorm(1 / (30 * seen[0].attention[0].size), most, clip=True)
        for row, one in zip(axes, seen, strict=True):
            title = "UNTRAINED" if one.untrained else _short(one.label)
            _map(row[0], one.image.squeeze(), title, cmap="gray")
            for ax, block in zip(row[1:], blocks, strict=False):
                drawn = _map(ax, one.attention[block], f"attention, block {block + 1}", norm=scale)
            fig.colorbar(drawn, ax=row[1 : 1 + len(blocks)], shrink=0.8, pad=0.01, format="%g")
            _norms(fig, row[-2], one)
            _map(row[-1], _rgb(one.components), "components, last block")
    n = one.attention[0].size
    caption = (
        f"Attention of the {one.asks} to {n} patches, mean over heads, one logarithmic scale for all maps (the same "
        f"for every patch would be {1 / n:.3g}); norms of the patch tokens, crosses on those that stand apart; "
        "first three principal components of the last block's tokens as red, green and blue, whose colours mean "
        "nothing from one row to the next. One photograph, no intervals."
    )
    alt = (
        f"Rows of pictures for {' and '.join(one.label for one in seen)}: the photograph, attention in blocks "
        f"{', '.join(str(block + 1) for block in blocks)}, norms of patch tokens, principal components."
    )
    return Figure(fig, caption, alt)


def _map(ax: Any, values: np.ndarray, title: str, **style: Any) -> Any:
    drawn = ax.imshow(values, **({"cmap": SEQUENTIAL} | style))
    ax.set_title(title, fontsize=9, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
    return drawn


def _norms(fig: Any, ax: Any, one: Glance) -> None:
    block = one.most_apart
    rows, columns = np.nonzero(one.apart[block])
    drawn = _map(ax, one.norms[block], f"norms, block {block + 1}")
    fig.colorbar(drawn, ax=ax, shrink=0.8, pad=0.01, format="%g")
    ax.plot(columns, rows, "x", color=PALETTE["vermillion"], markersize=5)


def _rgb(components: np.ndarray) -> np.ndarray:
    low, high = np.quantile(components, [0.01, 0.99], axis=(0, 1))
    colours = np.clip((components - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.pad(colours, ((0, 0), (0, 0), (0, 3 - colours.shape[-1])))


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def glance_depth(seen: Sequence[Glance]) -> Figure:
    """Three numbers by block, for each network."""
    styles = series_styles([one.label for one in seen])
    panels = (
        ("Half of the attention", "share of patches", "half"),
        ("Norms that stand apart", "share of patches", "apart_share"),
        ("Heads agree", "mean centred cosine", "mean_agreement"),
    )
    with use_style():
        fig, axes = new_axes(1, 3, width=9.5, height=3.0)
        for ax, (title, unit, name) in zip(axes, panels, strict=True):
            for one in seen:
                values = getattr(one, name)
                x = np.arange(1, len(values) + 1)
                ax.plot(x, values, label=_short(one.label, 40), **styles[one.label])
            title_block(ax, title, unit)
            ax.set_xlabel("block")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.margins(y=0.12)
        fig.legend(handles=axes[0].lines, loc="outside lower center", ncols=len(seen))
    last = {one.label: (one.half[-1], one.apart_share.max()) for one in seen}
    alt = "Three lines by block. " + " ".join(
        f"{label}: half of the attention on {half:.2f} of the patches in the last block; at most {apart:.3f} of the "
        "tokens stand apart."
        for label, (half, apart) in last.items()
    )
    caption = (
        "By block: the smallest share of patches that hold half of the attention (0.5 if all get the same); the share "
        "of patch tokens whose norm stands apart, by a mixture of two normal distributions of log norms; the mean "
        "cosine of different heads' attention maps, each row centred. One photograph, no intervals."
    )
    return Figure(fig, caption, alt)
