"""Whether tokens keep edges, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._names import TWIN, has_soft_split
from .._show import code
from ..claims.rule import SMALLEST, place
from ..measures.locality import FIRST_THIRD
from ..quantities import p_words
from ..results import Result
from ..stats import holm
from .words import interval, listed, no_verdict, number, side, untrained_in

__all__ = ["local_conclusions", "local_findings"]

SMALLEST_EFFECT, SMALLEST_SHARE = SMALLEST["edge_r2"], SMALLEST["gradient_share"]

_LINEAR, _RECTIFIED, _GRADIENT = "edge_decodability", "rectified_edge_decodability", "boundary_blindness"
_READOUTS = {_LINEAR: "linear readout", _RECTIFIED: "readout with absolute values"}


def local_findings(
    results: Mapping[str, Result], differences: Sequence[Result], model: str, baseline: str
) -> list[str]:
    """Sentences on edges in tokens, first the one that answers the question.

    Parameters
    ----------
    results : by name, of `EdgeDecodability`, `RectifiedEdgeDecodability` and `BoundaryBlindness` for both models.
    differences : of `difference` on the first two and `difference` on the third.
    """
    pair = _Pair(results, differences, model, baseline)
    lines = [_answer(pair), _outside(pair), _other_readout(pair), _what_readouts_show(pair)]
    return [*lines, *(_against_pixels(pair, name) for name in (model, baseline))]


def local_conclusions(
    results: Mapping[str, Result],
    differences: Sequence[Result],
    twins: Mapping[str, Result],
    model: str,
    baseline: str,
) -> list[str]:
    """Each difference against the smallest that counts, what moves with the image, what is not learned, the sum.

    ``results`` may also hold `ShiftConsistency` and `Spectrum`; ``twins`` are results of `EdgeDecodability` and
    `BoundaryBlindness` for the random twins of trained models.
    """
    pair = _Pair(results, differences, model, baseline)
    return [
        *_each_difference(pair),
        *(_through_tokeniser(pair, name) for name in (model, baseline) if pair.stages(name) is not None),
        *_moving(pair),
        *_frequencies(pair),
        *_architecture(twins, model, baseline),
        _sum(pair),
    ]


# ------------------------------------------------------------------------------------------ looking up


def _found(frame: pd.DataFrame | None, **where: Any) -> pd.Series | None:
    """The one row with these values, None if there is none with a number, or several."""
    if frame is None:
        return None
    for column, value in where.items():
        frame = frame[(frame[column] == value).fillna(False)]
    return frame.iloc[0] if len(frame) == 1 and pd.notna(frame["value"].iloc[0]) else None


class _Pair:
    """Results and differences of two models by the name of the measure."""

    def __init__(
        self, results: Mapping[str, Result], differences: Sequence[Result], model: str, baseline: str
    ) -> None:
        self.frames = {name: results[name].frame for name in results}
        self.apart = {result.measure: result.frame for result in differences}
        self.names = (model, baseline)
        self.untrained = any(untrained_in(frame) for frame in self.frames.values())

    def difference(self, quantity: str, measure: str = _LINEAR) -> pd.Series | None:
        return _found(self.apart.get(measure), quantity=f"{quantity}_difference")

    def edges(self, name: str, measure: str, place: str = FIRST_THIRD) -> pd.Series | None:
        """R^2 of edges of the own cell."""
        return _found(self.frames.get(measure), quantity="edge_r2_own", model=name, place=place)

    def stages(self, name: str) -> pd.DataFrame | None:
        """R^2 of edges of the own cell after the stages of a tokeniser, None where it has but one."""
        frame = self.frames.get(_LINEAR)
        if frame is None:
            return None
        rows = frame[(frame["quantity"] == "edge_r2_own") & (frame["model"] == name)]
        rows = rows[rows["place"].str.startswith("tokens.") | (rows["place"] == "embed")]
        return rows if len(rows) > 1 else None

    def outside(self, name: str) -> pd.Series | None:
        """Share of the tokeniser's gradient outside the own cell."""
        return _found(self.frames.get(_GRADIENT), quantity="gradient_outside", model=name, at=0.0)

    def higher(self, row: pd.Series | None, smallest: float) -> str | None:
        """Name of the model with clearly more of it."""
        where = None if row is None else place(row["low"], row["high"], smallest)
        return {"above": self.names[0], "below": self.names[1]}.get(where or "")


def _other(name: str, names: Sequence[str]) -> str:
    return names[1] if name == names[0] else names[0]


# ------------------------------------------------------------------------------------------ findings


def _answer(pair: _Pair) -> str:
    """The answer: are edges of the own cell read better with a soft split."""
    row, (model, baseline) = pair.difference("edge_r2_own"), pair.names
    if row is None:
        return "No answer: edges of the own cell could not be read from both models; more images may help."
    return (
        f"{_verdict(pair, row)} The difference in R² in the first third of the blocks, {code(model)} minus "
        f"{code(baseline)}, is {interval(row)}, paired over {row['n']} images; alone they have "
        f"{_value(pair.edges(model, _LINEAR))} and {_value(pair.edges(baseline, _LINEAR))}."
    )


def _value(row: pd.Series | None) -> str:
    """Value, interval and null of a row."""
    if row is None:
        return "not measured"
    null = "" if pd.isna(row["null"]) else f" (null {number(row['null'])})"
    return f"{interval(row)}{null}"


def _verdict(pair: _Pair, row: pd.Series) -> str:
    model, baseline = pair.names
    if pair.untrained:
        return no_verdict(
            *pair.frames.values(), words="No verdict: at least one of the two has random weights."
        )
    if pd.isna(row["low"]):
        return "No verdict: too few images for an interval."
    better = pair.higher(row, SMALLEST_EFFECT)
    if better is None:
        if place(row["low"], row["high"], SMALLEST_EFFECT) == "within":
            return (
                "A linear readout finds the edges of its own cell equally well in a token of "
                f"{code(model)} and of {code(baseline)}, to within ±{SMALLEST_EFFECT:g}."
            )
        return (
            f"Inconclusive: the interval reaches across ±{SMALLEST_EFFECT:g}, the smallest effect to count."
        )
    worse = _other(better, pair.names)
    return (
        f"A linear readout finds the edges of its own cell less well in a token of {code(worse)} than of {code(better)}"
        f"{_expected(better, worse)}."
    )


def _expected(better: str, worse: str) -> str:
    """Whether that is what the paper says, which speaks only of a soft split against a hard one."""
    soft = has_soft_split(better), has_soft_split(worse)
    if soft == (True, False):
        return ", as the paper claims"
    return ", contrary to the paper's claim" if soft == (False, True) else ""


def _outside(pair: _Pair) -> str:
    """How much tokens see of what lies around their cell, and whether that agrees with the answer."""
    model, baseline = pair.names
    rows = [pair.outside(name) for name in pair.names]
    if rows[0] is None or rows[1] is None:
        return "Whether tokens see anything outside their own cell was not measured."
    return (
        f"Of a token's squared input gradient at the tokeniser, {_share(rows[0])} lies outside its own cell in "
        f"{code(model)} and {_share(rows[1])} in {code(baseline)}; spread evenly over the image it would be "
        f"{number(rows[0]['null'])} (n = {rows[0]['n']} images).{_agreement(pair)}"
    )


def _share(row: pd.Series) -> str:
    return "exactly 0" if row["value"] == 0 else interval(row)


def _agreement(pair: _Pair) -> str:
    reads = pair.higher(pair.difference("edge_r2_own"), SMALLEST_EFFECT)
    sees = pair.higher(pair.difference("gradient_outside", _GRADIENT), SMALLEST_SHARE)
    if reads is None or sees is None:
        return ""
    if reads == sees:
        return f" The two measures agree: tokens of {code(sees)} see more, and more is read from them."
    return (
        f" The two measures disagree: tokens of {code(sees)} see more of the image, and less is read from them "
        "linearly."
    )


def _other_readout(pair: _Pair) -> str:
    """The same differences when absolute values are given to the readout."""
    own, around, way = (
        pair.difference(f"edge_r2_{quantity}", _RECTIFIED)
        for quantity in ("own", "neighbour", "neighbour_orientation")
    )
    if own is None or around is None or way is None:
        return "What a readout with absolute values finds was not measured."
    return (
        f"Read with absolute values too, {code(pair.names[0])} minus {code(pair.names[1])} is {interval(own)} for the "
        f"own cell ({side(own['low'], own['high'], SMALLEST_EFFECT)}), {interval(around)} for the neighbouring cells "
        f"({side(around['low'], around['high'], SMALLEST_EFFECT)}), and {interval(way)} for which way edges of the "
        f"neighbouring cells run ({_which_way(pair, way)}; {_corrected(pair, way)})."
    )


def _which_way(pair: _Pair, row: pd.Series) -> str:
    better = pair.higher(row, SMALLEST_EFFECT)
    if better is None:
        return side(row["low"], row["high"], SMALLEST_EFFECT)
    return f"read better from {code(better)}"


#: differences that the figure shows
_DRAWN = r"edge_r2_(own|boundary|neighbour)(_strength|_orientation)?_difference"


def _corrected(pair: _Pair, row: pd.Series) -> str:
    """Corrected p of one difference among all that the figure of differences shows."""
    shown = pd.concat([pair.apart[measure] for measure in _READOUTS])
    shown = shown[shown["quantity"].str.fullmatch(_DRAWN)].reset_index(drop=True)
    (at,) = shown.index[(shown["quantity"] == row["quantity"]) & (shown["measure"] == row["measure"])]
    return f"{p_words(holm(shown['p'].to_numpy(float, na_value=np.nan))[at])}, Holm over {len(shown)} differences"


def _what_readouts_show(pair: _Pair) -> str:
    """Raw pixels hold every edge; what a readout finds in them is the most that it shows."""
    linear, rectified = (pair.edges(pair.names[0], measure, "pixels.cell") for measure in _READOUTS)
    if linear is None:
        return "What a linear readout finds in raw pixels was not measured."
    other = "" if rectified is None else f", and with absolute values {interval(rectified)}"
    return (
        "The raw pixels of a cell hold all its edges: a perfect readout of them has R² 1. In them the linear readout "
        f"finds {interval(linear)}{other}: a low R² means that edges are not laid out for this readout, not that they "
        "are lost."
    )


def _against_pixels(pair: _Pair, name: str) -> str:
    """Whether the tokens of one model tell this readout less than the pixels that they see."""
    row, where, words = _over_pixels(pair, name)
    tokens, reference = pair.edges(name, _RECTIFIED), pair.edges(name, _RECTIFIED, where)
    if row is None or tokens is None or reference is None:
        return f"For {code(name)} there is no such comparison of tokens with pixels."
    alone = _less_than_cell(pair, name)
    beside = (
        ""
        if alone is None
        else f", but less than the pixels of the cell alone (difference {interval(alone)})"
    )
    return (
        f"With absolute values, the first third of {code(name)} gives R² {interval(tokens)} for the own cell, the raw "
        f"pixels of {words} {interval(reference)}; the difference, paired, is {interval(row)}: "
        f"{_OUTCOME[_kept(row)]}{beside}."
    )


def _over_pixels(pair: _Pair, name: str) -> tuple[pd.Series | None, str, str]:
    """R^2 of tokens less that of the pixels that a token sees: its cell, or a field that holds its window."""
    outside = pair.outside(name)
    alone = outside is not None and outside["value"] == 0
    where, words = ("pixels.cell", "that cell") if alone else ("pixels.field", "a wide field around it")
    return _over(pair, name, where), where, words


def _over(pair: _Pair, name: str, where: str) -> pd.Series | None:
    quantity = "edge_r2_own_over_reference"
    return _found(pair.frames.get(_RECTIFIED), quantity=quantity, model=name, place_b=where)


def _less_than_cell(pair: _Pair, name: str) -> pd.Series | None:
    """R^2 of tokens less that of their cell's pixels where it is clearly less and not less than that of a wide field's.

    The wide field is the milder reference: it holds the cell, but the readout spends directions on the rest.
    """
    row, where, _ = _over_pixels(pair, name)
    alone = _over(pair, name, "pixels.cell")
    mild = where == "pixels.field" and row is not None and _kept(row) == "no less"
    return alone if mild and alone is not None and _kept(alone) == "less" else None


_OUTCOME = {
    "less": "the tokens tell less",
    "no less": "the tokens tell no less",
    "unsettled": "whether the tokens tell less is not settled",
}


def _kept(row: pd.Series) -> str:
    """Whether tokens tell clearly less than pixels, clearly not, or neither."""
    if pd.isna(row["low"]):
        return "unsettled"
    if row["high"] < -SMALLEST_EFFECT:
        return "less"
    return "no less" if row["low"] > -SMALLEST_EFFECT else "unsettled"


# ------------------------------------------------------------------------------------------ conclusions

_TARGETS = {
    "edge_r2_own": "edges of the own cell",
    "edge_r2_boundary": "edges across its border",
    "edge_r2_neighbour": "edges of the neighbouring cells",
}


def _each_difference(pair: _Pair) -> Iterator[str]:
    """One sentence per readout on all targets, then the aspect of the own cell, then the gradient."""
    for measure, words in _READOUTS.items():
        rows = {target: pair.difference(quantity, measure) for quantity, target in _TARGETS.items()}
        parts = [
            f"{target} {interval(row)}, {side(row['low'], row['high'], SMALLEST_EFFECT)}"
            for target, row in rows.items()
            if row is not None
        ]
        yield f"R² by the {words}: {'; '.join(parts) or 'not measured'}."
    strength, way = (pair.difference(f"edge_r2_own_{aspect}") for aspect in ("strength", "orientation"))
    if strength is not None and way is not None:
        yield (
            f"Of the edges of the own cell (linear readout), how strong they are: {interval(strength)}; which way they "
            f"run: {interval(way)}. A layer norm over a window takes its contrast away, so the first can differ "
            "without any edge being lost."
        )
    row = pair.difference("gradient_outside", _GRADIENT)
    if row is not None:
        yield (
            f"Share of the gradient outside the own cell: {interval(row)}, "
            f"{side(row['low'], row['high'], SMALLEST_SHARE)}."
        )


def _through_tokeniser(pair: _Pair, name: str) -> str:
    """Where on its way through the stages of a tokeniser an edge gets out of a linear reach."""
    rows = pair.stages(name)
    assert rows is not None  # asked before
    steps = [interval(row) for _, row in rows.iterrows()]
    return (
        f"Through the tokeniser of {code(name)}, R² for the own cell (linear readout) is {listed(steps)}, after its "
        "stages (tokens averaged over the cell) and at the embedding."
    )


def _per_model(pair: _Pair, measure: str, **where: Any) -> tuple[pd.Series, pd.Series] | None:
    first, second = (_found(pair.frames.get(measure), model=name, **where) for name in pair.names)
    return None if first is None or second is None else (first, second)


def _moving(pair: _Pair) -> Iterator[str]:
    """How much of the map is lost between two grid positions."""
    rows = _per_model(pair, "shift_consistency", quantity="shift_dip", place="embed")
    if rows is not None:
        model, baseline = map(code, pair.names)
        yield (
            f"From a shift of one cell to one of half a cell, the correlation of the patch embedding with its moved "
            f"self drops by {interval(rows[0])} in {model} and by {interval(rows[1])} in {baseline} (not paired; means "
            f"of pixels {number(rows[0]['null'])})."
        )


def _frequencies(pair: _Pair) -> Iterator[str]:
    rows = _per_model(pair, "spectrum", quantity="high_frequency_share", place="embed")
    if rows is not None:
        model, baseline = map(code, pair.names)
        yield (
            f"Of the patch embedding's variation over the image, {interval(rows[0])} in {model} and "
            f"{interval(rows[1])} in {baseline} lie above half the Nyquist frequency of its grid (white noise "
            f"{number(rows[0]['null'])})."
        )


def _architecture(twins: Mapping[str, Result], model: str, baseline: str) -> Iterator[str]:
    """What networks have before any training."""
    names = [model + TWIN, baseline + TWIN]
    pair = _Pair(twins, [], *names)
    edges, outside = [pair.edges(name, _LINEAR) for name in names], [pair.outside(name) for name in names]
    if edges[0] is not None and edges[1] is not None:
        yield (
            f"With random weights R² for the own cell (linear readout) is {interval(edges[0])} in {code(model)} and "
            f"{interval(edges[1])} in {code(baseline)}: so much of the difference needs no training."
        )
    if outside[0] is not None and outside[1] is not None:
        yield (
            f"With random weights {_share(outside[0])} of the gradient lies outside the own cell in {code(model)} and "
            f"{_share(outside[1])} in {code(baseline)}."
        )


def _sum(pair: _Pair) -> str:
    """What follows for the claim that a hard split loses edges and a soft one keeps them."""
    if pair.untrained:
        return no_verdict(*pair.frames.values())
    parts = [_loss(pair, name) for name in pair.names]
    sees = pair.higher(pair.difference("gradient_outside", _GRADIENT), SMALLEST_SHARE)
    if sees is not None:
        parts.append(
            f"Tokens of {code(sees)} see more of what surrounds them, which says nothing of what they keep."
        )
    return " ".join(parts)


def _loss(pair: _Pair, name: str) -> str:
    row, _, words = _over_pixels(pair, name)
    outcome = "unsettled" if row is None else _kept(row)
    if outcome == "unsettled":
        return f"Whether {code(name)} loses edges of a cell is not settled."
    if outcome == "less":
        return (
            f"From tokens of {code(name)} less is read than from the pixels of {words}: edges are lost there, or laid "
            "out in a way that this readout misses."
        )
    text = (
        f"This does not show that {code(name)} loses edges of a cell: its tokens tell no less of them than the pixels "
        f"of {words} do"
    )
    if _less_than_cell(pair, name) is None:
        return f"{text}."
    return f"{text}; nor that it keeps them: the pixels of the cell alone tell more."
