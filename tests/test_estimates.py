"""A number with its replicates: what is done to it is done to them, and a result keeps them beside its rows."""

from dataclasses import replace

import numpy as np
import pytest

from t2t_analysis.differences import difference, twin_differences
from t2t_analysis.errors import DataError, T2TError, UnknownNameError
from t2t_analysis.estimates import TOO_FEW, Estimate
from t2t_analysis.results import Result, joined

RNG = np.random.default_rng(0)


def of_mean(x, groups=8):
    """Mean of x (n, ...) with groups of images left out."""
    x = np.asarray(x, dtype=float)
    which = np.arange(len(x)) % groups
    left = np.array([x[which != g].mean(0) for g in range(groups)])
    return Estimate(x.mean(0), left, np.bincount(which, minlength=groups))


def found(**samples):
    """A result with a row per layer, of samples (n, layers) by model."""
    rows = [
        {
            "measure": "m", "quantity": "q", "model": model, "weights": "file", "estimator": "mean", "tokens": "patch",
            "place": np.array([f"blocks.{i}" for i in range(x.shape[1])]), "layer": np.arange(x.shape[1]),
            "estimate": of_mean(x), "null": of_mean(0 * x), "value_unit": "none",
        }
        for model, x in samples.items()
    ]  # fmt: skip
    return Result("m", rows)


def test_functions_of_an_estimate_are_estimates_of_functions():
    x = RNG.normal(2, 1, (40, 3))
    e = of_mean(x)
    for made, direct in (
        (e.mean(), of_mean(x.mean(1))),
        (e[1] - e[0], of_mean(x[:, 1] - x[:, 0])),
        (e[2] - 1.0, of_mean(x[:, 2] - 1)),
        (e / 2.0, of_mean(x / 2)),
        (e.map(lambda v: v[..., -1] - v[..., 0]), of_mean(x[:, 2] - x[:, 0])),
    ):
        for part in ("value", "low", "high", "se", "p", "n", "df"):
            assert getattr(made, part) == pytest.approx(getattr(direct, part)), part


def test_a_log_interval_stays_above_zero():
    e = Estimate(np.array([0.5]), np.array([[0.9], [0.1], [0.5]]), np.ones(3))
    assert (
        float(e.low[0])
        < 0
        < float(e.positive().low[0])
        < 0.5
        < float(e.high[0])
        < float(e.positive().high[0])
    )
    assert e.positive().interval.tolist() == ["t of the logarithm, delete-a-group jackknife, 3 groups"]

    low, high = (float(x[0]) for x in (e.low, e.high))
    ratio = (high - low) / 2 / 0.5
    found = (float(e.positive().low[0]), float(e.positive().high[0]))
    assert found == pytest.approx((0.5 * np.exp(-ratio), 0.5 * np.exp(ratio)))
    none = Estimate(np.array(0.0), np.array([0.1, 0.0]), np.ones(2)).positive()
    assert (float(none.low), float(none.high)) == (0, 0)
    assert np.isnan(float(Estimate(np.array(0.5), np.array([0.5]), np.ones(1)).positive().low))


def test_p_of_what_has_no_spread():
    left = np.array([[0.0, 0.5, 0.4], [0.0, 0.5, 0.6]])
    e = Estimate(np.array([0.0, 0.5, 0.5]), left, np.ones(2))
    assert e.p[:2].tolist() == [1.0, 0.0]
    assert e.p[2] == pytest.approx(2 * 0.0628329, abs=1e-6)  # t of 5 with one degree of freedom
    assert e.df.tolist() == [1.0] * 3
    assert e.note is None
    assert e[0].columns() == {
        "value": 0, "low": 0, "high": 0, "se": 0, "df": 1, "interval": "t, delete-a-group jackknife, 2 groups",
        "n": 2, "unit": "image",
    }  # fmt: skip


def test_means_of_units_leave_out_what_belongs_together():
    x = RNG.normal(size=70)
    e = Estimate.of_units(x)
    assert (int(e.groups), int(e.n)) == (32, 70)
    assert float(e.low) == pytest.approx(float(of_mean(x, 32).low))
    crops = Estimate.of_units([1.0, 3.0, 2.0, 6.0], group=[7, 7, 9, 9])
    assert crops.leave_out.tolist() == [4.0, 2.0]
    assert crops.sizes.tolist() == [2.0, 2.0]
    one = Estimate.of_units([1.0, np.nan])
    assert (float(one.value), int(one.groups), one.note) == (1.0, 1, TOO_FEW)
    with pytest.raises(DataError, match="no channels: a mean needs at least one value"):
        Estimate.of_units([], unit="channel")


def test_estimates_of_other_groups_stand_side_by_side_and_are_not_paired():
    a, b = Estimate.of_units([1.0, 2.0, 4.0]), Estimate.of_units([5.0, 9.0])
    both = Estimate.concatenate([a, b])
    for part in ("value", "low", "high", "se", "df", "n"):
        assert getattr(both, part).tolist() == pytest.approx([float(getattr(x, part)) for x in (a, b)]), part
    with pytest.raises(T2TError, match="different images: 3 and 2, or in other groups"):
        a - b
    with pytest.raises(T2TError, match="different images: 3 and 3, or in other groups"):
        a - Estimate(a.value, a.leave_out, np.array([1, 2, 0]))
    assert int(Estimate(np.zeros(2), np.zeros((3, 2)), np.array([[1, 0], [1, 2], [1, 0]])).mean().n) == 4


def test_without_two_groups_there_is_no_interval():
    e = Estimate(np.array([0.5]), np.array([[np.nan], [0.5]]), np.array([4, 0]))
    assert np.isnan([e.low, e.high, e.se, e.p]).all()
    assert e.interval.tolist() == [None]
    assert e.note


def test_rows_keep_their_replicates_through_files_choices_and_joins(tmp_path):
    result = found(a=RNG.normal(size=(16, 2)), b=RNG.normal(size=(16, 3)))
    assert result.frame["n"].tolist() == [16] * 5
    assert (result.frame["null_low"] == 0).all()
    again = Result.load(result.save(tmp_path / "r.parquet"))
    for one in (again, Result("m", *joined([result])[:1], {}, (), joined([result])[1])):
        chosen = one.where(model="b", layer=[1, 2])
        assert chosen.frame["place"].tolist() == ["blocks.1", "blocks.2"]
        assert chosen.estimates().low == pytest.approx(chosen.frame["low"].to_numpy(float))
    with pytest.raises(T2TError, match="5 estimates beside 2 rows"):
        Result("m", result.frame.head(2), replicates=result.replicates)
    with pytest.raises(UnknownNameError, match="'c'"):
        result.where(model="c")


def test_a_difference_is_that_of_the_paired_samples():
    x, y = RNG.normal(size=(2, 24, 3))
    row = difference(found(a=x, b=y[:, :2]), "a", "b").frame
    direct = of_mean(x[:, :2] - y[:, :2])
    assert row["quantity"].tolist() == ["q_difference"] * 2
    assert row["weights"].iloc[0] == "file | file"
    for part in ("value", "low", "high", "p"):
        assert row[part].to_numpy(float) == pytest.approx(getattr(direct, part))
    assert row["interval"].unique().tolist() == ["t, delete-a-group jackknife paired over images, 8 groups"]
    other = difference(found(a=x, b=y), "a", "b", "blocks.0", "blocks.2").frame.iloc[0]
    assert other["value"] == pytest.approx((x[:, 0] - y[:, 2]).mean())
    assert other["place_b"] == "blocks.2"


def test_what_cannot_be_paired_is_refused():
    x = RNG.normal(size=(24, 1))
    with pytest.raises(T2TError, match="different images: 24 of a and 16 of b"):
        difference(found(a=x, b=x[:16]), "a", "b")
    with pytest.raises(UnknownNameError, match="'aa'"):
        difference(found(a=x, b=x), "aa", "b")
    counts = [("q", "a", 24), ("q", "b", 24), ("r", "a", 24), ("r", "b", 16)]
    shared = {"place": "embed", "weights": "file"}
    mixed = Result("m", [shared | {"quantity": q, "model": m, **of_mean(x[:n]).at(0)} for q, m, n in counts])
    left = difference(mixed, "a", "b")
    assert left.frame["quantity"].tolist() == ["q_difference"]
    assert "no difference in r: 1 rows rest on other images of a than of b" in left.notes[-1]
    asked = replace(found(a=x, b=x), meta={"conditions": {"a": {"cells": 1}, "b": {"cells": 2}}})
    assert difference(asked, "a", "b").notes == ("a and b differ in what they were asked: cells 1 and 2",)


def test_a_twin_is_compared_with_its_model():
    x = RNG.normal(size=(24, 1))
    result = found(**{"a": x, "a, random": x + 1, "b": x})
    (one,) = twin_differences(result, ["a", "b"])
    assert one.frame["value"].tolist() == pytest.approx([-1.0])
    assert one.frame["model_b"].tolist() == ["a, random"]


def test_objects_show_themselves_in_one_line_and_a_small_table():
    from t2t_analysis.claims.ledger import all_claims
    from t2t_analysis.data.info import DataInfo
    from t2t_analysis.models import Provenance
    from t2t_analysis.results import Results

    one = {
        "measure": "m",
        "quantity": "cosine_centred",
        "model": "a<b",
        "value": -0.5,
        "low": -0.6,
        "high": -0.4,
    }
    rows = [one | {"n": 8, "layer": i} for i in range(20)]
    result = Result("m", rows)
    assert repr(result) == "<Result m: 20 rows, 1 quantities, of a<b>"
    assert repr(Results((result,))) == "<Results: m (20 rows)>"
    html = Results((result,))._repr_html_()
    assert html.count("<tr>") == 1 + 12
    assert "a&lt;b" in html
    assert "−0.500 [−0.600, −0.400]" in html
    latex = result.to_latex("Heads")
    assert latex.count("$-$0.500 [$-$0.600, $-$0.400]") == 20
    assert r"\caption{Heads}" in latex
    info = DataInfo("photos", "test", 3, ("a", "b"), "CC0", 0.5, names=("x",) * 500)
    for shown in (info, Provenance("random", "seed 0", seed=0), all_claims()[0]):
        assert len(repr(shown)) < 250
        assert "<table>" in shown._repr_html_()
