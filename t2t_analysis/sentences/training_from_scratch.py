"""The controlled study in words."""

from __future__ import annotations

import pandas as pd

from ..claims.ledger import VERDICTS, all_claims, claim_named, ledger
from ..quantities import listed, plural, quantity
from ..results import Result
from .claims import effect_words
from .template import MOST


def _effects(result: Result) -> pd.DataFrame:
    """Deciding effects on accuracy of the claims that the study is for, judged as in the ledger."""
    claims = [claim for claim in all_claims() if claim.notebook == "training_from_scratch"]
    frame = ledger(result, "controlled", claims)
    return frame[frame["deciding"] & ~frame["quantity"].str.contains(":")]


def study_findings(result: Result, runs: pd.DataFrame) -> list[str]:
    """Every effect on accuracy that was estimated, with what the paper prints, and what it rests on.

    Parameters
    ----------
    result
        Of `training.effects.effects`.
    runs
        Rows of the study's table that it rests on.
    """
    if runs.empty:
        return [f"No verdict yet: {result.notes[0]}."]
    frame = _effects(result)
    frame = frame[frame["value"].notna()]
    seeds = runs.groupby("model")["seed"].nunique()
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    about = (
        f"{len(runs)} runs of {len(seeds)} kinds of model, {each} seed{'s' * (each != '1')} each, "
        f"{int(runs['epochs'].iloc[0])} epochs"
        f"{' (of longer ones planned)' if bool(runs['reduced'].any()) else ''}, {runs['data'].iloc[0]}."
    )
    if frame.empty:
        return [f"No effect can be estimated yet. {about}"]
    said = [_sentence(row) for _, row in frame.iterrows()]
    sensitivity = _under_adamw(result.frame)
    return [*said[: MOST - 1 - len(sensitivity)], *sensitivity, about]


def _sentence(row: pd.Series) -> str:
    """An effect, and what the paper prints to the same claim; where it prints several numbers the page lists them."""
    if " minus " not in row["compared"]:  # else the ledger's words say what is compared
        row = pd.Series({**row, "effect": f"{quantity(row['quantity']).words}, {row['effect']}"})
    printed, verdict = claim_named(row["claim"]).printed, str(row["verdict"])
    said = effect_words(row).replace(f": {verdict}", f": **{verdict}**")
    if row["verdict"] == "not tested":
        said = f"{said} What they have: {quantity(row['quantity']).interval(row)}, n = {plural(row['n'], row['unit'])}."
    if len(printed) != 1:
        return said
    ((points, where),) = printed
    return f"{said} The paper prints {f'{points:+.1f}'.replace('-', '−')} points ({where})."


def recipe_sentences(result: Result) -> list[str]:
    """Whether the recipe favoured one side: how rates were chosen, and what AdamW says."""
    best = result.frame[result.frame["quantity"] == "best_learning_rate"]
    if best.empty:
        return ["No learning rate was chosen on held-out images, so the recipe may have favoured one side."]
    each = listed(f"{row['model']} {row['value']:g}" for _, row in best.iterrows())
    lines = [f"Each cell has the rate that served it best on held-out training images: {each}."]
    return [*lines, *_under_adamw(result.frame)]


def _under_adamw(frame: pd.DataFrame) -> list[str]:
    """The main effects under AdamW after the longest training, and how many effects point the other way than here."""
    rows = frame[frame["quantity"].str.endswith("_adamw")]
    rows = rows[rows["at"] == rows["at"].max()]
    rows = rows.assign(of=rows["quantity"].str.removesuffix("_adamw"))
    own = frame.assign(of=frame["quantity"].str.removesuffix("_at_epochs"))[frame["at_unit"] == "epochs"]
    both = rows.merge(own[own["of"] != own["quantity"]], on=["of", "at"], suffixes=("", "_own"))
    main = both[both["of"].isin(["tokeniser_effect", "backbone_effect", "t2t_minus_vit"])]
    if main.empty:
        return []
    each = listed(
        f"{quantity(row['of']).words} {quantity(row['of']).interval(row)}" for _, row in main.iterrows()
    )
    turned = int((both["value"] * both["value_own"] < 0).sum())
    return [
        f"Under AdamW, the paper's optimiser, after {main['at'].iloc[0]:g} epochs "
        f"({plural(main['n'].iloc[0], 'seed')}): {each}; {turned} of {plural(len(both), 'effect')} have the other sign "
        "than under Muon."
    ]


def adamw_table(result: Result) -> pd.DataFrame:
    """Effects under AdamW beside those of the study's own optimiser, by length; empty where there are none."""
    frame = result.frame
    rows = frame[frame["quantity"].str.endswith("_adamw")]
    lines = []
    for _, row in rows.iterrows():
        name = str(row["quantity"]).removesuffix("_adamw")
        about = quantity(name)
        line = {"effect": about.words, "epochs": int(row["at"])}
        line |= {"AdamW": about.interval(row), "seeds of AdamW": int(row["n"])}
        own = frame[(frame["quantity"] == f"{name}_at_epochs") & (frame["at"] == row["at"])]
        lines.append(line | {"Muon": about.interval(own.iloc[0]) if len(own) else ""})
    return pd.DataFrame(lines)


def study_conclusions(result: Result) -> list[str]:
    """Which claims' effects got which verdict, and of which nothing was run."""
    frame = _effects(result)
    frame = frame.assign(named=frame["claim"] + " (" + frame["effect"] + ")")
    said = [
        f"{verdict[:1].upper()}{verdict[1:]}: {'; '.join(frame.loc[frame['verdict'] == verdict, 'named'])}."
        for verdict in VERDICTS[:-1]
        if verdict in set(frame["verdict"])
    ]
    rest = dict.fromkeys(frame.loc[frame["verdict"] == VERDICTS[-1], "claim"])
    return [*said, f"Not tested, since runs are missing: {listed(rest)}."] if rest else said


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
