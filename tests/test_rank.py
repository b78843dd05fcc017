"""Effective rank: closed forms, recorded values of noise, streams, intervals, and the difference of two models."""

import math

import numpy as np
import pytest
import timm
import torch

from t2t_analysis.capture import capture
from t2t_analysis.errors import DataError, UnknownNameError
from t2t_analysis.measures import EffectiveRank, accumulate, collect, difference, measure
from t2t_analysis.measures.base import grouped_estimate, left_out
from t2t_analysis.measures.rank import (
    effective_rank,
    gaussian_null,
    groups_within_budget,
    in_span,
    rounding,
    spectrum,
)

from .references import effective_rank_of


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(seed=0, dim=48, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=dim, num_heads=3, num_classes=3, **kwargs
    ).eval()


IMAGES = normal(20, 3, 32, 32, seed=3).float()
RESID = "blocks.*.resid_post"


def run(models, which=None, images=IMAGES):
    results = measure(models, images.split(6), which or EffectiveRank(), progress=False)
    return results["effective_rank"]


def at(result, quantity, tokens, place):
    rows = result.frame.query("quantity == @quantity and tokens == @tokens and place == @place")
    assert len(rows) == 1
    return rows.iloc[0]


# ------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_singular_values_count_the_rank(rank):
    s = torch.zeros(9)
    s[:rank] = 0.3
    assert effective_rank(s).item() == pytest.approx(rank)


def test_orthogonal_and_rank_one():
    q = torch.linalg.qr(normal(8, 8))[0]
    assert effective_rank_of(q, centred=False).item() == pytest.approx(8)
    assert effective_rank_of(normal(30, 1) @ normal(1, 8)).item() == pytest.approx(1, abs=1e-6)


def test_two_values_against_the_formula():
    p = 3 / 4  # singular values 3 and 1: not their squares, 9 and 1
    expected = math.exp(-(p * math.log(p) + (1 - p) * math.log(1 - p)))
    assert effective_rank(torch.tensor([3.0, 1.0])).item() == pytest.approx(expected)


def test_bounds_and_monotone_in_ties():
    s = normal(20, 9).abs()
    found = effective_rank(s)
    assert (found >= 1).all()
    assert (found <= 9).all()
    assert math.isnan(effective_rank(torch.zeros(4)).item())


@pytest.mark.parametrize(("n", "expected"), [(64, 60.0), (192, 154), (1000, 187.1), (10_000, 191.5)])
def test_noise_gives_the_recorded_values(n, expected):
    # to the digits that were recorded, for centred noise
    digits = 0.5 if expected == 154 else 0.15
    assert gaussian_null(n, 192).mean == pytest.approx(expected, abs=digits)


@pytest.mark.parametrize("n", [20, 48, 300])
def test_the_null_is_that_of_samples_really_drawn(n):
    drawn = torch.stack([effective_rank_of(normal(n, 48, seed=seed)) for seed in range(60)])
    null = gaussian_null(n, 48)
    error = float(drawn.std()) * (1 / 60 + 1 / null.draws) ** 0.5
    assert null.mean == pytest.approx(float(drawn.mean()), abs=4 * error)
    half = (null.high - null.low) / 2
    assert half == pytest.approx(2 * float(drawn.std()), rel=0.4)  # 60 draws each
    with pytest.raises(DataError, match="1 samples"):
        gaussian_null(1, 48)


def test_what_the_recorded_pitfalls_do():
    x = normal(1000, 192)
    half, outlier, shifted = x.clone(), x.clone(), x + 100
    half[:, :96] = 0
    outlier[:, 0] *= 100
    assert effective_rank_of(half).item() == pytest.approx(94.8, abs=0.2)
    assert effective_rank_of(outlier).item() == pytest.approx(57.8, rel=0.06)
    assert effective_rank_of(shifted).item() == pytest.approx(effective_rank_of(x).item())
    assert effective_rank_of(shifted, centred=False).item() < 30


# ------------------------------------------------------------------------------------------ the stream


def test_spectrum_from_sums_is_that_of_the_sample():
    x = normal(40, 12) @ torch.diag(torch.logspace(0, -3, 12, dtype=torch.float64)) + 50
    s = spectrum(x.T @ x, x.sum(0), torch.tensor(40.0))
    expected = torch.linalg.svdvals(x - x.mean(0)).flip(0)
    torch.testing.assert_close(s, expected, rtol=1e-6, atol=1e-7)


def test_fewer_samples_than_channels_leave_exact_zeros():
    x = normal(5, 12)
    s = spectrum(x.T @ x, x.sum(0), torch.tensor(5.0))
    assert (s[:8] == 0).all()
    assert (s[8:] > 0).all()


@pytest.mark.parametrize("tokens", ["pooled", "patch"])
def test_values_are_those_of_all_images_at_once(tokens):
    model = tiny()
    with torch.no_grad(), capture(model, "blocks.1.resid_post") as seen:
        model(IMAGES)
    patches = seen["blocks.1.resid_post"][:, 1:].double()
    sample = patches.mean(1) if tokens == "pooled" else patches.flatten(0, 1)
    row = at(result := run(model), "effective_rank", tokens, "blocks.1.resid_post")
    assert row.value == pytest.approx(effective_rank_of(sample).item(), rel=1e-6)
    null = gaussian_null(len(sample), 48)
    assert (row.null, row.null_low) == (null.mean, null.low)
    assert (row.n, row.unit) == (20, "image")
    over = at(result, "effective_rank_over_null", tokens, "blocks.1.resid_post")
    assert over.value == pytest.approx(row.value / row.null)
    assert over.high - over.low == pytest.approx((row.high - row.low) / row.null)
    mean = at(result, "effective_rank_over_null", tokens, RESID)
    layers = [at(result, "effective_rank_over_null", tokens, f"blocks.{i}.resid_post").value for i in (0, 1)]
    assert mean.value == pytest.approx(np.mean(layers))


def test_the_interval_is_the_jackknife_of_leaving_groups_out():
    model = tiny()
    with torch.no_grad(), capture(model, "embed") as seen:
        model(IMAGES)
    x = seen["embed"].double().mean(1)
    result = run(model, EffectiveRank("embed", groups=5))
    row = at(result, "effective_rank", "pooled", "embed")
    left = [effective_rank_of(x[torch.arange(20) % 5 != g]).item() for g in range(5)]
    se = math.sqrt(4 / 5 * np.square(np.array(left) - np.mean(left)).sum())
    assert (row.high - row.low) / 2 == pytest.approx(2.7764451 * se, rel=1e-5)
    assert "5 groups" in row.interval


def test_intervals_cover_the_expected_value():
    scale = torch.arange(1.0, 17.0, dtype=torch.float64).rsqrt()
    groups = torch.arange(64) % 32
    member = torch.nn.functional.one_hot(groups, 32).double()

    def estimate(x):
        cross = torch.einsum("ng,ni,nj->gij", member, x, x)
        return grouped_estimate(
            lambda c, t, s: effective_rank(spectrum(s, t, c)),
            (member.sum(0), member.T @ x, cross),
            member.sum(0),
        )

    found = [estimate(normal(64, 16, seed=seed) * scale) for seed in range(150)]
    truth = np.mean([e.value for e in found])
    covered = np.mean([e.low < truth < e.high for e in found])
    assert 0.90 <= covered <= 1.0  # 150 draws of 95 %
    width = np.mean([(e.high - e.low) / 2 for e in found]) / np.std([e.value for e in found])
    assert 1.8 < width < 2.8  # not bought by width


def test_shares_of_the_images_add_up():
    model = tiny()

    def part(rank):
        loader = [(IMAGES[rank * 10 : rank * 10 + 10], torch.zeros(10))]
        loader = type("Loader", (list,), {"dataset": type("D", (), {"shard": (rank, 2)})()})(loader)
        return accumulate(model, loader, EffectiveRank(), progress=False)[0]

    first, second = part(0), part(1)
    first.merge_state(second)
    merged, whole = collect([first])["effective_rank"].frame, run(model).frame
    np.testing.assert_allclose(merged.value.astype(float), whole.value.astype(float), rtol=1e-6)


def test_memory_is_bounded_by_fewer_groups():
    assert groups_within_budget(32, [96] * 11) == 32
    assert groups_within_budget(32, [512] * 25) == 8
    assert groups_within_budget(4, [512] * 25) == 4


# ------------------------------------------------------------------------------------------ models


def test_a_planted_low_rank_is_found_and_the_difference_is_paired():
    flat = tiny()
    with torch.no_grad():  # everything that leaves the last block lies in four directions
        basis = torch.linalg.qr(normal(48, 4).float())[0]
        flat.blocks[1].register_forward_hook(lambda module, args, out: out @ basis @ basis.T)
    result = run({"flat": flat, "full": tiny()})
    frame = result.frame[result.frame.model == "flat"].query(
        "place == 'blocks.1.resid_post' and tokens == 'patch'"
    )
    assert frame[frame.quantity == "effective_rank"].value.item() <= 4 + 1e-6
    found = difference(result, "flat", "full", "blocks.1.resid_post").frame
    row = found.query("quantity == 'effective_rank_over_null_difference' and tokens == 'patch'").iloc[0]
    assert row.value < -0.5
    assert row.high < 0
    assert row.p < 1e-6
    assert "paired over images" in row.interval
    same = difference(result, "flat", "flat").frame
    assert (same.value == 0).all()
    with pytest.raises(UnknownNameError, match="flat"):
        difference(result, "flta", "full")


def test_widths_may_differ_between_models():
    result = run({"narrow": tiny(), "wide": tiny(dim=96)})
    row = difference(result, "narrow", "wide").frame.iloc[0]
    assert math.isfinite(row.value)
    assert math.isfinite(row.p)


def test_too_few_images():
    with pytest.raises(DataError, match="2 images"):
        run(tiny(), images=IMAGES[:1])


def test_a_place_that_is_not_finite_is_named_and_the_others_come_out():
    model = tiny()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[0] = torch.nan
    result = run(model)
    assert any("blocks.1.resid_post is not finite" in note for note in result.notes)
    assert set(result.frame.place) == {"embed", "blocks.0.resid_post", RESID}
    assert at(result, "effective_rank_over_null", "pooled", RESID).estimator == "mean over 1 layers"


def test_equal_images_have_no_rank_and_the_reason_is_said():
    result = run(tiny(), images=torch.full((12, 3, 32, 32), 0.5))
    pooled = result.frame[result.frame.tokens == "pooled"]
    assert pooled.value.isna().all()
    assert any("is the same for all images, so it has no rank" in note for note in result.notes)


def test_few_samples_are_taken_apart_in_their_span():
    """Spectra without a group agree with those of the whole matrices, constants far from 0 included."""
    x = normal(4, 3, 40) + 1000.0
    x[..., 5] = 7.0  # a channel that says nothing
    samples = torch.cat([torch.ones_like(x[..., :1]), x], -1)
    whole = left_out(samples.mT @ samples)
    narrow = left_out(in_span(samples.mT @ samples))
    noise = rounding(whole[:, 1:, 1:])
    assert narrow.shape[-1] == 1 + 12 < whole.shape[-1]
    expected = spectrum(whole[:, 1:, 1:], whole[:, 0, 1:], whole[:, 0, 0])
    got = spectrum(narrow[:, 1:, 1:], narrow[:, 0, 1:], narrow[:, 0, 0], noise)
    torch.testing.assert_close(got, expected[:, -12:])
    assert (expected[:, :-12] == 0).all()
