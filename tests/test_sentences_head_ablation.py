"""Words on heads that are taken out follow the numbers of small made-up results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.head_ablation import DEAD, ablation_conclusions, ablation_findings

MODEL, BASELINE = "small_performer_deep", "small_hard_deep"
NAN = float("nan")
HEADS = [(layer, head) for layer in (0, 1) for head in (0, 1)]


def row(value: float, half: float = 0.001, **columns: Any) -> dict[str, Any]:
    ends = {"low": value - half, "high": value + half, "null_low": -0.3, "null_high": 0.3}
    return {"value": value, **ends, "n": 32, "unit": "image", "weights": "bundled", "null": 0.002} | columns


def result(measure: str, rows: list[dict[str, Any]]) -> Result:
    return Result(measure, pd.DataFrame([{"measure": measure, **r} for r in rows]), {})


def ablation(
    kl: Sequence[float] = (0.02, 0.01, 0.001, 0.0),
    p: Sequence[float] = (0.001, 1.0, 0.001, 1.0),
    layers: Sequence[tuple[float, float]] = ((0.05, 0.001), (0.001, 0.5)),
    half: float = 0.00001,
) -> Result:
    """Four heads by two kinds of ablation; ``layers`` are KL (null 0.03) and p of whole layers."""
    rows = []
    for name in (MODEL, BASELINE):
        for kind in ("mean", "zero"):
            single = {"model": name, "estimator": f"{kind} ablation of one head; p: against the null, paired"}
            corrected = {"model": name, "estimator": f"Holm over 4 heads; {single['estimator']}"}
            for (layer, head), value, low in zip(HEADS, kl, p, strict=True):
                at = {"layer": layer, "head": head}
                rows.append(row(value, half, quantity="kl", **single, **at))
                rows.append(row(low, NAN, quantity="kl_p_holm", **corrected, **at))
                rows.append(row(0.1 * (value > 0.005), quantity="prediction_change", **single, **at))
                rows.append(row(-5 * value, quantity="accuracy_change", **single, **at))
                rows.append(row(1.0, NAN, quantity="accuracy_change_p_holm", **corrected, **at))
            whole = {
                "model": name,
                "estimator": f"{kind} ablation of all heads of a layer; p: against the null",
            }
            for layer, (value, low) in enumerate(layers):
                rows.append(row(value, quantity="kl_layer", layer=layer, p=low, **whole | {"null": 0.03}))
    return result("head_ablation", rows)


def association(
    within: tuple[float, float] = (-0.5, -0.5), half: float = 0.2, weights: str = "bundled"
) -> Result:
    shared = {"unit": "head", "n": 40, "p": 0.01, "ceiling": 0.9, "weights": weights}
    rows = []
    for name, value in zip((MODEL, BASELINE), within, strict=True):
        rows.append(row(-0.1, half, quantity="similarity_effect_spearman", model=name, **shared))
        rows.append(
            row(value, half, quantity="similarity_effect_spearman_within_layers", model=name, **shared)
        )
    return result("similarity_redundancy", rows)


def pruning(area: float = -0.2, p: float = 0.01) -> Result:
    rows = []
    for name in (MODEL, BASELINE):
        for order in ("similarity", "importance"):
            how = f"mean ablation, heads removed in order of {order}"
            kind = {"model": name, "null_kind": "10 random orders"}
            rows.append(
                row(0.2, 0.1, quantity="removable_by_kl", estimator=f"{how}; until kl exceeds 0.05", **kind)
            )
            rows.append(row(area, 0.1, quantity="pruning_area_kl", estimator=f"{how}; area", p=p, **kind))
    return result("pruning_curves", rows)


def findings(**kwargs: Any) -> list[str]:
    found = {"ablation": ablation(), "association": association(), "pruning": pruning()} | kwargs
    return ablation_findings(*found.values(), MODEL, BASELINE)


def conclusions(**kwargs: Any) -> list[str]:
    found = {"ablation": ablation(), "association": association(), "pruning": pruning()} | kwargs
    return ablation_conclusions(*found.values(), MODEL, BASELINE)


@pytest.mark.parametrize(
    ("within", "half", "words"),
    [
        ((-0.5, -0.5), 0.2, f"Similar heads do less in `{MODEL}` and `{BASELINE}`, as the paper assumes."),
        ((0.5, 0.5), 0.2, "contrary to what the paper assumes."),
        ((0.0, 0.0), 0.05, "Likeness says nothing of what a head does"),
        ((-0.2, -0.2), 0.5, "is not settled"),
        ((-0.2, -0.2), NAN, "is not settled"),
        ((NAN, -0.5), 0.2, f"could not be measured in `{MODEL}`. Similar heads do less in `{BASELINE}`"),
    ],
)
def test_the_first_sentence_answers_by_the_rule(within: tuple[float, float], half: float, words: str) -> None:
    assert words in findings(association=association(within, half))[0]


def test_heads_are_dead_only_below_the_bound_with_their_whole_interval() -> None:
    assert abs(DEAD - 5e-5) < 1e-12
    assert f"1 of the 4 heads of `{MODEL}`" in findings()[0]
    assert "nats with its whole interval, n = 32 images)" in findings()[0]
    assert f"none of the 4 heads of `{MODEL}`" in findings(ablation=ablation(half=1e-4))[0]


def test_heads_beyond_chance_are_counted_and_named_after_correction() -> None:
    line = findings()[3]
    assert "0.020 [0.020, 0.020] nats (head 0.0)" in line
    assert "1 of 4 do more than such a subspace, after Holm's correction (0.0), 1 less." in line
    none = findings(ablation=ablation(p=(1.0, 1.0, 1.0, 1.0)))[3]
    assert "0 of 4 do more than such a subspace, after Holm's correction." in none


def test_no_change_in_few_images_is_no_proof_of_none() -> None:
    line = findings()[5]
    assert f"2 of 4 heads of `{MODEL}` change the predicted class of none of the 32 images" in line
    assert "more than 10.7 % of images" in line
    assert "without head 0.0: −0.100" in line
    assert "correction: 0 of 4." in line


def test_removal_and_its_null_are_given() -> None:
    assert "0.200 [0.100, 0.300] by similarity and 0.200 [0.100, 0.300] by importance" in findings()[7]
    assert "exceeds 0.05 nats" in findings()[7]


def test_kinds_layers_and_orders_are_summed_up() -> None:
    lines = conclusions()
    assert lines[0].endswith("rank correlation over heads with mean 1.000.")
    assert lines[0].count("rank correlation") == 1
    assert "mean (n = 32): median 0.0055 nats, most in head 0.0, 1 beyond the null; zero" in lines[0]
    assert "in 1 of 2 layers after Holm's correction: 0, and by less in 0." in lines[2]
    assert "−0.200 [−0.300, −0.100] nats" in lines[4]
    assert "correlation is beyond −0.1, and removal by likeness costs less than random orders" in lines[-1]
    assert "is not told from random orders" in conclusions(pruning=pruning(p=0.5))[-1]
    assert "costs more than random orders" in conclusions(pruning=pruning(area=0.2))[-1]
    assert "by less in 1." in conclusions(ablation=ablation(layers=((0.05, 0.9), (0.001, 0.001))))[2]


def test_kinds_that_order_heads_differently_are_said_to() -> None:
    found = ablation()
    frame = found.frame.copy()
    turned = (frame["quantity"] == "kl") & frame["estimator"].str.startswith("zero")
    frame.loc[turned, "value"] = 1 - frame.loc[turned, "value"]
    other = Result("head_ablation", frame, {})
    assert conclusions(ablation=other)[0].endswith("rank correlation over heads with mean −1.000.")


def test_random_weights_get_no_verdict() -> None:
    untrained = association(weights="UNTRAINED (random weights, seed 0)")
    assert findings(association=untrained)[0].startswith("No verdict: at least one")
    assert conclusions(association=untrained)[-1].startswith("No verdict")


def test_missing_rows_are_said_and_nothing_breaks() -> None:
    nothing = {
        "ablation": result("head_ablation", []),
        "association": result("similarity_redundancy", []),
        "pruning": result("pruning_curves", []),
    }
    lines = findings(**nothing) + conclusions(**nothing)
    assert all(lines)
    assert any("no KL divergence was measured" in line for line in lines)
    assert "could not be measured" in lines[0]
    few = ablation(p=(NAN, NAN, NAN, NAN), half=NAN)
    assert "no test" in findings(ablation=few)[3]
    assert "none of the 4 heads" in findings(ablation=few)[0]
