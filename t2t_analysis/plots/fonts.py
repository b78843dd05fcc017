"""Letters that the usual font lacks, in labels and in names: another font of this machine, or their numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure as MplFigure
from matplotlib.text import Text

USUAL = "DejaVu Sans"
#: fonts that have a shape for everything and say nothing by it, or whose shapes are coloured pictures
_USELESS = re.compile("Last Resort|Color|Blank")


@cache
def _letters_of(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@cache
def _usual() -> frozenset[str]:
    return _letters_of(font_manager.findfont(USUAL))


def unusual(texts: Iterable[str]) -> frozenset[str]:
    """Letters that the usual font cannot draw; what has no shape of its own is none.

    >>> sorted(unusual(["cat", "猫", "Ωμ"]))
    ['猫']
    """
    shapeless = ("Cc", "Cf")
    return frozenset(
        c for text in texts for c in text if c not in _usual() and unicodedata.category(c) not in shapeless
    )


@cache
def fonts_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Fonts to look in for these letters after the usual one, and the letters that no font of this machine has."""
    found: list[str] = []
    here = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
    for path, name in sorted(here.items(), key=lambda item: (item[1], item[0])):
        if not letters:
            break
        if name not in (*found, USUAL) and not _USELESS.search(name) and letters & _letters_of(path):
            found.append(name)
            letters -= _letters_of(path)
    return tuple(found), letters


def relabel(fig: MplFigure, said: Callable[[str], str]) -> None:
    """Let every text of a drawing say something else."""
    for text in fig.findobj(Text):
        text.set_text(said(text.get_text()))
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        old = [text.get_text() for text in axis.get_ticklabels()]
        if (new := [said(text) for text in old]) != old:
            axis.set_ticklabels(new)


def missing_letters(fig: MplFigure) -> frozenset[str]:
    """Letters of a drawing that no font of this machine has."""
    return fonts_for(unusual(text.get_text() for text in fig.findobj(Text)))[1]


@contextmanager
def legible(fig: MplFigure) -> Iterator[None]:
    """Inside this every letter of a drawing can be drawn: one that no font has gives way to its number in Unicode."""
    missing = missing_letters(fig)
    before: dict[str, str] = {}

    def numbered(text: str) -> str:
        new = "".join(f"[U+{ord(c):X}]" if c in missing else c for c in text).replace("][", " ")
        before[new] = text
        return new

    try:
        if missing:
            relabel(fig, numbered)
        yield
    finally:
        if missing:
            relabel(fig, lambda text: before.get(text, text))
