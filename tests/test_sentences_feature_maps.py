"""What is said of feature maps follows the numbers: hand-made results, no models."""

import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.feature_maps import (
    EARLY,
    example_words,
    map_conclusions,
    map_findings,
    path_words,
    share,
)
from t2t_analysis.sentences.words import NO_VERDICT

SOFT, HARD = "small_performer_deep", "small_hard_deep"
BUNDLED, RANDOM = "bundled (seed 0)", "UNTRAINED (random weights, seed 0)"
NAN = float("nan")


def row(quantity, model, value, half=0.02, null=0.05, place=EARLY, weights=BUNDLED, **more):
    ends = {"low": value - half, "high": value + half} if half is not None else {}
    return {
        "measure": "edge_channels", "quantity": quantity, "model": model, "weights": weights, "place": place,
        "value": value, "null": null, "n": 256, "unit": "image", **ends, **more,
    }  # fmt: skip


def edges(soft=0.2, hard=0.5, weights=BUNDLED, extra=()):
    rows = []
    for model, value in ((SOFT, soft), (HARD, hard)):
        rows += [
            row(f"{kind}_channels", model, value, weights=weights)
            for kind in ("outline", "edge", "brightness")
        ]
        rows += [row("outline_correlation", model, value / 2, null=0.02, ceiling=0.51, weights=weights)]
        rows += [
            row("outline_best", model, 0.6, null=0.35),
            row("position_correlation", model, 0.19, null=0.0),
        ]
    return Result("edge_channels", [*rows, *extra])


def difference(
    outline, edge=None, half=0.02, weights=f"{BUNDLED} | {BUNDLED}", first=SOFT, second=HARD, place=EARLY
):
    values = {"outline": outline, "edge": outline if edge is None else edge, "brightness": 0.0}
    rows = [
        row(f"{kind}_channels_difference", first, value, half, 0.0, place, weights, model_b=second)
        for kind, value in values.items()
    ]
    return Result("edge_channels", rows)


def findings(result=None, early=None, trained=(), pair=(SOFT, HARD), reference="none"):
    return map_findings(result or edges(), early or difference(-0.3), trained, *pair, reference)


@pytest.mark.parametrize(
    ("early", "start", "word"),
    [
        (difference(0.3), "More of the early channels of `small_performer_deep`", "as the paper claims"),
        (
            difference(-0.3),
            "More of the early channels of `small_hard_deep`",
            "contrary to the paper's claim",
        ),
        (difference(0.0, half=0.005), "Early channels follow their image as often in both", "to within 0.01"),
        (difference(0.0), "Inconclusive", "paired over 256 images"),
        (difference(0.3, edge=-0.3), "Inconclusive", "outline and edges do not settle it"),
        (difference(0.3, weights=f"{BUNDLED} | {RANDOM}"), "No verdict", "random weights"),
        (difference(0.3, half=None), "No verdict", "too few images"),
    ],
)
def test_the_first_sentence_is_what_the_intervals_say(early, start, word):
    first = findings(early=early)[0]
    assert first.startswith(start)
    assert word in first


def test_models_that_are_both_soft_are_compared_without_the_paper():
    pair = ("t2t_vit_14", "t2t_vit_24")
    result = Result("edge_channels", edges().frame.replace({SOFT: pair[0], HARD: pair[1]}))
    first = findings(result, difference(-0.3), pair=pair)[0]
    assert "`t2t_vit_24` than of `t2t_vit_14`" in first
    assert "paper" not in first


def test_shares_are_told_against_chance():
    text = findings(edges(soft=0.05, hard=0.5))[1]
    assert "5.0 % [3.0 %, 7.0 %] in `small_performer_deep`" in text
    assert text.count("beyond chance only in `small_hard_deep`") == 2
    assert "beyond chance in neither" in findings(edges(soft=0.05, hard=0.05))[1]
    assert "By chance 5 % would." in text


def test_training_and_architecture_are_told_apart():
    twin = ", random"
    trained = [
        difference(0.1, second=SOFT + twin),
        difference(0.0, half=0.001, first=HARD, second=HARD + twin),
        difference(-0.45, first=SOFT + twin, second=HARD + twin, weights=f"{RANDOM} | {RANDOM}"),
    ]
    text = " ".join(findings(trained=trained))
    assert "Training made more channels follow the outline in `small_performer_deep`" in text
    assert "Training left the share that follows the outline as it was in `small_hard_deep`" in text
    assert "before any training" in text
    assert "−0.450 [−0.470, −0.430]" in text


def test_missing_rows_are_said_and_nothing_is_made_up():
    empty = Result("edge_channels", [row("outline_channels", SOFT, NAN)])
    assert findings(empty) == [
        "What the early layers hold cannot be said: there are no blocks with finite maps, or too few images."
    ]
    assert not any("nan" in line for line in findings(edges(), Result("edge_channels", [])))


def test_a_reference_without_weights_says_so():
    other = [
        row(f"{kind}_channels", "resnet50", 0.4, place=place, weights=RANDOM)
        for kind in ("outline", "edge") for place in ("act1", "layer1")
    ]  # fmt: skip
    last = findings(edges(extra=other), reference="resnet50")[-1]
    assert last.startswith(
        "In `resnet50`, with random weights, 40.0 % [38.0 %, 42.0 %] of the channels of layer1"
    )
    assert not any("resnet50" in line for line in findings())


def probes(first, second):
    rows = [
        row("linear_accuracy", model, value + 0.1 * layer, 0.03, place=f"blocks.{layer}.resid_post", layer=layer)
        for model, value in ((SOFT, first), (HARD, second)) for layer in (1, 0)
    ]  # fmt: skip
    return Result("probes", rows)


def test_conclusions_agree_or_say_that_they_do_not():
    same = [difference(-0.4, place="embed"), difference(-0.3)]
    lines = map_conclusions(same, probes(0.5, 0.3), SOFT, HARD)
    assert lines[0].startswith("Share of channels, patch embedding")
    assert "beyond −0.01" in lines[0]
    assert "50.0 % [47.0 %, 53.0 %] in `small_performer_deep`" in lines[2]
    assert "lie apart" in lines[2]
    assert "`small_hard_deep` shows more of its image" in lines[-1]
    assert "contrary to the paper's claim" in lines[-1]
    mixed = [difference(0.4, place="embed"), difference(-0.3)]
    assert "no single answer" in map_conclusions(mixed, probes(0.5, 0.48), SOFT, HARD)[-1]
    assert "overlap" in map_conclusions(mixed, probes(0.5, 0.48), SOFT, HARD)[2]
    random = [difference(-0.3, weights=f"{RANDOM} | {RANDOM}")]
    assert map_conclusions(random, probes(0.5, 0.3), SOFT, HARD)[-1] == NO_VERDICT
    small = [difference(0.0, half=0.001)]
    assert "as much of their image" in map_conclusions(small, probes(0.5, 0.3), SOFT, HARD)[-1]


def test_without_labels_the_spectrum_speaks():
    rows = [
        row("high_frequency_share", model, value, null=0.81, place="blocks.0.resid_post")
        for model, value in ((SOFT, 0.4), (HARD, 0.3))
    ]
    lines = map_conclusions([difference(-0.3)], Result("spectrum", rows), SOFT, HARD)
    assert "0.400 [0.380, 0.420] in `small_performer_deep` (white noise: 0.810)" in lines[1]


def test_the_path_is_compared_where_it_exists():
    rows = [row("map_correlation", HARD, 0.84, null=0.0, place="blocks.0.resid_post")]
    text = path_words(Result("shortcut_share", rows), "blocks.0.resid_post", [HARD, SOFT])
    assert "0.840 [0.820, 0.860] in `small_hard_deep`" in text
    assert "For `small_performer_deep` the path does not exist" in text
    assert path_words(None, "embed", [HARD]).startswith("For `small_hard_deep` the path does not exist")


def test_small_words():
    assert share({"value": 0.5, "low": NAN, "high": NAN}) == "50.0 % (no interval)"
    assert "as asked for" in example_words(3, 3)
    assert "clearest outline" in example_words(8, None)
