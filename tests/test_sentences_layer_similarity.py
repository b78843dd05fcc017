"""The words about layers follow the numbers: every verdict, the untrained, what is missing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.layer_similarity import HEADLINES, layer_conclusions, layer_findings

A, B = "small_performer_deep", "small_hard_deep"
TRAINED = "bundled (seed 0)"
RANDOM = "UNTRAINED (random weights, seed 0)"


def row(quantity: str, value: float = 0.5, half: float = 0.01, **columns: Any) -> dict[str, Any]:
    ends = {"value": value, "low": value - half, "high": value + half}
    return (
        {"quantity": quantity, "model": A, "weights": TRAINED, "n": 64, "unit": "image", "null": 0.0}
        | ends
        | columns
    )


def result(*rows: dict[str, Any]) -> Result:
    return Result("made up", list(rows))  # type: ignore[arg-type]


def difference(quantity: str, value: float, half: float = 0.01, **columns: Any) -> Result:
    pair = {"model": A, "model_b": B, "weights": f"{TRAINED} | {TRAINED}"}
    return result(row(f"{quantity}_difference", value, half, **pair | columns))


def differences(cka: float = 0.2, half: float = 0.01, **columns: Any) -> list[Result]:
    ranks = [difference(HEADLINES[2], -0.1, tokens=level, **columns) for level in ("pooled", "patch")]
    return [difference("cka_mean", cka, half, **columns), difference(HEADLINES[1], 0.0, **columns), *ranks]


def findings(
    found: list[Result], *, twins: bool = True, model: str = A, baseline: str = B, **spread: Any
) -> list[str]:
    names = (model, baseline)
    layers = [
        row("cka_mean", value, model=name, null=0.002) for name, value in zip(names, (0.9, 0.7), strict=True)
    ]
    layers += [
        row("cka_unbiased", 0.6, model=name, layer=a, layer_b=b)
        for name in names
        for a in (0, 1)
        for b in (0, 1)
    ]
    layers += [row("cka_without_top_pcs_mean", 0.3, model=name, at=k) for name in names for k in (1, 5)]
    half = spread.get("half", 0.05)
    across = [row("cka_mean", 0.3, half=half, model=model, model_b=baseline)]
    where = {"tokens": "pooled", "place": "blocks.*.resid_post"}
    rank = [row(HEADLINES[2], 0.4, model=name, **where) for name in names]
    if twins:
        layers += [row("cka_mean", 0.99, model=f"{name}, random", weights=RANDOM) for name in names]
        across.append(
            row(
                "cka_mean",
                spread.get("random", 0.32),
                model=f"{model}, random",
                model_b=f"{baseline}, random",
            )
        )
        rank += [row(HEADLINES[2], 0.2, model=f"{name}, random", **where) for name in names]
    trained = [
        result(row("cka_mean_difference", -0.2, half=min(half, 0.01), model=name, model_b=f"{name}, random"))
        for name in names
        if twins
    ]
    collapse = [row(HEADLINES[1], 0.15, model=name, null=0.01) for name in names]
    parts = result(*across), result(*collapse), result(*rank)
    return layer_findings(result(*layers), *parts, found, trained, model, baseline)


@pytest.mark.parametrize(
    ("value", "half", "words"),
    [
        (0.2, 0.01, f"By CKA, layers repeat each other more in `{A}` than in `{B}`."),
        (-0.2, 0.01, f"By CKA, layers repeat each other more in `{B}` than in `{A}`."),
        (0.0, 0.01, f"By CKA, layers repeat each other as much in `{A}` as in `{B}`, to within 0.05."),
        (0.05, 0.01, "Inconclusive by CKA whether layers repeat each other more"),
        (0.2, math.nan, "so few images give no interval"),
    ],
)
def test_the_first_sentence_answers_by_the_interval(value: float, half: float, words: str) -> None:
    first = findings(differences(value, half))[0]
    assert words in first
    assert "0.900 [0.890, 0.910]" in first
    assert "on permuted images 0.002 and 0.002" in first
    assert "First and last layer have a CKA of 0.600" in first
    assert "paired over 64 images" in first


def test_random_weights_get_no_verdict_and_no_twins() -> None:
    found = differences(weights=f"{RANDOM} | {TRAINED}")
    lines = findings(found, twins=False)
    assert lines[0].startswith("No verdict")
    assert not [line for line in lines if "random weights" in line[1:] and "training" in line]
    assert layer_conclusions(found, A, B)[-1].startswith("No verdict")


def test_what_training_changed_and_what_was_there_before() -> None:
    text = " ".join(findings(differences()))
    assert f"0.990 [0.980, 1.000] for `{A}` (training changes it by −0.200 [−0.210, −0.190])" in text
    assert "random weights 0.200" in text  # of the effective rank
    assert "Without the 5 largest principal components of each layer the mean is 0.300" in text


@pytest.mark.parametrize(
    ("random", "words"),
    [(0.32, "The intervals overlap"), (0.1, "agree more than"), (0.6, "agree less than")],
)
def test_agreement_between_models_is_held_against_random_weights(random: float, words: str) -> None:
    assert words in " ".join(findings(differences(), random=random))


def test_a_smaller_rank_counts_as_repetition() -> None:
    *lines, last = layer_conclusions(differences(), A, B)
    assert [line.split("; n")[0].rsplit(", ")[-1] for line in lines] == [
        "beyond +0.05",
        "within ±0.05",
        "beyond −0.05",
        "beyond −0.05",
    ]
    assert last.startswith("Of 4 ways to ask")
    assert f"3 say that layers repeat each other more in `{A}` and 1 says that the two differ by less" in last
    other = layer_conclusions(differences(-0.2, half=0.01), A, B)[-1]
    assert f"1 says that layers repeat each other more in `{B}`" in other
    assert "1 settles nothing" in layer_conclusions(differences(0.05), A, B)[-1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("small_hard_wide", "small_hard_deep"), "as the paper claims of deep-narrow backbones"),
        (("small_hard_deep", "small_hard_wide"), "contrary to the paper's claim"),
        (("small_performer_deep", "small_hard_wide"), None),  # two factors at once: the claim is not of these
        (("small_performer_deep", "small_hard_deep"), None),
    ],
)
def test_the_papers_claim_is_named_only_for_a_pair_that_it_speaks_of(
    names: tuple[str, str], words: str | None
) -> None:
    pair = {"model": names[0], "model_b": names[1]}  # the first has the smaller rank
    text = " ".join(findings(differences(**pair), model=names[0], baseline=names[1]))
    assert (words in text) if words else ("paper" not in text)


def test_missing_rows_are_said_and_break_nothing() -> None:
    empty = result()
    assert "cannot be said" in layer_findings(empty, empty, empty, empty, [empty], [], A, B)[0]
    assert "Nothing can be concluded" in layer_conclusions([empty], A, B)[0]
    gone = layer_conclusions([difference("cka_mean", math.nan), *differences()[1:]], A, B)
    assert len(gone) == 4  # three headlines and their count


def test_too_few_images_for_intervals_break_nothing() -> None:
    lines = findings(differences(half=math.nan), half=math.nan)
    assert "0.300 (no interval)" in lines[3]
    assert "cannot be compared" in lines[3]
    assert "not told from 0" in lines[1]
