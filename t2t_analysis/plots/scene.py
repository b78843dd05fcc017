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

#: inches: panel, gap between panels, above a panel two lines, below it the colour bar, the row's headline, margin
_PANEL, _GAP, _ABOVE, _BELOW, _HEAD, _EDGE = 1.82, 0.2, 0.42, 0.4, 0.26, 0.06
#: feature maps in multiples of the layer's level are never drawn on a finer or coarser scale than these
_FINEST, _COARSEST = 3.0, 10.0
#: the scale of attention ends here at least, so that the mark of uniform attention stays clear of the end
_LEAST = 2.0
_MARK, _SMALL = PALETTE["vermillion"], 9


class _Panel(NamedTuple):
    """What one rectangle of the figure shows: pictures one over the other, with their colours and the ends of them."""

    title: str
    note: str
    pictures: tuple[tuple[Any, str | None, float, float], ...] = ()
    marks: dict[float, str] = {}  # noqa: RUF012 - shares of the colour bar's length -> words; never changed
    missing: str = ""
    loud: bool = False


def scene_figure(scenes: Sequence[Scene], frame: pd.DataFrame, image_name: str) -> Figure:
    """Draw a row of four panels per model: image, attention, feature map, receptive field; all models on one scale.

    Parameters
    ----------
    scenes : of the same image and point, one per model.
    frame : their numbers, tidy.
    image_name : for title and words.
    """
    attention = [float(s.attention.max()) for s in scenes if s.attention is not None]
    feature = max(float(scene.feature.abs().max()) for scene in scenes)
    limits = max([_LEAST, *attention]), float(np.clip(feature, _FINEST, _COARSEST))
    with use_style(), matplotlib.rc_context({"figure.constrained_layout.use": False}):
        size = 4 * _PANEL + 3 * _GAP + 2 * _EDGE, len(scenes) * (_HEAD + _ABOVE + _PANEL + _BELOW)
        fig = MplFigure(figsize=size)
        # One axes in inches, downwards: an axes per panel and colour bar would take most of the time.
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.set(xlim=(0, size[0]), ylim=(size[1], 0), autoscale_on=False)
        for number, scene in enumerate(scenes):
            top = size[1] / len(scenes) * number + _HEAD
            words = f"{scene.model}, {scene.look.place} · {scene.weights}"
            ax.text(_EDGE, top - 0.04, words, fontweight="bold", va="bottom", parse_math=False)
            for column, panel in enumerate(_panels(scene, limits, image_name)):
                _draw(ax, _EDGE + column * (_PANEL + _GAP), top + _ABOVE, scene, panel)
    return finish(fig, frame, _caption(scenes, image_name), _alt(scenes, image_name))


def _panels(scene: Scene, limits: tuple[float, float], name: str) -> Iterator[_Panel]:
    """Image, attention, channel and receptive field, or why there is none."""
    yield _Panel(_short(name), scene.token, ((scene.image.permute(1, 2, 0), None, 0, 1),))
    most, limit = limits
    if scene.attention is None:
        yield _Panel("Attention", "none", missing=scene.missing["attention"])
    else:
        # by square roots: a head that puts all on one patch would leave the rest, and the other model, in the dark
        maps = (scene.image.mean(0), "gray", 0, 1), (scene.attention.sqrt(), SEQUENTIAL, 0, most**0.5)
        marks = {0: "0", most**-0.5: "1", 1: f"{most:.3g}"}
        yield _Panel(f"Attention, head {scene.look.head}", "× uniform, over the image", maps, marks)
    low, high = ("≤", "≥") if float(scene.feature.abs().max()) > limit else ("", "")
    marks = {0: f"{low}−{limit:.3g}", 0.5: "× layer's level", 1: f"{high}{limit:.3g}"}
    feature = ((scene.feature, DIVERGING, -limit, limit),)
    loud = scene.state != "ordinary"
    yield _Panel(f"Channel {scene.look.channel}", scene.state, feature, marks, loud=loud)
    if scene.field is None:
        yield _Panel("Receptive field", "none", missing=scene.missing["field"])
    else:
        marks = {0: "0", 0.5: "largest = 1", 1: "1"}
        yield _Panel("Receptive field", "size of input gradient", ((scene.field, SEQUENTIAL, 0, 1),), marks)


def _draw(ax: Axes, left: float, top: float, scene: Scene, panel: _Panel) -> None:
    """One panel with its corner at ``left`` and ``top``, inches."""
    scale = _PANEL / max(scene.image.shape[-2:])  # inches per pixel
    height, width = (side * scale for side in scene.image.shape[-2:])

    def text(x: float, y: float, words: str, **style: Any) -> None:
        ax.text(left + x, top + y, words, parse_math=False, **style)  # a name's dollar signs are no formulas

    def outline(box: Sequence[int], line: float) -> None:
        down, across, *sides = (pixels * scale for pixels in box)
        corner = left + across, top + down
        ax.add_patch(Rectangle(corner, sides[1], sides[0], fill=False, edgecolor=_MARK, linewidth=line))

    text(0, -0.21, panel.title, fontweight="bold", va="bottom")
    text(0, -0.04, panel.note, color=PALETTE["grey"], fontsize=_SMALL, va="bottom")
    if panel.missing:
        ax.add_patch(Rectangle((left, top), width, height, color="#f0f0f0"))
        text(0.08, 0.08, textwrap.fill(panel.missing, 24), fontsize=_SMALL, va="top")
        return
    for depth, (values, cmap, low, high) in enumerate(panel.pictures):
        style: Any = {"aspect": "auto", "interpolation": "nearest", "alpha": 0.7 if depth else 1.0}
        extent = (left, left + width, top + height, top)
        ax.imshow(values.numpy(), cmap=cmap, vmin=low, vmax=high, extent=extent, **style)
    if panel.marks:
        y, cmap = height + 0.08, panel.pictures[-1][1]
        extent = (left + 0.1 * _PANEL, left + 0.9 * _PANEL, top + y + 0.07, top + y)
        ax.imshow(np.linspace(0, 1, 256)[None], cmap=cmap, extent=extent, aspect="auto")
    for share, words in panel.marks.items():
        text((0.1 + 0.8 * share) * _PANEL, y + 0.1, words, fontsize=_SMALL, ha="center", va="top")
    if panel.loud:
        outline((0, 0, *scene.image.shape[-2:]), 3)
    if scene.cell is not None:
        outline(scene.cell, 1.4)


def _short(name: str, length: int = 24) -> str:
    """The end of a long name, which is what tells two paths apart."""
    return name if len(name) <= length else "…" + name[1 - length :]


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
    why = {code(s.model): s.missing["attention"] for s in scenes if "attention" in s.missing}
    if len(why) == len(scenes) and len(set(why.values())) == 1:
        return f"No attention: {scenes[0].missing['attention']}."
    return f"No attention in {'; '.join(f'{name}: {reason}' for name, reason in why.items())}." if why else ""


def _caption(scenes: Sequence[Scene], image_name: str) -> str:
    framed = "" if scenes[0].cell is None else "Framed: the token's own cell."
    return caption(
        f"{image_name.replace('`', '')}, {scenes[0].token}: attention over uniform attention, colours by its square "
        "root; channel over the layer's level, framed if zero, flat or too large; input gradient over its largest.",
        _missing(scenes), framed, "One image: no interval; nulls are in the table.",
    )  # fmt: skip


def _alt(scenes: Sequence[Scene], image_name: str) -> str:
    parts = " ".join(scene_words(scene) for scene in scenes)
    return f"Maps over the image: attention, feature map, receptive field. {image_name}, {scenes[0].token}. {parts}"
