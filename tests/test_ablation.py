"""Heads taken out: identities, planted truths, the short cut against whole forward passes, nulls, pruning."""

import copy
import math
import multiprocessing
import sys
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.distributed as dist
from scipy import stats as sps

from t2t_analysis.capture import capture
from t2t_analysis.errors import CaptureError, DataError, ParameterError, T2TError, UnknownNameError
from t2t_analysis.measures import HeadOutputCKA, HeadSimilarity, accumulate, collect, measure
from t2t_analysis.measures.ablation import HeadMeans, Replay, ablated, derangement, head_outputs, sites
from t2t_analysis.measures.ablation_measure import (
    effects,
    head_gradients,
    head_scores,
    kl_divergence,
    put,
    random_subspaces,
    remove_subspace,
    subspace_scores,
)
from t2t_analysis.measures.head_ablation import HeadAblation
from t2t_analysis.measures.pruning import (
    PruningCurves,
    ascending_order,
    by_weight,
    crossing,
    head_association,
    largest_similarity,
    one_more_p,
    pruning_orders,
    similarity_is_redundancy,
    similarity_matrix,
    similarity_order,
)
from t2t_analysis.models import load_model

MODELS = {
    "timm": ("vit_tiny_patch16_224", dict(img_size=32)),
    "distilled": ("deit_tiny_distilled_patch16_224", dict(img_size=32)),
    "registers": ("vit_small_patch14_reg4_dinov2", dict(img_size=28, embed_dim=48, num_heads=3, num_classes=5)),
    "eva": ("eva02_tiny_patch14_224", dict(img_size=28, num_classes=5)),
    "beit": ("beit_base_patch16_224", dict(img_size=32, embed_dim=48, num_heads=3, num_classes=5)),
    "scale_norm": ("eva02_base_patch14_224", dict(img_size=28, embed_dim=48, num_heads=3, num_classes=5)),
    "t2t": ("small_performer_deep", {}),
    "hard": ("small_hard_deep", {}),
}  # fmt: skip


def model_of(kind, seed=0, stretch=True):
    name, kwargs = MODELS[kind]
    torch.manual_seed(seed)
    model = timm.create_model(name, depth=2, **kwargs).eval()
    with torch.no_grad():
        for p in model.parameters() if stretch else ():
            if p.ndim == 2:  # so that heads matter, and biases and norms are not those of initialisation
                p.mul_(3)
            elif p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


def images(n=6, size=32, seed=5):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def size_of(kind):
    return MODELS[kind][1].get("img_size", 32)


def no_hooks(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def out(model, batch):
    return model(batch)


@pytest.fixture(scope="module")
def hard():
    return model_of("hard")


# ------------------------------------------------------------------------------------------- one set of heads


@pytest.mark.parametrize("kind", list(MODELS))
def test_factor_one_changes_no_bit_and_hooks_are_gone(kind):
    model, batch = model_of(kind), images(2, size_of(kind))
    full = out(model, batch)
    with ablated(model, {(layer, 0): 1.0 for layer in (0, 1)}):
        assert torch.equal(out(model, batch), full)
    with ablated(model, {(0, 1): "zero"}):
        assert not torch.equal(out(model, batch), full)
    assert no_hooks(model)
    assert torch.equal(out(model, batch), full)


@pytest.mark.parametrize("kind", list(MODELS))
def test_without_any_head_a_layer_attends_to_nothing_but_its_bias(kind):
    model, batch = model_of(kind), images(2, size_of(kind))
    site = sites(model)[1]
    heads = {(1, h): "zero" for h in range(site.num_heads)}
    with ablated(model, heads), capture(model, "blocks.1.attn.out") as seen:
        out(model, batch)
    value = seen["blocks.1.attn.out"]
    torch.testing.assert_close(value, site.proj.bias.expand_as(value), rtol=0, atol=1e-6)


def test_a_head_is_its_slice_of_the_projection(hard):
    batch = images(2)
    attn = hard.blocks[1].attn
    with capture(hard, ["blocks.1.attn.out", "blocks.1.attn.z"]) as seen:
        out(hard, batch)
    weights = attn.proj.weight.unflatten(1, (4, -1))  # (D, H, d)
    parts = torch.einsum("bhnd,ohd->bhno", seen["blocks.1.attn.z"], weights)
    torch.testing.assert_close(parts.sum(1) + attn.proj.bias, seen["blocks.1.attn.out"], rtol=0, atol=1e-5)
    with ablated(hard, {(1, 2): "zero"}), capture(hard, "blocks.1.attn.out") as without:
        out(hard, batch)
    change = seen["blocks.1.attn.out"] - without["blocks.1.attn.out"]
    torch.testing.assert_close(change, parts[:, 2], rtol=0, atol=1e-5)


def test_modes_put_what_they_say(hard):
    batch = images(4)
    means = HeadMeans.of(hard, [batch[:3], batch[3:]])
    with capture(hard, "blocks.1.attn.z") as seen:
        out(hard, batch)
    z = seen["blocks.1.attn.z"]  # (B, H, N, d)
    torch.testing.assert_close(means.mean[1].transpose(0, 1), z.mean(0), rtol=0, atol=1e-6)
    assert means.n == 4
    assert HeadMeans.of(hard, [batch, batch], limit=5).n == 5
    given = torch.randn(z.shape[2:])
    expected = {"mean": z.mean(0)[2], "zero": 0 * given, "resample": z[derangement(4, 3), 2]}
    for how, value in [*expected.items(), (given, given), (0.5, 0.5 * z[:, 2])]:
        with ablated(hard, {(1, 2): how}, means=means, seed=3):
            projected = head_outputs(hard, sites(hard), batch)[1].unflatten(-1, (4, -1)).transpose(1, 2)
        torch.testing.assert_close(projected[:, 2], value.expand_as(z[:, 2]), rtol=0, atol=1e-6)
        torch.testing.assert_close(projected[:, :2], z[:, :2], rtol=0, atol=0)


def test_ablation_refuses_what_it_cannot_do_and_leaves_no_hook(hard):
    for heads, error, words in [
        ({(7, 0): "zero"}, UnknownNameError, "layer '7'"),
        ({(0, 4): "zero"}, UnknownNameError, "head '4'"),
        ({(0, 0): "zro"}, UnknownNameError, "did you mean 'zero'"),
        ({(0, 0): "mean"}, T2TError, "HeadMeans.of"),
    ]:
        with pytest.raises(error, match=words), ablated(hard, heads):
            pass
    with pytest.raises(DataError, match="at least 2"), ablated(hard, {(0, 0): "resample"}):
        out(hard, images(1))
    with pytest.raises(DataError, match="different sizes"):
        HeadMeans.of(hard, [images(1), images(1, 48)])
    with pytest.raises(DataError, match="no images"):
        HeadMeans.of(hard, [])
    with pytest.raises(RuntimeError), ablated(hard, {(0, 0): "zero"}):
        raise RuntimeError
    assert no_hooks(hard)


def test_half_precision_and_training_go_through(hard):
    batch = images(2)
    with torch.autocast("cpu", torch.bfloat16), ablated(hard, {(0, 1): "zero"}):
        assert out(hard, batch).isfinite().all()
    xi = torch.tensor(1.0, requires_grad=True)
    with ablated(hard, {(0, 1): xi}):
        (gradient,) = torch.autograd.grad(hard(batch).sum(), xi)
    assert gradient.abs() > 0


# ------------------------------------------------------------------------------------------- the short cut


@pytest.mark.parametrize("kind", list(MODELS))
def test_running_from_a_layer_on_equals_whole_forward_passes(kind):
    model, batch = model_of(kind), images(3, size_of(kind))
    replay = Replay(model, most_tokens=3 * 17)  # several chunks
    start = replay.start(batch)
    replay.verify(start)
    zero = torch.zeros(())
    x = start.tokens
    for layer, site in replay.sites.items():
        variants = [{layer: put([h], zero)} for h in range(site.num_heads)]
        variants.append({layer: put([0], zero), 1: put([1], zero)} if layer == 0 else {})
        outputs = list(replay.run(layer, x, start, variants))
        for h in range(site.num_heads):
            with ablated(model, {(layer, h): "zero"}):
                naive = out(model, batch)
            torch.testing.assert_close(outputs[h], naive, rtol=1e-6, atol=1e-6 * float(naive.abs().max()))
        sets = {(0, 0): "zero", (1, 1): "zero"} if layer == 0 else {}
        with ablated(model, sets):
            torch.testing.assert_close(outputs[-1], out(model, batch), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            x = replay.step(layer, x, start)
    assert no_hooks(model)


def test_every_layer_is_computed_half_as_often(hard):
    calls = []
    deep = timm.create_model("small_hard_deep", depth=4).eval()
    for block in deep.blocks:
        block.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    replay, batch = Replay(deep), images(2)
    start = replay.start(batch)
    calls.clear()
    for layer in replay.sites:
        list(replay.run(layer, start.tokens, start, [{layer: put([h], torch.zeros(()))} for h in range(4)]))
    assert sum(calls) == 2 * 4 * (4 + 3 + 2 + 1)  # (L + 1) / 2 x H forward passes of L blocks


def test_a_model_that_does_more_after_its_blocks_is_refused(hard):
    model = model_of("timm")
    plain = model.forward_features
    model.forward_features = lambda x, **kwargs: plain(x, **kwargs) * 1.5 + 1
    with pytest.raises(CaptureError, match="does not repeat its forward pass"):
        measure(model, [images(2)], HeadAblation(), progress=False)
    assert no_hooks(model)
    with pytest.raises(CaptureError, match="lacks"):
        sites(torch.nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------- planted truths


def slices(attn, head):
    """Where a head's queries, keys and values are in the rows of qkv, and its outputs in the columns of proj."""
    d, dim = attn.head_dim, attn.num_heads * attn.head_dim
    return [slice(part * dim + head * d, part * dim + (head + 1) * d) for part in range(3)]


@torch.no_grad()
def copy_head(model, layer, source, target):
    """The target computes what the source does; each writes half of what the source wrote."""
    attn = model.blocks[layer].attn
    for a, b in zip(slices(attn, source), slices(attn, target), strict=True):
        attn.qkv.weight[b] = attn.qkv.weight[a]
        if attn.qkv.bias is not None:
            attn.qkv.bias[b] = attn.qkv.bias[a]
    a, b = slices(attn, source)[0], slices(attn, target)[0]
    attn.proj.weight[:, a] /= 2
    attn.proj.weight[:, b] = attn.proj.weight[:, a]
    return model


def test_a_copy_can_go_when_its_original_speaks_twice_as_loud(hard):
    model, batch = copy_head(copy.deepcopy(hard), 1, 0, 2), images()
    full = out(model, batch)
    with ablated(model, {(1, 2): "zero", (1, 0): 2.0}):
        torch.testing.assert_close(out(model, batch), full, rtol=1e-5, atol=1e-5)
    with ablated(model, {(1, 2): "zero", (1, 1): 2.0}):  # any other head will not do
        assert not torch.allclose(out(model, batch), full, atol=1e-2)
    with ablated(model, {(1, 2): "zero"}):
        once = out(model, batch)
    with ablated(model, {(1, 0): "zero"}):  # both halves say the same
        torch.testing.assert_close(out(model, batch), once, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def silent(model, layer, head):
    """A head that nobody listens to."""
    attn = model.blocks[layer].attn
    attn.proj.weight[:, slices(attn, head)[0]] = 0
    return model


@torch.no_grad()
def constant(model, layer, head):
    """A head that says the same for every image."""
    attn = model.blocks[layer].attn
    attn.qkv.bias = torch.nn.Parameter(0.5 * torch.randn(attn.qkv.out_features))
    attn.qkv.weight[slices(attn, head)[2]] = 0
    return model


def value(result, quantity, layer, head, column="value"):
    f = result.frame
    row = f[(f.quantity == quantity) & (f.layer == layer) & (f["head"] == head)]
    assert len(row) == 1
    return row.iloc[0][column]


@pytest.mark.parametrize("mode", ["mean", "zero", "resample"])
def test_silent_heads_are_harmless_and_constant_ones_as_the_mode_has_it(hard, mode):
    model = constant(silent(copy.deepcopy(hard), 1, 3), 0, 1).double()
    batch = images(8).double()
    labels = torch.arange(8) % 10
    one = HeadAblation(mode, calibration=images(9, seed=7).double())
    result = measure(model, [(batch, labels)], one, progress=False)["head_ablation"]
    quantities = ["kl", "output_shift", "loss_change", "importance", "importance_label_free"]
    for quantity in quantities:
        assert abs(value(result, quantity, 1, 3)) < 1e-12, quantity
        assert value(result, quantity, 1, 2) > 1e-5 or quantity == "loss_change"
    assert value(result, "accuracy_change", 1, 3) == 0
    if mode == "zero":
        assert value(result, "kl", 0, 1) > 1e-3
    else:  # a mean or another image's output is what it says anyway
        assert abs(value(result, "kl", 0, 1)) < 1e-9
    layer = result.frame[result.frame.quantity == "kl_layer"]
    whole = layer[layer.layer == 1].iloc[0]
    assert whole.null == pytest.approx(sum(value(result, "kl", 1, h) for h in range(4)))
    assert no_hooks(model)


# ------------------------------------------------------------------------------------------- pure functions


def test_effects_of_an_image():
    full = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    changed = torch.tensor([[0.0, 2.0, 0.0], [0.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    found = effects(full, changed, torch.tensor([0, 1, -1]), torch.tensor([True, True, False]))
    p, q = full.double().softmax(-1), changed.double().softmax(-1)
    torch.testing.assert_close(found[:, 0], (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(found[:, 1], torch.tensor([8.0, 0, 9]).double())
    assert found[0, 2] == pytest.approx(math.log(p[0, 0] / q[0, 0]))
    assert found[1, 2:].abs().max() == 0
    assert found[2, 2:].isnan().all()  # without a label
    bad = effects(
        full, changed / torch.tensor([[1.0], [0.0], [1.0]]), torch.zeros(3).long(), torch.ones(3).bool()
    )
    assert bad.isnan().all(1).tolist() == [False, True, False]
    assert found[0, 3:].tolist() == [1, 0]
    won = effects(full[:1], changed[:1], torch.tensor([1]), torch.tensor([True]))
    assert won[0, 3:].tolist() == [0, 1]


def test_kl_is_zero_for_equal_and_positive_for_other_outputs():
    a, b = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    assert kl_divergence(a, a).abs().max() == 0
    assert kl_divergence(a, a + 3).abs().max() < 1e-6
    assert (kl_divergence(a, b) > 0).all()


def test_a_random_subspace_takes_as_much_as_the_head():
    z, reference = torch.randn(2, 5, 7, 3, 4).double(), torch.randn(7, 3, 4).double()
    bases = random_subspaces(5, 12, 4, seed=1)
    torch.testing.assert_close(bases.transpose(1, 2) @ bases, torch.eye(4).double().expand(5, -1, -1))
    before = z[0].clone()
    remove_subspace(1, reference, bases)(z[0])
    removed = (before - z[0]).flatten(-2)
    wanted = (before - reference)[:, :, 1].norm(dim=-1)
    torch.testing.assert_close(removed.norm(dim=-1), wanted)
    torch.testing.assert_close((removed @ bases) @ bases.transpose(1, 2), removed)  # it lies in the subspace
    unit = torch.zeros(5, 12, 4).double()
    unit[:, 4:8] = torch.eye(4)
    zeroed = before.clone()
    remove_subspace(1, torch.zeros(()), unit)(zeroed)  # the head's own subspace is the head
    put([1], torch.zeros(()))(before)
    torch.testing.assert_close(zeroed, before)


def gradients_of(model, batch, loss):
    replay = Replay(model)
    start = replay.start(batch)
    found = head_gradients(replay, start, lambda output: loss(output)[None])
    return {layer: (z, g, head_scores(z, g, replay.sites[layer])[0]) for layer, (z, g) in found.items()}


def test_gradient_by_a_factor_is_that_of_autograd_and_of_the_identity():
    model, batch = model_of("timm").double(), images(2).double()
    found = gradients_of(model, batch, lambda o: o[:, 3])
    for layer, head in [(0, 2), (1, 0)]:
        xi = torch.tensor(1.0, dtype=torch.double, requires_grad=True)
        for b in range(2):
            with ablated(model, {(layer, head): xi}):
                (direct,) = torch.autograd.grad(model(batch[b : b + 1])[0, 3], xi)
            assert found[layer][2][b, head].item() == pytest.approx(direct.item(), rel=1e-9)
    with capture(model, ["blocks.1.attn.out", "blocks.1.attn.z"], graph=True) as seen:
        total = model(batch)[:, 3].sum()
    (gradient,) = torch.autograd.grad(total, seen["blocks.1.attn.out"])
    weights = model.blocks[1].attn.proj.weight.unflatten(1, (3, -1))
    written = torch.einsum("bhnd,ohd->bhno", seen["blocks.1.attn.z"], weights)  # z_h W_O^h
    torch.testing.assert_close(found[1][2], torch.einsum("bno,bhno->bh", gradient, written))


def test_first_order_is_exact_where_the_readout_is_linear():
    model = model_of("timm").double()
    model.norm = torch.nn.Identity()
    model.blocks[1].mlp = torch.nn.Module()
    model.blocks[1].mlp.forward = lambda x: 0 * x
    batch = images(3).double()
    score = gradients_of(model, batch, lambda o: o[:, 5])[1][2]
    full = out(model, batch)[:, 5]
    for head in range(3):
        for xi in (0.0, 0.3, 2.0):
            with ablated(model, {(1, head): xi}):
                change = out(model, batch)[:, 5] - full
            torch.testing.assert_close(change, (xi - 1) * score[:, head], rtol=1e-9, atol=1e-10)


def test_the_score_of_the_heads_own_subspace_is_that_of_the_head():
    model, batch = model_of("timm").double(), images(2).double()
    z, gradient, score = gradients_of(model, batch, lambda o: o[:, 0])[1]
    site = sites(model)[1]
    own = torch.zeros(2, 192, 64).double()
    own[:, 64:128] = torch.eye(64)
    torch.testing.assert_close(subspace_scores(z, gradient, site, own)[0][:, 1], score[:, 1])


class Turned(torch.nn.Module):
    """An output projection that first turns the joined head outputs of every image by a rotation of its own."""

    def __init__(self, proj, turns, batch):
        super().__init__()
        self.weight, self.bias, self.turns, self.batch = proj.weight, proj.bias, turns, batch

    def forward(self, z):
        turns = self.turns[torch.arange(len(z)) % self.batch[0]]  # variants of one batch are stacked
        return torch.nn.functional.linear(z @ turns, self.weight, self.bias)


def heads_that_are_random_directions(seed, n=16, depth=2, width=16, heads=4):
    """A model to which heads and random subspaces of their size are the same, and images."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=width, num_heads=heads,
                              num_classes=8).eval()  # fmt: skip
    batch = [0]
    model.patch_embed.register_forward_hook(lambda m, args, tokens: batch.__setitem__(0, len(tokens)))
    with torch.no_grad():
        model.head.weight.normal_(0, 0.7)
        for block in model.blocks:
            block.attn.proj.weight.normal_(0, 0.02)  # so small that the output is linear in it
            block.attn.proj = Turned(block.attn.proj, random_subspaces(n, width, width, seed).float(), batch)
    return model, torch.randn(n, 3, 32, 32)


def test_p_of_a_head_that_is_a_random_direction_keeps_its_size():
    """200 heads, from model to p: how often does one stand out from random directions of its size?"""
    p = []
    for seed in range(25):
        model, x = heads_that_are_random_directions(seed + 100)
        measured = HeadAblation("zero", importance=False, seed=seed)
        frame = measure(model, [x], measured, progress=False)["head_ablation"].frame
        p += frame.p[frame.quantity == "kl"].tolist()
    p = np.array(p)
    assert p.size == 200
    assert (p < 0.05).mean() <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5
    assert 0.4 < (p < 0.5).mean() < 0.7


def test_p_of_a_head_that_is_more_than_a_random_direction_is_small():
    model, x = heads_that_are_random_directions(0)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.turns = torch.eye(16).expand(16, -1, -1)
            block.attn.proj.weight[:, :4] *= 10
    frame = measure(model, [x], HeadAblation("zero", importance=False), progress=False)["head_ablation"].frame
    loud = frame[frame.quantity == "kl"]["head"] == 0
    p = frame.p[frame.quantity == "kl"]
    assert (p[loud] < 0.05).all()


# ------------------------------------------------------------------------------------------- the measure

Batch = namedtuple("Batch", "images labels index")


def batches(n=7, size=3, seed=5):
    x = images(n, seed=seed).double()
    labels = torch.arange(n) % 3
    return [Batch(x[i], labels[i], i) for i in torch.arange(n).split(size)]


@pytest.fixture(scope="module")
def double():
    return model_of("hard").double()


@pytest.fixture(scope="module")
def measured(double):
    calibration = images(5, seed=9).double()
    found = [HeadAblation(mode, calibration=calibration) for mode in ("mean", "resample")]
    return measure(double, batches(), found, progress=False)["head_ablation"]


def of_mode(result, mode, quantity):
    f = result.frame
    return f[(f.variant == mode).fillna(mode is None) & (f.quantity == quantity)]


def test_values_are_those_of_whole_forward_passes(double, measured):
    x = torch.cat([b.images for b in batches()])
    labels = torch.cat([b.labels for b in batches()])
    full = out(double, x)
    means = HeadMeans.of(double, images(5, seed=9).double())
    rows = of_mode(measured, "mean", "kl").set_index(["layer", "head"])
    losses = of_mode(measured, "mean", "loss_change").set_index(["layer", "head"])
    accuracy = of_mode(measured, "mean", "accuracy_change").set_index(["layer", "head"])
    variance = (full - full.mean(0)).square().sum() / len(full)
    shift = of_mode(measured, "mean", "output_shift").set_index(["layer", "head"])
    assert len(rows) == 8
    for layer, head in rows.index:
        with ablated(double, {(layer, head): "mean"}, means=means):
            without = out(double, x)
        kl = kl_divergence(full, without)
        assert rows.loc[(layer, head), "value"] == pytest.approx(kl.mean().item(), rel=1e-6)
        half = 2.4469118 * kl.std().item() / 7**0.5  # every image its own group
        upper = kl.mean() * (half / kl.mean()).exp()  # on the scale of the logarithm
        assert rows.loc[(layer, head), "high"] == pytest.approx(upper.item(), rel=1e-6)
        ce = [torch.nn.functional.cross_entropy(o, labels).item() for o in (full, without)]
        assert losses.loc[(layer, head), "value"] == pytest.approx(ce[1] - ce[0], rel=1e-5, abs=1e-7)
        right = [(o.argmax(-1) == labels).double().mean().item() for o in (full, without)]
        assert accuracy.loc[(layer, head), "value"] == pytest.approx(right[1] - right[0])
        moved = (without - full).square().sum(-1).mean() / variance
        assert shift.loc[(layer, head), "value"] == pytest.approx(moved.item(), rel=1e-6)


def test_every_row_has_its_interval_null_and_unit(measured):
    f = measured.frame
    corrected = f.quantity.str.endswith("_p_holm")
    for column in ("low", "high", "interval", "null", "null_low", "null_high", "null_kind"):
        assert f[~corrected][column].notna().all(), column
    for column in ("n", "unit", "estimator", "tokens", "value_unit", "place", "layer", "weights", "value"):
        assert f[column].notna().all(), column
    assert (f[~corrected].n == 7).all()
    p = f[f.quantity.isin(["kl", "loss_change", "accuracy_change", "output_shift"])].p
    assert ((p >= 0) & (p <= 1)).all()
    for quantity in ("kl", "loss_change", "accuracy_change"):
        raw = of_mode(measured, "mean", quantity).p.to_numpy()
        holm = f[(f.quantity == f"{quantity}_p_holm") & f.estimator.str.contains("mean ablation")].value
        assert (holm.to_numpy() >= raw).all()
        assert holm.min() == pytest.approx(min(1, 8 * raw.min()))
    positive = f[f.quantity.isin(["kl", "kl_layer", "output_shift"])]
    assert set(positive.quantity) >= {"kl", "kl_layer", "output_shift"}
    assert positive.interval.str.startswith("t of the logarithm").all()
    assert (positive.low > 0).all()
    assert (positive.null_low > 0).all()
    assert ((positive.low < positive.value) & (positive.value < positive.high)).all()
    assert ((positive.null_low < positive.null) & (positive.null < positive.null_high)).all()
    assert np.allclose((positive.low * positive.high).astype(float), (positive.value**2).astype(float))
    assert any("5 images, the calibration images" in note for note in measured.notes)


def test_importance_is_normalised_within_layers(double, measured):
    rows = of_mode(measured, None, "importance_label_free").drop_duplicates(["layer", "head"])
    size = (rows.value.astype(float) ** 2).groupby(rows.layer).sum()
    assert size.to_numpy(float) == pytest.approx(np.ones(2))
    x = torch.cat([b.images for b in batches()])
    predicted = out(double, x).argmax(-1)

    def loss(output):
        return -output.log_softmax(-1).gather(-1, predicted[:, None])[:, 0]

    score = gradients_of(double, x, loss)[1][2].abs().mean(0)
    assert rows[rows.layer == 1].value.to_numpy(float) == pytest.approx((score / score.norm()).numpy())


def test_neither_batches_nor_shares_matter(double, measured):
    calibration = images(5, seed=9).double()
    prototype = [HeadAblation(mode, calibration=calibration) for mode in ("mean", "resample")]
    shares = [accumulate(double, batches()[i::2], prototype, progress=False) for i in range(2)]
    for one, two in zip(*shares, strict=True):
        one.merge_state(two)
    other = measure(double, batches(size=7), prototype, progress=False)["head_ablation"]
    columns = ["value", "low", "high", "null", "p"]
    for result in (collect(shares[0])["head_ablation"], other):
        a, b = (r.frame[columns].astype(float).to_numpy() for r in (measured, result))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-10)


class Numbered(list):
    """Named batches of a data set of 7 images."""

    dataset = range(7)


def ablate_a_share(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = measure(model_of("hard").double(), Numbered(batches()[rank::2]), HeadAblation(), progress=False)
    found.frame.to_csv(f"{folder}/{rank}.csv")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, to spare the imports")
def test_two_processes_calibrate_and_end_as_one(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=ablate_a_share, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = measure(model_of("hard").double(), Numbered(batches()), HeadAblation(), progress=False).frame
    for rank in range(2):
        shared = pd.read_csv(tmp_path / f"{rank}.csv")
        for column in ("value", "low", "high", "null", "p"):
            expected = alone[column].to_numpy(float, na_value=np.nan)
            np.testing.assert_allclose(shared[column], expected, rtol=1e-6, atol=1e-10)


def test_without_subspaces_effects_are_the_same_and_have_no_null(double):
    found = [
        measure(
            double,
            batches(),
            HeadAblation(calibration=images(5).double(), importance=False, **more),
            progress=False,
        )
        for more in ({}, {"subspaces": 0})
    ]
    whole, bare = (one.frame.set_index(["quantity", "layer", "head"]).sort_index() for one in found)
    assert set(bare.index) < set(whole.index)
    both = whole.loc[bare.index]
    pd.testing.assert_frame_equal(both[["value", "low", "high", "n"]], bare[["value", "low", "high", "n"]])
    heads = bare.drop(index=["kl_layer", "loss_change_p_holm", "accuracy_change_p_holm"], errors="ignore")
    assert heads["null"].isna().all()
    assert bare.loc["kl", "p"].isna().all()
    with pytest.raises(ParameterError, match="importance=False"):
        HeadAblation(subspaces=0)


def test_permuted_heads_permute_their_rows(double, measured):
    model, order = copy.deepcopy(double), [2, 0, 3, 1]
    attn = model.blocks[0].attn
    where = torch.cat([torch.arange(96)[slices(attn, h)[0]] for h in order])
    with torch.no_grad():
        for part in range(3):
            attn.qkv.weight[part * 96 : part * 96 + 96] = attn.qkv.weight[part * 96 + where].clone()
        attn.proj.weight[:] = attn.proj.weight[:, where].clone()
    again = measure(model, batches(), HeadAblation("mean", calibration=images(5, seed=9).double()),
                    progress=False)["head_ablation"]  # fmt: skip
    a, b = (of_mode(r, "mean", "kl").set_index(["layer", "head"]).value for r in (measured, again))
    assert [b[0, h] for h in range(4)] == pytest.approx([a[0, order[h]] for h in range(4)])
    assert [b[1, h] for h in range(4)] == pytest.approx([a[1, h] for h in range(4)])


def test_an_image_is_not_resampled_by_itself(double):
    bank = images(3, seed=9).double()
    one = HeadAblation("resample", calibration=bank)
    accumulated = accumulate(double, [Batch(bank, None, torch.arange(3))], one, progress=False)[0]
    donors = accumulated.donors(Batch(bank, None, torch.arange(3)))
    assert (donors - bank).abs().amax((1, 2, 3)).min() > 1
    for mode in ("resample", "mean"):  # the mean over one image is that image
        with pytest.raises(DataError, match="at least 2 calibration images, got 1"):
            measure(double, [bank], HeadAblation(mode, calibration=bank[:1]), progress=False)


def test_labels_count_only_where_they_are_the_models_classes(double):
    class Loader(list):
        class dataset:  # noqa: N801
            info = type("Info", (), {"_asdict": lambda self: {"name": "x", "classes": ["a", "b", "c"]}})()

    one = HeadAblation("zero", importance=False)
    result = measure(double, Loader(batches(4)), one, progress=False)["head_ablation"]
    assert not set(result.frame.quantity) & {"loss_change", "accuracy_change"}
    assert any("the data's 3 classes are not the model's 10" in note for note in result.notes)
    plain = measure(double, [images(4).double()], one, progress=False)["head_ablation"]
    assert "loss_change" not in set(plain.frame.quantity)


def test_a_model_without_classifier_is_judged_by_its_features():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval()
    result = measure(model, [images(4)], HeadAblation(), progress=False)["head_ablation"]
    assert set(result.frame.quantity) == {"output_shift", "output_shift_p_holm"}
    assert (result.frame.value > 0).all()
    assert any("no classifier" in note for note in result.notes)
    assert any("4 images, the first batch" in note for note in result.notes)


def test_untrained_rows_say_so():
    model = load_model("small_hard_deep", "random", depth=2)
    result = measure(model, [images(4)], HeadAblation("zero"), progress=False)["head_ablation"]
    assert result.frame.weights.str.contains("UNTRAINED").all()


def test_unknown_modes_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        HeadAblation("means")


# ------------------------------------------------------------------------------------------- similar, redundant?

HEADS = np.array([(layer, h) for layer in range(2) for h in range(3)])


def similarities(**pairs):
    """(6, 6) of 0.1 but for the named pairs, a05=0.9 for heads 0 and 5."""
    matrix = np.full((6, 6), 0.1)
    for name, value in pairs.items():
        h, g = int(name[1]), int(name[2])
        matrix[h, g] = matrix[g, h] = value
    return matrix


def test_only_heads_of_the_same_layer_make_a_head_similar():
    matrix = similarities(a02=0.9, a05=0.99, a34=0.5)
    assert largest_similarity(matrix, HEADS[:, 0]).tolist() == [0.9, 0.1, 0.9, 0.5, 0.5, 0.1]
    matrix[3:, 3:] = np.nan
    assert np.isnan(largest_similarity(matrix, HEADS[:, 0])[3:]).all()


def test_of_two_copies_one_stays():
    matrix = similarities(a02=0.9, a34=0.8, a12=0.3, a35=0.2, a45=0.2)
    order = similarity_order(matrix, HEADS)
    assert sorted(order) == sorted(map(tuple, HEADS.tolist()))
    assert order[0] == (0, 2)  # also closer to head 1 than head 0 is
    assert order[1] in ((1, 0), (1, 1))
    assert order[2][0] == 1  # the other copy of layer 0 is no longer similar to anything


def fixed(values):
    return lambda weights: np.asarray(values, dtype=float)


def test_association_finds_what_is_planted_and_not_what_layers_bring():
    rng = np.random.default_rng(0)
    layers = np.repeat(np.arange(4), 4)
    similar = rng.uniform(size=16)
    found = head_association(fixed(similar), fixed(-similar), layers, np.ones(8), resamples=99)
    assert found["value"] == pytest.approx([-1, -1])
    assert (found["p"] <= 0.021).all()
    assert (found["high"] < -0.9).all()
    # similarity and effect both rise with depth, and have nothing to do with each other within a layer
    a, b = (layers + 0.1 * rng.normal(size=16) for _ in range(2))
    deep = head_association(fixed(a), fixed(b), layers, np.ones(8), resamples=199)
    assert deep["value"][0] > 0.8
    assert (deep["p"] > 0.05).all()
    assert deep["null"][0] > 0.8
    assert abs(deep["null"][1]) < 0.15
    with pytest.raises(T2TError, match="at least 4"):
        head_association(fixed([1, 2, np.nan]), fixed([1, 2, 3]), np.zeros(3), np.ones(4))


def test_association_keeps_its_size_and_covers():
    rng = np.random.default_rng(1)
    layers, rho, low_p, covered = np.repeat(np.arange(4), 4), 0.5, 0, 0
    truth = 6 / math.pi * math.asin(rho / 2)
    for t in range(200):
        a, noise = rng.normal(size=(2, 16))
        null = head_association(fixed(a), fixed(noise), layers, np.ones(4), resamples=39, seed=t)
        low_p += null["p"] <= 0.05
        related = rho * a + math.sqrt(1 - rho**2) * noise
        found = head_association(fixed(a), fixed(related), layers, np.ones(4), resamples=39, seed=t)
        covered += found["low"][0] <= truth <= found["high"][0]
    assert (low_p <= 20).all()  # 10 expected, standard deviation 3
    assert 180 <= covered <= 199


def test_resampled_images_widen_the_interval():
    rng = np.random.default_rng(2)
    layers = np.repeat(np.arange(3), 8)
    sums = 20 * rng.normal(size=(8, 24)) + np.arange(24)

    def noisy(weights):
        return weights @ sums / weights.sum()

    one = np.ones(8)
    ends = [
        head_association(fixed(np.arange(24)), effect, layers, one, resamples=99)
        for effect in (fixed(noisy(one)), noisy)
    ]
    width = [e["high"] - e["low"] for e in ends]
    assert (width[1] > width[0]).all()
    assert 0 < ends[1]["ceiling"][0] < 1
    assert ends[0]["ceiling"] == pytest.approx([1, 1])


def test_one_more_random_order_is_not_special():
    rng = np.random.default_rng(3)
    p = np.array([one_more_p(x[0], x[1:]) for x in rng.normal(size=(600, 9))])
    assert 0.03 < (p < 0.05).mean() < 0.07


@pytest.fixture(scope="module")
def both(double):
    """Accumulators of similarity and effect, and their results."""
    asked = [HeadSimilarity(), HeadOutputCKA(permutations=5), HeadAblation("zero")]
    made = accumulate(double, batches(size=7), asked, progress=False)
    return made, collect(made, progress=False)


def test_similarity_against_effect(both):
    results = both[1]
    similarity, ablation = results["head_similarity"], results["head_ablation"]
    matrix, heads = similarity_matrix(similarity)
    assert heads.tolist() == [[layer, h] for layer in range(2) for h in range(4)]
    assert np.isnan(matrix.diagonal()).all()
    found = similarity_is_redundancy(similarity, ablation, resamples=49).frame
    name = ablation.frame.model.iloc[0]
    twice = similarity_is_redundancy(similarity, ablation, [name] * 2, resamples=49).frame
    assert twice.equals(pd.concat([found] * 2, ignore_index=True))
    effect = of_mode(ablation, "zero", "kl").value.to_numpy(float)
    expected = sps.spearmanr(largest_similarity(matrix, heads[:, 0]), effect).statistic
    assert found.value.iloc[0] == pytest.approx(expected)
    for column in ("low", "high", "p", "null", "null_kind", "estimator", "interval"):
        assert found[column].notna().all()
    assert (found.n == 8).all()
    written = similarity_is_redundancy(
        results["head_output_cka"], ablation, quantity="head_output_cka", resamples=49
    ).frame
    assert written.value.notna().all()
    with pytest.raises(UnknownNameError, match="did you mean 'kl'"):
        similarity_is_redundancy(similarity, ablation, effect="k")
    with pytest.raises(UnknownNameError, match="model 'b'"):
        similarity_is_redundancy(similarity, ablation, "b")


def test_means_of_weighted_images_follow_from_the_replicates(both):
    made, results = both
    values, images = by_weight(
        results["head_similarity"].estimates(quantity="cosine_centred", layer=0, layer_b=0, head=[0, 1, 2])
    )
    sums, counts = (x.cpu().double().numpy() for x in (made[0].centred, made[0].rows))
    weights = np.random.default_rng(0).integers(0, 3, len(images))
    direct = (weights @ sums.reshape(len(sums), -1)) / (weights @ counts.reshape(len(sums), -1))
    h, g = np.triu_indices(4, 1)
    assert values(weights) == pytest.approx(direct.reshape(8, 8)[h, g])


def test_orders_are_those_of_the_results(both):
    similarity, ablation = both[1]["head_similarity"], both[1]["head_ablation"]
    orders = pruning_orders(similarity, ablation)
    assert sorted(orders["similarity"]) == sorted(orders["importance"])
    importance = of_mode(ablation, None, "importance").set_index(["layer", "head"]).value
    assert [importance[h] for h in orders["importance"]] == sorted(importance)
    assert ascending_order(ablation, "kl") != orders["importance"]


@pytest.fixture(scope="module")
def curves(double):
    """Three heads to which nobody listens go first, or last."""
    model = copy.deepcopy(double)
    nobody = [(0, 1), (0, 3), (1, 2)]
    for layer, head in nobody:
        silent(model, layer, head)
    rest = [(layer, h) for layer in range(2) for h in range(4) if (layer, h) not in nobody]
    orders = {"silent first": nobody + rest, "silent last": rest + nobody}
    one = PruningCurves(orders, "zero", random=4, fractions=(0.125, 0.375, 0.625, 1), nats=1e-9)
    return model, orders, measure(model, batches(), one, progress=False)["pruning_curves"]


def rows_by_order(result, quantity, order):
    f = result.frame
    return f[(f.quantity == quantity) & f.estimator.str.contains(order)]


def test_pruning_curves_are_those_of_whole_forward_passes(curves):
    model, orders, result = curves
    x = torch.cat([b.images for b in batches()])
    labels = torch.cat([b.labels for b in batches()])
    full = out(model, x)
    for name, order in orders.items():
        rows = rows_by_order(result, "pruned_kl", name)
        right = rows_by_order(result, "pruned_accuracy", name)
        assert rows["at"].tolist() == right["at"].tolist() == [0, 0.125, 0.375, 0.625, 1]
        for (_, kl), (_, accuracy), size in zip(
            rows.iterrows(), right.iterrows(), [0, 1, 3, 5, 8], strict=True
        ):
            with ablated(model, dict.fromkeys(order[:size], "zero")):
                pruned = out(model, x)
            assert kl.value == pytest.approx(kl_divergence(full, pruned).mean().item(), rel=1e-6, abs=1e-12)
            assert accuracy.value == pytest.approx((pruned.argmax(-1) == labels).double().mean().item())
            assert kl.null_low <= kl.null <= kl.null_high
    last = result.frame[(result.frame.quantity == "pruned_kl") & (result.frame["at"] == 1)]
    assert last.value.to_numpy(float) == pytest.approx(last.null.to_numpy(float))  # nothing is left to order


def test_silent_heads_are_redundant(curves):
    _, _, result = curves
    first, last = (rows_by_order(result, "removable_by_kl", f"silent {x}").iloc[0] for x in ("first", "last"))
    assert first.value == pytest.approx(3 / 8, abs=1e-3)
    assert first.low == pytest.approx(3 / 8, abs=1e-3)
    assert last.value < 0.01
    area = [rows_by_order(result, "pruning_area_kl", f"silent {x}").iloc[0] for x in ("first", "last")]
    assert area[0].value < 0 < area[1].value
    assert area[0].null_low < 0 < area[0].null_high
    assert area[0].value == pytest.approx(
        np.trapezoid(
            rows_by_order(result, "pruned_kl", "silent first")[["value", "null"]].astype(float).to_numpy()
            @ [1, -1],
            [0, 0.125, 0.375, 0.625, 1],
        )
    )


def test_crossing_without_and_at_once():
    at = np.array([0, 0.5, 1])
    found = crossing(at, np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1.0]]), 0.5)
    assert found.tolist() == [1, 0.25, 0.75]


@pytest.mark.parametrize("mode", ["mean", "resample"])
def test_pruning_modes_and_orders_by_model(double, mode):
    heads = [(layer, h) for layer in range(2) for h in range(4)]
    bank = images(3, seed=9).double()
    orders = {"a": {"depth": heads}, "b": {"depth": heads[::-1]}}
    one = PruningCurves(orders, mode, random=2, fractions=(0.5,), calibration=bank)
    x = batches(3)
    result = measure({"a": double, "b": double}, x, one, progress=False)["pruning_curves"]
    kl = result.frame[(result.frame.quantity == "pruned_kl") & (result.frame["at"] == 0.5)]
    means, batch = HeadMeans.of(double, bank), x[0].images
    for row, chosen in zip(kl.itertuples(), (heads[:4], heads[4:]), strict=True):
        gone = dict.fromkeys(chosen, "mean")
        if mode == "resample":
            donors = accumulate(double, x, HeadAblation("resample", calibration=bank), progress=False)[
                0
            ].donors(x[0])
            z = head_outputs(double, sites(double), donors)
            gone = {(i, h): z[i].unflatten(-1, (4, -1))[:, :, h] for i, h in chosen}
        with ablated(double, gone, means=means):
            pruned = out(double, batch)
        expected = kl_divergence(out(double, batch), pruned)
        assert row.value == pytest.approx(expected.mean().item(), rel=1e-6)
    with pytest.raises(UnknownNameError, match="model 'c'"):
        measure({"c": double}, x, one, progress=False)


def test_pruning_refuses_orders_that_are_not_of_all_heads(double):
    heads = [(layer, h) for layer in range(2) for h in range(4)]
    for order in (heads[:-1], [*heads[:-1], heads[0]]):
        with pytest.raises(T2TError, match="each of the 8 heads once"):
            measure(double, batches(), PruningCurves({"x": order}), progress=False)
    with pytest.raises(T2TError, match="at least 2"):
        PruningCurves({}, random=1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
    with pytest.raises(T2TError, match="no classifier"):
        measure(model, [images(2)], PruningCurves({}), progress=False)


# ------------------------------------------------------------------------------------------- figures
