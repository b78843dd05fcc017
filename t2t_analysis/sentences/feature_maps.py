"""What early channels show of their image, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from .._show import code
from ..claims.base import Effect
from ..measures.notebook_path import LARGE
from ..quantities import listed, quantity
from ..results import Result
from .template import Facts, Models, kept

_EARLY = {"place": "first third of blocks"}
#: no claim of the ledger; the paper says that T2T-ViT has more of both
_EFFECTS = (
    Effect("channels that follow the outline of their image", "channel_share", pair="outline_channels"),
    Effect("channels that mark its edges, beyond brightness", "channel_share", pair="edge_channels"),
)
_NOTES = {
    "outline_correlation": "The shrunken image itself, which detects nothing, has the most.",
    "position_correlation": "So much is not about the image, such as the position table.",
    "outline_best": "Some channel always seems to fit.",
}


def example_words(number: int, asked: int | None) -> str:
    """Which image is drawn, and by which rule."""
    if asked is not None:
        return f"Drawn is image {number} of the run, as asked for."
    return (
        f"Drawn is image {number} of the run: that of the first batch whose shrunken copy has the clearest outline. "
        "The rule favours pictures with edges to see, and no network. Another one: `-p image 3`."
    )


def path_words(paths: Result | None, where: str, models: Sequence[str]) -> str:
    """How alike the maps of the released notebooks' path are to the real ones, at a place.

    ``paths`` is of `ShortcutShare`, None where no model has such a path.
    """
    found = Facts([paths], {}).rows("map_correlation", place=where) if paths else pd.DataFrame()
    rows = {str(row["model"]): row for _, row in found.iterrows()}
    without = no_path([name for name in models if name not in rows])
    if not rows:
        return without
    about = quantity("map_correlation")
    each = listed(f"{about.interval(row)} in {code(name)}" for name, row in rows.items())
    first = next(iter(rows.values()))
    return (
        f"Over {first['n']} images, the path's map of a channel at {where} correlates with the real one by {each}; 1 "
        f"would be the same picture, and another image's map has {about.number(first['null'])}."
        f"{f' {without}' if without else ''}"
    )


def no_path(models: Sequence[str]) -> str:
    """Which models the released notebooks' path says nothing about; nothing where there is none."""
    if not models:
        return ""
    return (
        f"The authors' notebooks draw plain transformers for images of {LARGE} pixels or more, so nothing of theirs "
        f"stands beside {listed(map(code, models))}."
    )


def map_findings(results: Iterable[Result | None], models: Models, reference: str = "none") -> list[str]:
    """Sentences on what early channels follow, first those that answer the question.

    Parameters
    ----------
    results
        Of `EdgeChannels` for the models, their untrained controls and the reference, and of differences.
    models
        Label -> model.
    reference
        Label of a further network.
    """
    facts = Facts(results, models)
    said = facts.judged(_EFFECTS, **_EARLY) if not facts.untrained else []
    lines = [
        *(facts.line(effect.pair, **_EARLY) for effect in _EFFECTS),
        *(facts.line(name, **_EARLY, note=note) for name, note in _NOTES.items()),
        _of_reference(facts, reference),
    ]
    return kept(*said, *facts.no_verdict, *lines)


def _of_reference(facts: Facts, reference: str) -> str:
    rows = facts.rows("outline_channels", model=reference)
    if rows.empty:
        return ""
    row, about = rows.iloc[min(1, len(rows) - 1)], quantity("outline_channels")
    random = ", with random weights" if "UNTRAINED" in str(row["weights"]) else ""
    return f"{about.title}: {about.interval(row)} in {code(reference)} at {row['place']}{random}."


def map_conclusions(results: Iterable[Result | None], models: Models) -> list[str]:
    """The verdict at the embedding and in the first third, and what a readout of the first block finds."""
    facts = Facts(results, models)
    if facts.untrained:
        return facts.no_verdict
    first = {"place": "blocks.0.resid_post"}
    read = [facts.line("linear_accuracy", **first), facts.line("high_frequency_share", **first)]
    at = [f"At the embedding: {line}" for line in facts.judged(_EFFECTS, place="embed")]
    return [*facts.judged(_EFFECTS, **_EARLY), *at, *filter(None, read)]
