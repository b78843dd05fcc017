"""Attribution: tokens laid on pixels, methods against hand calculations, and checks against planted truth."""

import ast
import copy
import dataclasses
import inspect

import numpy as np
import pytest
import timm
import torch
from torch import nn

from t2t_analysis import models
from t2t_analysis.data.loading import Batch
from t2t_analysis.errors import CaptureError, DataError, T2TError, UnknownNameError
from t2t_analysis.measures import attribution, attribution_checks
from t2t_analysis.measures.attribution import (
    METHODS,
    Explained,
    Settings,
    attribute,
    explain,
    reference_images,
)
from t2t_analysis.measures.attribution_checks import (
    cascade_stages,
    cell_order,
    completeness,
    deletion_insertion,
    exchange_null,
    map_agreement,
    rank_correlations,
    weight_randomisation,
)
from t2t_analysis.measures.base import View
from t2t_analysis.measures.clusters import cluster_mean, paired_against_others, permute_clusters
from t2t_analysis.measures.token_pixels import shares_of, split_windows, token_footprint
from t2t_analysis.plots import attribution_panels

from .references import token_to_pixel_weights

assert models  # registers our models with timm


def vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 4}
    model = timm.create_model("vit_tiny_patch16_224", **small | kwargs).eval()
    for p in model.parameters():  # as initialised, a ViT hardly answers to its image
        p.data += 0.15 * torch.randn_like(p)
    return model


def t2t(seed=0):
    torch.manual_seed(seed)
    return timm.create_model(
        "small_performer_deep", depth=2, embed_dim=24, num_heads=3, num_classes=4, mlp_ratio=2.0
    ).eval()


def photos(n=4, size=32, seed=0):
    """Smooth random pictures."""
    coarse = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


IMAGES, TARGET = photos(), torch.tensor([0, 1, 2, 3])
QUICK = Settings(steps=8)


def loader_of(images, labels=None, clusters=None):
    labels = torch.full((len(images),), -1) if labels is None else labels
    batches = [
        Batch(images[i : i + 3], labels[i : i + 3], torch.arange(i, min(i + 3, len(images))))
        for i in range(0, len(images), 3)
    ]

    class Loader(list):
        dataset = type("Data", (), {"clusters": clusters})()

    return Loader(batches)


# ------------------------------------------------------------------------------------------ tokens to pixels


def receptive_field(windows, index, size):
    """Pixels from ``low`` to ``high`` along one axis that token ``index`` is made from, by walking back."""
    low = high = index
    for kernel, stride, padding in reversed(windows):
        low, high = low * stride - padding, high * stride - padding + kernel - 1
    return max(low, 0), min(high, size - 1)


@pytest.mark.parametrize(("name", "size"), [("small_performer_deep", (32, 48)), ("t2t_vit_7", (96, 64))])
def test_a_soft_token_weighs_the_pixels_of_its_receptive_field_and_no_others(name, size):
    model = timm.create_model(name, depth=1, img_size=size)
    weights = token_to_pixel_weights(model, size)
    rows, columns = model.tokens_to_token.grids(*size)[-1]
    assert weights.shape == (rows * columns, *size)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(rows * columns, dtype=torch.float64), atol=1e-12)
    windows = model.tokens_to_token.windows
    for token in (0, columns + 1, rows * columns - 1):
        top, bottom = receptive_field(windows, token // columns, size[0])
        left, right = receptive_field(windows, token % columns, size[1])
        inside = torch.zeros(size, dtype=torch.bool)
        inside[top : bottom + 1, left : right + 1] = True
        assert torch.equal(weights[token] > 0, inside)


@pytest.mark.parametrize("make", [vit, lambda: timm.create_model("small_hard_deep", depth=1)])
def test_a_hard_token_weighs_its_own_cell_evenly(make):
    model = make()
    weights = token_to_pixel_weights(model, (32, 32))
    cell = 32 // int(len(weights) ** 0.5)
    for token, share in enumerate(weights):
        row, column = divmod(token, 32 // cell)
        expected = torch.zeros(32, 32, dtype=torch.float64)
        expected[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = cell**-2
        assert torch.allclose(share, expected, atol=1e-15)


def test_relevance_is_spread_linearly_and_the_wrong_grid_is_refused():
    model, tokens = t2t(), torch.randn(2, 8, 8, dtype=torch.float64)
    expected = torch.einsum("bn,nhw->bhw", tokens.flatten(1), token_to_pixel_weights(model, (32, 32)))
    assert torch.allclose(shares_of(tokens, split_windows(model), (32, 32)), expected, atol=1e-12)
    with pytest.raises(DataError, match="8x8"):
        shares_of(tokens[:, :4, :4], split_windows(model), (32, 32))
    with pytest.raises(CaptureError, match="cannot be placed on pixels"):
        split_windows(nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------ methods


def state(model):
    modes = [m.training for m in model.modules()]
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )
    grads = [p.grad is None and p.requires_grad for p in model.parameters()]
    return modes, hooks, grads, {k: v.clone() for k, v in model.state_dict().items()}


def same_state(a, b):
    return a[:3] == b[:3] and all(torch.equal(a[3][k], b[3][k]) for k in a[3])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [vit, t2t])
def test_every_method_maps_pixels_and_leaves_no_trace(make, method):
    model, images = make(), IMAGES.clone()
    model.blocks[0].train()
    before, draw = state(model), torch.random.get_rng_state()
    found = attribute(model, images, TARGET, method, QUICK)
    assert same_state(before, state(model))
    assert torch.equal(draw, torch.random.get_rng_state())
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert found.pixels.shape == (4, 32, 32)
    assert float(found.pixels.abs().max()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_fails_is_left_as_it_was(method):
    model = vit()
    model.train()
    before = state(model)
    calls = []

    def fail(*args):
        calls.append(1)
        if len(calls) > 1:  # past the pass that only asks whether there is such a class
            raise RuntimeError("broken on purpose")

    handle = model.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        attribute(model, IMAGES, TARGET, method, QUICK)
    handle.remove()
    assert same_state(before, state(model))


def test_integrated_gradients_sum_to_the_change_of_the_logit():
    model = vit().double()
    images = IMAGES.double()
    found = attribute(model, images, TARGET, settings=Settings(steps=64))
    with torch.no_grad():
        both = [
            model(x).gather(1, TARGET[:, None])[:, 0] for x in (images, reference_images(images, "blurred"))
        ]
    assert torch.allclose(found.change, both[0] - both[1])
    assert torch.allclose(found.pixels.sum((1, 2)), found.change, atol=1e-4 * float(found.change.abs().max()))
    assert torch.allclose(found.error, found.pixels.sum((1, 2)) - found.change, atol=1e-10)


def test_a_flat_baseline_defeats_integrated_gradients_of_a_soft_split():
    model, share = t2t(), {}
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)  # colours that differ keep a window from being flat
    for baseline in ("mean", "blurred"):
        found = attribute(model, grey, TARGET, "integrated_gradients", Settings(steps=16, baseline=baseline))
        share[baseline] = float(found.error.abs().sum() / found.change.abs().sum())
    assert share["blurred"] < 0.02 < 0.2 < share["mean"]


def test_occlusion_by_hand():
    model, how = vit(), Settings(baseline="mean", batch=8)
    found = attribute(model, IMAGES, TARGET, "occlusion", how).pixels
    hidden = IMAGES.clone()
    hidden[:, :, 8:16, 16:24] = IMAGES.mean((2, 3), keepdim=True)
    with torch.no_grad():
        drop = (model(IMAGES) - model(hidden)).gather(1, TARGET[:, None])[:, 0]
    assert torch.allclose(found[:, 8:16, 16:24], drop[:, None, None].expand(4, 8, 8), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_only_cell_that_differs_from_the_baseline_gets_everything(method):
    images = torch.zeros_like(IMAGES)
    images[:, :, 8:16, 16:24] = IMAGES[:, :, 8:16, 16:24]
    pixels = attribute(vit(), images, TARGET, method, Settings(steps=8, baseline="zero")).pixels
    cells = nn.functional.avg_pool2d(pixels.abs(), 8).flatten(1)
    assert float(cells[:, 6].min()) > 0
    assert float(cells.sum(1).sub(cells[:, 6]).abs().max()) < 1e-6 * float(cells[:, 6].min())


def test_unknown_names_and_classes():
    with pytest.raises(UnknownNameError, match="occlusion"):
        attribute(vit(), IMAGES, TARGET, "oclusion")
    with pytest.raises(T2TError, match="class 9"):
        attribute(vit(), IMAGES, torch.full((4,), 9), "occlusion")
    with pytest.raises(UnknownNameError, match="blurred"):
        Settings(baseline="blured")
    with pytest.raises(T2TError, match="steps=0"):
        Settings(steps=0)


def test_captum_is_imported_inside_functions_only():
    for module in (attribution, attribution_checks):
        top = ast.parse(inspect.getsource(module)).body
        imported = [ast.unparse(node) for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imported
        assert not any("captum" in line for line in imported)


# ------------------------------------------------------------------------------------------ explain


def test_explain_gathers_what_attribute_gives():
    model = vit()
    loader = loader_of(photos(7), torch.arange(7) % 4, clusters=np.arange(7) // 2)
    one = explain(model, loader, ["occlusion"], n_images=5, target="label", progress=False)[0]
    assert one.clusters.tolist() == [0, 0, 1, 1, 2]
    assert one.target.tolist() == [0, 1, 2, 3, 0]
    alone = attribute(model, photos(7)[:5], one.target, "occlusion").pixels
    assert torch.allclose(one.maps["occlusion"], alone, atol=1e-6)
    predicted = explain({"a": model}, loader, ["occlusion"], n_images=5, progress=False)[0]
    assert predicted.label == "a"
    with torch.no_grad():
        assert torch.equal(predicted.target, model(photos(7)[:5]).argmax(1))


def test_explain_names_what_is_missing():
    model = vit()
    with pytest.raises(DataError, match="gave 4"):
        explain(model, loader_of(IMAGES), ["occlusion"], n_images=5, progress=False)
    with pytest.raises(DataError, match="without a label"):
        explain(model, loader_of(IMAGES), ["occlusion"], n_images=2, target="label", progress=False)
    twice = explain([model, model], loader_of(IMAGES), ["occlusion"], n_images=2, progress=False)
    assert twice[1].label == f"{twice[0].label} (2)"


def test_a_map_that_is_not_finite_is_named_and_the_others_come_out():
    images = photos(5)
    images[2, 0, 0, 0] = float("nan")
    one = explain(
        vit(), loader_of(images), ["integrated_gradients", "occlusion"], n_images=5, progress=False
    )[0]
    assert one.usable("occlusion").tolist() == [True, True, False, True, True]
    assert any("not finite for 1 of 5" in note for note in one.notes)
    frame = deletion_insertion([one], steps=2, draws=2).frame
    assert frame[frame.variant == "occlusion"]["n"].unique().tolist() == [4]
    assert frame["value"].notna().all()


# ------------------------------------------------------------------------------------------ statistics


def test_a_mean_over_clusters_is_wider_than_one_that_takes_them_for_independent():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 4)
    values = rng.normal(size=20)[clusters] + 0.1 * rng.normal(size=80)
    together, apart = cluster_mean(values, clusters), cluster_mean(values, np.arange(80))
    assert together["value"] == pytest.approx(values.mean())
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])
    assert np.isnan(cluster_mean(values, np.zeros(80))["low"])


def test_partners_come_from_other_clusters():
    clusters = np.array([5, 5, 5, 2, 2, 9])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        others = permute_clusters(clusters, 9, rng, others_only=True)
        assert (clusters[others] != clusters).all()
        assert sorted(permute_clusters(np.arange(6), 1, rng)[0]) == list(range(6))
    with pytest.raises(DataError, match="one cluster"):
        permute_clusters([1, 1], 1, np.random.default_rng(0), others_only=True)


def test_pairing_is_found_and_its_null_is_the_others():
    rng = np.random.default_rng(1)
    similarity = 0.3 + 0.05 * rng.normal(size=(20, 20)) + 0.4 * np.eye(20)
    found = paired_against_others(similarity, np.arange(20))
    assert found["value"] == pytest.approx(np.diagonal(similarity).mean())
    assert found["null"] == pytest.approx(similarity[~np.eye(20, dtype=bool)].mean(), abs=0.005)
    assert found["p"] < 0.01


def rejections(p_values):
    """Share below 0.05, and the most that 200 sound tests give (binomial 99.5 %)."""
    return np.mean(np.asarray(p_values) < 0.05), 0.05 + 2.6 * (0.05 * 0.95 / len(p_values)) ** 0.5


@pytest.mark.parametrize("size", [1, 3])
def test_pairing_test_is_calibrated(size):
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(8), size)

    def one():
        a, b = rng.normal(size=(2, 8, 5))
        a, b = (x[clusters] + 0.2 * rng.normal(size=(8 * size, 5)) for x in (a, b))
        return paired_against_others(a @ b.T, clusters, draws=99)["p"]

    share, most = rejections([one() for _ in range(200)])
    assert share <= most


def test_exchange_test_is_calibrated_and_finds_an_effect():
    rng = np.random.default_rng(3)

    def p(effect):
        base = rng.normal(size=12)  # images differ
        return exchange_null(
            base + rng.exponential(size=12) - effect, base + rng.exponential(size=(6, 12)), resamples=199
        )["p"]

    share, most = rejections([p(0.0) for _ in range(200)])
    assert share <= most
    assert np.mean([p(1.5) < 0.05 for _ in range(20)]) > 0.9


# ------------------------------------------------------------------------------------------ faithfulness


class Readout(nn.Module):
    """Logits linear in the pixels."""

    def __init__(self, seed=0, classes=3):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 1, 8, 8, generator=g))

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weight)


def readout_maps(maps, images, model, target):
    return Explained(
        model, "readout", "set by hand", images, target,
        np.arange(len(images)), maps, {}, Settings(), "predicted",
    )  # fmt: skip


def contributions(model, images, target):
    """What each pixel adds to the logit of the class, beyond the other classes' mean, above a flat image."""
    chosen = model.weight.detach()[target] * 1.5 - model.weight.detach().sum(0) / 2
    return ((images - images.mean((2, 3), keepdim=True)) * chosen)[:, 0]


def test_true_contributions_delete_and_insert_best_and_inverted_ones_worst():
    model = Readout()
    images = 0.3 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    target = model(images).argmax(1)
    truth = contributions(model, images, target)
    one = readout_maps({"occlusion": truth, "integrated_gradients": -truth}, images, model, target)
    result = deletion_insertion([one], cells=(8, 8), draws=4)
    area = result.frame.set_index(["variant", "quantity"])
    for name, kind, below in [
        ("occlusion", "deletion_area", True), ("occlusion", "insertion_area", False),
        ("integrated_gradients", "deletion_area", False), ("integrated_gradients", "insertion_area", True),
    ]:  # fmt: skip
        row = area.loc[(name, kind)]
        assert (row["value"] < row["null_low"]) == below
        assert (row["value"] > row["null_high"]) != below
        assert row["p"] < 0.01
    gain = {name: area.loc[(name, "faithfulness")] for name in one.maps}
    assert gain["occlusion"]["low"] > 0 > gain["integrated_gradients"]["high"]
    assert gain["occlusion"]["value"] == pytest.approx(
        area.loc[("occlusion", "insertion_area"), "value"] - area.loc[("occlusion", "insertion_area"), "null"]
        - area.loc[("occlusion", "deletion_area"), "value"] + area.loc[("occlusion", "deletion_area"), "null"]
    )  # fmt: skip
    assert max(row["p"] for row in gain.values()) < 0.01
    assert {row["null"] for row in gain.values()} == {0.0}
    curve = result.frame.query("variant == 'occlusion' and quantity == 'deletion'")
    start = model(images).detach().softmax(1).gather(1, target[:, None]).mean()
    assert curve["value"].iloc[0] == pytest.approx(float(start), abs=1e-6)
    assert curve["value"].iloc[-1] == pytest.approx(curve["null"].iloc[-1])  # all is deleted in either order


def test_maps_that_know_nothing_are_not_called_faithful():
    model, images = Readout(1), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    target = model(images).argmax(1)
    p_values = []
    for seed in range(100):
        maps = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(seed))
        one = readout_maps({"occlusion": maps}, images, model, target)
        frame = deletion_insertion([one], cells=(4, 4), steps=2, draws=3, resamples=99, seed=seed).frame
        p_values.append(frame.query("quantity == 'faithfulness'")["p"].item())
    share, most = rejections(p_values)
    assert share <= most


def test_order_of_cells():
    ranks = cell_order(torch.tensor([[[0.0, 0.0, 5.0, 5.0]] * 4]), (2, 2), np.random.default_rng(0))
    assert sorted(ranks.flatten().tolist()) == [0, 1, 2, 3]
    assert set(ranks[0, :, 1].tolist()) == {0, 1}
    flat = torch.zeros(200, 4, 4)
    first = cell_order(flat, (2, 2), np.random.default_rng(0)).flatten(1).argmin(1)
    assert torch.bincount(first, minlength=4).min() > 25  # ties are drawn, not taken from the top left


# ------------------------------------------------------------------------------------------ comparisons


def test_rank_correlation_ignores_monotone_changes_and_notices_the_rest():
    x, y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.allclose(rank_correlations(x.exp(), y), rank_correlations(x, y))
    assert not np.allclose(rank_correlations(x.flip(1), y), rank_correlations(x, y))
    assert np.allclose(np.diagonal(rank_correlations(x, x)), 1)


SOME = list(METHODS)


def explained(model, n=6, methods=SOME, label="model"):
    return explain(
        {label: model}, loader_of(photos(n, seed=4)), methods, n_images=n, settings=QUICK, progress=False
    )[0]


def test_completeness_row():
    one = explained(vit(), methods=SOME)
    row = completeness([one]).frame.squeeze()
    error, change = one.errors["integrated_gradients"]
    assert row["value"] == pytest.approx(float(error.abs().sum() / change.abs().sum()))
    assert row["low"] <= row["value"] <= row["high"]
    assert row["null"] > 5 * row["value"]


def test_cascade_ends_at_the_twin_and_leaves_the_model_alone():
    model, twin = vit(), vit(seed=1)
    one, before = explained(model), state(model)
    result = weight_randomisation([one], [twin])
    assert same_state(before, state(model))
    frame = result.frame.set_index(["variant", "at"])
    keys = [key for _, part in cascade_stages(model) for key in part]
    assert sorted(keys) == sorted(model.state_dict())
    for method in SOME:
        assert frame.loc[(method, 0.0), "value"] == 1
        maps = attribute(twin, one.images, one.target, method, QUICK).pixels
        expected = np.diagonal(rank_correlations(one.maps[method].abs(), maps.abs())).mean()
        assert frame.loc[(method, 4.0), "value"] == pytest.approx(expected, abs=1e-6)
        assert frame.loc[(method, 4.0), "place"] == "embed"


def test_a_twin_that_is_no_other_is_refused():
    model = vit()
    one = explained(model, methods=["occlusion"])
    with pytest.raises(T2TError, match="same weights"):
        weight_randomisation([one], [copy.deepcopy(model)])
    with pytest.raises(T2TError, match="1 models but 2 twins"):
        weight_randomisation([one], [vit(1), vit(2)])


def test_default_twin_of_an_untrained_model_is_another_one():
    model = models.load_model("small_hard_wide", "random", seed=0, num_classes=4)
    one = explained(model, methods=["occlusion"], n=3)
    frame = weight_randomisation([one], stages=1).frame
    assert frame.query("at > 0")["value"].item() < 0.999
    assert frame["place"].dropna().unique().tolist() == ["embed"]  # a single look is one at the end
    assert any("UNTRAINED" in note for note in one.notes)


def test_a_model_agrees_with_itself_and_with_a_stranger_by_its_null():
    one = explained(vit(), n=16, methods=SOME)
    own = map_agreement(one, dataclasses.replace(one, label="twin")).frame
    assert np.allclose(own["value"], 1)
    assert (own["p"] < 0.01).all()
    assert set(own["quantity"]) == {"agreement"}
    shuffled = dataclasses.replace(one, maps={k: torch.rand_like(v) for k, v in one.maps.items()})
    other = map_agreement(one, shuffled).frame
    assert (other["value"].abs() < 0.1).all()
    with pytest.raises(DataError, match="do not match"):
        map_agreement(one, explained(vit(), n=5, methods=["occlusion"]))


def test_agreement_may_leave_out_images_of_different_classes():
    one = explained(vit(), n=6, methods=["occlusion"])
    target = one.target.clone()
    target[:2] = (target[:2] + 1) % 4
    other = dataclasses.replace(one, label="other", target=target)
    assert map_agreement(one, other).frame["n"].tolist() == [6]
    found = map_agreement(one, other, same_class=True)
    assert found.frame["n"].tolist() == [4]
    assert any("different classes for 2 of 6 images" in note for note in found.notes)
    none = dataclasses.replace(one, label="none", target=(one.target + 1) % 4)
    empty = map_agreement(one, none, same_class=True)
    assert empty.frame.empty


def test_occlusion_covers_as_many_squares_as_it_is_told():
    """One square over the whole image: every pixel gets the fall from image to blur."""
    model = vit()
    found = attribute(model, IMAGES, TARGET, "occlusion", Settings(squares=1)).pixels
    fall = attribute(model, IMAGES, TARGET, "integrated_gradients", QUICK).change
    assert torch.allclose(found, fall[:, None, None].expand_as(found), atol=1e-5)
    quarters = attribute(model, IMAGES, TARGET, "occlusion", Settings(squares=4)).pixels
    assert [len(image.unique()) for image in quarters] == [4] * len(IMAGES)
    with pytest.raises(T2TError, match="squares=0"):
        Settings(squares=0)


def test_the_footprint_of_a_token_is_where_its_splits_put_it():
    """Three soft splits with padding 1 on even grids: token k of T2T-ViT is centred on pixel 16 k + 1."""
    soft, hard = (
        token_footprint(View(timm.create_model(name, depth=1)), "embed", (224, 224), (14, 14))
        for name in ("t2t_vit_7", "vit_tiny_patch16_224")
    )
    assert (int((hard.shares > 0).sum()), hard.outside, hard.offset) == (256, 0.0, (0.0, 0.0))
    assert int((soft.shares > 0).sum()) == 31**2  # 7 + 2 * 4 + 2 * 8
    assert soft.offset == pytest.approx((1 - 7.5, 1 - 7.5))
    assert soft.cell == hard.cell == (112, 112, 16, 16)


def test_all_questions_in_one_call_and_their_drawings():
    several = [explained(make(), n=3, label=str(make)) for make in (vit, t2t)]
    results = attribution_checks.check_attribution(several, twins=[vit(1), t2t(1)], draws=2, stages=1)
    assert sorted(results) == [
        "attribution_agreement", "attribution_cascade", "attribution_completeness", "attribution_faithfulness",
    ]  # fmt: skip
    frame = results.frame
    tested = frame[frame["interval"].fillna("").str.startswith("t,")]
    assert len(tested) > 90
    assert tested[["null", "null_kind", "low", "high", "n", "unit"]].notna().all(axis=None)
    panels = attribution_panels(several, images=[0, 2])
    assert len([ax for ax in panels.fig.axes if ax.images]) == 4 * 3
    assert f"class {several[0].target[0]}" in panels.caption
    titles = [ax.get_title() for ax in panels.fig.axes[:6]]
    assert [title.split(":")[-1].strip() for title in titles].count(
        "image"
    ) == 2  # each model may see another part
    signed = panels.fig.axes[3 * 1 + 1].get_images()[0]
    assert (signed.get_cmap().name, signed.norm.vmin, signed.norm.vmax) == ("RdBu_r", -1, 1)
