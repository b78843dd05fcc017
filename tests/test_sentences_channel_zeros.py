"""What is said of invalid channels follows the numbers: hand-made results, no models."""

import pytest

from t2t_analysis.results import Result
from t2t_analysis.sentences.channel_zeros import STREAM, path_findings, small, zero_conclusions, zero_findings
from t2t_analysis.sentences.words import NO_VERDICT

SOFT, HARD = "small_performer_deep", "small_hard_deep"
BUNDLED, RANDOM = "bundled (seed 0)", "UNTRAINED (random weights, seed 0)"
AREAS = ("zero_area", "flat_area", "dead_area", "too_large_area", "invalid_area")


def row(quantity, model, value, place=STREAM, half=0.001, null=0.0, **more):
    ends = {"low": value - half, "high": value + half} if half is not None else {}
    start = {
        "measure": "m",
        "quantity": quantity,
        "model": model,
        "weights": BUNDLED,
        "place": place,
        "value": value,
    }
    return start | {"null": null, "n": 96, "unit": "image"} | ends | more


def invalid(soft=0.0, hard=0.0, hidden=0.003, zero_from=0.2, everywhere=0.0, exact=0.0):
    """A block and its hidden layer of two models; ``zero_from``: threshold from which any channel is zero."""
    rows = []
    for model, value in ((SOFT, soft), (HARD, hard)):
        rows += [row(quantity, model, value, half=0.0 if value == 0 else 0.001) for quantity in AREAS]
        rows += [row("too_large_area", model, hidden, "blocks.0.mlp.hidden", layer=0)]
        rows += [row("exact_zero", model, exact, "blocks.0.mlp.hidden", layer=0)]
        rows += [
            row("zero", model, float(at >= zero_from) / 100, "blocks.0.resid_post", layer=0, at=at)
            for at in (0.01, 0.1, 0.2, 1.0)
        ]
        rows += [
            row("zero_area_in_every_image", model, everywhere, "blocks.0.resid_post", layer=0)
            | {"low": everywhere / 2, "high": everywhere + 0.0385, "n": 96, "unit": "channel"}
        ]
    return Result("invalid_channels", rows)


def outliers(massive=0.0):
    rows = [
        row(quantity, model, value, f"blocks.{layer}.resid_post", layer=layer, null=null)
        for model in (SOFT, HARD)
        for layer in (0, 1)
        for quantity, value, null in (
            ("massive_activations", massive * layer, 0.0), ("outlier_tokens", 0.01, 0.0), ("kurtosis", 3 + layer, 2.94),
        )
    ]  # fmt: skip
    return Result("channel_outliers", rows)


def difference(value, half=0.001, weights=f"{BUNDLED} | {BUNDLED}", first=SOFT, second=HARD, place=STREAM):
    rows = [
        row(f"{area}_difference", first, value, place, half) | {"weights": weights, "model_b": second}
        for area in AREAS
    ]
    return Result("invalid_channels", rows)


def findings(result=None, stream=None, trained=(), other=None, pair=(SOFT, HARD)):
    return zero_findings(result or invalid(), other or outliers(), stream or difference(0.0), trained, *pair)


@pytest.mark.parametrize(
    ("result", "stream", "words"),
    [
        (invalid(0.0, 0.1), difference(-0.1), ["`small_performer_deep` has fewer", "as the paper claims"]),
        (
            invalid(0.1, 0.0),
            difference(0.1),
            ["`small_hard_deep` has fewer", "contrary to the paper's claim"],
        ),
        (
            invalid(),
            difference(0.0),
            ["Hardly any channel of `small_performer_deep` or", "contrary to the paper's claim"],
        ),
        (invalid(0.3, 0.3), difference(0.0), ["have as many channels", "to within 1 %"]),
        (invalid(0.3, 0.3), difference(0.01, half=0.02), ["Inconclusive: the interval reaches across 1 %"]),
        (invalid(), difference(0.0, weights=f"{RANDOM} | {BUNDLED}"), ["No verdict", "random weights"]),
        (invalid(), difference(0.0, half=None), ["No verdict", "too few images"]),
        (
            invalid(),
            difference(0.0, half=0.0),
            ["No verdict: in none of the 96 images", "up to 3.1 % of images"],
        ),
    ],
)
def test_the_first_sentence_is_what_the_interval_says(result, stream, words):
    first = findings(result, stream)[0]
    for word in words:
        assert word in first
    assert "paired over 96 images" in first


def test_two_soft_splits_are_compared_without_the_paper():
    pair = ("t2t_vit_14", "t2t_vit_24")
    result = Result("m", invalid().frame.replace({SOFT: pair[0], HARD: pair[1]}))
    first = findings(result, pair=pair)[0]
    assert first.startswith("Hardly any channel of `t2t_vit_14` or `t2t_vit_24`")
    assert "paper" not in first


def test_how_far_from_zero_and_what_no_case_means():
    text = findings()[1]
    assert "no channel of any block has a peak below 0.1 levels" in text
    assert "none of the 96 images" in text
    assert "up to 3.1 % of images" in text  # 1 - 0.05 ** (1 / 96)
    assert "some have a peak of 0" in findings(invalid(zero_from=0.0))[1]


def test_largest_share_everywhere_and_exact_zeros():
    text = " ".join(findings())
    assert "0.30 % [0.20, 0.40] at blocks.0.mlp.hidden of `small_performer_deep` (too large" in text
    assert "leaves up to 3.85 % possible (Wilson)" in text
    assert "No value at any place is exactly 0." in text
    other = " ".join(findings(invalid(everywhere=0.25, exact=0.5)))
    assert (
        "Channels that are zero in every image, at most 25.00 % [12.50, 28.85], are at blocks.0.resid_post"
        in other
    )
    assert "exactly 0 are at blocks.0.mlp.hidden" in other


def test_outliers_are_named_with_their_layer():
    assert any(line.startswith("No activation of the residual stream is massive") for line in findings())
    text = " ".join(findings(other=outliers(massive=2.0)))
    assert "Massive activations per image, in the block with most: 2.000 [1.999, 2.001]" in text
    assert "4.000 [3.999, 4.001] in `small_hard_deep` (layer 1); normal values have 2.940" in text


def test_training_is_told_from_the_twins():
    trained = [
        difference(-0.2, second=f"{SOFT}, random"),
        difference(0.0, first=HARD, second=f"{HARD}, random"),
    ]
    text = " ".join(findings(trained=trained))
    assert "Training made fewer channels zero or too large in `small_performer_deep`" in text
    assert "Training made no difference that counts in `small_hard_deep`" in text
    assert "Training changed nothing about that" in " ".join(findings(trained=[difference(0.0, half=0.0)]))


def test_missing_rows_are_said():
    assert findings(Result("m", []), other=Result("m", []))[0].startswith(
        "Whether channels are invalid cannot be said"
    )


def shortcut(shown, real=0.0, left=0.0, half=0.001):
    """One block of one model; ``left``: what remains with the position table put right."""
    where, rows = "blocks.2.resid_post", []
    for kind in ("zero", "flat"):
        value = shown if kind == "flat" else 0.0
        wide = half if value else 0.0
        rows += [
            row(f"{kind}_area_shortcut", HARD, value, where, wide, layer=2),
            row(f"{kind}_area_real", HARD, real, where, 0.0, layer=2),
            row(f"{kind}_area_made_by_shortcut", HARD, value - real, where, wide, layer=2),
            row(f"{kind}_area_share", HARD, 1 - real / value if value else float("nan"), where, layer=2),
            row(f"{kind}_area_made_with_position", HARD, left, where, 0.0005, layer=2),
            row(f"{kind}_area_made_with_class_token", HARD, value, where, half, layer=2),
        ]
    return Result("shortcut_share", rows)


def test_what_the_path_makes_and_which_step():
    zero, flat = path_findings(shortcut(0.05), [HARD])
    assert "next to no zero channels either" in zero
    assert "shows 5.00 % [4.90, 5.10] flat channels at blocks.2.resid_post" in flat
    assert "100 % of all that it shows, more than 1 % of the channels" in flat
    assert "One step, put right, removes most of them: the position table" in flat
    assert "class token" not in flat
    half = path_findings(shortcut(0.05, real=0.025, left=0.05), [HARD])[-1]
    assert "50 % of all that it shows" in half
    assert "put right" not in half
    assert "not settled against 1 %" in path_findings(shortcut(0.01, half=0.005), [HARD])[-1]


def test_models_without_the_path_are_named():
    assert path_findings(None, ["swin"]) == [
        "For `swin` the path does not exist: it is more than its children in a row."
    ]
    assert len(path_findings(shortcut(0.05), [HARD, SOFT])) == 3


def test_conclusions_count_what_is_beyond_the_threshold():
    differences = [difference(-0.1), difference(0.0, place="embed")]
    lines = zero_conclusions(invalid(0.0, 0.1), differences, SOFT, HARD)
    assert lines[0].endswith("4 of 4 beyond ±1 %.")
    assert lines[1].endswith("none beyond ±1 %.")
    assert "`small_performer_deep` has fewer" in lines[-1]
    random = [difference(0.0, weights=f"{RANDOM} | {RANDOM}")]
    assert zero_conclusions(invalid(), random, SOFT, HARD)[-1] == NO_VERDICT


def test_shares_keep_the_digits_that_tell():
    assert small({"value": 0.25, "low": float("nan"), "high": 0.3}) == "25.00 % (no interval)"
    assert small({"value": 2e-5, "low": -1e-9, "high": 4e-5}) == "0.002 % [0, 0.004]"
