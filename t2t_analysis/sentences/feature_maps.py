"""What the early layers hold, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from .._names import TWIN, has_soft_split
from .._show import code
from ..claims.rule import SMALLEST, place
from ..results import Result
from .words import found, interval, listed, no_verdict, number, percent, side, untrained_in

__all__ = ["example_words", "expected", "map_conclusions", "map_findings", "path_words", "share"]

SMALLEST_EFFECT = SMALLEST["channel_share"]
EARLY = "first third of blocks"

#: kind of channel -> what it does
_DOES = {
    "outline_channels": "follow the outline of their image",
    "edge_channels": "mark its edges, beyond its brightness",
    "brightness_channels": "follow its brightness",
}
_JUDGED = ("outline_channels", "edge_channels")
_SAYS = {"embed": "patch embedding", EARLY: "first third of the blocks"}


def share(row: Any) -> str:
    """Value and interval of a share as percent.

    >>> share({"value": 0.179, "low": 0.142, "high": 0.217})
    '17.9 % [14.2 %, 21.7 %]'
    """
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{percent(row['value'])} (no interval)"
    return f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]"


def expected(less: str, more: str) -> str:
    """Whether a soft split with fewer and a hard one with more is what the paper says, or its contrary.

    >>> expected("small_performer_deep", "small_hard_deep"), expected("t2t_vit_14", "t2t_vit_24")
    (', as the paper claims', '')
    """
    soft = has_soft_split(less), has_soft_split(more)
    if soft == (True, False):
        return ", as the paper claims"
    return ", contrary to the paper's claim" if soft == (False, True) else ""


def example_words(number_: int, asked: int | None) -> str:
    """Which image is drawn, and by which rule."""
    if asked is not None:
        return f"Drawn is image {number_} of the run, as asked for."
    return (
        f"Drawn is image {number_} of the run: that of the first batch whose shrunken copy has the clearest outline. "
        "The rule favours pictures with edges to see, and no network. Another one: `-p image 3`."
    )


def path_words(paths: Result | None, where: str, models: Sequence[str]) -> str:
    """How alike the maps of the released notebook's path are to the real ones.

    ``paths`` is of `ShortcutShare`, None where no model has such a path; ``where`` a place.
    """
    rows = {} if paths is None else {
        name: row
        for name in models
        if (row := found(paths.frame, quantity="map_correlation", model=name, place=where)) is not None
    }  # fmt: skip
    lacking = [code(name) for name in models if name not in rows]
    without = (
        f" For {listed(lacking)} the path does not exist: it is more than its children in a row."
        if lacking
        else ""
    )
    if not rows:
        return without.strip()
    each = listed(f"{interval(row)} in {code(name)}" for name, row in rows.items())
    first = next(iter(rows.values()))
    return (
        f"Over {first['n']} images, the path's map of a channel at {where} correlates with the real one by {each}; 1 "
        f"would be the same picture, and another image's map has {number(first['null'])}.{without}"
    )


def map_findings(
    edges: Result,
    early: Result,
    trained: Sequence[Result],
    model: str,
    baseline: str,
    reference: str = "none",
) -> list[str]:
    """Sentences on what early channels follow, first the one that answers the question.

    Parameters
    ----------
    edges : of `EdgeChannels` for both models, their random twins where they have any, and the reference.
    early : of `difference`, model minus baseline, in the first third of the blocks.
    trained : of `difference`: each model minus its twin, and one twin minus the other.
    """
    pair = (model, baseline)
    if any(_row(edges, "outline_channels", name) is None for name in pair):
        return [
            "What the early layers hold cannot be said: there are no blocks with finite maps, or too few images."
        ]
    lines = [
        _verdict(early, model, baseline),
        _shares(edges, pair),
        _copies(edges, pair),
        *(_training(result) for result in trained),
        _position(edges, pair),
        _picked(edges, pair),
        _reference(edges, reference),
    ]
    return [line for line in lines if line]


def _row(edges: Result, quantity: str, model: str, where: str = EARLY) -> pd.Series | None:
    return found(edges.frame, quantity=quantity, model=model, place=where)


def _each(edges: Result, quantity: str, pair: Iterable[str], percents: bool = True) -> str:
    """A quantity of the early layers of each model with its interval; empty where one is missing."""
    rows = {name: _row(edges, quantity, name) for name in pair}
    if any(row is None for row in rows.values()):
        return ""
    write = share if percents else interval
    return listed(f"{write(row)} in {code(name)}" for name, row in rows.items())


def _shares(edges: Result, pair: tuple[str, str]) -> str:
    """How many channels follow their image, and whether that is more than chance."""
    parts = []
    for kind in _JUDGED:
        rows = {name: row for name in pair if (row := _row(edges, kind, name)) is not None}
        beyond = [code(name) for name, row in rows.items() if row["low"] > row["null"]]
        whether = {0: "in neither", 1: f"only in {listed(beyond)}", 2: "in both"}[len(beyond)]
        parts.append(f"{_each(edges, kind, rows)} {_DOES[kind]} (beyond chance {whether})")
        chance = percent(next(iter(rows.values()))["null"], 0) if rows else ""
    return f"Of the channels in the first third of the blocks, {listed(parts)}. By chance {chance} would."


def _verdict(early: Result, model: str, baseline: str) -> str:
    """The answer by both kinds of channels that the paper's claim is about, or why there is none."""
    if untrained_in(early.frame):
        return no_verdict(early.frame, words="No verdict: at least one of the two has random weights.")
    rows = [found(early.frame, quantity=f"{kind}_difference") for kind in _JUDGED]
    known = [row for row in rows if row is not None and not pd.isna(row["low"])]
    if len(known) < len(rows):
        return "No verdict: too few images for an interval of the difference."
    sides = {place(row["low"], row["high"], SMALLEST_EFFECT) for row in known}
    outline, marks = (interval(row) for row in known)
    paired = (
        f"shares of {code(model)} minus those of {code(baseline)} are {outline} (outline) and {marks} (edges), paired "
        f"over {known[0]['n']} images"
    )
    if sides == {"within"}:
        return f"Early channels follow their image as often in both models, to within {SMALLEST_EFFECT:g}: {paired}."
    if len(sides) > 1 or sides == {"across"}:
        return f"Inconclusive, since outline and edges do not settle it together: {paired}."
    less, more = (model, baseline) if sides == {"below"} else (baseline, model)
    return (
        f"More of the early channels of {code(more)} than of {code(less)} follow the outline of their image and mark "
        f"its edges{_claimed(less, more)}: {paired}."
    )


def _claimed(less: str, more: str) -> str:
    """The paper says that the soft split has more of such channels, so the roles are turned round."""
    return expected(more, less)


def _copies(edges: Result, pair: tuple[str, str]) -> str:
    """How much of it a small copy of the picture would show."""
    bright, outline = (_each(edges, f"{kind}_channels", pair) for kind in ("brightness", "outline"))
    row = _row(edges, "outline_correlation", pair[0])
    if not bright or not outline or row is None or pd.isna(row["ceiling"]):
        return ""
    return (
        "Following an outline is not detecting it: the shrunken image itself, which detects nothing, has an outline "
        f"correlation of {number(row['ceiling'])} (mean over channels: "
        f"{_each(edges, 'outline_correlation', pair, percents=False)}), and the share of channels that "
        f"{_DOES['brightness_channels']} is {bright}."
    )


def _training(result: Result) -> str:
    """What training changed in one model or, of two twins, what their architectures differ by."""
    rows = {kind: found(result.frame, quantity=f"{kind}_difference") for kind in _JUDGED}
    outline = rows["outline_channels"]
    if outline is None or rows["edge_channels"] is None:
        return ""
    changes = listed(
        f"{interval(row)} ({'outline' if kind == 'outline_channels' else 'edges'})"
        for kind, row in rows.items()
    )
    first, second = str(outline["model"]), str(outline["model_b"])
    if first.endswith(TWIN):
        return (
            f"With random weights, before any training, the shares of {code(first)} minus those of {code(second)} are "
            f"{changes}: that much comes with the architectures."
        )
    words = {
        "above": "made more channels follow the outline",
        "below": "made fewer channels follow the outline",
        "within": "left the share that follows the outline as it was",
        "across": "did nothing to the outline that is settled",
    }[place(outline["low"], outline["high"], SMALLEST_EFFECT)]
    return f"Training {words} in {code(first)}: trained minus random weights, the shares differ by {changes}."


def _position(edges: Result, pair: tuple[str, str]) -> str:
    each = _each(edges, "position_correlation", pair, percents=False)
    if not each:
        return ""
    return (
        f"Not all that looks like lines is in the image: maps of two different images correlate by {each} in the same "
        "channel, so that much is drawn by something else, such as the position table."
    )


def _picked(edges: Result, pair: tuple[str, str]) -> str:
    """What the best channel of an image shows by chance."""
    rows = {name: _row(edges, "outline_best", name) for name in pair}
    if any(row is None for row in rows.values()):
        return ""
    each = listed(
        f"{interval(row)} in {code(name)} ({number(row['null'])} with another image)"
        for name, row in rows.items()
        if row is not None
    )
    return f"Some channel always seems to fit: the best of an image has an outline correlation of {each}."


def _reference(edges: Result, reference: str) -> str:
    frame = edges.frame[edges.frame["model"] == reference]
    if frame.empty:
        return ""
    where = str(frame["place"].drop_duplicates().iloc[min(1, frame["place"].nunique() - 1)])
    rows = [_row(edges, kind, reference, where) for kind in _JUDGED]
    if any(row is None for row in rows):
        return ""
    random = ", with random weights," if untrained_in(frame) else ""
    outline, marks = (share(row) for row in rows)
    return (
        f"In {code(reference)}{random} {outline} of the channels of {where} follow the outline and {marks} mark "
        "edges, by its real forward pass."
    )


# ------------------------------------------------------------------------------------------ conclusions


def map_conclusions(differences: Sequence[Result], read: Result, model: str, baseline: str) -> list[str]:
    """One sentence per place on the paired differences, what can be read there, and whether they agree.

    Parameters
    ----------
    differences : of `difference`, model minus baseline, one for each place.
    read : of `probe` or of `Spectrum` for both models.
    """
    more = _spectrum_words if read.measure == "spectrum" else _probe_words
    lines = [
        *map(_place_words, differences), more(read, model, baseline), _agreement(differences, model, baseline)
    ]  # fmt: skip
    return [line for line in lines if line]


def _place_words(result: Result) -> str:
    rows = {kind: found(result.frame, quantity=f"{kind}_difference") for kind in _DOES}
    known = [(kind, row) for kind, row in rows.items() if row is not None]
    if not known:
        return ""
    where = str(known[0][1]["place"])
    parts = [
        f"{kind.removesuffix('_channels')} {interval(row)}, {side(row['low'], row['high'], SMALLEST_EFFECT)}"
        for kind, row in known
    ]
    return f"Share of channels, {_SAYS.get(where, where)}, model minus baseline: {'; '.join(parts)}."


def _probe_words(probes: Result, model: str, baseline: str) -> str:
    """What a linear probe reads from the first block, which no picture shows."""
    frame = probes.frame[probes.frame["quantity"] == "linear_accuracy"]
    rows = {name: frame[frame["model"] == name].sort_values("layer") for name in (model, baseline)}
    if any(part.empty for part in rows.values()):
        return ""
    first = [part.iloc[0] for part in rows.values()]
    each = listed(f"{share(row)} in {code(row['model'])}" for row in first)
    apart = first[0]["low"] > first[1]["high"] or first[1]["low"] > first[0]["high"]
    return (
        f"A linear probe of the first block names the right class for {each} of the test images (shuffled labels: "
        f"{percent(first[0]['null'])}); the intervals {'lie apart' if apart else 'overlap'}. What a layer tells of the "
        "class is not what its channels look like."
    )


def _spectrum_words(read: Result, model: str, baseline: str) -> str:
    """How much fine detail the first block keeps."""
    place_ = "blocks.0.resid_post"
    rows = {
        name: found(read.frame, quantity="high_frequency_share", model=name, place=place_)
        for name in (model, baseline)
    }
    if any(row is None for row in rows.values()):
        return ""
    each = listed(
        f"{interval(row)} in {code(name)} (white noise: {number(row['null'])})"
        for name, row in rows.items()
        if row is not None
    )
    return f"After the first block, the share of energy above half the Nyquist frequency is {each}."


def _agreement(differences: Sequence[Result], model: str, baseline: str) -> str:
    if any(untrained_in(result.frame) for result in differences):
        return no_verdict(*(result.frame for result in differences))
    rows = [
        row
        for result in differences
        for kind in _JUDGED
        if (row := found(result.frame, quantity=f"{kind}_difference")) is not None
    ]
    sides = {place(row["low"], row["high"], SMALLEST_EFFECT) for row in rows}
    if sides == {"within"}:
        within = f"to within {SMALLEST_EFFECT:g} of the channels"
        return f"{code(model)} and {code(baseline)} show as much of their image, {within}."
    if len(sides) != 1 or sides == {"across"}:
        return "They do not all say the same, or not clearly, so there is no single answer for this pair."
    less, more = (model, baseline) if sides == {"below"} else (baseline, model)
    return (
        f"Outline and edges, at every place, say the same: {code(more)} shows more of its image, channel by channel, "
        f"than {code(less)}{_claimed(less, more)}. This is said of these two, on these images."
    )
