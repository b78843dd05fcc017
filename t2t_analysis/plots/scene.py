"""One token of one image, as one or two models see it: image, attention, feature map, receptive field."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from .._show import code
from ..quantities import number
from .base import DIVERGING, PALETTE, SEQUENTIAL, Figure, finish, use_style
from .series import caption

if TYPE_CHECKING:
    from ..scene import Scene

__all__ = ["scene_figure", "scene_words"]

#: inches: panel, gap between panels, above a panel two lines, below it the colour bar, the row's headline, margin
_PANEL, _GAP, _ABOVE, _BELOW, _HEAD, _EDGE = 1.82, 0.2, 0.42, 0.4, 0.26, 0.06
#: feature maps in multiples of the layer's level are never drawn on a finer or coarser scale than these
_FINEST, _COARSEST = 3.0, 10.0
#: the scale of attention ends here at least, so that the mark of uniform attention stays clear of the end
_LEAST = 2.0
_MARK, _SMALL = PALETTE["vermillion"], 9


def scene_figure(scenes: Sequence[Scene], frame: pd.DataFrame, image_name: str) -> Figure:
    """Draw a row of four panels per model: image, attention, feature map, receptive field; all models on one scale.

    Parameters
    ----------
    scenes : of the same image and point, one per model. frame : their numbers, tidy. image_name : for title and words.
    """
    with use_style(), matplotlib.rc_context({"figure.constrained_layout.use": False}):
        size = 4 * _PANEL + 3 * _GAP + 2 * _EDGE, len(scenes) * (_HEAD + _ABOVE + _PANEL + _BELOW)
        fig = MplFigure(figsize=size)
        # One axes in inches, downwards: an axes per panel and colour bar would take most of the time.
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.set(xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
        limits = _attention_limit(scenes), _feature_limit(scenes)
        for number, scene in enumerate(scenes):
            _draw_row(ax, size[1] / len(scenes) * number, scene, limits, image_name)
    return finish(fig, frame, _caption(scenes, image_name), _alt(scenes, image_name))


def _attention_limit(scenes: Sequence[Scene]) -> float:
    return max([_LEAST, *(float(s.attention.max()) for s in scenes if s.attention is not None)])


def _feature_limit(scenes: Sequence[Scene]) -> float:
    largest = max(float(scene.feature.abs().max()) for scene in scenes)
    return float(np.clip(largest, _FINEST, _COARSEST))


class _Panel(NamedTuple):
    """A rectangle of the figure that shows the pixels of one image; left and top in inches."""

    ax: Axes
    left: float
    top: float
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """Inches per pixel."""
        return _PANEL / max(self.size)

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Write words at inches from the panel's corner; a name's dollar signs are no formulas."""
        self.ax.text(self.left + x, self.top + y, words, parse_math=False, **style)

    def title(self, title: str, note: str) -> None:
        """Write what is shown in bold and below it, in grey, how to read it."""
        self.text(0, -0.21, title, fontweight="bold", va="bottom")
        self.text(0, -0.04, note, color=PALETTE["grey"], fontsize=_SMALL, va="bottom")

    def picture(self, values: Any, cmap: str | None, low: float, high: float, alpha: float = 1.0) -> None:
        """Lay an array over the whole panel, on whatever grid it has."""
        height, width = (side * self.scale for side in self.size)
        extent = (self.left, self.left + width, self.top + height, self.top)
        self.ax.imshow(
            values,
            cmap=cmap,
            vmin=low,
            vmax=high,
            alpha=alpha,
            extent=extent,
            aspect="auto",
            interpolation="nearest",
        )

    def frame(self, top: float, left: float, height: float, width: float, line: float = 1.4) -> None:
        """Frame some of the pixels."""
        corner = self.left + left * self.scale, self.top + top * self.scale
        sides = width * self.scale, height * self.scale
        self.ax.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=_MARK, linewidth=line))

    def bar(self, cmap: str, marks: dict[float, str]) -> None:
        """Draw a colour bar below; ``marks`` has words for shares of its length."""
        y = self.size[0] * self.scale + 0.08
        left, right = self.left + 0.1 * _PANEL, self.left + 0.9 * _PANEL
        extent = (left, right, self.top + y + 0.07, self.top + y)
        self.ax.imshow(np.linspace(0, 1, 256)[None], cmap=cmap, extent=extent, aspect="auto")
        for share, words in marks.items():
            x = (0.1 + 0.8 * share) * _PANEL
            self.text(x, y + 0.1, words, fontsize=_SMALL, ha="center", va="top")

    def empty(self, reason: str) -> None:
        """Say why there is nothing to see."""
        height, width = (side * self.scale for side in self.size)
        self.ax.add_patch(Rectangle((self.left, self.top), width, height, color="#f0f0f0"))
        self.text(0.08, 0.08, textwrap.fill(reason, 24), fontsize=_SMALL, va="top")


def _draw_row(ax: Axes, top: float, scene: Scene, limits: tuple[float, float], name: str) -> None:
    words = f"{scene.model}, {scene.look.place} · {scene.weights}"
    ax.text(_EDGE, top + _HEAD - 0.04, words, fontweight="bold", va="bottom", parse_math=False)
    height, width = scene.image.shape[-2:]
    lefts = (_EDGE + column * (_PANEL + _GAP) for column in range(4))
    panels = [_Panel(ax, left, top + _HEAD + _ABOVE, (height, width)) for left in lefts]
    panels[0].title(_short(name), scene.token)
    panels[0].picture(scene.image.permute(1, 2, 0).numpy(), None, 0, 1)
    _draw_attention(panels[1], scene, limits[0])
    _draw_feature(panels[2], scene, limits[1])
    _draw_field(panels[3], scene)
    if scene.cell is not None:
        drawn = True, scene.attention is not None, True, scene.field is not None
        for panel in (panel for panel, there in zip(panels, drawn, strict=True) if there):
            panel.frame(*scene.cell)


def _short(name: str, length: int = 24) -> str:
    """The end of a long name, which is what tells two paths apart."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _draw_attention(panel: _Panel, scene: Scene, limit: float) -> None:
    if scene.attention is None:
        panel.title("Attention", "none")
        panel.empty(scene.missing["attention"])
        return
    panel.title(f"Attention, head {scene.look.head}", "× uniform, over the image")
    panel.picture(scene.image.mean(0).numpy(), "gray", 0, 1)
    # by square roots: a head that puts all on one patch would leave the rest, and the other model, in the dark
    panel.picture(scene.attention.sqrt().numpy(), SEQUENTIAL, 0, limit**0.5, alpha=0.7)
    panel.bar(SEQUENTIAL, {0: "0", limit**-0.5: "1", 1: f"{limit:.3g}"})


def _draw_feature(panel: _Panel, scene: Scene, limit: float) -> None:
    panel.title(f"Channel {scene.look.channel}", scene.state)
    panel.picture(scene.feature.numpy(), DIVERGING, -limit, limit)
    beyond = float(scene.feature.abs().max()) > limit
    low, high = ("≤", "≥") if beyond else ("", "")
    panel.bar(DIVERGING, {0: f"{low}−{limit:.3g}", 0.5: "× layer's level", 1: f"{high}{limit:.3g}"})
    if scene.state != "ordinary":
        panel.frame(0, 0, *panel.size, line=3)


def _draw_field(panel: _Panel, scene: Scene) -> None:
    panel.title("Receptive field", "none" if scene.field is None else "size of input gradient")
    if scene.field is None:
        panel.empty(scene.missing["field"])
        return
    panel.picture(scene.field.numpy(), SEQUENTIAL, 0, 1)
    panel.bar(SEQUENTIAL, {0: "0", 0.5: "largest = 1", 1: "1"})


# ------------------------------------------------------------------------------------------------ words


def _found(scene: Scene, quantity: str, tokens: str) -> dict[str, Any] | None:
    """The row of a number; None where there is no such."""
    rows = (row for row in scene.rows if (row["quantity"], row["tokens"]) == (quantity, tokens))
    return next(rows, None)


def _parts(scene: Scene) -> Iterator[str]:
    """What is to be seen in one row, in plain words."""
    if scene.attention is None:
        yield f"no attention ({scene.missing['attention']})"
    else:
        yield f"at most {number(float(scene.attention.max()), 1)} times uniform attention on a patch"
    if row := _found(scene, "attention_entropy", "patch"):
        yield f"entropy of attention {number(row['value'], 2)} nats, {number(row['null'], 2)} if uniform"
    if row := _found(scene, "cosine_centred", "patch"):
        null = f" ({number(row['null'], 2)} on another image)" if "null" in row else ""
        yield f"the head most like it is {row['head_b']}, centred cosine {number(row['value'], 2)}{null}"
    yield f"channel {scene.look.channel} is {scene.state}"
    if row := _found(scene, "erf_radius_50", scene.token):
        spread = f"{number(row['null'], 1)} if spread evenly"
        yield f"half of the token's input gradient within {number(row['value'], 1)} px, {spread}"


def scene_words(scene: Scene) -> str:
    """What a model shows, in a sentence; names as Markdown code."""
    head = f", head {scene.look.head}" if scene.attention is not None else ""
    return f"{code(scene.model)} at {code(scene.look.place)}{head}: {'; '.join(_parts(scene))}."


def _missing(scenes: Sequence[Scene]) -> str:
    """Why a model shows no attention."""
    why = [f"{code(s.model)}: {s.missing['attention']}" for s in scenes if "attention" in s.missing]
    return f"No attention in {'; '.join(why)}." if why else ""


def _caption(scenes: Sequence[Scene], image_name: str) -> str:
    framed = "" if scenes[0].cell is None else "Framed: the token's own cell."
    return caption(
        f"{image_name.replace('`', '')}, {scenes[0].token}: attention over uniform attention, colours by its square "
        "root; channel over the layer's level, framed if zero, flat or too large; input gradient over its largest.",
        _missing(scenes), framed, "One image: no interval; nulls are in the table.",
    )  # fmt: skip


def _alt(scenes: Sequence[Scene], image_name: str) -> str:
    parts = " ".join(scene_words(scene).replace("`", "") for scene in scenes)
    return f"Maps over the image: attention, feature map, receptive field. {image_name}, {scenes[0].token}. {parts}"
