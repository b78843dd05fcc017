"""The controlled study in words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..claims.rule import SMALLEST, place
from ..results import Result
from .words import listed

__all__ = ["cost_table", "recipe_sentences", "study_conclusions", "study_findings"]

#: effect -> words, what the paper says of its sign, key of the smallest effect that counts
_EFFECTS: dict[str, tuple[str, int, str]] = {
    "tokeniser_effect": ("the soft split against the hard one, over both backbones", 1, "accuracy"),
    "backbone_effect": (
        "deep and narrow against shallow and wide, over both tokenisers",
        1,
        "backbone_accuracy",
    ),
    "interaction": ("the extra gain of the soft split on the deep backbone", 0, "accuracy"),
    "t2t_minus_vit": ("soft and deep against hard and wide, T2T-ViT against ViT", 1, "accuracy"),
    "performer_minus_convolution": (
        "soft split against convolutions, over both backbones",
        1,
        "convolution_accuracy",
    ),
    "performer_minus_convolution_deep": ("soft split against convolutions, deep", 1, "convolution_accuracy"),
    "gap_growth_per_halving": (
        "growth of the gap, soft against hard, per halving of the images",
        1,
        "accuracy",
    ),
    "se_effect_performer": ("squeeze-and-excitation on the soft split", 1, "accuracy"),
    "dense_effect_performer": ("dense connections on the soft split", -1, "accuracy"),
    "ghost_effect_performer": ("ghost blocks on the soft split", -1, "accuracy"),
    "resnext_effect_performer": ("twice the heads on the soft split", 0, "accuracy"),
}


def points(row: Any) -> str:
    """Value and interval of a difference of fractions, in points.

    >>> points({"value": 0.0312, "low": 0.01, "high": 0.05})
    '+3.1 [+1.0, +5.0]'
    """
    value = f"{100 * row['value']:+.1f}"
    if not pd.isna(row["low"]):
        value += f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return value.replace("-", "−")


def _row(result: Result, quantity: str) -> pd.Series | None:
    rows = result.frame[result.frame["quantity"] == quantity]
    return rows.iloc[0] if len(rows) == 1 else None


def _side(row: pd.Series, claimed: int, smallest: float) -> str:
    """Where the interval lies, and whether that is what the paper says."""
    if pd.isna(row["low"]):
        return "one seed per cell, so no interval"
    where = place(row["low"], row["high"], smallest)
    if where in ("within", "across"):
        return {"within": "too small to matter", "across": "not settled"}[where]
    sign = 1 if where == "above" else -1
    return (
        {claimed: ", as the paper says", -claimed: ", contrary to the paper"}.get(sign, "") if claimed else ""
    )


def _sentence(result: Result, quantity: str) -> str | None:
    words, claimed, key = _EFFECTS[quantity]
    row = _row(result, quantity)
    if row is None:
        return None
    said = _side(row, claimed, SMALLEST[key])
    joint = said if said.startswith(",") else f", {said}" if said else ""
    words = words[0].upper() + words[1:]
    printed = _row(result, f"{quantity}_published")
    paper = (
        ""
        if printed is None
        else f" The paper prints {points(printed)} on ImageNet ({printed['estimator']})."
    )
    return (
        f"{words}: {points(row)} points{joint} (n = {row['n']} {row['unit']}s; smallest effect that counts "
        f"{100 * SMALLEST[key]:g}).{paper}"
    )


def study_findings(result: Result, runs: pd.DataFrame) -> list[str]:
    """Every effect on accuracy that was estimated, those against the paper first.

    Parameters
    ----------
    result : of `training.effects.effects`.
    runs : rows of the study's table that it rests on.
    """
    if runs.empty:
        return [f"No verdict yet: {result.notes[0]}."]
    known = [(name, _sentence(result, name)) for name in _EFFECTS]
    sentences = [text for _, text in known if text]
    against = [text for text in sentences if "contrary to the paper" in text]
    rest = [text for text in sentences if text not in against]
    seeds = runs.groupby("model")["seed"].nunique()
    about = (
        f"{len(runs)} runs of {len(seeds)} kinds of model, {_range(seeds)} each, {int(runs['epochs'].iloc[0])} epochs"
        f"{' (of longer ones planned)' if bool(runs['reduced'].any()) else ''}, {runs['data'].iloc[0]}."
    )
    return [*against, *rest, about] if sentences else [f"No effect can be estimated yet. {about}"]


def _range(seeds: pd.Series) -> str:
    low, high = int(seeds.min()), int(seeds.max())
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def recipe_sentences(result: Result) -> list[str]:
    """Whether the recipe favoured one side: how rates were chosen, and what AdamW says."""
    best = result.frame[result.frame["quantity"] == "best_learning_rate"]
    if best.empty:
        return ["No learning rate was chosen on held-out images, so the recipe may have favoured one side."]
    each = listed(f"{row['model']} {row['value']:g}" for _, row in best.iterrows())
    lines = [f"Each cell has the rate that served it best on held-out training images: {each}."]
    effect = _row(result, "t2t_minus_vit_adamw")
    if effect is not None:
        few = "" if pd.notna(effect["low"]) else " (one seed, no interval)"
        lines.append(f"Under AdamW, the paper's optimiser, T2T minus ViT is {points(effect)} points{few}.")
    return lines


def study_conclusions(result: Result) -> list[str]:
    """Which effects agree with the paper, which do not, which are open, and what was not run."""
    groups: dict[str, list[str]] = {"as": [], "against": [], "open": []}
    for name, (words, claimed, key) in _EFFECTS.items():
        if claimed and (row := _row(result, name)) is not None:
            said = _side(row, claimed, SMALLEST[key])
            kind = "as" if said.startswith(", as") else "against" if said.startswith(", contrary") else "open"
            groups[kind].append(words)
    heads = {
        "against": "Contrary to the paper, under this recipe and at this size",
        "as": "As the paper says",
        "open": "Not settled or too small to matter",
    }
    lines = [f"{head}: {'; '.join(groups[kind])}." for kind, head in heads.items() if groups[kind]]
    missing = [name for name in _EFFECTS if _row(result, name) is None]
    if missing:
        lines.append(f"Not run: {listed(_EFFECTS[name][0] for name in missing)}.")
    return lines


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """What a run of each kind of model took: medians over runs."""
    numbers = ["parameters", "macs", "images_per_second", "matrix_share", "peak_memory", "wall_seconds"]
    whole = runs[runs["fraction"] == 1.0]
    found = whole.groupby("model")[numbers].median().reset_index()
    return pd.DataFrame(
        {
            "model": found["model"],
            "runs": [int((whole["model"] == name).sum()) for name in found["model"]],
            "parameters": [f"{int(x):,}" for x in found["parameters"]],
            "MACs (10⁶)": [f"{x / 1e6:.1f}" for x in found["macs"].astype(float)],
            "training images per second": [f"{x:.0f}" for x in found["images_per_second"].astype(float)],
            "share of matrix rate (%)": [f"{100 * x:.0f}" for x in found["matrix_share"].astype(float)],
            "peak memory (MiB)": [f"{x / 2**20:.0f}" for x in found["peak_memory"].astype(float)],
            "wall time (min)": [f"{x / 60:.1f}" for x in found["wall_seconds"].astype(float)],
        }
    )
