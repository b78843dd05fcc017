"""Spectra of token maps: identities, true frequencies, white noise, other grids, and the measure."""

import math

import pytest
import timm
import torch

from t2t_analysis import load_model
from t2t_analysis.errors import T2TError
from t2t_analysis.measures import Spectrum, measure
from t2t_analysis.measures import spectrum as sp


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_last_frequency_is_the_true_one():
    assert sp.diagonal_frequencies((14, 14))[-1].item() == pytest.approx(0.857, abs=5e-4)
    assert sp.diagonal_frequencies((7, 7))[-1].item() == pytest.approx(0.857, abs=5e-4)
    assert sp.diagonal_frequencies((8, 12)).tolist() == [0, 0.25, 0.5, 0.75]
    with pytest.raises(T2TError, match="3x3 is the least"):
        sp.diagonal_frequencies((2, 14))


@pytest.mark.parametrize("grid", [(14, 14), (7, 7)])
def test_white_noise_is_half_ln2_above_its_mean(grid):
    found = sp.log_amplitude(noise(300, 32, *grid)).mean(0)
    assert found[0] == 0
    assert found[1:].numpy() == pytest.approx(math.log(2) / 2, abs=0.04)


def test_delta_is_flat_and_a_constant_lies_at_the_mean():
    delta = torch.zeros(3, 14, 10)
    delta[:, 4, 7] = 2
    assert sp.log_amplitude(delta).abs().max() < 1e-9
    constant = torch.ones(3, 14, 14)
    assert (sp.log_amplitude(constant)[1:] < -15).all()
    assert torch.isnan(sp.high_frequency_share(constant)).all()


def test_the_mean_makes_anything_look_low_pass_unless_it_is_removed():
    x = noise(200, 16, 14, 14)
    tails = [float(sp.log_amplitude(x + c).mean(0)[-1]) for c in (1, 10)]
    assert tails == pytest.approx([-2.9, -5.2], abs=0.1)
    assert torch.allclose(sp.high_frequency_share(x + 10), sp.high_frequency_share(x), atol=1e-12)


def test_parseval():
    x = noise(4, 6, 5, 8)
    power = torch.fft.fft2(x).abs().square().sum((-2, -1))
    assert torch.allclose(power, 40 * x.square().sum((-2, -1)))


@pytest.mark.parametrize("grid", [(14, 14), (6, 9)])
def test_white_noise_gives_its_null(grid):
    shares = sp.high_frequency_share(noise(400, 8, *grid))
    assert float(shares.mean()) == pytest.approx(sp.white_share(grid), abs=0.01)


@pytest.mark.parametrize(("cycles", "high"), [(1, 0), (3, 0), (5, 1), (7, 1)])
def test_a_wave_lies_above_or_below_half_of_nyquist(cycles, high):
    wave = torch.cos(2 * math.pi * cycles * torch.arange(14.0) / 14).expand(1, 14, 14)
    assert float(sp.high_frequency_share(wave)) == pytest.approx(high, abs=1e-9)


def test_a_diagonal_wave_peaks_at_its_frequency_also_on_a_long_grid():
    for grid in ((12, 12), (12, 24)):
        y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        f = 0.5  # of pi
        wave = torch.cos(math.pi * f * (x + y))[None]
        peak = sp.log_amplitude(wave).argmax().item()
        assert sp.diagonal_frequencies(grid)[peak] == f


def test_smoothing_lowers_the_high_frequencies():
    x = noise(20, 8, 14, 14)
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert float(sp.high_frequency_share(smooth).max()) < float(sp.high_frequency_share(x).min())


def run(model, images):
    return measure(model, list(images.split(4)), Spectrum(groups=4), progress=False)["spectrum"]


def test_the_measure_over_places_grids_and_prefix():
    model = load_model("small_performer_deep", "random", depth=2)
    images = noise(8, 3, 32, 48).float()
    result = run(model, images)
    frame = result.frame
    assert result.meta["grids"]["tokens.0.out"] == [16, 24]
    assert result.meta["grids"]["blocks.1.resid_post"] == [8, 12]
    assert set(frame.quantity) == {"log_amplitude", "high_frequency_share"}
    assert frame[["value", "low", "high", "null"]].notna().all().all()
    last = frame[(frame.place == "embed") & (frame.quantity == "log_amplitude")].iloc[-1]
    assert (last["at"], last["n"]) == (0.75, 8)
    high = frame[(frame.quantity == "high_frequency_share") & (frame.place == "embed")].iloc[0]
    assert high.null == pytest.approx(sp.white_share((8, 12)))


def test_the_measure_is_the_function_on_the_captured_map():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=48, num_heads=3).eval()
    images = noise(8, 3, 64, 64).float()
    with torch.no_grad():
        maps = model.forward_intermediates(images, norm=False)[1][0]  # (B, C, h, w), prefix gone
    frame = run(model, images).where(place="blocks.0.resid_post").frame
    found = frame[frame.quantity == "log_amplitude"].value.to_numpy(float)
    assert found == pytest.approx(sp.log_amplitude(maps).mean(0).numpy(), abs=1e-6)


def test_constant_maps_are_left_out_of_energy_but_not_of_amplitude():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=48, num_heads=3)
    images = noise(8, 3, 64, 64).float()
    images[0] = 0
    frame = run(model, images).where(place="embed").frame.set_index("quantity")
    assert frame.n["high_frequency_share"] == 7
    assert set(frame.n["log_amplitude"]) == {8}
