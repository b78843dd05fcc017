"""Differences between two models with their intervals, one line each, against the smallest that counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as MplFigure

from ..errors import UnknownNameError
from ..results import Result
from .base import PALETTE, ROLES, Figure, finish, new_axes, title_block, use_style
from .similarity import interval

__all__ = ["difference_plot", "intervals_about_zero", "p_words"]

_SUFFIX = "_difference"
#: How a headline is written, by quantity.
_HEADLINES = {
    "cka_mean": "CKA of two different layers",
    "column_cosine_matched_centred_neighbours": "attention columns of neighbouring\nlayers, centred cosine",
    "column_cosine_matched_neighbours": "attention columns of neighbouring\nlayers, raw cosine",
    "effective_rank_over_null": "effective rank, share of noise",
    "participation_ratio_over_null": "participation ratio, share of noise",
}
_TOKENS = {"pooled": "mean token of an image", "patch": "patch tokens", "class": "class token"}


def difference_plot(
    differences: Sequence[Result], quantities: Sequence[str], smallest: float | None = None, title: str = ""
) -> Figure:
    """First model minus second, a line a headline, with 95 % intervals.

    Parameters
    ----------
    differences : results of `cka_difference`, `collapse_difference`, `rank_difference` and their like; all in one
        unit, since they share an axis.
    quantities : which of their headlines to draw, in this order.
    smallest : smallest effect that counts, drawn as a grey band about 0.
    title : of the figure.

    Raises UnknownNameError for a headline that none of them has.
    """
    whole = pd.concat([result.frame for result in differences], ignore_index=True)
    whole["quantity"] = whole["quantity"].str.removesuffix(_SUFFIX)
    known = list(whole["quantity"].unique())
    for quantity in quantities:
        if quantity not in known:
            raise UnknownNameError("quantity", quantity, known, hint="in the differences")
    frame = pd.concat([whole[whole["quantity"] == quantity] for quantity in quantities], ignore_index=True)
    first = frame.iloc[0]
    with use_style():
        across = f"{first['model']} minus {first['model_b']}"
        fig = intervals_about_zero(
            frame, [_headline(row) for _, row in frame.iterrows()], smallest, title, across
        )
    return finish(fig, frame, _caption(frame, smallest), _alt(frame))


def intervals_about_zero(
    frame: pd.DataFrame, labels: Sequence[str], smallest: float | None, title: str, across: str
) -> MplFigure:
    """Draw value and interval of every row from top to bottom, 0 as a line, ``smallest`` as a grey band about it."""
    value, low, high = (frame[name].to_numpy(float, na_value=np.nan) for name in ("value", "low", "high"))
    y = np.arange(len(frame))[::-1]
    fig, ax = new_axes(width=6.8, height=1.2 + 0.42 * len(frame))
    if smallest is not None:
        ax.axvspan(-smallest, smallest, color=PALETTE["grey"], alpha=0.18, linewidth=0)
    ax.axvline(0, color=PALETTE["black"], linewidth=0.8)
    ax.errorbar(value, y, xerr=np.nan_to_num([value - low, high - value]),
                **ROLES["model"]._replace(linestyle="").style())  # fmt: skip
    ax.set_yticks(y, list(labels))
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.set_xlabel(across)
    band = "" if smallest is None else f"grey: smaller than ±{smallest:g}, the smallest effect that counts"
    title_block(ax, title, band)
    return fig


def _headline(row: pd.Series) -> str:
    words = _HEADLINES.get(str(row["quantity"]), str(row["quantity"]).replace("_", " "))
    ranked = str(row["quantity"]).endswith("_over_null")  # the others have one choice of tokens
    return f"{words}\n({_TOKENS.get(str(row['tokens']), row['tokens'])})" if ranked else words


def p_words(p: float) -> str:
    """Write a p-value.

    >>> p_words(0.00002), p_words(0.0312)
    ('p < 0.001', 'p = 0.031')
    """
    if pd.isna(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {float(p):.3f}"


def _caption(frame: pd.DataFrame, smallest: float | None) -> str:
    first = frame.iloc[0]
    each = "; ".join(
        f"{_headline(row).replace(chr(10), ' ')} {interval(row)}, {p_words(row['p'])}"
        for _, row in frame.iterrows()
    )
    band = "" if smallest is None else f" Smallest effect that counts: ±{smallest:g} (grey)."
    ways = "; ".join(dict.fromkeys(frame["interval"].dropna())) or "none: too few images"
    return (
        f"`{first['model']}` minus `{first['model_b']}`: {each}. Null: 0, {first['null_kind']}.{band} Intervals: 95 %, "
        f"{ways}; n = {int(first['n'])} {first['unit']}s; p not corrected for several quantities."
    )


def _alt(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    each = "; ".join(
        f"{_headline(row).replace(chr(10), ' ')} {interval(row)}" for _, row in frame.head(3).iterrows()
    )
    return f"Intervals, {first['model']} minus {first['model_b']}: {each}."
