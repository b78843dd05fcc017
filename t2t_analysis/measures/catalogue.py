"""Every measure that fits into the one pass over the images, and the page that lists them.

``measure(model, loader, ALL)`` asks everything at once. The page ``docs/measures.md`` is made from docstrings by
``python -m t2t_analysis.measures.catalogue``, so that it cannot drift; a test compares the two.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from .. import measures as m
from .base import Measure

__all__ = ["ALL", "COMPARISONS", "page"]

#: One of each measure of a single model, with its defaults.
ALL: tuple[Measure, ...] = (
    m.HeadSimilarity(),
    m.Sinks(),
    m.HeadDivergence(),
    m.HeadOutputCKA(),
    m.LayerCKA(),
    m.AttentionGeometry(),
    m.AttentionRollout(),
    m.LayerCollapse(),
    m.Redundancy(),
    m.InvalidChannels(),
    m.ChannelOutliers(),
    m.EdgeChannels(),
    m.EffectiveRank(),
    m.EdgeDecodability(),
    m.RectifiedEdgeDecodability(),
    m.BoundaryBlindness(),
    m.EffectiveReceptiveField(),
    m.Spectrum(),
    m.ShiftConsistency(),
    m.HeadAblation(),
)
#: Measures of two models.
COMPARISONS: tuple[Measure, ...] = (m.CrossLayerCKA(),)
#: What is no sum over images, by question: functions of ``t2t_analysis.measures``.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "Two models over the same images": ("difference", "twin_differences"),
    "Removing heads": (
        "similarity_is_redundancy", "HeadPairs", "similar_pairs_stand_in", "skips_beside_cka", "pruning_orders",
    ),
    "Which pixels decide": ("attribute", "explain", "check_attribution"),
    "What a layer tells": ("probe", "boundaries", "token_pca"),
    "The released notebooks' path": ("ShortcutShare", "shortcut_features", "path_maps"),
    "What a classifier needs": ("behaviour", "distorted"),
    "Cost": ("costs", "printed_costs", "token_geometry", "latencies"),
    "What training did": ("random_twin",),
}  # fmt: skip

_HEAD = """# Measures

Made from the docstrings by `python -m t2t_analysis.measures.catalogue`; do not edit by hand.

Each is asked with `measure(model, loader, [Name()])`, all of them with `measure(model, loader, ALL)` from
`t2t_analysis.measures.catalogue`; either way the images are read once. Every row of a result carries value,
95 % interval, null, n, unit and estimator; `help(Name)` has parameters and what it raises. What a measure is
invariant to is declared, and tested.

"""


def _section(measure: Measure) -> str:
    kind = type(measure)
    text = inspect.cleandoc(kind.__doc__ or "").split("\nParameters\n")[0].strip()
    title, _, body = text.partition("\n")
    declared = ", ".join(sorted(kind.invariances)) or "none declared"
    models = "one model" if kind.arity == 1 else "two models"
    home = kind.__module__.rpartition(".")[2]
    facts = f"`{kind.name}` · {models} · invariances: {declared} · `measures/{home}.py`"
    example = f'```python\nresult = measure(model, loader, [{kind.__name__}()])["{kind.name}"]\n```'
    return "\n\n".join(
        part for part in (f"## {kind.__name__}", f"**{title}**", facts, body.strip(), example) if part
    )


def _functions() -> str:
    """What the functions do, by question: first line of each docstring."""
    parts = ["## Functions", "Of `t2t_analysis.measures`; `help(name)` has arguments, units and errors."]
    for question, names in FUNCTIONS.items():
        lines = [f"**{question}**", ""]
        for name in names:
            text = inspect.cleandoc(getattr(m, name).__doc__ or "").split("\n\n")[0]
            lines.append(f"- `{name}`: {' '.join(text.split())}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The text of ``docs/measures.md``."""
    rows = [
        f"| [{type(one).__name__}](#{type(one).__name__.lower()}) | {_title(one)} |"
        for one in (*ALL, *COMPARISONS)
    ]
    table = "\n".join(["| measure | what it says |", "| --- | --- |", *rows])
    sections = "\n\n".join(map(_section, (*ALL, *COMPARISONS)))
    return f"{_HEAD}{table}\n\n{sections}\n\n{_functions()}"


def _title(measure: Measure) -> str:
    return inspect.cleandoc(type(measure).__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    (Path(__file__).resolve().parents[2] / "docs" / "measures.md").write_text(page(), encoding="utf-8")
