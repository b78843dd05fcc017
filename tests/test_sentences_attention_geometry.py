"""The words about attention follow the numbers: near, far, sharp, untrained, missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.attention_geometry import geometry_conclusions, geometry_findings

A, B = "small_performer_deep", "small_hard_deep"
TRAINED = "bundled (seed 0)"
RANDOM = "UNTRAINED (random weights, seed 0)"
LAYERS = "blocks.*.attn"
LN64 = math.log(64)


def row(quantity: str, value: float, half: float = 0.001, **columns: Any) -> dict[str, Any]:
    base = {"quantity": quantity, "tokens": "patch", "model": A, "weights": TRAINED, "n": 64, "unit": "image"}
    ends = {"value": value, "low": value - half, "high": value + half, "interval": "t", "null": 0.0}
    return base | ends | columns


def result(rows: Iterable[dict[str, Any]] = ()) -> Result:
    return Result("made up", list(rows))  # type: ignore[arg-type]


def geometry(
    distance: float = 0.4, change: float = 0.05, *, name: str = A, null: float = 0.5, **columns: Any
) -> list[Any]:
    of = {"model": name, "place": LAYERS, **columns}
    heads = [row("attention_distance", x, model=name, layer=x_layer, head=h, place=f"blocks.{x_layer}.attn", null=null)
             for x_layer, h, x in ((0, 1, 0.2), (3, 0, 0.6))]  # fmt: skip
    return [
        row("attention_distance", distance, null=null, **of),
        row("attention_distance_last_minus_first", change, **of),
        row("attention_entropy", math.log(16), null=LN64, **of),
        row("attention_entropy", math.log(8), null=LN64, **of | {"tokens": "class"}),
        row("class_mass", 0.02, null=1 / 65, **of),
        row("sink_mass", 0.06, null=1 / 65, **of),
        row("sink_on_prefix", 0.25, 0.05, null=1 / 65, **of),
        *heads,
    ]


def differences(**columns: Any) -> Result:
    pair = {"model": A, "model_b": B, "weights": f"{TRAINED} | {TRAINED}", "place": LAYERS, **columns}
    names = ("attention_distance", "attention_entropy", "class_mass", "sink_mass")
    rows = [
        row(f"{name}{end}_difference", 0.1, **pair) for name in names for end in ("", "_last_minus_first")
    ]
    return result([*rows, row("attention_entropy_difference", -0.3, **pair | {"tokens": "class"})])


def rolled(twins: bool = True) -> Result:
    names = [*(A, B), *([f"{A}, random", f"{B}, random"] if twins else [])]
    return result([*(row("rollout_between_images", 0.02, model=name, layer=9) for name in names)])


def redundancy() -> Result:
    places = {"layer": 9, "place": "blocks.9.resid_post"}
    rank = {
        "low": math.nan,
        "high": math.nan,
        "interval": "none: weights are no sample",
        "null": 0.9,
        "tokens": None,
    }
    return result(
        each
        for name in (A, B)
        for each in (
            row("token_cosine", 0.3, null=0.1, model=name, **places),
            row("attention_cosine_centred", 0.06, model=name, **places),
            row("effective_rank_qk", 0.35, model=name, **places) | rank,
        )
    )


def said(
    first: list[Any], second: list[Any], trained: list[Result] | None = None, **columns: Any
) -> list[str]:
    both = result([*first, *second])
    return geometry_findings(both, rolled(), redundancy(), differences(**columns), trained or [], A, B)


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (0.4, "looks 20.0 % nearer than uniform attention"),
        (0.6, "looks 20.0 % farther than uniform attention"),
        (0.5005, "looks as far as uniform attention (within the interval)"),
    ],
)
def test_the_first_sentence_answers_against_uniform_attention(distance: float, words: str) -> None:
    first = said(geometry(distance), geometry(0.45, name=B))[0]
    assert first.startswith(f"On average over layers and heads `{A}` {words}")
    assert words in first
    assert f"{distance:.3f}"[:4] in first
    assert "where uniform attention has 0.500" in first
    assert "difference 0.100 [0.099, 0.101], paired over 64 images" in first


def test_models_with_the_same_answer_share_it() -> None:
    first = said(geometry(0.5), geometry(0.5, name=B))[0]
    assert f"`{A}` and `{B}` look as far as uniform attention" in first


def test_depth_is_said_for_each_model_by_its_interval() -> None:
    line = said(geometry(change=0.05), geometry(change=-0.02, name=B))[1]
    assert f"Later layers look farther in `{A}`; Later layers look nearer in `{B}`" in line
    none = said(geometry(change=0.0), geometry(change=0.0005, name=B))[1]
    assert none.startswith(f"No change with depth is told in `{A}` and `{B}`")


def test_extreme_heads_are_named() -> None:
    line = said(geometry(), geometry(name=B))[2]
    assert (
        f"from 0.200 [0.199, 0.201] (layer 0, head 1) to 0.600 [0.599, 0.601] (layer 3, head 0) in `{A}`"
        in line
    )


def test_entropy_is_also_a_number_of_patches() -> None:
    patch, cls = said(geometry(), geometry(name=B))[3:5]
    assert "As many patches attended alike: 16.0 [16.0, 16.0] of 64" in patch
    assert "8.0 [8.0, 8.0] of 64" in cls
    assert "difference −0.300" in cls


def test_other_grids_are_not_compared() -> None:
    wide = [
        each | {"null": math.log(196)} if each["quantity"] == "attention_entropy" else each
        for each in geometry(name=B)
    ]
    line = said(geometry(), wide)[3]
    assert "the grids differ" in line
    assert "difference" not in line
    assert "16.0 [16.0, 16.0] of 196" in line


def test_what_training_changed() -> None:
    twin = {"model_b": f"{A}, random", "place": LAYERS}
    changed = result(
        [row("attention_entropy_difference", -0.4, **twin), row("attention_distance_difference", 0.0, **twin)]
    )
    text = " ".join(said(geometry(), geometry(name=B), [changed]))
    assert (
        f"changed the entropy by −0.400 [−0.401, −0.399] nats and the distance by 0.000 [−0.001, 0.001] in `{A}`."
        in text
    )
    assert "Training" not in " ".join(said(geometry(), geometry(name=B)))


def test_sinks_rollout_and_redundancy_stand_beside_their_nulls() -> None:
    text = " ".join(said(geometry(), geometry(name=B)))
    assert f"the class token gets 2.00 % [1.90 %, 2.10 %] (uniform 1.54 %) in `{A}`" in text
    assert "25.00 % [20.00 %, 30.00 %] (any key alike 1.54 %)" in text
    assert "(with random weights 0.020 [0.019, 0.021] and 0.020 [0.019, 0.021])" in text
    assert "cosine of 0.300 [0.299, 0.301] (of two images 0.100)" in text
    assert f"0.350 (random 0.900) in `{A}`" in text  # weights have no interval to miss


def test_random_weights_are_said_and_get_no_verdict() -> None:
    lines = said(geometry(weights=RANDOM), geometry(name=B))
    assert lines[0].startswith("No verdict: at least one of the two has random weights.")
    assert geometry_conclusions(differences(weights=f"{RANDOM} | {TRAINED}"), A, B)[-1].startswith(
        "No verdict"
    )


def test_conclusions_give_differences_and_no_verdict() -> None:
    lines = geometry_conclusions(differences(), A, B)
    assert lines[0] == (
        "Attention distance, fraction of the image side: 0.100 [0.099, 0.101]; its change from the first to the last "
        "third 0.100 [0.099, 0.101]."
    )
    assert lines[3].startswith("Share of attention that goes to the class token: 10.00 % [9.90 %, 10.10 %];")
    assert len(lines) == 6
    assert "no verdict" in lines[-1]


def test_missing_rows_are_said_and_break_nothing() -> None:
    empty = result()
    assert geometry_findings(empty, empty, empty, empty, [], A, B) == [
        "How far attention looks cannot be said: no layer with finite attention maps."
    ]
    assert "Nothing can be concluded" in geometry_conclusions(empty, A, B)[0]
    no_class = [each for each in geometry() if each["quantity"] != "class_mass" and each["tokens"] != "class"]
    lines = geometry_findings(result(no_class), rolled(False), empty, differences(), [], A, B)
    assert "class token gets" not in " ".join(lines)
    assert "The most attended key of all gets 6.00 %" in " ".join(lines)
    single = geometry() + geometry(name=B)
    single = [each | {"low": math.nan, "high": math.nan} for each in single]
    assert "(no interval)" in geometry_findings(result(single), rolled(), empty, empty, [], A, B)[0]
