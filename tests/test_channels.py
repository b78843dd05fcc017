"""Invalid channels: planted truth, identities, nulls, the notebook's path, convolutional networks, pictures."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from t2t_analysis import load_model
from t2t_analysis.capture import Observation, TokenLayout, capture
from t2t_analysis.differences import difference
from t2t_analysis.errors import T2TError, UnknownNameError
from t2t_analysis.estimates import Estimate
from t2t_analysis.measures import (
    FeatureMapView,
    InvalidChannels,
    accumulate,
    chainable,
    channels,
    collect,
    measure,
    path_maps,
)
from t2t_analysis.measures import feature_maps as maps
from t2t_analysis.measures.channels import ChannelOutliers
from t2t_analysis.measures.notebook_path import ShortcutShare, shortcut_features
from t2t_analysis.plots import channels as plots

from .references import invalid_areas

RESID = "blocks.*.resid_post"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(name="vit_tiny_patch16_224", img_size=32, depth=2, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, img_size=img_size, depth=depth, num_classes=3, **kwargs).eval()


IMAGES = normal(10, 3, 32, 32, seed=3).float()


def run(models, which, images=IMAGES, size=4, **kwargs):
    return measure(models, images.split(size), which, progress=False, **kwargs)


def at(result, quantity, place, model=None):
    """The one row of a quantity without abscissa."""
    frame = result.frame
    rows = frame[(frame.quantity == quantity) & (frame.place == place) & frame["at"].isna()]
    rows = rows if model is None else rows[rows.model == model]
    assert len(rows) == 1
    return rows.iloc[0]


# ------------------------------------------------------------------------------------------ pure functions


def by_definition(x):
    """p / r, s / r, s / median(s) in numpy, channel by channel, for one image (N, C)."""
    x = x.numpy()
    rms, spread = np.sqrt((x**2).mean(0)), x.std(0)
    level, typical = np.median(rms[rms > 0]), np.median(spread[spread > 0])
    return np.abs(x).max(0) / level, spread / level, spread / typical


@pytest.mark.parametrize("shape", [(9, 12), (16, 7), (1, 5)])
def test_ratios_are_those_of_the_definition(shape):
    x = normal(*shape) * torch.logspace(-4, 2, shape[1], dtype=torch.float64)
    if shape[0] == 1:  # a single position has no spread
        assert maps.channel_ratios(x).flat.tolist() == [0.0] * 5
        return
    for mine, expected in zip(maps.channel_ratios(x), by_definition(x), strict=True):
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-12)


def test_area_is_that_under_the_curve():
    ratio = 10 ** (6 * torch.rand(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 5)
    fine = torch.logspace(-3, -1, 4001, dtype=torch.float64)
    curve = maps.fraction_below(ratio, fine.tolist())
    assert maps.area_below(ratio).mean(-1).tolist() == pytest.approx(curve.mean(-1).tolist(), abs=2e-3)
    above = maps.fraction_above(1 / ratio, (1 / fine).tolist())
    assert maps.area_above(1 / ratio).mean(-1).tolist() == pytest.approx(above.mean(-1).tolist(), abs=2e-3)


@pytest.mark.parametrize("k", [1, 5, 11])  # less and more than half of the channels
def test_k_zeroed_channels_are_exactly_k_of_c(k):
    x = normal(4, 25, 16)
    x[..., :k] = 0
    zero, flat, dead, large, invalid = invalid_areas(x).T
    for area in (zero, flat, dead, invalid):
        assert area.tolist() == [k / 16] * 4
    assert large.tolist() == [0.0] * 4
    assert maps.fraction_below(maps.channel_ratios(x).peak).unique().tolist()[0] == k / 16


def test_all_channels_zero_and_a_constant_channel():
    assert invalid_areas(torch.zeros(5, 4)).tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]
    x = normal(25, 10)
    x[:, 0] = 1.0  # constant: flat, but neither zero nor too large
    assert invalid_areas(x).tolist() == [0.0, 0.1, 0.1, 0.0, 0.0]


def test_a_planted_channel_is_too_large():
    x = normal(25, 10)
    x[7, 3] = 1e6
    assert invalid_areas(x).tolist() == [0.0, 0.0, 0.0, 0.1, 0.1]
    assert maps.fraction_above(maps.channel_ratios(x).peak).tolist()[1:] == [0.1] * 5


def test_appended_zero_channels_add_exactly_k_over_c_plus_k():
    x = normal(30, 20) * torch.logspace(-4, 0, 20, dtype=torch.float64)
    before = invalid_areas(x)
    after = invalid_areas(torch.cat([x, torch.zeros(30, 12, dtype=x.dtype)], dim=1))
    assert after[:3].tolist() == pytest.approx(((20 * before + 12) / 32)[:3].tolist(), rel=1e-12)
    assert float(before[0]) > 0.02  # there was something that a moved yardstick would have changed
    assert after[3] == pytest.approx(float(20 * before[3] / 32), rel=1e-12)


def test_shuffling_over_tokens_alone_changes_nothing():
    # which is why the null shuffles over channels too
    x = normal(2, 30, 20) * torch.logspace(-4, 2, 20, dtype=torch.float64)
    shuffled = channels.shuffled_tokens(x)
    assert not torch.equal(shuffled, x)
    torch.testing.assert_close(invalid_areas(shuffled), invalid_areas(x), rtol=1e-12, atol=0)
    mixed = channels.mixed(x)
    assert torch.equal(mixed.flatten(1).sort().values, x.flatten(1).sort().values)
    assert float(invalid_areas(mixed)[:, 4].max()) < 0.05 < float(invalid_areas(x)[:, 4].min())


def test_edges_are_recognised():
    image = torch.zeros(3, 32, 32)
    image[:, :, 12:] = 1.0
    edge = torch.zeros(8, 8)
    edge[:, 3:] = -5.0
    elsewhere = edge.T.contiguous()
    found = maps.edge_strength(torch.stack([edge, elsewhere, 0 * edge, 3 * edge + 7]), image)
    assert found[0] > 0.8
    assert found[3] == pytest.approx(float(found[0]))
    assert abs(float(found[1])) < 0.2
    assert found[2] == 0
    with pytest.raises(T2TError, match="2x2"):
        maps.edge_strength(edge[:1].unsqueeze(0), image)


# ------------------------------------------------------------------------------------------ the measure


def silenced(model, k):
    """Make the first k channels of the last block's output exactly 0."""

    class Silence(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.attn = block, block.attn

        def forward(self, x):
            x = self.block(x).clone()
            x[..., :k] = 0
            return x

    model.blocks[-1] = Silence(model.blocks[-1])
    return model


def test_planted_channels_come_out_of_a_model():
    model = silenced(tiny(), 48)  # of 192
    result = run(model, InvalidChannels(places=RESID))["invalid_channels"]
    for quantity in ("zero_area", "invalid_area", "zero_area_in_every_image"):
        assert at(result, quantity, "blocks.1.resid_post").value == 0.25
        assert at(result, quantity, "blocks.0.resid_post").value == 0.0
    assert at(result, "zero_area", RESID).value == 0.125
    assert at(result, "exact_zero", "blocks.1.resid_post").value == pytest.approx(0.25)
    row = at(result, "zero_area_in_every_image", "blocks.1.resid_post")
    assert (row.n, row.unit, row.interval) == (192, "channel", "Wilson")
    assert row.low < 0.25 < row.high
    curve = result.frame.query("quantity == 'zero' and place == 'blocks.1.resid_post'")
    assert curve.value.tolist()[:9] == [0.25] * 9  # up to eps = 0.05
    assert at(result, "zero_area", "blocks.1.resid_post").null < 0.25


def test_values_are_means_over_images_of_the_pure_functions():
    model = tiny()
    with torch.no_grad(), capture(model, "blocks.0.mlp.hidden") as seen:
        model(IMAGES)
    x = seen["blocks.0.mlp.hidden"][:, 1:].double()
    result = run(model, InvalidChannels())["invalid_channels"]
    ratios = maps.channel_ratios(x)
    expected = dict(zip(channels.AREAS, invalid_areas(x).mean(0).tolist(), strict=True))
    for quantity, value in expected.items():
        assert at(result, quantity, "blocks.0.mlp.hidden").value == pytest.approx(value, abs=1e-9)
    always = at(result, "flat_area_in_every_image", "blocks.0.mlp.hidden").value
    assert always == pytest.approx(maps.area_below(ratios.flat.amax(0)).mean().item())
    large = result.frame.query("quantity == 'too_large' and place == 'blocks.0.mlp.hidden'")
    assert large.value.tolist() == pytest.approx(maps.fraction_above(ratios.peak).mean(0).tolist())
    assert large.value.iloc[0] > 0.1  # three times the level is nothing unusual
    assert set(result.frame.place) >= {"embed", "norm", "blocks.1.norm1", "blocks.1.norm2", RESID}


def test_every_row_has_interval_null_and_unit():
    results = run(tiny(), [InvalidChannels(), ChannelOutliers(), ShortcutShare(values="stretch", size=32)])
    frame = results.frame
    numbers = ["value", "low", "high", "interval", "n", "unit", "null", "null_kind"]
    assert not frame[[*numbers, "estimator", "tokens", "value_unit"]].isna().any(axis=None)


def test_shares_of_the_images_add_up():
    model = silenced(tiny(), 5)
    whole = run(model, InvalidChannels())["invalid_channels"].frame
    loaders = [[(x, torch.zeros(len(x)))] for x in IMAGES.split(5)]

    class Numbered(list):
        dataset = type("D", (), {"shard": None})

    parts = []
    for rank, batches in enumerate(loaders):
        loader = Numbered(batches)
        loader.dataset = type("D", (), {"shard": (rank, 2)})()
        parts += accumulate(model, loader, InvalidChannels(), progress=False)
    parts[0].merge_state(parts[1])
    merged = collect(parts[:1])["invalid_channels"].frame
    np.testing.assert_allclose(merged.value.astype(float), whole.value.astype(float), rtol=1e-6, atol=1e-9)


def test_a_place_that_is_not_finite_is_named_and_the_others_come_out():
    model = tiny()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[0] = torch.inf
    result = run(model, InvalidChannels(places=RESID))["invalid_channels"]
    assert any("blocks.1.resid_post is not finite" in note for note in result.notes)
    assert at(result, "zero_area", "blocks.0.resid_post").value == 0
    assert pd.isna(at(result, "zero_area", "blocks.1.resid_post").value)


@pytest.mark.parametrize("name", ["small_performer_deep", "small_conv_wide"])
def test_t2t_stages_come_along_where_there_are_any(name):
    model = load_model(name, "random", img_size=32)
    places = run(model, InvalidChannels(), IMAGES[:2])["invalid_channels"].frame.place.unique()
    assert ("tokens.1.out" in places) == (name != "small_conv_wide")
    assert {"embed", "blocks.0.mlp.hidden", "blocks.*.resid_post", "norm"} <= set(places)


def test_the_difference_between_models_is_paired_over_images():
    models = {"planted": silenced(tiny(), 48), "plain": tiny()}
    result = run(models, InvalidChannels(places=RESID))["invalid_channels"]
    apart = difference(result, "planted", "plain", "blocks.*.resid_post")
    row = apart.frame.set_index("quantity").loc["zero_area_difference"]
    assert row.value == pytest.approx(0.125)
    assert row.low <= 0.125 <= row.high
    assert row.p < 1e-6
    same = difference(result, "plain", "plain").frame
    assert (same.value == 0).all()
    assert (same.p == 1).all()
    with pytest.raises(UnknownNameError, match="planted"):
        difference(result, "plantd", "plain")
    with pytest.raises(UnknownNameError, match="resid_post"):
        difference(result, "planted", "plain", "norm")


def test_p_values_of_null_pairs_are_calibrated():
    # two models whose per-image areas come from one skewed distribution, 12 groups of images
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        images = rng.beta(0.5, 20, size=(2, 36)).reshape(2, 12, 3).sum(2)
        a, b = (Estimate(x.sum() / 36, (x.sum() - x) / 33, np.full(12, 3)) for x in images)
        p.append((a - b).p)
    assert (np.array(p) < 0.05).mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert np.median(p) == pytest.approx(0.5, abs=0.12)


# ------------------------------------------------------------------------------------------ convolutional networks


def test_a_resnet_is_a_column_on_its_real_forward_pass():
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18").eval()
    kept = {}
    resnet.layer2.register_forward_hook(lambda module, args, out: kept.update(out=out))
    with torch.no_grad():
        resnet(IMAGES)
    seen = kept["out"].flatten(2).transpose(1, 2).double()
    result = run([tiny(), FeatureMapView(resnet, ["layer2", "layer4"])], InvalidChannels())[
        "invalid_channels"
    ]
    frame = result.frame[result.frame.model == "resnet18"]
    assert set(frame.place) == {"layer2", "layer4"}
    exact = frame[(frame.quantity == "exact_zero") & (frame.place == "layer2")].iloc[0]
    assert exact.value == pytest.approx(float((seen == 0).double().mean()), abs=1e-6)
    assert exact.value > 0.2  # rectified
    expected = invalid_areas(seen).mean(0).tolist()
    assert [at(result, q, "layer2").value for q in channels.AREAS] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UnknownNameError, match="layer2"):
        FeatureMapView(resnet, ["layer22"])


# ------------------------------------------------------------------------------------------ the notebook's path


def normalised(model, images):
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def test_the_notebook_path_is_patches_and_blocks_and_nothing_else():
    model = tiny(img_size=48)
    images = torch.rand(2, 3, 48, 48)
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    found = shortcut_features(model, images, size=48)
    assert torch.equal(found["embed"].value, x)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            x = block(x)
            torch.testing.assert_close(found[f"blocks.{i}.resid_post"].value, x, rtol=0, atol=0)
    assert found["blocks.1.resid_post"].layout == (0, (3, 3))


def test_images_are_enlarged_to_512_pixels():
    model = tiny(img_size=224, depth=1)
    found = shortcut_features(model, torch.rand(1, 3, 40, 40))
    assert found["blocks.0.resid_post"].layout == (0, (32, 32))
    assert shortcut_features(model, torch.rand(1, 3, 40, 40), size=64)["embed"].layout.grid == (4, 4)
    small = load_model("small_hard_deep", "random")
    assert set(chainable({"large": model, "small": small, "other": nn.Linear(2, 2)})) == {"large"}


def test_what_is_more_than_its_children_is_refused():
    with pytest.raises(T2TError, match="chained by hand"):
        shortcut_features(timm.create_model("resnet18"), torch.rand(1, 3, 32, 32))
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1)
    with pytest.raises(T2TError, match="chained by hand"):
        shortcut_features(eva, torch.rand(1, 3, 28, 28))


def share_of(model, images, **parameters):
    return measure(model, images, ShortcutShare(size=32, **parameters), progress=False)["shortcut_share"]


def test_the_share_is_shortcut_minus_real():
    model = tiny()
    with torch.no_grad():  # without its positions this model has dead channels, with them none
        model.patch_embed.proj.weight[:48] = 0
        model.patch_embed.proj.bias[:48] = 0
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
            block.attn.proj.bias.zero_()
            block.mlp.fc2.bias.zero_()
        model.pos_embed.normal_()
    images = normalised(model, torch.rand(6, 3, 32, 32))
    result = share_of(model, images.split(2))
    made = at(result, "zero_area_made_by_shortcut", "blocks.1.resid_post")
    assert made.value == pytest.approx(0.25, abs=1e-6)
    assert made.p < 1e-6
    assert at(result, "zero_area_made_by_shortcut", "embed").value == pytest.approx(
        0, abs=1e-6
    )  # zero either way
    both = [at(result, f"zero_area_{way}", "blocks.1.resid_post").value for way in ("shortcut", "real")]
    assert both == pytest.approx([0.25, 0.0], abs=1e-6)


def test_images_that_were_normalised_otherwise_are_refused_or_stretched():
    model = tiny()
    with pytest.raises(T2TError, match="stretch"):
        share_of(model, [5 * IMAGES])
    stretched = maps.stretched(5 * IMAGES)
    assert stretched.amax((1, 2, 3)).tolist() == [1.0] * len(IMAGES)
    result = share_of(model, [5 * IMAGES], values="stretch")
    assert any("stretch" in note for note in result.notes)
    with pytest.raises(UnknownNameError, match="model"):
        ShortcutShare(values="modl")


def test_maps_of_the_path_are_compared_with_the_real_ones():
    model = tiny()
    with torch.no_grad():
        model.pos_embed.normal_()
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)  # stretching a grey image is affine, so is a linear embedding
    result = share_of(model, grey.split(5), values="stretch")
    embed, last = (at(result, "map_correlation", place) for place in ("embed", "blocks.1.resid_post"))
    assert embed.value == pytest.approx(1, abs=1e-4)
    assert abs(embed.null) < 0.3
    assert last.value < 0.5  # most of it was the position table


# ------------------------------------------------------------------------------------------ outliers


def test_massive_activations_need_both_thresholds():
    x = torch.ones(4, 5, 6)
    x[0, 2, 3] = 2000.0  # both
    x[1] *= 50.0
    x[1, 2, 3] = 2000.0  # over 100, but only 40 medians
    x[2] *= 0.01
    x[2, 2, 3] = 50.0  # 5,000 medians, but not over 100
    assert channels.massive_activations(x).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_massive_activation_of_the_class_token_counts_and_is_no_outlier_of_the_patches():
    x = normal(2, 17, 8, seed=4)
    x[1, 0, 3] = -1e5
    found = ChannelOutliers().reduce(Observation("blocks.0.resid_post", x, TokenLayout(1, (4, 4))))
    assert found[:, 0].tolist() == [0.0, 1.0]
    patches = ChannelOutliers().reduce(Observation("blocks.0.resid_post", x[:, 1:], TokenLayout(0, (4, 4))))
    torch.testing.assert_close(found[:, 1:], patches[:, 1:], equal_nan=True)


def test_kurtosis_of_normal_values_is_its_null():
    x = normal(400, 50, 24)
    mean = channels.kurtosis(x).mean()
    assert float(mean) == pytest.approx(3 * 23 / 25, abs=0.02)


@pytest.mark.parametrize("plant", ["token", "channel"])
def test_a_planted_outlier_is_found_and_only_where_it_is(plant):
    class Plant(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.attn = block, block.attn

        def forward(self, x):
            x = self.block(x).clone()
            x[(slice(None), 2) if plant == "token" else (..., 7)] *= 50  # 2 is the second patch token
            return x

    model = tiny(img_size=112, depth=1)
    model.blocks[0] = Plant(model.blocks[0])
    images = normal(3, 3, 112, 112, seed=3).float()
    result = run(model, ChannelOutliers(places="blocks.0.resid_post"), images)["channel_outliers"]
    tokens, peak, spikes = (
        at(result, quantity, "blocks.0.resid_post")
        for quantity in ("outlier_tokens", "peak_to_median", "kurtosis")
    )
    if plant == "token":
        assert tokens.value == pytest.approx(1 / 49)
        assert tokens.null == 0
        assert spikes.value < 2 * spikes.null
    else:
        assert peak.value > 2 * peak.null
        assert spikes.value > 10 * spikes.null
    curve = result.frame.query("quantity == 'outlier_tokens' and at_unit.notna()")
    assert curve["at"].tolist() == list(channels.OUTLIER_TOKEN)


# ------------------------------------------------------------------------------------------ pictures


def test_maps_of_an_image_with_what_the_measure_says_of_them():
    model = silenced(tiny(img_size=64), 3)
    image = normal(3, 64, 64, seed=9).float()
    found = maps.channel_maps(model, image, "blocks.1.resid_post")
    with torch.no_grad(), capture(model, "blocks.1.resid_post") as seen:
        model(image[None])
    tokens = seen["blocks.1.resid_post"][0]
    assert torch.equal(found.maps[5], tokens[1:, 5].view(4, 4))
    assert torch.equal(found.prefix[5], tokens[:1, 5])
    assert found.invalid().tolist() == [True] * 3 + [False] * 189
    best = found.strongest(4, among=range(36))
    assert best == sorted(best, key=lambda c: -found.edges[c])
    assert not set(best) & {0, 1, 2}
    assert max(best) < 36
    short = path_maps(model, maps.stretched(image), "blocks.1.resid_post", size=32)
    assert short.prefix.shape == (192, 0)
    assert "notebook path" in short.place


def scales_of(figure):
    """Titles and grey pictures of the panels after the image."""
    return [
        (ax.texts[0].get_text(), np.ma.filled(ax.images[0].get_array(), np.nan)) for ax in figure.fig.axes[1:]
    ]


def test_the_grid_draws_three_scales_and_frames_what_the_measure_says():
    model = silenced(tiny(img_size=64), 2)
    with torch.no_grad():
        model.blocks[1].block.mlp.fc2.bias[4] = 40.0  # outlies in one channel
    drawn = maps.channel_maps(model, normal(3, 64, 64, seed=9).float(), "blocks.1.resid_post")
    figure = plots.feature_map_grid(drawn, channels=range(9), best=2)
    panels = scales_of(figure)
    assert [title for title, _ in panels] == list(plots.SCALES.values())
    common, own, prefix = (np.asarray(picture, float) for _, picture in panels)
    cell = 4 + 1
    assert np.nanmax(common[:4, cell : cell + 4]) == np.nanmin(
        common[:4, cell : cell + 4]
    )  # silenced: one grey
    assert (np.nanmin(own[:4, 2 * cell : 2 * cell + 4]), np.nanmax(own[:4, 2 * cell : 2 * cell + 4])) == (
        0,
        1,
    )
    assert np.nanmax(common[:4, 2 * cell : 2 * cell + 4]) < 0.5  # squeezed by channel 4
    assert prefix.shape[0] == own.shape[0] + 3  # one row of prefix tokens above each of three rows of maps
    for ax in figure.fig.axes[1:]:
        colours = [patch.get_edgecolor()[:3] for patch in ax.patches]
        assert len(colours) == 4
        assert len(set(colours)) == 2
    assert "2 of 9 drawn invalid (of all 192: 2)" in figure.caption
    assert figure.png()[:4] == b"\x89PNG"
    with pytest.raises(UnknownNameError, match="common"):
        plots.feature_map_grid(drawn, ["comon"])
    with pytest.raises(T2TError, match="channels=0"):
        plots.feature_map_grid(drawn, channels=0)
