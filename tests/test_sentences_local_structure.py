"""Words on local structure follow the numbers of small made-up results."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.local_structure import local_conclusions, local_findings

SOFT, HARD = "small_performer_deep", "small_hard_deep"
WHERE = ("own", "boundary", "neighbour")
ASPECTS = ("", "_strength", "_orientation")
NAN = float("nan")


def row(value: float, half: float = 0.01, **columns: Any) -> dict[str, Any]:
    ends = {"low": value - half, "high": value + half}
    return {"value": value, **ends, "n": 96, "unit": "image", "weights": "bundled", "null": -0.01} | columns


def result(measure: str, rows: list[dict[str, Any]]) -> Result:
    return Result(measure, pd.DataFrame([{"measure": measure, **r} for r in rows]), {})


def world(
    own: float = -0.1,
    half: float = 0.01,
    rectified: dict[str, float] | None = None,
    outside: tuple[float, float] = (0.7, 0.0),
    over: tuple[float, float] = (0.02, 0.01),
    cell: float | None = None,
    weights: str = "bundled",
) -> tuple[dict[str, Result], list[Result]]:
    """Results and differences of a soft and a hard split; ``over``: tokens minus the raw pixels that they see,
    ``cell``: of the soft split minus the pixels of the cell alone, where that is something else."""
    first = "first third of blocks"
    results, differences = {}, []
    for measure in ("edge_decodability", "rectified_edge_decodability"):
        linear = measure == "edge_decodability"
        shared = {"quantity": "edge_r2_own"}
        rows = []
        for name, value in zip((SOFT, HARD), (0.05, 0.05 - own) if linear else (0.15, 0.28), strict=True):
            rows += [
                row(value, model=name, place=first, weights=weights, **shared),
                row(0.0 if linear else 0.27, model=name, place="pixels.cell", **shared),
                row(0.0 if linear else 0.13, model=name, place="pixels.field", **shared),
            ]
        rows += [row(0.2, model=SOFT, place=place, **shared) for place in ("tokens.0.out", "embed")]
        rows += [
            row(value, half, quantity="edge_r2_own_over_reference", model=name, place=first, place_b=pixels)
            for name, seen, alone in zip((SOFT, HARD), over, (cell, None), strict=True)
            for pixels, value in (("pixels.cell", seen if alone is None else alone), ("pixels.field", seen))
        ]
        results[measure] = result(measure, rows)
        values = {f"{where}{aspect}": 0.0 for where in WHERE for aspect in ASPECTS} | {"own": own}
        values |= {} if linear else (rectified or {})
        rows = [
            row(value, half, quantity=f"edge_r2_{name}_difference", model=SOFT, model_b=HARD, p=1e-5)
            for name, value in values.items()
        ]
        differences.append(result(measure, rows))
    rows = [
        row(value, 0.0 if value == 0 else 0.02, quantity="gradient_outside", model=name, at=0.0, null=0.98)
        for name, value in zip((SOFT, HARD), outside, strict=True)
    ]
    results["boundary_blindness"] = result("boundary_blindness", rows)
    gap = outside[0] - outside[1]
    rows = [row(gap, 0.02, quantity="gradient_outside_difference", model=SOFT, model_b=HARD)]
    differences.append(result("boundary_blindness", rows))
    return results, differences


def findings(**kwargs: Any) -> list[str]:
    return local_findings(*world(**kwargs), SOFT, HARD)


def conclusions(**kwargs: Any) -> list[str]:
    return local_conclusions(*world(**kwargs), {}, SOFT, HARD)


@pytest.mark.parametrize(
    ("own", "half", "words"),
    [
        (-0.1, 0.01, f"less well in a token of `{SOFT}` than of `{HARD}`, contrary to the paper's claim."),
        (0.1, 0.01, f"less well in a token of `{HARD}` than of `{SOFT}`, as the paper claims."),
        (0.0, 0.01, "equally well in a token of"),
        (0.01, 0.05, "Inconclusive: the interval reaches across ±0.02"),
        (-0.1, NAN, "No verdict: too few images for an interval."),
    ],
)
def test_the_first_sentence_answers_by_the_rule(own: float, half: float, words: str) -> None:
    first = findings(own=own, half=half)[0]
    assert words in first
    assert "96 images" in first


def test_without_intervals_nothing_is_settled() -> None:
    lines = [*findings(half=NAN), *conclusions(half=NAN)]
    assert any("−0.100 (no interval) for the own cell (no interval)" in line for line in lines)


def test_from_a_single_image_nothing_is_read_and_nothing_breaks() -> None:
    results, differences = world()
    for each in (*results.values(), *differences):
        each.frame[["value", "low", "high", "null", "p"]] = pd.NA
    lines = local_findings(results, differences, SOFT, HARD)
    assert lines[0].startswith("No answer")
    assert "not measured" in local_conclusions(results, differences, {}, SOFT, HARD)[0]


def test_without_a_soft_split_the_paper_says_nothing() -> None:
    results, differences = world()
    conv = "small_conv_deep"
    for each in (*results.values(), *differences):
        each.frame["model"] = each.frame["model"].replace(SOFT, conv)
    first = local_findings(results, differences, conv, HARD)[0]
    assert f"less well in a token of `{conv}` than of `{HARD}`." in first
    assert "paper" not in first


def test_seeing_more_and_telling_less_are_told_apart() -> None:
    assert "exactly 0 in `small_hard_deep`" in findings()[1]
    assert f"disagree: tokens of `{SOFT}` see more" in findings()[1]
    assert f"agree: tokens of `{SOFT}` see more" in findings(own=0.1)[1]
    assert "measures" not in findings(own=0.0)[1]
    assert "measures" not in findings(outside=(0.03, 0.0))[1]


def test_the_other_readout_is_corrected_for_all_that_was_looked_at() -> None:
    better = findings(rectified={"neighbour_orientation": 0.08})[2]
    assert f"read better from `{SOFT}`; p < 0.001, Holm over 18 differences" in better
    assert "within ±0.02; p" in findings()[2]


def test_tokens_are_held_against_the_pixels_that_they_see() -> None:
    soft, hard = findings()[-2:]
    assert (
        "wide field around it 0.130 [0.120, 0.140]; the difference, paired, is 0.020 [0.010, 0.030]" in soft
    )
    assert "that cell 0.270" in hard
    assert soft.endswith("the tokens tell no less.")
    assert findings(over=(-0.05, 0.0))[-2].endswith("the tokens tell less.")
    assert findings(over=(-0.02, 0.0))[-2].endswith("not settled.")
    assert findings(half=NAN)[-2].endswith("not settled.")
    assert "that cell 0.270" in findings(outside=(0.0, 0.0))[-2]


def test_conclusions_say_no_loss_only_where_none_was_found() -> None:
    assert f"This does not show that `{HARD}` loses edges" in conclusions()[-1]
    lost = conclusions(over=(0.0, -0.1))[-1]
    assert f"From tokens of `{HARD}` less is read than from the pixels of that cell" in lost
    assert f"This does not show that `{SOFT}` loses" in lost
    assert f"Whether `{HARD}` loses edges of a cell is not settled." in conclusions(over=(0.0, -0.02))[-1]
    assert any(line.startswith("Through the tokeniser of `small_performer_deep`") for line in conclusions())


def test_a_wide_field_is_not_the_only_reference_of_a_soft_split() -> None:
    soft = findings(cell=-0.1)[-2]
    assert soft.endswith(
        "no less, but less than the pixels of the cell alone (difference −0.100 [−0.110, −0.090])."
    )
    assert "nor that it keeps them" in conclusions(cell=-0.1)[-1]
    assert (
        "alone" not in findings(cell=-0.02)[-2] + conclusions(cell=-0.02)[-1]
    )  # its interval is not clear of −0.02
    assert "alone" not in findings(over=(-0.05, 0.0), cell=-0.1)[-2]  # less than the wide field already


def test_random_weights_get_no_verdict() -> None:
    for weights in ("UNTRAINED (random)", "bundled | UNTRAINED (random)"):
        assert findings(weights=weights)[0].startswith(
            "No verdict: at least one of the two has random weights."
        )
        assert conclusions(weights=weights)[-1].startswith("No verdict")


def test_what_needs_no_training_is_said_where_there_are_twins() -> None:
    twins, _ = world()
    for each in twins.values():
        each.frame["model"] = each.frame["model"] + ", random"
    said = local_conclusions(*world(), twins, SOFT, HARD)
    assert [line for line in said if line.startswith("With random weights")][1].startswith(
        "With random weights 0.700 [0.680, 0.720] of the gradient"
    )
    assert not any(line.startswith("With random weights") for line in conclusions())


def test_missing_measures_are_said_and_nothing_breaks() -> None:
    lines = local_findings({}, [], SOFT, HARD)
    assert lines[0].startswith("No answer")
    assert all(lines)
    assert local_conclusions({}, [], {}, SOFT, HARD)[-1].startswith("Whether `small_performer_deep` loses")
