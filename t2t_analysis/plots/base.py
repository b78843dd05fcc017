"""What every figure shares: style, a colour AND marker AND line per role, a caption and an alt text.

A plot function takes results, draws inside ``use_style()`` and returns a :class:`Figure`, usually through
``finish``, which puts the word UNTRAINED into the caption when any row rests on random weights. Nothing here
computes a result.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.text import Text

from .._names import TWIN
from ..errors import T2TError
from .fonts import USUAL, fonts_for, legible, missing_letters, relabel, unusual

#: pixels per inch in the saved PNG; shown at 96 per inch, so screens with small pixels stay sharp
DPI = 150
#: CSS pixels of the smallest letters that a reader can be asked to read
READABLE = 9
#: for one-sided quantities (CKA, attention, distance), and for signed ones (limits symmetric about 0)
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
#: Okabe and Ito (2008), told apart by colour-blind readers; yellow is left out, it fades on white
PALETTE = {
    "blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "purple": "#CC79A7",
    "orange": "#E69F00", "sky": "#56B4E9", "black": "#000000", "grey": "#6E6E6E",
}  # fmt: skip


#: colour, marker and line of the model, its baseline and what else is compared
_LOOKS: tuple[tuple[str, str, Any], ...] = (
    ("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", "-."), ("purple", "D", (0, (3, 1, 1, 1))),
    ("orange", "v", (0, (5, 1))), ("sky", "P", (0, (1, 1))),
)  # fmt: skip
#: look of the null
NULL: dict[str, Any] = {"color": PALETTE["grey"], "marker": "", "linestyle": ":", "linewidth": 1.2}


def role(position: int) -> dict[str, Any]:
    """Return the look of number ``position`` of a comparison, 0 the model, as keyword arguments for ``Axes.plot``.

    >>> role(1)["marker"], role(0) == role(6)
    ('s', True)
    """
    colour, marker, line = _LOOKS[position % len(_LOOKS)]
    return {"color": PALETTE[colour], "marker": marker, "linestyle": line}


def series_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Look of every series as keyword arguments for ``Axes.plot``: models by their order in the comparison.

    Untrained controls, whose labels end as those of `random_twins`, are thin, with crosses, in their model's colour.

    >>> looks = series_styles(["a", "b", "a, random"])
    >>> looks["a, random"]["color"] == looks["a"]["color"], looks["a, random"]["marker"]
    (True, 'x')
    """
    owners = list(dict.fromkeys(name.removesuffix(TWIN) for name in names))
    styles = {name: role(owners.index(name.removesuffix(TWIN))) for name in names}
    for name in (name for name in names if name.endswith(TWIN)):
        styles[name] |= {"marker": "x", "linestyle": "-", "linewidth": 0.8, "alpha": 0.75}
    return styles


_STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "legend.frameon": False, "figure.titlesize": 11,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "image.interpolation": "nearest", "image.cmap": SEQUENTIAL,
    "lines.markersize": 4.5, "lines.linewidth": 1.6, "errorbar.capsize": 2.0,
    "figure.constrained_layout.use": True, "savefig.dpi": DPI, "figure.dpi": 96,
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "font.family": USUAL, "svg.fonttype": "none", "svg.hashsalt": "t2t_analysis",
}  # fmt: skip


@contextmanager
def use_style() -> Iterator[None]:
    """Draw inside this: the suite's look, and the caller's settings back afterwards."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # `Figure` sees to these letters
        yield


def new_axes(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.4, **kwargs: Any
) -> Any:
    """Return ``(figure, axes)`` that pyplot does not know, so that nothing has to be closed.

    ``width`` and ``height`` are inches of the whole figure; ``kwargs`` go to ``Figure.subplots``.
    """
    fig = MplFigure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **kwargs)


#: columns that describe, rather than tell rows apart
_SAID = ("weights", "interval", "null_kind", "ceiling_kind", "estimator")


def inline_html(markdown: str) -> str:
    """Return one line of our Markdown (code, bold) as HTML.

    >>> inline_html("**a** <b> `c_d`")
    '<strong>a</strong> &lt;b&gt; <code>c_d</code>'
    """
    parts = re.split(r"(`[^`]*`)", markdown)
    return "".join(
        f"<code>{escape(part[1:-1])}</code>"
        if part.startswith("`")
        else re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(part))
        for part in parts
    )


@dataclass(frozen=True)
class Figure:
    """A drawing with the words and the numbers that belong to it; shows itself in a notebook.

    Parameters
    ----------
    fig : the drawing.
    caption : Markdown, what the figure shows and how to read it, with n, unit, interval and null of what is drawn.
    alt : for readers who do not see it: kind of plot, axes, main numbers; plain text of about 250 characters.
    frame : the tidy rows that were drawn; None for pictures.

    Raises
    ------
    ValueError
        an empty text.
    """

    fig: MplFigure
    caption: str
    alt: str
    frame: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        for name in ("caption", "alt"):
            if not getattr(self, name).strip():
                raise ValueError(f"a figure needs a text for {name!r}")

    def __repr__(self) -> str:
        return f"<Figure: {self.alt}>"

    @property
    def width(self) -> int:
        """Width in CSS pixels."""
        return round(float(self.fig.get_size_inches()[0]) * 96)

    @property
    def least_height(self) -> int:
        """Height in CSS pixels under which its smallest letters are no longer read: they have ``READABLE`` pixels."""
        words = (text for text in self.fig.findobj(Text) if text.get_visible() and text.get_text().strip())
        points = min((float(text.get_fontsize()) for text in words), default=10.0)
        return math.ceil(float(self.fig.get_size_inches()[1]) * 72 * READABLE / points)

    def _bytes(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        about: dict[str, Any] = {
            "png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None},
        }.get(kind, {})  # fmt: skip
        written = nullcontext() if kind == "svg" else legible(self.fig)  # a browser has fonts of its own
        with use_style(), written:
            letters = unusual(text.get_text() for text in self.fig.findobj(Text))
            matplotlib.rcParams["font.family"] = family = [USUAL, *fonts_for(letters)[0]]
            for text in self.fig.findobj(Text) if letters else ():
                text.set_fontfamily(family)
            self.fig.savefig(buffer, format=kind, dpi=DPI, metadata=about)
        return buffer.getvalue()

    def png(self) -> bytes:
        """Return the picture; the same drawing gives the same bytes."""
        return self._bytes("png")

    def svg(self) -> str:
        """Return the drawing as SVG, its words as text and its alt text inside."""
        text = self._bytes("svg").decode("utf-8")
        start = text.index("<svg")
        rounded = re.sub(
            r'(?<=")[^"<>]*(?=")', lambda part: re.sub(r"(\d\.\d\d)\d+", r"\1", part[0]), text[start + 4 :]
        )
        return f'<svg role="img" aria-label="{escape(self.alt)}"{rounded}'

    @cached_property
    def picture(self) -> tuple[str, bytes]:
        """MIME type and bytes: SVG where nothing but lines and words is drawn and it is lighter, else PNG.

        SVG also for letters that no font of this machine has: the reader's may.
        """
        if missing_letters(self.fig):
            return "image/svg+xml", self.svg().encode()
        png = self.png()
        if not any(ax.images for ax in self.fig.axes) and len(svg := self.svg().encode()) < 2 * len(png):
            return "image/svg+xml", svg
        return "image/png", png

    def csv(self) -> str:
        """Return the numbers that are drawn; words that say how they were made stand once, in lines with a # before.

        ``pandas.read_csv(path, comment="#")`` reads it.
        """
        frame = pd.DataFrame() if self.frame is None else self.frame.dropna(axis=1, how="all")
        said = [n for n in frame if n in _SAID or (len(frame) > 1 and frame[n].nunique(dropna=False) == 1)]
        if "layer" in frame and frame["layer"].notna().all():
            said += [name for name in ("place", "place_b") if name in frame and name not in said]
        about = {
            name: " | ".join(map(str, frame[name].dropna().unique()[:4]))
            for name in said
            if "place" not in str(name)
        }
        lines = [f"# {name}: {text}\n".replace("\r", " ") for name, text in about.items()]
        return "".join(lines) + frame.drop(columns=said).to_csv(index=False, float_format="%.5g")

    def save(self, path: str | Path) -> Path:
        """Write the drawing; the ending (.pdf, .svg, .png) says how.

        Raises
        ------
        T2TError
            another ending.
        """
        path = Path(path)
        if (kind := path.suffix[1:]) not in ("pdf", "svg", "png"):
            raise T2TError(f"figures go to .pdf, .svg or .png, not {path.suffix!r} ({path})")
        path.write_bytes(self.svg().encode() if kind == "svg" else self._bytes(kind))
        return path

    def html(self) -> str:
        """Return picture, caption and the numbers behind it as one piece of HTML that needs nothing else."""
        kind, data = self.picture
        source = f"data:{kind};base64,{b64encode(data).decode('ascii')}"
        numbers = ""
        if self.frame is not None and len(self.frame):
            table = b64encode(self.csv().encode()).decode("ascii")
            numbers = f' <a download="figure.csv" href="data:text/csv;base64,{table}">Numbers (CSV)</a>'
        return (
            f'<figure data-least-height="{self.least_height}"><img src="{source}" alt="{escape(self.alt)}" '
            f'width="{self.width}">'
            f"<figcaption>{inline_html(self.caption)}{numbers}</figcaption></figure>"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/html": self.html(), "text/plain": repr(self)}

    def renamed(self, called: Callable[[str], str]) -> Figure:
        """Return the figure with other names in drawing, caption and alt text; the numbers keep theirs."""
        relabel(self.fig, called)
        return replace(self, caption=called(self.caption), alt=called(self.alt))

    def close(self) -> None:
        """Let go of the drawing."""
        self.fig.clear()


def _untrained_names(frame: pd.DataFrame) -> Iterator[str]:
    """Models whose weights say UNTRAINED, but for controls.

    A comparison of two names both weights, with a bar between.
    """
    for row in frame[["model", "model_b", "weights"]].drop_duplicates().itertuples(index=False):
        names = [name for name in (row.model, row.model_b) if isinstance(name, str)]
        labels = str(row.weights).split(" | ") if len(names) == 2 else [str(row.weights)]
        known = zip(names, labels, strict=False)
        yield from (n for n, label in known if "UNTRAINED" in label and not n.endswith(TWIN))


def untrained_note(frame: pd.DataFrame) -> str:
    """Return a warning in words if any row of a tidy ``frame`` rests on random weights, else an empty text.

    >>> from t2t_analysis.results import tidy
    >>> print(untrained_note(tidy([{"model": "a", "model_b": "b", "weights": "file | UNTRAINED (random)"}])))
    UNTRAINED: b has random weights, nothing in it was learned.
    """
    names = list(dict.fromkeys(_untrained_names(frame)))
    if not names:
        return ""
    verb, it = ("has", "it") if len(names) == 1 else ("have", "them")
    return f"UNTRAINED: {' and '.join(names)} {verb} random weights, nothing in {it} was learned."


def finish(fig: MplFigure, frame: pd.DataFrame, caption: str, alt: str) -> Figure:
    """Return the :class:`Figure`; a warning about random weights comes first in caption and alt.

    ``frame`` holds the tidy rows that were drawn; their weights say whether the warning applies. Untrained controls
    (labels that end as those of `random_twins`) are no reason for one. Of ``alt`` 240 letters are kept, as plain text.
    """
    caption = " ".join(caption.split())
    alt = textwrap.shorten(alt.replace("`", ""), 240, placeholder=" …")  # never inside a number
    if note := untrained_note(frame):
        caption, alt = f"**{note}** {caption}", f"Untrained weights. {alt}"
    return Figure(fig, caption, alt, frame if "value" in frame and frame["value"].notna().any() else None)


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height that each panel has in a figure of equal ones."""
    figure: Any = ax.get_figure()
    (across, down), spec = figure.get_size_inches(), ax.get_subplotspec()
    return (across / spec.get_gridspec().ncols, down / spec.get_gridspec().nrows) if spec else (across, down)


def title_block(ax: Axes, title: str, note: str = "") -> None:
    """Title an axes: what is shown in bold on the left, and below it, in grey, how to read it."""
    title = textwrap.fill(title, max(16, int(9 * inches(ax)[0])))
    ax.set_title(f"{title}\n" if note else title, loc="left", fontweight="bold")
    if note:
        # In points: a fraction of the axes would run into the title of a tall figure.
        ax.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
            color=PALETTE["grey"], fontsize=9, va="bottom",
        )  # fmt: skip
