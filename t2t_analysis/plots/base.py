"""What every figure shares: style, a colour AND marker AND line per role, a caption and an alt text.

A plot function takes results, draws inside ``use_style()`` and returns a :class:`Figure`, usually through
``finish``, which puts the word UNTRAINED into the caption when any row rests on random weights. Nothing here
computes a result.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure

from .._names import TWIN

__all__ = [
    "DIVERGING", "DPI", "PALETTE", "ROLES", "SEQUENTIAL", "Figure", "Role",
    "about_twins", "estimated", "finish", "new_axes", "role", "series_styles", "title_block", "untrained_note",
    "use_style",
]  # fmt: skip

#: pixels per inch in the saved PNG; shown at 96 per inch, so screens with small pixels stay sharp
DPI = 150
#: for one-sided quantities (CKA, attention, distance), and for signed ones (limits symmetric about 0)
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
#: Okabe and Ito (2008), told apart by colour-blind readers; yellow is left out, it fades on white
PALETTE = {
    "blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "purple": "#CC79A7",
    "orange": "#E69F00", "sky": "#56B4E9", "black": "#000000", "grey": "#6E6E6E",
}  # fmt: skip


class Role(NamedTuple):
    """How one kind of series looks everywhere; as keyword arguments of ``Axes.plot`` by ``style()``."""

    color: str
    marker: str
    linestyle: Any

    def style(self) -> dict[str, Any]:
        """Return the keyword arguments for ``Axes.plot``."""
        return self._asdict()


#: role in a comparison -> look
ROLES: dict[str, Role] = {
    "model": Role(PALETTE["blue"], "o", "-"),
    "baseline": Role(PALETTE["vermillion"], "s", "--"),
    "third": Role(PALETTE["green"], "^", "-."),
    "fourth": Role(PALETTE["purple"], "D", (0, (3, 1, 1, 1))),
    "fifth": Role(PALETTE["orange"], "v", (0, (5, 1))),
    "sixth": Role(PALETTE["sky"], "P", (0, (1, 1))),
    "null": Role(PALETTE["grey"], "", ":"),
    "ceiling": Role(PALETTE["black"], "", "-."),
}


def role(position: int) -> Role:
    """Return the look of model number ``position`` in the order of a comparison: 0 the model, 1 its baseline.

    >>> role(0) is ROLES["model"], role(1).marker
    (True, 's')
    """
    return list(ROLES.values())[:6][position]


def series_styles(names: Sequence[str], twins: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Look of every series as keyword arguments for ``Axes.plot``: models by their order in the comparison.

    ``twins`` are labels of random-weights twins among ``names``: thin, with crosses, in the colour of their model.

    >>> looks = series_styles(["a", "b", "a, random"], ["a, random"])
    >>> looks["a, random"]["color"] == looks["a"]["color"], looks["a, random"]["marker"]
    (True, 'x')
    """
    own = [name for name in names if name not in twins]
    styles = {name: role(position).style() for position, name in enumerate(own)}
    for name in (name for name in names if name in twins):
        model = styles.get(name.removesuffix(TWIN), ROLES["null"].style())
        styles[name] = model | {"marker": "x", "linestyle": "-", "linewidth": 0.8, "alpha": 0.75}
    return styles


def about_twins(twins: Sequence[str]) -> str:
    """Return what a caption says of twins, with a space before; nothing if there are none."""
    return " Crosses: the same networks UNTRAINED, with random weights." if twins else ""


_STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "legend.frameon": False, "figure.titlesize": 11,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "image.interpolation": "nearest", "image.cmap": SEQUENTIAL,
    "lines.markersize": 4.5, "lines.linewidth": 1.6, "errorbar.capsize": 2.0,
    "figure.constrained_layout.use": True, "savefig.dpi": DPI, "figure.dpi": 96,
}  # fmt: skip


@contextmanager
def use_style() -> Iterator[None]:
    """Draw inside this: the suite's look, and the caller's settings back afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_axes(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.4, **kwargs: Any
) -> Any:
    """Return ``(figure, axes)`` that pyplot does not know, so that nothing has to be closed.

    ``width`` and ``height`` are inches of the whole figure; ``kwargs`` go to ``Figure.subplots``.
    """
    fig = MplFigure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **kwargs)


@dataclass(frozen=True)
class Figure:
    """A drawing with the words that belong to it.

    ``caption`` says in Markdown what the figure shows, with n, unit, interval and null of what is drawn.
    ``alt`` is for readers who do not see it: kind of plot, axes, main numbers; plain text of about 250
    characters. An empty text raises ValueError.
    """

    fig: MplFigure
    caption: str
    alt: str

    def __post_init__(self) -> None:
        for name in ("caption", "alt"):
            if not getattr(self, name).strip():
                raise ValueError(f"a figure needs a text for {name!r}")

    @property
    def width(self) -> int:
        """Width in CSS pixels."""
        return round(float(self.fig.get_size_inches()[0]) * 96)

    def png(self) -> bytes:
        """Return the picture; the same drawing gives the same bytes."""
        buffer = io.BytesIO()
        with use_style():
            self.fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()

    def close(self) -> None:
        """Let go of the drawing, also when it was made by pyplot."""
        import sys

        if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
            pyplot.close(self.fig)
        self.fig.clear()


def _untrained_names(frame: pd.DataFrame) -> Iterator[str]:
    """Models whose weights say UNTRAINED, but for controls drawn beside their own model.

    A comparison of two names both weights, with a bar between.
    """
    drawn = {*frame["model"].dropna(), *frame["model_b"].dropna()}
    controls = {name + TWIN for name in drawn}
    for row in frame[["model", "model_b", "weights"]].drop_duplicates().itertuples(index=False):
        names = [name for name in (row.model, row.model_b) if isinstance(name, str)]
        labels = str(row.weights).split(" | ") if len(names) == 2 else [str(row.weights)]
        random = (n for n, label in zip(names, labels, strict=False) if "UNTRAINED" in label)
        yield from (name for name in random if name not in controls)


def untrained_note(frame: pd.DataFrame) -> str:
    """Return a warning in words if any row of a tidy ``frame`` rests on random weights, else an empty text.

    >>> from t2t_analysis.results import tidy
    >>> print(untrained_note(tidy([{"model": "a", "model_b": "b", "weights": "file | UNTRAINED (random)"}])))
    UNTRAINED: b has random weights, so this shows its architecture and nothing that was learned.
    """
    names = list(dict.fromkeys(_untrained_names(frame)))
    if not names:
        return ""
    verb = "has" if len(names) == 1 else "have"
    return (
        f"UNTRAINED: {' and '.join(names)} {verb} random weights, so this shows "
        f"{'its' if len(names) == 1 else 'their'} architecture and nothing that was learned."
    )


def finish(fig: MplFigure, frame: pd.DataFrame, caption: str, alt: str) -> Figure:
    """Return the :class:`Figure`; a warning about random weights comes first in caption and alt.

    ``frame`` is the tidy frame that was drawn; its weights say whether the warning applies.
    """
    note = untrained_note(frame)
    return Figure(
        fig, f"**{note}** {caption}" if note else caption, f"Untrained weights. {alt}" if note else alt
    )


def estimated(row: Any, otherwise: str = "none: too few images") -> str:
    """How the interval of a row was made, or ``otherwise`` where it has none.

    >>> estimated({"interval": None}), estimated({"interval": pd.NA}, "none"), estimated({"interval": "Wilson"})
    ('none: too few images', 'none', 'Wilson')
    """
    return otherwise if pd.isna(row["interval"]) else str(row["interval"])


def title_block(ax: Axes, title: str, note: str = "") -> None:
    """Title an axes: what is shown in bold on the left, and below it, in grey, how to read it."""
    ax.set_title(f"{title}\n" if note else title, loc="left", fontweight="bold")
    if note:
        # In points: a fraction of the axes would run into the title of a tall figure.
        ax.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
            color=PALETTE["grey"], fontsize=9, va="bottom",
        )  # fmt: skip
