"""The study in words and pictures: words follow numbers, and what was not run is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from t2t_analysis.plots import accuracy_by_cell, effect_plot, learning_curves
from t2t_analysis.sentences.training_from_scratch import (
    cost_table,
    points,
    recipe_sentences,
    study_conclusions,
    study_findings,
)
from t2t_analysis.training import rates
from t2t_analysis.training.design import CORNERS
from t2t_analysis.training.effects import effects

from .test_study import made_table


class Planted:
    """Soft +10 points, deep -5, no interaction, and a gap that grows by 2 points per halving."""

    cells = CORNERS

    def __call__(self, model: str, fraction: float) -> float:
        soft, deep = "performer" in model, "deep" in model
        return 0.5 + 0.1 * soft - 0.05 * deep - 0.02 * soft * float(np.log2(fraction))


@pytest.fixture(scope="module")
def made() -> pd.DataFrame:
    return made_table(Planted(), noise=0.004, fractions=(0.25, 1.0), epochs=4)


def test_findings_name_signs_and_begin_with_what_contradicts_the_paper(made: pd.DataFrame) -> None:
    result = effects(made)
    lines = study_findings(result, made)
    assert lines[0].startswith("Deep and narrow against shallow and wide, over both tokenisers: −5.")
    assert ", contrary to the paper (n = 5 seeds" in lines[0]
    soft = next(line for line in lines if line.startswith("The soft split against the hard one"))
    assert "+10." in soft
    assert ", as the paper says" in soft
    gap = next(line for line in lines if line.startswith("Growth of the gap"))
    assert ", as the paper says" in gap
    assert (
        lines[-1]
        == "40 runs of 4 kinds of model, 5 seeds each, 4 epochs (of longer ones planned), photo_crops."
    )


def test_conclusions_say_what_was_not_run(made: pd.DataFrame) -> None:
    lines = study_conclusions(effects(made))
    assert lines[0].startswith(
        "Contrary to the paper, under this recipe and at this size: deep and narrow against"
    )
    assert lines[1].startswith("As the paper says: the soft split")
    assert "squeeze-and-excitation on the soft split" in lines[-1]
    assert lines[-1].startswith("Not run: ")


def test_one_seed_gives_no_side() -> None:
    alone = made_table(Planted(), seeds=1, noise=0.0, epochs=4)
    lines = study_findings(effects(alone), alone)
    assert any("one seed per cell, so no interval" in line for line in lines)
    assert not any("paper says" in line or "contrary" in line for line in lines)


def test_an_effect_within_the_band_is_too_small_and_one_across_is_open() -> None:
    class Nothing(Planted):
        def __call__(self, model: str, fraction: float) -> float:
            return 0.5

    calm = made_table(Nothing(), noise=0.0005, epochs=4)
    assert "too small to matter" in study_findings(effects(calm), calm)[0]
    wild = made_table(Nothing(), noise=0.05, epochs=4)
    assert "not settled" in study_findings(effects(wild), wild)[0]


def test_the_recipe_says_how_rates_were_chosen_and_what_adamw_says(
    made: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "tried", lambda *_: {})
    assert recipe_sentences(effects(made))[0].startswith("No learning rate was chosen")
    losses = {1e-3: 1.1, 2e-3: 1.0, 4e-3: 1.2}
    monkeypatch.setattr(rates, "tried", lambda *_: losses)
    other = made_table(Planted(), seeds=1, noise=0.0, epochs=4, optimizer="adamw")
    lines = recipe_sentences(effects(pd.concat([made, other], ignore_index=True)))
    assert "held-out training images: small_hard_deep 0.002, " in lines[0]
    assert (
        lines[1]
        == "Under AdamW, the paper's optimiser, T2T minus ViT is +5.0 points (one seed, no interval)."
    )


def test_points_have_signs() -> None:
    assert points({"value": -0.0312, "low": -0.05, "high": 0.01}) == "−3.1 [−5.0, +1.0]"
    assert points({"value": 0.01, "low": float("nan"), "high": float("nan")}) == "+1.0"


def test_figures_say_what_they_draw(made: pd.DataFrame) -> None:
    result = effects(made)
    cells = accuracy_by_cell(result, made)
    assert "performer_wide 6" in cells.caption
    labels = [text.get_text() for text in cells.fig.axes[0].get_yticklabels()]
    assert labels[-1] == "performer_wide"
    drawn = effect_plot(result, 0.005)
    assert "points [" in drawn.caption
    assert "printed in the paper: single runs, ImageNet" in [
        t.get_text() for t in drawn.fig.legends[0].get_texts()
    ]
    rows = [
        {"run": run, "epoch": e, "train_loss": 2.0 - e, "train_accuracy": 0.2 + 0.3 * e}
        for run in made.loc[made["fraction"] == 1.0, "run"]
        for e in (0, 1)
    ]
    curves = learning_curves(pd.DataFrame(rows), made, CORNERS)
    assert "`hard_deep` 1.00" in curves.caption
    for figure in (cells, drawn, curves):
        assert figure.alt
        assert all(ax.get_xlabel() for ax in figure.fig.axes)
        assert len(figure.png()) > 5000


def test_costs_are_medians_over_whole_runs(made: pd.DataFrame) -> None:
    numbers = {"parameters": 800_000, "macs": 50_000_000, "images_per_second": 100.0, "matrix_share": 0.25}
    filled = made.assign(**numbers, peak_memory=2**30, wall_seconds=120.0)
    table = cost_table(filled)
    assert table["runs"].tolist() == [5] * 4
    assert table.loc[0, "parameters"] == "800,000"
    assert table.loc[0, "MACs (10⁶)"] == "50.0"
    assert table.loc[0, "peak memory (MiB)"] == "1024"
    assert table.loc[0, "wall time (min)"] == "2.0"
