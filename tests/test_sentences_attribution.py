"""What is said of attribution maps follows the numbers: made-up results, no map is made."""

import math

import pandas as pd
import pytest

from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import AttributionParams
from t2t_analysis.results import Result, Results
from t2t_analysis.sentences.attribution import (
    attribution_card,
    attribution_conclusions,
    attribution_findings,
)

SOFT, HARD = "soft", "hard"
#: area of deletion and insertion: value, p; random orders have 0.3
GOOD = {"deletion_area": (0.1, 0.001), "insertion_area": (0.6, 0.001)}
DULL = {"deletion_area": (0.29, 0.4), "insertion_area": (0.31, 0.5)}
BAD = {"deletion_area": (0.5, 0.001), "insertion_area": (0.1, 0.001)}


def _row(model, method, quantity, value, low=math.nan, high=math.nan, **more):
    return {
        "model": model, "estimator": method, "quantity": quantity, "value": value, "low": low, "high": high,
        "null": 0.0, "n": 12, "weights": "file", "at": math.nan,
    } | more  # fmt: skip


def _results(areas=None, other=(0.0, -0.2, 0.2), cascade=(0.0, -0.05, 0.05), weights="file", agreement=None):
    """One method, occlusion, in two models that answer alike."""
    rows = {"attribution_faithfulness": [], "attribution_other_class": [], "attribution_cascade": []}
    for model in (SOFT, HARD):
        for quantity, (value, p) in (areas or GOOD).items():
            found = _row(model, "occlusion", quantity, value, value - 0.05, value + 0.05, null=0.3, p=p)
            rows["attribution_faithfulness"].append(found)
        rows["attribution_other_class"].append(_row(model, "occlusion", "other_class", *other))
        rows["attribution_cascade"] += [
            _row(model, "occlusion", "spearman_abs", 1.0, at=0.0, null=math.nan),
            _row(model, "occlusion", "spearman_abs", 0.9, 0.8, 1.0, at=1.0),
            _row(model, "occlusion", "spearman_abs", *cascade, at=12.0),
        ]
    if agreement is not None:
        rows["attribution_agreement"] = [
            _row(SOFT, name, "agreement", *numbers, model_b=HARD) for name, numbers in agreement.items()
        ]
    made = (
        Result(name, pd.DataFrame([{"measure": name} | r | {"weights": weights} for r in found]), {})
        for name, found in rows.items()
    )
    return Results(tuple(made))


def _answers(results, model=SOFT):
    card = attribution_card(results)
    row = card[card["model"] == model].iloc[0]
    return [row[check] for check in ("deletion", "insertion", "another class", "random weights")]


def test_a_method_that_passes_everything_is_named_first():
    results = _results()
    assert _answers(results) == ["passes"] * 4
    assert attribution_findings(results)[0].startswith(
        "Of 1 methods, those whose maps pass all four checks: in `soft` occlusion of pixel cells, while none fails"
    )
    assert attribution_conclusions(results)[0] == (
        "Occlusion of pixel cells: in `soft` passes deletion, insertion, another class and random weights; "
        "in `hard` passes deletion, insertion, another class and random weights."
    )


@pytest.mark.parametrize(
    ("areas", "expected"),
    [(GOOD, "passes"), (DULL, "not settled"), (BAD, "fails")],
    ids=("good", "dull", "bad"),
)
def test_areas_are_held_against_random_orders_in_the_right_direction(areas, expected):
    assert _answers(_results(areas))[:2] == [expected, expected]


def test_p_is_corrected_over_all_methods_and_curves():
    """0.02 would do for one test; there are four."""
    areas = {"deletion_area": (0.1, 0.02), "insertion_area": (0.6, 0.02)}
    results = _results(areas)
    assert _answers(results)[:2] == ["not settled", "not settled"]
    assert "p = 0.080 after Holm" in " ".join(attribution_findings(results))


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0.5, 0.2, 0.8), "passes"), ((1.0, 1.0, 1.0), "fails"), ((0.9, 0.8, 1.0), "not settled")],
)
def test_a_map_has_to_change_with_the_class(other, expected):
    results = _results(other=other)
    assert _answers(results)[2] == expected
    said = " ".join(attribution_findings(results))
    assert ("occlusion of pixel cells fails at least one" in said) == (expected == "fails")
    assert ("The map does not change with the class" in said) == (expected == "fails")
    assert ("No method fails the check of another class" in said) == (expected != "fails")


@pytest.mark.parametrize(
    ("cascade", "expected"),
    [
        ((0.5, 0.4, 0.6), "fails"),
        ((0.0, -0.05, 0.05), "passes"),
        ((-0.4, -0.6, -0.2), "passes"),
        ((0.1, -0.1, 0.3), "not settled"),
        ((0.1, math.nan, math.nan), "not settled"),
    ],
)
def test_a_map_has_to_forget_with_the_weights(cascade, expected):
    results = _results(cascade=cascade)
    assert _answers(results)[3] == expected
    said = " ".join(attribution_findings(results))
    assert ("The map outlives its weights" in said) == (expected == "fails")
    if expected == "fails":
        assert "0.500 [0.400, 0.600], maps of other images 0.000, n = 12" in said


def test_random_weights_get_no_verdict_but_their_numbers():
    results = _results(weights="UNTRAINED (random, seed 0)")
    assert _answers(results) == ["no verdict"] * 4
    assert attribution_findings(results)[0].startswith("No verdict: random weights")
    assert not any("check" in line for line in attribution_findings(results))
    assert attribution_conclusions(results)[0].startswith("No verdict: random weights")
    assert "area 0.100 [0.050, 0.150]" in " ".join(attribution_findings(results))


def test_agreement_counts_what_is_beyond_the_null_and_what_is_open():
    found = _results(
        agreement={"occlusion": (0.5, 0.4, 0.6), "grad_cam": (0.2, 0.0, 0.4), "rollout": (0.0, -0.05, 0.05)}
    )
    line = attribution_findings(found)[-1]
    assert "On the 12 images that `soft` and `hard` give the same class" in line
    assert "for 1 of 3 methods, and not settled for 1" in line
    assert "occlusion of pixel cells 0.500 [0.400, 0.600], null 0.000" in line
    assert "too rarely" in attribution_findings(_results(agreement={}))[-1]


def test_what_was_not_asked_is_not_passed():
    results = _results()
    fewer = Results(tuple(r for r in results.values() if r.measure == "attribution_faithfulness"))
    assert _answers(fewer) == ["passes", "passes", "not asked", "not asked"]
    assert "in `soft` none, while none fails and 1 leaves some open" in attribution_findings(fewer)[0]
    assert "was not asked another class and random weights" in attribution_conclusions(fewer)[0]


def test_completeness_is_a_share_with_its_null():
    row = _row(SOFT, "integrated_gradients", "completeness_error", 0.033, 0.02, 0.05, null=0.39)
    name = "attribution_completeness"
    result = Result(name, pd.DataFrame([{"measure": name} | row]), {})
    said = " ".join(attribution_findings(Results((*_results().values(), result))))
    assert "miss 3.3 % [2.0 %, 5.0 %] in `soft` (maps of other images would miss 39.0 %)" in said


@pytest.mark.parametrize(
    ("learned", "numbers", "words"),
    [
        ((128, 0.4), (0.5, 0.4, 0.6), "128 images with permuted labels, knows 40 % by heart, too few"),
        ((128, 0.97), (0.5, 0.4, 0.6), "likeness beyond maps of other images by occlusion of pixel cells"),
        ((128, 0.97), (0.0, -0.1, 0.1), "by no method demonstrably"),
    ],
)
def test_permuted_labels(learned, numbers, words):
    name = "attribution_random_labels"
    rows = pd.DataFrame([{"measure": name} | _row(SOFT, "occlusion", "spearman_abs", *numbers)])
    assert words in attribution_conclusions(_results(), Result(name, rows, {}), learned)[-1]


def test_permuted_labels_that_were_not_run_are_said_not_to():
    assert "was not run here" in attribution_conclusions(_results())[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_images": 1}, "takes two or more"),
        ({"model": "t2t_vit_14", "label_randomisation": True}, "takes a small model"),
        ({"data": "photos", "label_randomisation": True}, "images with labels"),
    ],
)
def test_what_the_checks_cannot_be_made_with_is_refused_at_once(given, words):
    with pytest.raises(ParameterError, match=words):
        validate(AttributionParams, given)
    assert validate(AttributionParams, {"label_randomisation": True}).n_images == 12
