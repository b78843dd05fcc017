"""Channels that follow their image: planted copies, edges and noise; the null; soft windows; other networks."""

import numpy as np
import pytest
import torch
from torch import nn

from t2t_analysis import load_model
from t2t_analysis.errors import DataError, T2TError
from t2t_analysis.measures import (
    EdgeChannels,
    FeatureMapView,
    channel_maps,
    difference,
    example_image,
    measure,
)
from t2t_analysis.measures.edge_channels import BINS, Targets, content, share_above
from t2t_analysis.measures.feature_maps import gradient_size
from t2t_analysis.measures.token_pixels import pixels_to_tokens, windows_to

from .references import token_to_pixel_weights

GRID = (8, 8)


def pictures(n=24, seed=0):
    """Grey squares of 8 pixels, moved about: every picture has edges of its own."""
    generator = torch.Generator().manual_seed(seed)
    squares = nn.functional.interpolate(torch.randn(n, 1, 4, 4, generator=generator), scale_factor=8)
    shifts = torch.randint(8, (n, 2), generator=generator).tolist()
    moved = torch.stack([image.roll(shift, (-2, -1)) for image, shift in zip(squares, shifts, strict=True)])
    return moved.expand(-1, 3, -1, -1).contiguous()


class Planted(nn.Module):
    """Four channels: a small copy of the image, its negative edges, noise of its own, nothing."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        grey = x.mean(1)
        copy, edges = pixels_to_tokens(grey, GRID), pixels_to_tokens(gradient_size(grey), GRID)
        noise = torch.stack([torch.randn(GRID, generator=_seed(image)) for image in grey])
        return self.layer1(torch.stack([copy, -3 * edges + 5, noise, 0 * copy], dim=1))


def _seed(image):
    return torch.Generator().manual_seed(int(image.abs().sum() * 1e6))


def run(models, images, size=8):
    return measure(models, images.split(size), EdgeChannels(), progress=False)["edge_channels"]


def at(result, quantity, place, model=None):
    frame = result.frame
    rows = frame[(frame.quantity == quantity) & (frame.place == place)]
    rows = rows if model is None else rows[rows.model == model]
    assert len(rows) == 1
    return rows.iloc[0]


def test_content_tells_copies_edges_and_noise_apart():
    images = pictures(6)
    found = content(Planted()(images), Targets.of(images, GRID))  # (6, 3, 4)
    outline, edge, brightness = found.mean(0)
    assert outline[0] > 0.5  # a small copy is steep where the image is
    assert edge[0] == 0  # and marks nothing beyond brightness
    assert brightness[0] == pytest.approx(1, abs=1e-5)
    assert edge[1] == pytest.approx(1, abs=1e-5)  # sign and offset of a map do not matter
    assert float(found[:, :, 2].mean()) < 0.3
    assert found[..., 3].abs().max() == 0  # an empty channel follows nothing


def test_share_above_is_that_of_sorted_values():
    generator = torch.Generator().manual_seed(1)
    real, null = (torch.rand(4000, generator=generator) * width for width in (1.0, 0.5))
    counts = [torch.histc(x, BINS, 0, 1) for x in (real, null)]
    expected = (real.numpy() > np.quantile(null.numpy(), 0.95)).mean()
    assert float(share_above(*counts)) == pytest.approx(expected, abs=2e-3)
    assert float(share_above(counts[1], counts[1])) == pytest.approx(0.05, abs=1e-9)


def test_planted_channels_are_counted_and_noise_is_at_chance():
    images = torch.cat([pictures(), torch.zeros(2, 3, 32, 32)])
    model = Planted()
    result = run({"planted": FeatureMapView(model, ["layer1"])}, images)
    assert at(result, "edge_best", "layer1")["value"] == pytest.approx(1, abs=1e-4)
    assert 0.25 <= at(result, "outline_channels", "layer1")["value"] < 0.6  # the copy, and some of the others
    assert at(result, "brightness_best", "layer1")["null"] < 0.7
    row = at(result, "outline_correlation", "layer1")
    assert (row["n"], row["unit"]) == (24, "image")
    assert 0.5 < row["ceiling"] < 1
    assert abs(row["null"]) < 0.15
    assert "2 images without any gradient" in " ".join(result.notes)


def test_a_model_against_itself_differs_by_nothing_and_thirds_are_means():
    model = load_model("small_hard_deep", "random", seed=3)
    result = run({"a": model, "b": model}, pictures(16))
    apart = difference(result, "a", "b").frame
    assert apart["value"].abs().max() == 0
    blocks = [at(result, "outline_channels", f"blocks.{i}.resid_post", "a")["value"] for i in range(3)]
    assert at(result, "outline_channels", "first third of blocks", "a")["value"] == pytest.approx(
        np.mean(blocks)
    )
    assert set(apart["n"]) == {16}


def test_batches_of_one_image_are_compared_with_the_one_before():
    model = Planted()
    alone = run({"m": FeatureMapView(model, ["layer1"])}, pictures(12), size=1)
    assert at(alone, "edge_best", "layer1")["n"] == 11
    assert any("first image was left out" in note for note in alone.notes)
    with pytest.raises(T2TError, match="3x3"):
        run({"m": FeatureMapView(nn.Sequential(nn.Conv2d(3, 4, 16, 16)), ["0"])}, pictures(4))


def test_tokens_of_a_soft_split_are_compared_with_the_pixels_that_they_saw():
    model = load_model("small_performer_deep", "random")
    image = pictures(1)[:, 0].double()
    weights = token_to_pixel_weights(model, (32, 32)).unflatten(0, GRID)
    expected = torch.einsum("hwyx,yx->hw", weights, image[0])
    inner = (slice(2, 6),) * 2  # at the border the two deal with padding differently
    found = pixels_to_tokens(image, GRID, windows_to(model, "blocks.0.resid_post"))[0]
    torch.testing.assert_close(found[inner], expected[inner])
    assert (found - pixels_to_tokens(image, GRID)[0]).abs().max() > 0.01
    assert channel_maps(model, pictures(1)[0], "embed").edges.shape == (96,)


def test_an_example_is_found_by_rule_or_by_number():
    flat = torch.zeros(1, 3, 32, 32)
    images = torch.cat([flat, pictures(3)])
    loader = [type("Batch", (), {"images": images, "labels": torch.zeros(4), "index": torch.arange(4)})()]
    number, image = example_image(loader)
    assert number > 0  # not the flat one
    assert torch.equal(image, images[number])
    with pytest.raises(DataError, match="image 9 is not among the images of the run"):
        example_image(loader, 9)
