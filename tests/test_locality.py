"""Local structure: edge targets, streamed ridge, edge decodability, input gradients, shifts; nulls, planted truths."""

from types import SimpleNamespace

import numpy as np
import pytest
import skimage.filters
import timm
import torch
from sklearn.linear_model import Ridge

from t2t_analysis import load_model
from t2t_analysis.capture import view
from t2t_analysis.data.loading import Batch
from t2t_analysis.errors import T2TError, UnknownNameError
from t2t_analysis.measures import (
    BoundaryBlindness,
    EdgeDecodability,
    EffectiveReceptiveField,
    RectifiedEdgeDecodability,
    ShiftConsistency,
    Spectrum,
    accumulate,
    collect,
    difference,
    measure,
    ridge,
    shift,
)
from t2t_analysis.measures import edges as ed
from t2t_analysis.measures import locality as lo
from t2t_analysis.measures import receptive as rf
from t2t_analysis.measures import token_pixels as fp
from t2t_analysis.measures.base import Estimate, left_out

from .references import decodability


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def textures(n=24, size=32, seed=0):
    """Smooth noise of random scale and contrast: edges that differ from cell to cell."""
    noise = torch.randn(n, 3, size, size, generator=rng(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    mask = torch.nn.functional.interpolate(torch.rand(n, 1, 8, 8, generator=rng(seed + 1)), size=size)
    return torch.where(mask > 0.5, noise, smooth)


def smooth(n=8):
    """Smooth noise: what is in a cell resembles what is in the next one."""
    return torch.nn.functional.avg_pool2d(torch.randn(n, 3, 40, 40, generator=rng()), 9, 1)


def small(name="small_hard_deep", seed=0):
    return load_model(name, "random", seed=seed, depth=2)


def run(models, measures, images, batch=8):
    return measure(models, list(images.split(batch)), measures, progress=False)


def values(frame, quantity, place):
    chosen = frame[(frame.quantity == quantity) & (frame.place == place)]
    return chosen.iloc[0] if len(chosen) == 1 else chosen


# ------------------------------------------------------------------------------------------ edge targets


def test_gradient_magnitude_is_that_of_roberts_in_scikit_image():
    grey = torch.rand(1, 9, 12, generator=rng())
    ours = ed.oriented_gradients(grey).sum(1)[0]
    theirs = skimage.filters.roberts(grey[0].double().numpy())[:-1, :-1]
    assert np.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("bin_", range(8))
def test_a_grating_has_its_energy_in_its_own_orientation(bin_):
    angle = (bin_ + 0.5) * np.pi / 8
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.sin(0.4 * (x * np.cos(angle) + y * np.sin(angle)))
    energy = ed.edge_energy(50 * wave[None], (4, 4))
    assert energy.shape == (1, 4, 4, 8)
    assert (energy.argmax(-1) == bin_).all()
    assert torch.equal(ed.edge_energy(-50 * wave[None], (4, 4)).argmax(-1), energy.argmax(-1))


def test_edges_belong_to_the_cell_that_they_lie_in_and_to_no_other():
    grey = torch.zeros(1, 32, 32)
    grey[0, 9:, 10:] = (
        100  # a corner inside cell (1, 1) of an 4x4 grid of 8 px; its edges run on through (1, 2), (2, 1)
    )
    energy = ed.edge_energy(grey, (4, 4)).sum(-1)[0]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1, 1:] = expected[1:, 1] = True
    assert torch.equal(energy > 0, expected)
    straddling = torch.zeros(1, 32, 32)
    straddling[0, :, 16:] = 100  # exactly on a border
    assert ed.edge_energy(straddling, (4, 4)).abs().max() == 0
    targets = ed.edge_targets(straddling, (4, 4)).view(4, 4, 8)
    assert targets[:, :3].abs().max() == 0
    assert (targets[:, 3].sum(-1) > 1).all()  # seen from both of its sides


def test_neighbours_are_the_right_ones():
    grey = torch.zeros(1, 40, 40)
    grey[0, 8:16, 16:24] = torch.rand(
        8, 8, generator=rng()
    )  # inside cell (1, 2) of 5x5, and across its borders
    grey[0, 8:16, 16] = grey[0, 8:16, 23] = grey[0, 8, 16:24] = grey[0, 15, 16:24] = 0
    targets = 100 * ed.edge_targets(grey, (5, 5)).view(3, 3, 4, 8).sum(-1)
    own, before, after, _ = targets.unbind(-1)
    assert (own > 0).nonzero().tolist() == [[0, 1]]
    assert (before > 0).nonzero().tolist() == [[0, 2], [1, 1]]  # it is left of one and above the other
    assert (after > 0).nonzero().tolist() == [[0, 0]]


def test_luminance_and_its_errors():
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(ed.luminance(images, (0.5,) * 3), 127.5 * ed.luminance(images) / 255)
    assert ed.luminance(torch.ones(1, 3, 1, 1)).item() == pytest.approx(255)
    with pytest.raises(T2TError, match="std has 2 numbers"):
        ed.luminance(images, (1, 1))
    with pytest.raises(T2TError, match="hold no gradient"):
        ed.edge_energy(torch.zeros(1, 8, 8), (8, 8))


def test_pixel_windows_are_the_cells_and_their_fields():
    grey = torch.arange(16.0 * 16).view(1, 16, 16)
    cells, fields = ed.pixel_windows(grey, (4, 4)), ed.pixel_windows(grey, (4, 4), (-4, -3, 5, 6))
    assert cells.shape == (1, 4, 16)
    assert fields.shape == (1, 4, 81)
    assert torch.equal(cells[0, 3].view(4, 4), grey[0, 8:12, 8:12])
    assert torch.equal(fields[0, 3].view(9, 9), grey[0, 4:13, 5:14])
    beyond = ed.pixel_windows(grey, (4, 4), (-6, 0, 4, 4))  # two rows above the image are black
    assert beyond[0, 0].view(10, 4)[:2].abs().max() == 0
    assert torch.equal(beyond[0, 0].view(10, 4)[2:], grey[0, :8, 4:8])


@pytest.mark.parametrize(
    ("place", "offset"), [("embed", -1.5), ("tokens.0.out", 0.0), ("tokens.1.out", -0.5)]
)
def test_footprints_say_where_the_tokens_of_every_place_look(place, offset):
    model = load_model("small_performer_deep", "random", depth=1)
    windows = fp.windows_to(model, place)
    foot = fp.token_footprint(view(model), place, (32, 32), (8, 8))
    grid = np.array([32, 32])
    centre = np.zeros(2)  # of the first token, then of the mean token of a cell, in pixels
    stride = 1
    for window in windows:
        centre += stride * ((window.kernel - 1) / 2 - window.padding)
        stride *= window.stride
        grid = grid // window.stride
    inside = (4 / stride - 1) / 2 * stride
    assert foot.offset == pytest.approx(tuple(centre + inside - 1.5))
    assert not foot.measured
    assert foot.shares.sum() == pytest.approx(1)


def test_footprints_without_a_known_geometry_are_measured():
    def later(x):  # the token of a cell is the pixels one further down and two to the left
        return torch.nn.functional.pad(pixels(ed.moved(x, (1.0, -2.0)))[..., :16], (0, 32))

    foot = fp.token_footprint(view(planted(later, known=False)), "blocks.0.resid_post", (32, 32), (8, 8))
    assert foot.measured
    assert foot.offset == (1.0, -2.0)
    assert foot.field == (1, -2, 5, 2)


def test_moved_targets_are_the_targets_of_the_moved_image():
    grey = 100 * torch.rand(2, 40, 40, generator=rng())
    moved = torch.roll(grey, (2, -1), (1, 2))  # what was at (y, x) is at (y + 2, x - 1)
    for ours, theirs in zip(ed.edge_targets(moved, (5, 5), (2.0, -1.0)).view(2, 3, 3, 4, 8),
                            ed.edge_targets(grey, (5, 5)).view(2, 3, 3, 4, 8), strict=True):  # fmt: skip
        assert torch.allclose(ours[1, 1], theirs[1, 1], atol=1e-5)
    half = ed.moved(grey, (0.5, 0.0))[:, :-1]
    assert torch.allclose(half, (grey[:, 1:] + grey[:, :-1]) / 2)
    assert torch.equal(ed.edge_targets(grey, (5, 5), (0.0, 0.0)), ed.edge_targets(grey, (5, 5)))


def test_a_token_that_sees_moved_pixels_is_asked_about_them():
    """Edges of the cell one further down: all of R^2 where the target moves along, less where it stays."""
    images = ed.pink_noise(24, (3, 32, 32), seed=3)

    def below(x):
        grey = ed.luminance(x, (0.5,) * 3)
        return torch.nn.functional.pad(ed.edge_energy(grey, (8, 8), (2.0, 0.0)).flatten(1, 2), (0, 40))

    aligned, asked_elsewhere = (
        values(
            run(planted(below, known=known), EdgeDecodability(dim=None, places=("embed",), groups=8), images)
            ["edge_decodability"].frame, "edge_r2_own", "embed",
        ).value
        for known in (False, True)
    )  # fmt: skip
    assert aligned > 0.95
    assert asked_elsewhere < aligned - 0.3


class Crops:
    """A loader of crops of photographs: each has a colour pattern of its own and edges that go with it."""

    def __init__(self, n=48, photographs=12, batch=8):
        which = torch.arange(n) % photographs
        contrast = torch.logspace(-2.5, 0.5, photographs)[torch.randperm(photographs, generator=rng(9))]
        noise = torch.randn(n, 3, 32, 32, generator=rng(2))
        self.images = noise * contrast[which, None, None, None]
        self.names = torch.randn(photographs, 48, generator=rng(4))[which]
        self.dataset = SimpleNamespace(photographs=which.numpy())
        self.batches = torch.arange(n).split(batch)

    def __iter__(self):
        for index in self.batches:
            yield Batch(self.images[index], torch.full((len(index),), -1), index)


def test_halves_by_photograph_do_not_reward_knowing_the_photograph():
    """A token that says which photograph it is from, and nothing else, knows the edges of its crops only."""
    loader = Crops()
    rest = [loader.names]

    def names(x):  # in the order of the loader
        if not x.requires_grad and rest[0] is not None and len(x) == 8:
            now, rest[0] = rest[0][:8], rest[0][8:]
            return now.unsqueeze(1).expand(-1, 64, -1)
        return x.new_zeros(len(x), 64, 48)

    found = {}
    for halves in lo.HALVES:
        rest[0] = loader.names
        measured = EdgeDecodability(dim=None, places=("embed",), groups=8, halves=halves)
        found[halves] = values(measure(planted(names), loader, measured, progress=False)["edge_decodability"].frame,
                               "edge_r2_own", "embed")  # fmt: skip
    assert found["images"].value > 0.4
    assert found["photographs"].value < 0.1
    assert (found["photographs"].n, found["photographs"].unit) == (12, "photograph")
    with pytest.raises(UnknownNameError, match="did you mean"):
        EdgeDecodability(halves="photo")


def test_finer_stages_are_averaged_over_the_cells():
    tokens = torch.arange(64.0).view(1, 64, 1)
    coarse = ed.inner_tokens(tokens, (8, 8), (4, 4))
    assert coarse[0, 0, 0] == tokens.view(8, 8)[2:4, 2:4].mean()


# ------------------------------------------------------------------------------------------ ridge


def test_held_out_r2_is_that_of_scikit_learn():
    x = (
        torch.randn(60, 5, generator=rng(), dtype=torch.float64)
        @ torch.diag(torch.tensor([1.0, 1, 1, 0.1, 3])).double()
    )
    y = (
        x[:, :2] @ torch.randn(2, 3, generator=rng(1), dtype=torch.float64)
        + torch.randn(60, 3, generator=rng(2)).double()
    )
    half = ridge.pair_half(torch.arange(60)).bool()
    errors, total = np.zeros(3), np.zeros(3)
    for train in (half, ~half):
        fits = {}
        n = int(train.sum())
        s = torch.linalg.svdvals(x[train] - x[train].mean(0))
        for alpha in (ridge.PENALTIES * s.square().mean()).tolist():
            fit = Ridge(alpha=alpha).fit(x[train], y[train])
            df = 1 + float((s**2 / (s**2 + alpha)).sum())
            rss = (
                ((y[train].numpy() - fit.predict(x[train])) ** 2).sum(0)
                / y[train].var(0, correction=0).numpy()
                / n
            )
            fits[rss.mean() / (n - df) ** 2] = fit
        fit = fits[min(fits)]
        errors += ((y[~train].numpy() - fit.predict(x[~train])) ** 2).sum(0)
        total += (y[~train] - y[~train].mean(0)).square().sum(0).numpy()
    assert np.allclose(decodability(x, y), 1 - errors / total, rtol=1e-9)


def test_features_with_a_constant_give_the_same():
    x, y = torch.randn(2, 40, 6, generator=rng(), dtype=torch.float64)
    y = y + x
    base = decodability(x, y)
    assert torch.allclose(decodability(x.float() + 1000, y), base, atol=1e-4)  # what float32 itself keeps
    assert torch.allclose(decodability(x + 1000, y), base, atol=1e-7)
    flat = decodability(torch.zeros(40, 3), y)
    assert (flat < 0).all()  # the other half's mean is all that is left to predict with
    assert (flat > -0.5).all()
    assert torch.isnan(decodability(x, torch.ones(40, 1))).all()


def test_replicates_are_refits():
    x, y = torch.randn(2, 40, 6, generator=rng(), dtype=torch.float64)
    half, group = ridge.pair_half(torch.arange(40)), torch.arange(40) // 2 % 4
    sums = [
        torch.zeros(4, 2, *part.shape[1:], dtype=torch.float64)
        for part in ridge.moments(x[:, None], y[:, None])
    ]
    for total, part in zip(sums, ridge.moments(x[:, None], y[:, None]), strict=True):
        total.flatten(0, 1).index_add_(0, group * 2 + half, part)
    errors, total = ridge.held_out_errors(*(left_out(s) for s in sums), [slice(0, 6)])
    found = 1 - errors / total
    assert torch.allclose(found[0], decodability(x, y))
    assert (found[1:] != found[:1]).all()


def test_p_of_independent_features_is_calibrated():
    """Two models whose features know nothing: how often are they told apart?"""
    p = []
    for seed in range(200):
        a, b, y = torch.randn(3, 48, 2, 3, generator=rng(seed), dtype=torch.float64)
        first, second = (estimate_of(x, y) for x in (a, b))
        p.append((first - second).p)
    share = np.mean(np.array(p) < 0.05)
    assert share <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


def estimate_of(x, y, groups=12):
    index = torch.arange(len(x))
    slot = index // 2 % groups * 2 + ridge.pair_half(index)
    sums = []
    for part in ridge.moments(x, y):
        total = torch.zeros(groups * 2, *part.shape[1:], dtype=torch.float64)
        sums.append(total.index_add_(0, slot, part).unflatten(0, (groups, 2)))
    errors, total = ridge.held_out_errors(*(left_out(s) for s in sums), [slice(0, y.shape[-1])])
    found = (1 - errors.sum(-1) / total.sum(-1)).numpy()
    return Estimate(found[0], found[1:], np.full(groups, len(x) // groups))


# ------------------------------------------------------------------------------------------ decodability of a model


class Planted(torch.nn.Module):
    """A patch embedding whose tokens are given as a function of the image."""

    def __init__(self, inner, tokens, known=True):
        super().__init__()
        self.inner, self.tokens = inner, tokens
        self.proj = inner.proj if known else None  # that of a hard split, as far as the geometry is asked
        self.grid_size, self.num_patches, self.patch_size = (
            inner.grid_size,
            inner.num_patches,
            inner.patch_size,
        )

    def forward(self, x):
        return self.tokens(x)


def planted(tokens, width=48, known=True):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, embed_dim=width, num_heads=3
    )
    model.patch_embed = Planted(model.patch_embed, tokens, known)
    return model


def edges(x, order=None):
    """The token of a cell is its edge energy, of itself and in 40 dimensions of noise-free zeros."""
    found = ed.edge_energy(ed.luminance(x, (0.5,) * 3), (8, 8)).flatten(1, 2)
    found = found if order is None else found[:, order]
    return torch.nn.functional.pad(found, (0, 48 - found.shape[-1]))


def own_r2(tokens, images=None, batch=8):
    images = textures() if images is None else images
    frame = run(planted(tokens), EdgeDecodability(dim=None, places=("embed",), groups=8), images, batch)[
        "edge_decodability"
    ].frame
    return values(frame, "edge_r2_own", "embed")


def test_planted_edges_are_found_and_shuffled_patches_destroy_them():
    order = torch.randperm(64, generator=rng(5))
    assert own_r2(edges).value == pytest.approx(1, abs=1e-6)
    assert own_r2(edges).p < 1e-6
    shuffled = own_r2(lambda x: edges(x, order))
    assert shuffled.value < 0.1
    noise = own_r2(lambda x: torch.randn(len(x), 64, 48, generator=rng(len(x))))
    assert abs(noise.value) < 0.1
    assert noise.p > 0.001


def test_contrast_normalisation_costs_strength_but_not_orientation():
    """A token of the cell's orientations without their common strength, as a layer norm over the window leaves it."""

    def normalised(x):
        found = edges(x)
        return torch.cat([found[..., :8] - found[..., :8].mean(-1, keepdim=True), found[..., 8:]], -1)

    measured = EdgeDecodability(dim=None, places=("embed",), groups=8)
    frame = run(planted(normalised), measured, textures())["edge_decodability"].frame
    whole, strength, orientation = (
        values(frame, f"edge_r2_own{aspect}", "embed").value for aspect in ("", "_strength", "_orientation")
    )
    assert orientation == pytest.approx(1, abs=1e-6)
    assert strength < whole < orientation
    assert strength < 0.5


def pixels(x, offset=0.0):
    """The token of a cell is its pixels, as in a hard split that loses nothing."""
    cells = ed.luminance(x, (0.5,) * 3).unflatten(2, (8, 4)).unflatten(1, (8, 4)).transpose(2, 3)
    return torch.nn.functional.pad(cells.flatten(3).flatten(1, 2), (0, 32)) + offset


def rectified_r2(tokens, images):
    measured = RectifiedEdgeDecodability(dim=None, places=("embed",), groups=8)
    return run(planted(tokens), measured, images)["rectified_edge_decodability"].frame


def test_absolute_values_see_edges_where_a_linear_readout_sees_none():
    images = textures(48)
    order = torch.randperm(64, generator=rng(5))
    linear, found = own_r2(pixels, images), rectified_r2(pixels, images)
    own, cell = (values(found, "edge_r2_own", place) for place in ("embed", "pixels.cell"))
    assert abs(linear.value) < 0.05
    assert own.low > 0.1 > linear.high
    assert own.value == pytest.approx(cell.value, abs=0.05)  # other random directions, the same pixels
    assert own.p < 1e-6
    assert "128 random directions" in own.estimator
    shuffled = values(rectified_r2(lambda x: pixels(x)[:, order], images), "edge_r2_own", "embed")
    assert shuffled.value < 0.1
    assert values(found, "edge_r2_own", "edges.cell").value == pytest.approx(1, abs=1e-6)


def test_a_rectified_readout_does_not_notice_where_zero_is_nor_the_scale():
    images = textures(16)
    table = 100 * torch.randn(48, generator=rng(7))
    plain = rectified_r2(pixels, images)
    for changed in (lambda x: pixels(x, table), lambda x: 50 * pixels(x)):
        found = rectified_r2(changed, images)
        assert np.allclose(found.value.astype(float), plain.value.astype(float), atol=2e-3)


def test_a_token_of_its_cell_knows_only_natural_correlation_of_its_neighbours():
    """Independent cells: a token of its cell tells nothing of the neighbour, one that sees it everything."""
    images = torch.rand(24, 1, 8, 8, generator=rng()).repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = images * torch.randn(24, 3, 32, 32, generator=rng(1))

    def with_left(x):
        found = edges(x)[..., :8]
        left = found.unflatten(1, (8, 8)).roll(1, 2).flatten(1, 2)
        up = found.unflatten(1, (8, 8)).roll(1, 1).flatten(1, 2)
        return torch.nn.functional.pad(torch.cat([found, left, up], -1), (0, 24))

    for tokens, expected in ((edges, 0), (with_left, 1)):
        frame = run(planted(tokens), EdgeDecodability(dim=None, places=("embed",), groups=8), images)[
            "edge_decodability"
        ].frame
        assert values(frame, "edge_r2_before", "embed").value == pytest.approx(expected, abs=0.1)
        assert values(frame, "edge_r2_after", "embed").value == pytest.approx(0, abs=0.1)
        assert values(frame, "edge_r2_own", "embed").value == pytest.approx(1, abs=1e-6)


def test_rows_of_a_model_references_and_the_first_third():
    models = {"hard": small(), "soft": small("small_performer_deep")}
    result = run(models, EdgeDecodability(dim=16, draws=2, groups=8), textures())["edge_decodability"]
    frame, over = (result.frame[result.frame.place_b.isna() == alone] for alone in (True, False))
    hard = frame[frame.model == "hard"]
    assert set(hard.place) == {
        "embed", "blocks.0.resid_post", "blocks.1.resid_post",
        "pixels.cell", "pixels.field", "edges.cell", lo.FIRST_THIRD,
    }  # fmt: skip
    assert "tokens.0.out" in set(frame[frame.model == "soft"].place)
    assert values(hard, "edge_r2_own", "edges.cell").value == pytest.approx(1, abs=1e-9)
    assert frame[["value", "low", "high", "null", "null_low", "null_high", "p"]].notna().all().all()
    assert (frame.n == 24).all()
    assert set(frame.estimator[frame.place == "pixels.field"]) == {
        "held-out ridge R^2, 16 dimensions",
        "held-out ridge R^2, 225 dimensions projected to 16, 2 draws",
    }  # of the hard and of the soft split
    assert set(frame.quantity) == set(lo.QUANTITIES)
    apart = difference(result, "soft", "hard", lo.FIRST_THIRD).frame
    row = apart[apart.quantity == "edge_r2_own_difference"].iloc[0]
    both = [values(frame[frame.model == m], "edge_r2_own", lo.FIRST_THIRD).value for m in ("soft", "hard")]
    assert row.value == pytest.approx(both[0] - both[1])
    assert row.low < row.value < row.high
    same = difference(result, "hard", "hard").frame
    assert (same.value == 0).all()
    assert (same.p == 1).all()
    over = over[(over.model == "soft") & (over.place_b == "edges.cell")].set_index("quantity")
    own = over.loc["edge_r2_own_over_reference"]
    assert own.value == pytest.approx(both[0] - 1, abs=1e-9)
    assert own.low < own.value < own.high
    assert own.place == lo.FIRST_THIRD
    assert len(over) == len(lo.QUANTITIES)


def test_shares_and_batches_give_the_same_edges():
    model, images = small(), textures(20)
    whole = run(model, EdgeDecodability(dim=16, draws=1, groups=4), images, batch=20)[
        "edge_decodability"
    ].frame
    parts = run(model, EdgeDecodability(dim=16, draws=1, groups=4), images, batch=3)[
        "edge_decodability"
    ].frame
    columns = ["value", "low", "high"]
    assert np.allclose(whole[columns].astype(float), parts[columns].astype(float), atol=1e-6)

    class Batch:
        def __init__(self, start, stop):
            self.images, self.index = images[start:stop], torch.arange(start, stop)
            self.labels = torch.full((stop - start,), -1)

    a, b = (
        accumulate(model, [Batch(*ends)], EdgeDecodability(dim=16, draws=1, groups=4), progress=False)[0]
        for ends in ((0, 10), (10, 20))
    )
    a.merge_state(b)
    merged = collect([a])["edge_decodability"].frame
    assert np.allclose(whole[columns].astype(float), merged[columns].astype(float), atol=1e-6)


def test_edge_decodability_refuses_what_it_cannot_answer():
    tiny = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=48, num_heads=3)
    with pytest.raises(T2TError, match="at least 3x3 tokens"):
        run(tiny, EdgeDecodability(), torch.randn(4, 3, 32, 32))
    with pytest.raises(UnknownNameError, match="block"):
        run(small(), EdgeDecodability(places=("block.*",)), textures(4))
    with pytest.raises(T2TError, match="dim of at least 1"):
        EdgeDecodability(dim=0)
    with pytest.raises(T2TError, match="directions of at least 1"):
        RectifiedEdgeDecodability(directions=0)
    models = {"a": small(), "b": small(seed=1)}
    result = run(models, EdgeDecodability(dim=8, draws=1, places=("blocks.*.resid_post",)), textures(8))[
        "edge_decodability"
    ]
    with pytest.raises(UnknownNameError, match="'c'"):
        difference(result, "a", "c")


def test_single_image_batches_lose_one_image_and_say_so():
    result = run(small(), EdgeDecodability(dim=8, draws=1, places=("embed",), groups=4), textures(9), batch=1)
    row = values(result.frame, "edge_r2_own", "embed")
    assert row.n == 8
    assert any("first image was left out" in note for note in result.notes)


# ------------------------------------------------------------------------------------------ input gradients


def test_distance_to_a_cell_and_radius_of_energy():
    distance = rf.distance_to_cell((12, 12), (3, 3), torch.tensor([4]))
    assert distance.shape == (1, 12, 12)
    assert (distance == 0).sum() == 16
    assert distance[0, 0, 0] == distance[0, 0, 11] == 4
    disc = torch.bincount(rf.rings((201, 201), (100.0, 100.0)).flatten())[:100].double()
    assert rf.energy_radius(disc, 0.25).item() == pytest.approx(
        50, abs=0.3
    )  # the area of a disc grows as r^2
    assert torch.isnan(rf.energy_radius(torch.zeros(4), 0.5))


def outside(model, images, **kwargs):
    frame = run(model, BoundaryBlindness(**{"n_tokens": 2, "groups": 4} | kwargs), images).frame
    return frame.set_index("at")


@pytest.mark.parametrize("name", ["small_hard_deep", "vit"])
def test_a_hard_split_sees_exactly_nothing_outside_its_cell(name):
    model = small(name) if name != "vit" else timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    images = textures(4, size=32 if name != "vit" else 64)
    found = outside(model, images)
    assert (found.value == 0).all()
    assert found.null[0] == pytest.approx(1 - 1 / (64 if name != "vit" else 16))
    assert (found.n == 4).all()


@pytest.mark.parametrize("tokens", ["performer", "transformer", "conv"])
def test_a_soft_split_sees_beyond_and_attention_everywhere(tokens):
    found = outside(small(f"small_{tokens}_deep"), textures(6))
    assert (found.value.iloc[:3] > 0.1).all()
    assert found.value.is_monotonic_decreasing
    assert found.low[0] > 0
    reach = found.value[2.0]  # farther than two cells: the windows end within
    assert (reach == 0) if tokens == "conv" else (reach > 0)


def test_the_difference_of_two_tokenisers_is_paired():
    models = {"soft": small("small_conv_deep"), "hard": small(), "again": small()}
    result = run(models, BoundaryBlindness(n_tokens=1, groups=8), textures(8))["boundary_blindness"]
    row = difference(result.where(at=0.0), "soft", "hard").frame.iloc[0]
    soft = result.frame[(result.frame.model == "soft") & (result.frame["at"] == 0)].iloc[0]
    assert row.quantity == "gradient_outside_difference"
    assert (row.value, row.low) == pytest.approx((soft.value, soft.low))
    assert row.p < 1e-4
    assert difference(result, "hard", "again").frame.iloc[0].p == 1


def test_blindness_agrees_with_the_jacobian():
    model, image = small("small_conv_deep").double(), textures(1).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: model.tokens_to_token(x)[0, 27], image)
    energy = jacobian.square().sum((0, 1, 2))
    inside = rf.distance_to_cell((32, 32), (8, 8), torch.tensor(27)) == 0
    exact = 1 - float(energy[inside].sum() / energy.sum())
    image.requires_grad_()
    tokens = model.tokens_to_token(image)
    draws = torch.stack([
        rf.pixel_energy(tokens, image, torch.tensor([27]), lambda b, s=s: rng(s))[0] for s in range(100)
    ]).mean(0)  # fmt: skip
    assert float(draws.sum()) == pytest.approx(float(energy.sum()), rel=0.1)
    assert 1 - float(draws[inside].sum() / draws.sum()) == pytest.approx(exact, abs=0.02)


def test_max_images_and_parameter_errors():
    found = outside(small(), textures(8), max_images=3)
    assert (found.n == 3).all()
    with pytest.raises(T2TError, match="n_tokens"):
        BoundaryBlindness(n_tokens=0)
    with pytest.raises(T2TError, match="choose embed"):
        run(small("small_conv_deep"), EffectiveReceptiveField(places="logits"), textures(2))


def test_gradients_leave_no_graph_and_do_not_touch_the_parameters():
    model = small("small_performer_deep")
    run(model, [BoundaryBlindness(n_tokens=1), EffectiveReceptiveField()], textures(2))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_receptive_field_of_known_size_and_of_a_hard_split():
    frame = run(small(), EffectiveReceptiveField(groups=4), textures(4)).frame
    r95 = values(frame, "erf_radius_95", "embed")
    assert r95.value < 3  # the pixels in the corners of a 4 px cell are 2.1 px from its centre
    offset = torch.arange(32) - 17.5  # token (4, 4) has its centre half a cell off that of the image
    assert r95.null == pytest.approx(torch.hypot(offset[:, None], offset).quantile(0.95).item(), abs=0.5)
    fraction = values(frame, "erf_radius_95_fraction", "embed")
    assert fraction.value == pytest.approx(r95.value / 32)


def test_receptive_field_spreads_when_attention_is_uniform():
    model = small()
    for block in model.blocks:  # no queries or keys: every token averages all values
        block.attn.qkv.weight.data[:192] = 0
        block.attn.qkv.weight.data[192:] *= 50
    frame = run(model, EffectiveReceptiveField(groups=4), textures(4)).frame
    radii = [
        values(frame, "erf_radius_50", place).value
        for place in ("embed", "blocks.0.resid_post", "blocks.1.resid_post")
    ]
    assert radii[0] < radii[1] < radii[2]
    result = run(model, EffectiveReceptiveField(groups=4, map_size=8), textures(4))[
        "effective_receptive_field"
    ]
    (maps,) = result.meta["maps"].values()
    assert np.shape(maps["embed"]) == (8, 8)
    assert np.max(maps["embed"]) == 1
    assert np.argmax(maps["embed"]) == 4 * 8 + 4


# ------------------------------------------------------------------------------------------ shifts


def test_shifted_and_interpolated_maps_of_a_ramp_are_equal():
    images = torch.arange(32.0).expand(2, 1, 32, 32)
    for pixels in (1, 3, 4, 6, 8):
        maps, moved = (
            torch.nn.functional.avg_pool2d(x, 4) for x in (images, shift.shifted(images, pixels, 3))
        )
        a, b = shift.shifted_pair(maps, moved, pixels, 4, 3)
        assert a.shape == b.shape
        assert torch.allclose(a, b)
        assert a.shape[3] >= 2
    with pytest.raises(T2TError, match="leaves no token"):
        shift.shifted_pair(maps, maps, 28, 4, 3)
    with pytest.raises(T2TError, match="cannot shift"):
        shift.shifted(images, 32, 3)


def test_hard_splits_have_a_period_of_one_patch_and_pixels_hardly_a_dip():
    models = {"hard": small(), "smooth": small("small_conv_deep")}
    result = run(models, ShiftConsistency(places=("embed",), groups=4), smooth())["shift_consistency"]
    frame = result.frame
    hard = frame[(frame.model == "hard") & (frame.quantity == "shift_correlation") & (frame.place == "embed")]
    curve = hard.set_index("at").value
    assert curve[4.0] == pytest.approx(1, abs=1e-5)
    assert curve[8.0] == pytest.approx(1, abs=1e-5)
    assert curve[2.0] < curve[1.0] < 1
    assert curve[6.0] == pytest.approx(curve[2.0], abs=0.15)
    dip = values(frame[frame.model == "hard"], "shift_dip", "embed")
    assert dip.value == pytest.approx(curve[4.0] - curve[2.0])
    assert dip.null > 0
    assert dip.low < dip.value < dip.high
    pixels = frame[
        (frame.model == "hard") & (frame.place == "pixels.mean") & (frame.quantity == "shift_correlation")
    ]
    assert pixels.null.tolist() == pixels.value.tolist()
    assert hard.null.tolist() == pixels.value.tolist()


def test_position_tables_do_not_count_as_inconsistency():
    a, table = torch.randn(8, 4, 5, 5, generator=rng()), 100 * torch.randn(4, 5, 5, generator=rng(1))
    assert shift.map_correlation(a + table, a).min() > 0.999
    assert torch.isnan(shift.map_correlation(a[:1], a[:1])).all()
    independent = shift.map_correlation(*torch.randn(2, 200, 4, 5, 5, generator=rng(2)))
    assert abs(float(independent.mean())) < 0.03


def test_images_that_are_left_out_are_counted_and_bad_shifts_refused():
    images = textures(7)
    images[0, 0, 0, 0] = torch.nan
    result = run(small(), ShiftConsistency(shifts=(2,), places=("embed",), groups=2), images, batch=2)
    assert values(result.frame, "shift_correlation", "embed").n == 4
    assert any(note.startswith("3 images are left out: alone in a batch") for note in result.notes)
    assert any("no shift_dip" in note for note in result.notes)
    with pytest.raises(T2TError, match="at least 1 pixel"):
        run(small(), ShiftConsistency(shifts=(0, 2)), textures(2))


# ------------------------------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def results():
    models = {"soft": small("small_performer_deep"), "hard": small()}
    measures = [
        EdgeDecodability(dim=8, draws=1, groups=4),
        RectifiedEdgeDecodability(dim=8, directions=4, groups=4),
        BoundaryBlindness(n_tokens=1, groups=4),
        EffectiveReceptiveField(groups=4),
        ShiftConsistency(shifts=(2, 4), groups=4),
        Spectrum(groups=4),
    ]
    return run(models, measures, smooth())


def test_the_interval_of_a_radius_holds_it(results):
    frame = results["effective_receptive_field"].frame
    radii = frame[frame.quantity.str.startswith("erf_radius")]
    assert ((radii.low <= radii.value) & (radii.value <= radii.high)).all()
    assert (radii.low > 0).all()


def test_a_batch_that_is_not_finite_is_left_out_of_tokens_and_references_alike():
    model = load_model("small_hard_deep", "random")
    batches = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    batches[4] = torch.full_like(batches[4], torch.nan)
    found = measure({"m": model}, batches, [EdgeDecodability()], progress=False)["edge_decodability"]
    assert set(found.frame["n"]) == {16}
    assert found.frame["quantity"].str.endswith("_over_reference").any()
