"""What is said of attribution maps follows the numbers: made-up results, no map is made."""

from types import SimpleNamespace

import pytest

from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import AttributionParams
from t2t_analysis.results import Result
from t2t_analysis.sentences.attribution import attribution_conclusions, attribution_findings

SOFT, HARD = "soft", "hard"


def models(untrained=False):
    return {name: SimpleNamespace(provenance=SimpleNamespace(untrained=untrained)) for name in (SOFT, HARD)}


def row(model, quantity, value, half, **more):
    return {
        "measure": "attribution", "model": model, "variant": "occlusion", "estimator": "occlusion",
        "quantity": quantity, "value": value, "low": value - half, "high": value + half, "null": 0.0, "n": 12,
        "unit": "image", "weights": "file",
    } | more  # fmt: skip


def results(gain=(0.3, 0.05), left=(0.2, 0.05), agreement=(0.5, 0.1), **more):
    """One method in two models that answer alike; maps of other images have 0.2."""
    rows = [row(model, "faithfulness", *gain, **more) for model in (SOFT, HARD)]
    for model in (SOFT, HARD):
        rows.append(row(model, "spearman_abs", 1.0, 0.0, at=0.0, null=None, **more))
        rows.append(row(model, "spearman_abs", 0.9, 0.05, at=1.0, null=0.2, **more))
        rows.append(row(model, "spearman_abs", *left, at=12.0, null=0.2, **more))
    rows.append(row(SOFT, "agreement", *agreement, model_b=HARD, **more))
    rows.append(
        row(SOFT, "completeness_error", 0.033, 0.01, null=0.39, variant="integrated_gradients", **more)
    )
    return [Result("attribution", rows)]


def said(*args, **kwargs):
    return attribution_findings(results(*args, **kwargs), models())


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [((0.3, 0.05), "supported"), ((0.01, 0.05), "open"), ((-0.3, 0.05), "contradicted")],
)
def test_maps_are_held_against_random_orders(gain, verdict):
    line = said(gain=gain)[1]
    assert line.startswith(f"Maps rank first what the answer rests on (occlusion): **{verdict}** for `soft`")
    assert "n = 12 images" in line


@pytest.mark.parametrize(
    ("left", "verdict", "trusted"),
    [
        ((0.2, 0.05), "no difference that counts", True),
        ((0.6, 0.05), "supported", False),
        ((-0.4, 0.05), "contradicted", True),
        ((0.3, 0.2), "open", False),
    ],
)
def test_a_map_has_to_forget_with_the_weights(left, verdict, trusted):
    """What is beyond maps of other images counts, with all parts random, not what a single part leaves."""
    assert f"**{verdict}** for `soft`" in said(left=left)[2]
    (line,) = attribution_conclusions(results(left=left), models())  # one method was asked
    assert said(left=left)[0] == line  # the answer comes first
    assert line.startswith(f"{'Trust' if trusted else 'Do not rest on'} occlusion in `soft` and `hard`")


def test_agreement_is_judged_beyond_its_null():
    assert "**supported** by occlusion, 0.500 [0.400, 0.600] (null 0.000)" in said()[3]
    assert "**no difference that counts**" in said(agreement=(0.0, 0.05))[3]


def test_random_weights_get_no_verdict_but_their_numbers():
    found = results(weights="UNTRAINED (random, seed 0)")
    lines = attribution_findings(found, models(untrained=True))
    assert lines[0].startswith("No verdict from random weights")
    assert not any("**" in line for line in lines)
    assert "0.300 [0.250, 0.350]" in " ".join(lines)
    assert attribution_conclusions(found, models(untrained=True)) == lines[:1]


def test_completeness_is_a_share_with_its_null():
    assert "3.3 % [2.3, 4.3] in `soft` (null 39.0 %)" in said()[-1]


def test_one_image_is_refused_at_once():
    with pytest.raises(ParameterError, match="takes two or more"):
        validate(AttributionParams, {"n_images": 1})
