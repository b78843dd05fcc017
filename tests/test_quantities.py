"""Every number has a name that is described once, and one way of being written."""

import pytest

from t2t_analysis.claims.headlines import HEADLINES
from t2t_analysis.claims.ledger import all_claims
from t2t_analysis.errors import UnknownNameError
from t2t_analysis.quantities import ENDPOINTS, QUANTITIES, quantity
from t2t_analysis.training.effects import CONTRASTS, published


def test_whatever_a_claim_or_the_study_names_is_described():
    names = {
        name
        for claim in all_claims()
        for e in claim.effects
        for name in (e.controlled, e.pair, e.premise)
        if name
    }
    names |= (
        set(CONTRASTS)
        | {f"{name}_published" for name in published("train")}
        | set(HEADLINES)
        | set(ENDPOINTS)
    )
    names |= {str(headline.where["quantity"]) for headline in HEADLINES.values()}
    assert {name for name in names if not quantity(name).words} == set()


@pytest.mark.parametrize(
    "name", ["", "_difference", "cosine", "zero_area_differenc", "a:b", "tokeniser_effect:b"]
)
def test_an_unknown_name_is_no_quantity(name):
    with pytest.raises(UnknownNameError):
        quantity(name)


def test_a_difference_keeps_unit_and_smallest_effect():
    for base in (q for q in QUANTITIES.values() if ":" not in q.name):
        derived = quantity(f"{base.name}_difference")
        assert (derived.smallest, derived.scale, derived.claimed) == (base.smallest, base.scale, base.claimed)
        assert derived.unit == ("points" if base.unit == "%" else base.unit)


def test_numbers_are_written_in_one_way():
    share, cosine = quantity("zero_area"), quantity("cosine_centred")
    assert cosine.interval({"value": 0.12, "low": 0.0004, "high": 0.2}) == "0.1200 [0.0004, 0.2000]"
    assert share.interval({"value": 0.0, "low": 0.0, "high": 0.0}) == "0.0 % [0.0, 0.0]"
    assert share.interval({"value": 0.00012, "low": 0.0001, "high": 0.00014}) == "0.012 % [0.010, 0.014]"
    assert (
        cosine.number(None) == cosine.interval({"value": None, "low": None, "high": None}) == "not measured"
    )
    assert quantity("parameters").number(21_546_000) == "21.55 million"
    assert (
        quantity("accuracy_difference")
        .interval({"value": -0.0004, "low": -0.01, "high": 0.009})
        .startswith("−0.04")
    )
