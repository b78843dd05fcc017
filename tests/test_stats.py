"""Statistics against scipy and closed forms, and whether 95 % intervals cover 95 %."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats as sps
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.multitest import multipletests

from t2t_analysis import stats
from t2t_analysis.errors import DataError

SETS = 2000


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def coverage(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


def of_seeds(x):
    return stats.Student.of(x, "seed", "mean")


def test_the_interval_of_a_mean_is_scipys(rng):
    x = rng.normal(size=17)
    interval = of_seeds(x)
    expected = sps.t.interval(0.95, 16, x.mean(), sps.sem(x))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.n == 17


def test_a_mean_without_spread_has_an_interval_and_no_p():
    flat = of_seeds([2.0, 2.0, 2.0])
    assert (flat.low, flat.high) == (2.0, 2.0)
    assert np.isnan(flat.p)
    assert of_seeds([1.0, 2.0, 3.0]).columns()["interval"] == "t, 2 degrees of freedom"
    assert of_seeds([1.0, 2.0]).p == pytest.approx(sps.ttest_1samp([1.0, 2.0], 0).pvalue)
    lone = of_seeds([1.0]).columns()
    assert lone["interval"] == "none: one seed per cell"
    assert np.isnan([lone["se"], lone["df"], lone["low"], lone["high"], lone["p"]]).all()


def test_proportions_at_both_ends_and_beyond():
    none, all_of = stats.proportion_ci(0, 10), stats.proportion_ci(10, 10)
    assert (none.value, none.low, all_of.value, all_of.high) == pytest.approx((0, 0, 1, 1))
    assert none.high == pytest.approx(1 - all_of.low) == pytest.approx(0.2775, abs=1e-4)
    assert stats.proportion_ci(1, 1).n == 1
    for successes, n in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(DataError, match=f"{successes} successes of {n} is no proportion"):
            stats.proportion_ci(successes, n)


def test_jackknife_of_the_mean_is_the_t_interval(rng):
    x = rng.normal(size=40)
    found, expected = stats.jackknife((x.sum() - x) / 39, x.mean()), of_seeds(x)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_jackknife_over_equal_groups_is_the_t_interval_of_group_means(rng):
    x = rng.normal(size=(8, 5))
    leave_out = (x.sum() - x.sum(1)) / 35
    found, expected = stats.jackknife(leave_out, x.mean(), np.full(8, 5)), of_seeds(x.mean(1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 40


def test_empty_groups_are_dropped_and_one_group_gives_no_interval(rng):
    x = rng.normal(size=6)
    leave_out = (x.sum() - x) / 5
    sizes = np.array([1.0] * 6 + [0.0] * 3)
    padded = stats.delete_group_jackknife(x.mean(), np.append(leave_out, [x.mean()] * 3), sizes)
    plain = stats.delete_group_jackknife(x.mean(), leave_out)
    assert np.allclose(padded, plain)
    lone = stats.delete_group_jackknife(np.array(1.0), np.array([np.nan, 1.0]), np.array([4.0, 0.0]))
    assert np.isnan(lone).all()
    two, expected = stats.jackknife([3.0, 1.0, 2.0], 2.0, [1, 1, 0]), of_seeds([1.0, 3.0])
    assert (two.low, two.high) == pytest.approx((expected.low, expected.high))
    assert (two.n, two.method) == (2, "t, delete-a-group jackknife, 2 groups")
    assert stats.jackknife([3.0, 1.0], 2.0).n == 2
    for values in ([1.0], [[1.0, 2.0]]):
        with pytest.raises(DataError, match="at least 2 values, got shape"):
            stats.jackknife(values, 1.0)


def test_unequal_groups_keep_the_variance_of_the_mean(rng):
    # Groups of 1 to 4 units: on average over many sets the squared standard error is that of the mean, 1 / n.
    sizes = np.array([1, 2, 3, 4] * 6)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.normal(size=(SETS, edges[-1]))
    sums = np.stack([x[:, a:b].sum(1) for a, b in pairwise(edges)])
    leave_out = (x.sum(1) - sums) / (edges[-1] - sizes)[:, None]
    _, _, se = stats.delete_group_jackknife(x.mean(1), leave_out, np.broadcast_to(sizes[:, None], sums.shape))
    assert (se**2).mean() * edges[-1] == pytest.approx(1.0, abs=0.03)


def test_permutation_p_against_the_definition():
    null = np.arange(99.0)
    assert float(stats.permutation_p(200.0, null)) == 0.01
    assert float(stats.permutation_p(98.0, null)) == 0.02  # a tie exceeds
    assert float(stats.permutation_p(-1.0, null)) == 1.0
    assert float(stats.permutation_p(-1.0, null, "two-sided")) == 0.02
    assert float(stats.permutation_p(-1.0, null, "less")) == 0.01
    assert float(stats.permutation_p(0.0, null, "less")) == 0.02
    assert float(stats.permutation_p(49.0, null, "two-sided")) == 1.0
    tied = np.full(3, 0.3)
    assert float(stats.permutation_p(0.1 + 0.2, tied)) == float(stats.permutation_p(0.3, tied + 1e-16)) == 1.0
    assert float(stats.permutation_p(0.3 - 1e-16, tied, "less")) == 1.0
    assert {k: float(v) for k, v in stats.null_columns(np.arange(41.0)).items()} == {
        "null": 20, "null_low": 1, "null_high": 39
    }  # fmt: skip
    assert np.isnan(stats.permutation_p(np.nan, null))


def test_permutation_p_is_uniform_under_the_null(rng):
    values = rng.normal(size=(20, SETS))
    p = stats.permutation_p(values[0], values[1:])
    for alpha in (0.05, 0.25, 0.5):
        assert (p <= alpha + 1e-9).mean() == pytest.approx(
            alpha, abs=3.5 * np.sqrt(alpha * (1 - alpha) / SETS)
        )


def test_max_statistic_controls_the_family(rng):
    maps = rng.normal(size=(400, 40, 5, 5))  # 400 families: one observed map and 39 permuted ones each
    corrected = np.array([stats.max_statistic_p(m[0], m[1:]).min() for m in maps])
    plain = np.array([stats.permutation_p(m[0], m[1:]).min() for m in maps])
    assert (corrected <= 0.05 + 1e-9).mean() == pytest.approx(0.05, abs=0.035)
    assert (plain <= 0.05 + 1e-9).mean() > 0.5
    with_hole = maps[0].copy()
    with_hole[:, 0, 0] = np.nan
    assert np.isnan(stats.max_statistic_p(with_hole[0], with_hole[1:])[0, 0])
    assert not np.isnan(stats.max_statistic_p(with_hole[0], with_hole[1:])[1:]).any()


def test_calibrated_is_zero_under_the_null_and_one_at_the_top(rng):
    null = rng.normal(scale=0.1, size=(199, SETS))
    observed = rng.normal(scale=0.1, size=SETS)
    assert (stats.calibrated(observed, null) > 0).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / SETS)
    assert stats.calibrated(np.ones(1), null[:, :1]) == pytest.approx(1.0)


def test_mcnemar_is_statsmodels(rng):
    right_a, right_b = rng.random((2, 80)) < [[0.8], [0.6]]
    table = [[(x & y).sum() for y in (right_b, ~right_b)] for x in (right_a, ~right_a)]
    found = stats.mcnemar(right_a, right_b)
    assert found.p == pytest.approx(sm_mcnemar(table, exact=True).pvalue)
    assert found.interval.low < right_a.mean() - right_b.mean() < found.interval.high
    assert stats.mcnemar(right_a, right_a).p == 1.0
    for unequal in ([True, False, True], [], [[True, False]]):
        with pytest.raises(DataError, match="two equally long lists"):
            stats.mcnemar(unequal, [True, False] if unequal else unequal)
    with pytest.raises(DataError, match="two equally long lists"):
        stats.mcnemar([[True]], [[True]])
    four, one = stats.mcnemar([1] * 4 + [0] + [1] * 5, [0] * 4 + [1] + [1] * 5).interval, 3 / 12
    half = 1.959964 * np.sqrt((6 / 12 - one**2) / 12)
    assert (four.value, four.low, four.high, four.n) == pytest.approx((0.3, one - half, one + half, 10))


def test_holm_is_statsmodels_and_skips_nan(rng):
    p = rng.random(12) ** 3
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    with_hole = np.insert(p, 4, np.nan)
    assert np.isnan(stats.holm(with_hole)[4])
    assert np.delete(stats.holm(with_hole), 4) == pytest.approx(stats.holm(p))


# ------------------------------------------------------------------------------------------ coverage


def covered_by_t(rng):
    x = rng.normal(size=(SETS, 20))
    half = [of_seeds(row) for row in x]
    return coverage(np.array([i.low for i in half]), np.array([i.high for i in half]), 0.0)


def covered_by_grouped_jackknife(rng):
    # Ratio of means from 8 images in each of 32 groups, as accumulators keep them.
    x = rng.exponential(size=(32, 8, SETS)).sum(1)
    y = 2 + rng.exponential(size=(32, 8, SETS)).sum(1)
    tx, ty = x.sum(0), y.sum(0)
    low, high, _ = stats.delete_group_jackknife(tx / ty, (tx - x) / (ty - y))
    return coverage(low, high, 8 / 10)


def covered_by_wilson(rng):
    k = rng.binomial(200, 0.8, size=SETS)
    table = {int(v): stats.proportion_ci(int(v), 200) for v in np.unique(k)}
    return coverage(np.array([table[v].low for v in k]), np.array([table[v].high for v in k]), 0.8)


def covered_by_agresti_min(rng):
    a, b = rng.random((2, SETS, 200)) < np.array([0.8, 0.7])[:, None, None]
    found = [stats.mcnemar(x, y).interval for x, y in zip(a, b, strict=True)]
    return coverage(np.array([i.low for i in found]), np.array([i.high for i in found]), 0.1)


@pytest.mark.parametrize(
    "covered",
    [covered_by_t, covered_by_grouped_jackknife, covered_by_wilson, covered_by_agresti_min],
)
def test_95_percent_intervals_cover_95_percent(covered, rng):
    assert 0.93 <= covered(rng) <= 0.97
