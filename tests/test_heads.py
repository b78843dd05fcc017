"""Similarity of heads: identities, recorded numbers, planted truths, nulls, two processes against one."""

import copy
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch

from t2t_analysis.capture import capture, view
from t2t_analysis.errors import T2TError, UnknownNameError
from t2t_analysis.measures import (
    HeadDivergence,
    HeadOutputCKA,
    HeadSimilarity,
    accumulate,
    collect,
    difference,
    measure,
    random_twin,
    random_twins,
)
from t2t_analysis.measures import head_maps as hm
from t2t_analysis.measures import head_measure as hs
from t2t_analysis.measures.base import mean_estimate
from t2t_analysis.measures.head_outputs import head_output_weights, head_outputs, permutation_null
from t2t_analysis.models import load_model
from t2t_analysis.results import Result
from t2t_analysis.stats import delete_group_jackknife

from .references import hsic1, js_divergence

LN2 = math.log(2)
TOKENS = 197
ALL = [HeadSimilarity(), HeadDivergence(), HeadOutputCKA(permutations=20)]


class Batch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


def random_maps(heads=6, tokens=TOKENS, s=1.0, queries=None, seed=0, sink=0.0):
    """Independent softmax maps of normal logits with spread s; ``sink`` is added to the logit of column 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = s * torch.randn(heads, queries or tokens, tokens, generator=generator)
    logits[..., 0] += sink
    return logits.softmax(-1)


def between(matrix):
    return hm.off_diagonal_mean(matrix).item()


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("centred", [False, True])
def test_cosine_identities(centred):
    maps = random_maps(s=1.5, tokens=30)
    cosine = hm.head_cosine(maps, centred=centred)
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    order, keys = torch.tensor([3, 1, 5, 0, 4, 2]), torch.arange(30).roll(7)
    close(cosine.diagonal(), torch.ones(6).double())
    close(cosine, cosine.T)
    assert cosine.abs().max() <= 1 + 1e-6
    assert torch.linalg.eigvalsh((cosine + cosine.T) / 2).min() > -1e-6
    close(hm.head_cosine(maps[order], centred=centred), cosine[order][:, order])
    close(hm.head_cosine(maps[..., keys], centred=centred), cosine)
    separately = maps.clone()
    separately[0] = separately[0][..., keys]
    assert not torch.allclose(hm.head_cosine(separately, centred=centred), cosine, atol=1e-2)


def test_centred_cosine_is_pearson_over_keys():
    a, b = random_maps(heads=2, tokens=20, s=2.0)
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert hm.head_cosine(torch.stack([a, b]))[0, 1].item() == pytest.approx(expected, abs=1e-6)


def test_centred_cosine_ignores_mixing_with_uniform_attention_and_raw_does_not():
    a, b = random_maps(heads=2, s=1.0)
    mixed = torch.stack([a, 0.3 * b + 0.7 / TOKENS])
    plain = torch.stack([a, b])
    torch.testing.assert_close(hm.head_cosine(mixed), hm.head_cosine(plain), rtol=0, atol=1e-5)
    assert abs(hm.head_cosine(mixed, centred=False)[0, 1] - hm.head_cosine(plain, centred=False)[0, 1]) > 0.1


def test_divergence_identities():
    p, q = random_maps(heads=2, tokens=12, s=2.0)
    disjoint = torch.eye(4)
    keys = torch.randperm(12)
    assert js_divergence(p, p).abs().max() == 0
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p), rtol=0, atol=0)
    torch.testing.assert_close(js_divergence(p[:, keys], q[:, keys]), js_divergence(p, q))
    assert js_divergence(disjoint[0], disjoint[1]).item() == pytest.approx(LN2, rel=1e-7)
    assert ((js_divergence(p, q) > 0) & (js_divergence(p, q) < LN2)).all()
    pair = hm.pairwise_js_divergence(torch.stack([p, q]))
    assert pair[0, 1] == pair[1, 0] == pytest.approx(js_divergence(p, q).mean().item())


def test_divergence_root_is_a_metric():
    p = random_maps(heads=3, tokens=8, s=3.0, queries=500).double()
    d = torch.stack([js_divergence(p[i], p[j]).sqrt() for i, j in [(0, 1), (1, 2), (0, 2)]])
    assert (d[0] + d[1] >= d[2] - 1e-12).all()


# ------------------------------------------------------------------------------------------- recorded numbers


@pytest.mark.parametrize(
    ("s", "raw", "jsd"), [(0.1, 0.990, 0.0025), (0.3, 0.914, 0.022), (1, 0.396, 0.199), (2, 0.082, 0.484)]
)
def test_independent_heads_have_the_recorded_values(s, raw, jsd):
    maps = random_maps(s=s)
    cosine = hm.head_cosine(maps, centred=False)
    assert between(cosine) == pytest.approx(raw, abs=4e-3)
    assert between(hm.pairwise_js_divergence(maps)) == pytest.approx(jsd, rel=0.03)
    assert between(hm.head_cosine(maps)) == pytest.approx(0, abs=5e-3)
    if s <= 1:  # at s = 2 the formula wants far more than 197 keys
        assert hm.cosine_floor(s, s).item() == pytest.approx(raw, abs=0.04)


def test_a_sink_column_makes_independent_heads_alike_until_it_is_dropped():
    maps = random_maps(s=1.0, sink=5.0)
    without = hm.renormalised(maps, prefix=1)
    torch.testing.assert_close(without.sum(-1), torch.ones(6, TOKENS - 1))
    assert between(hm.head_cosine(maps, centred=False)) == pytest.approx(0.87, abs=0.01)
    assert between(hm.head_cosine(maps)) > 0.8
    assert between(hm.head_cosine(without, centred=False)) == pytest.approx(0.396, abs=4e-3)
    assert between(hm.head_cosine(without)) == pytest.approx(0, abs=5e-3)


def test_patch_logits_equal_the_renormalised_map_even_behind_a_total_sink():
    q, k = torch.randn(2, 2, 3, 17, 8).double()
    scale = 8**-0.5
    whole = (q @ k.transpose(-2, -1) * scale).softmax(-1)
    torch.testing.assert_close(hm.patch_logits(q, k, 1, scale).softmax(-1), hm.renormalised(whole, 1))
    k[..., 0, :] = 1e4 * q.mean(-2)  # the class token takes everything that exponentials can give
    assert torch.isfinite(hm.patch_logits(q, k, 1, scale).softmax(-1)).all()


def test_uniform_rows_have_no_centred_direction():
    maps = torch.cat([torch.full((1, 9, 9), 1 / 9), random_maps(heads=1, tokens=9)])
    assert hm.head_cosine(maps, centred=False)[0, 0].item() == pytest.approx(1)
    centred = hm.head_cosine(maps)
    assert torch.isnan(centred[0]).all()
    assert centred[1, 1].item() == pytest.approx(1)


def content_covariance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    difference = (a - b).flatten(1)
    found = hm.content_covariance(*(hm.query_products(*maps) for maps in ((a, a), (b, b), (a, b))))
    torch.testing.assert_close(found, (difference @ difference.T).double() / 2, rtol=1e-4, atol=1e-8)
    return found


def test_logit_spread_needs_no_logits():
    q, k = torch.randn(2, 5, 3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = hm.patch_logits(q, k, 0, 0.3)
    expected = logits.var(-1, correction=0).mean(-1)
    torch.testing.assert_close(hm.logit_variance(q, k, 0.3), expected)


def test_content_covariance_is_unbiased_and_sees_only_content():
    generator = torch.Generator().manual_seed(3)
    mean = 5 * torch.randn(3, 4, 5, generator=generator).double()
    shared = torch.randn(4000, 1, 4, 5, generator=generator).double()
    content = torch.randn(4000, 3, 4, 5, generator=generator).double()
    content[:, 1] = content[:, 0]  # heads 0 and 1 share all of their content, 0 and 2 half of its variance
    maps = mean + content + shared
    estimate = torch.stack([content_covariance(*maps[i : i + 2]) for i in range(0, 4000, 2)]).mean(0)
    centred = (maps - maps.mean(0)).flatten(2)
    direct = torch.einsum("nhx,ngx->hg", centred, centred) / (len(maps) - 1)
    truth = 20 * torch.tensor([[2.0, 2, 1], [2, 2, 1], [1, 1, 2]]).double()
    torch.testing.assert_close(estimate, truth, rtol=0, atol=0.6)
    torch.testing.assert_close(estimate, direct, rtol=0, atol=0.6)
    assert torch.linalg.eigvalsh(estimate).min() > -1e-9


def test_thirds_cover_the_ends_of_any_depth():
    for depth in range(2, 30):
        first, last = hm.thirds(depth)
        assert len(first) == len(last) == max(1, round(depth / 3))
        assert first[0] == 0
        assert last[-1] == depth - 1
        assert not set(first) & set(last)


# ---------------------------------------------------------------------------------------- accumulators


def vit(depth=3, seed=0, name="vit_tiny_patch16_224", **kwargs):
    """A small ViT with random weights, its queries and keys stretched so that attention is not uniform."""
    torch.manual_seed(seed)
    model = timm.create_model(name, img_size=48, depth=depth, **kwargs).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * block.attn.qkv.in_features] *= 5
    return model


def images(n=12, seed=5, size=48):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def patch_maps(model, batch):
    """(B, M, P, P), straight from the captured patterns."""
    with torch.no_grad(), capture(model, "blocks.*.attn.pattern") as seen:
        model(batch)
    prefix = model.num_prefix_tokens
    return torch.cat([hm.renormalised(pattern, prefix) for pattern in seen.values()], dim=1)


def run(model, batches, measure_, **kwargs):
    batches = [batches] if isinstance(batches, torch.Tensor) else batches
    return measure(model, batches, measure_, progress=False, **kwargs)[measure_.name]


def pairs(result, quantity, size, tokens=None, column="value"):
    """(M, M) upper triangle of a quantity from the rows for pairs of heads."""
    rows = result.frame[(result.frame["quantity"] == quantity) & result.frame["head"].notna()]
    rows = rows if tokens is None else rows[rows["tokens"] == tokens]
    per_layer = int(rows["head_b"].max()) + 1
    matrix = np.full((size, size), np.nan)
    h = (rows["layer"] * per_layer + rows["head"]).astype(int)
    g = (rows["layer_b"] * per_layer + rows["head_b"]).astype(int)
    matrix[h, g] = rows[column].astype(float)
    return matrix


def summary(result, quantity, **where):
    frame = result.frame[(result.frame["quantity"] == quantity) & result.frame["head"].isna()]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


@pytest.fixture(scope="module")
def measured():
    model, batch = vit(), images()
    accumulated = accumulate([model], [batch[:6], batch[6:]], ALL, progress=False)
    return model, batch, collect(accumulated)


def test_maps_from_q_and_k_give_the_similarities_of_the_captured_patterns(measured):
    model, batch, results = measured
    maps = patch_maps(model, batch)
    upper = np.triu_indices(9, 1)
    for quantity, centred in [("cosine_raw", False), ("cosine_centred", True)]:
        own = torch.stack([hm.head_cosine(m, centred=centred) for m in maps]).mean(0).numpy()
        cross = torch.stack([hm.head_cosine(maps[i], maps[i + 1], centred) for i in range(0, 12, 2)]).mean(0)
        result = results["head_similarity"]
        np.testing.assert_allclose(pairs(result, quantity, 9)[upper], own[upper], atol=1e-5)
        null = ((cross + cross.T) / 2).numpy()
        np.testing.assert_allclose(pairs(result, quantity, 9, column="null")[upper], null[upper], atol=1e-5)
    covariance = torch.stack([content_covariance(*maps[i : i + 2]) for i in range(0, 12, 2)]).mean(0)
    content = covariance / covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    found = pairs(results["head_similarity"], "cosine_content", 9)
    np.testing.assert_allclose(found[upper], content.numpy()[upper], atol=1e-5)


def test_divergence_is_that_of_the_captured_patterns(measured):
    model, batch, results = measured
    maps = patch_maps(model, batch)
    own = torch.stack([hm.pairwise_js_divergence(m[3:6]) for m in maps]).mean(0).numpy()
    found = pairs(results["head_divergence"], "js_divergence", 9)[3:6, 3:6]
    np.testing.assert_allclose(found[np.triu_indices(3, 1)], own[np.triu_indices(3, 1)], rtol=1e-4)


def test_layer_rows_are_means_over_pairs_of_different_heads(measured):
    *_, results = measured
    matrix = pairs(results["head_similarity"], "cosine_centred", 9)
    rows = summary(results["head_similarity"], "cosine_centred", layer=1)
    within, across = (rows[rows["layer_b"] == b].iloc[0] for b in (1, 2))
    assert within["value"] == pytest.approx(np.nanmean(matrix[3:6, 3:6]))
    assert across["value"] == pytest.approx(matrix[3:6, 6:9].mean())
    assert (rows["n"] == 12).all()
    assert (rows["low"] < rows["value"]).all()


def test_every_number_has_null_interval_and_unit(measured):
    *_, results = measured
    frame = results.frame
    assert set(frame["measure"]) == {"head_similarity", "head_divergence", "head_output_cka"}
    asked = frame[frame["quantity"] != "cosine_floor"]  # which is itself a null
    assert asked["null"].notna().all()
    assert asked["null_kind"].notna().all()
    for column in ("value", "low", "high", "interval", "n", "unit", "estimator", "tokens", "weights"):
        assert frame[column].notna().all(), column


def test_two_accumulators_merged_equal_one():
    model, batch = vit(), images()
    together = accumulate([model], [batch[:6], batch[6:]], ALL, progress=False)
    numbered = [
        [Batch(batch[:6], torch.zeros(6), torch.arange(6))],
        [Batch(batch[6:], torch.zeros(6), torch.arange(6, 12))],
    ]
    shares = [accumulate([model], part, ALL, progress=False) for part in numbered]
    for one, a, b in zip(together, *shares, strict=True):
        a.merge_state(b)
        for name in one._defaults:
            if not name.startswith("null_"):  # permutations depend on the number of the batch
                torch.testing.assert_close(getattr(a, name), getattr(one, name))
        assert len(a.compute().frame) == len(one.compute().frame)


def test_batches_of_any_even_size_give_the_same_similarities():
    model, batch = vit(depth=2), images(8)
    frames = [run(model, list(batch.split(size)), HeadSimilarity()).frame for size in (2, 4, 8)]
    for other in frames[1:]:
        np.testing.assert_allclose(other["value"].astype(float), frames[0]["value"].astype(float), atol=1e-5)


def test_batches_of_one_image_say_what_is_missing():
    result = run(vit(depth=2), list(images(3).split(1)), HeadSimilarity())
    assert any("every batch held one image" in note for note in result.notes)
    assert "cosine_content" not in set(result.frame["quantity"])
    assert summary(result, "cosine_centred")["null"].isna().all()


@pytest.mark.parametrize(("size", "said"), [(1, True), (2, False)])
def test_only_divergences_of_single_images_lack_their_null(size, said):
    result = run(vit(depth=2), list(images(4).split(size)), HeadDivergence())
    assert any("every batch held one image" in note for note in result.notes) == said


def test_the_share_of_uniform_rows_is_said():
    model, batch = vit(depth=1), images(4)
    with torch.no_grad():
        model.pos_embed.zero_()
    batch[0] = 0.5  # patches that are all alike get as much attention each
    (note,) = [n for n in run(model, batch, HeadSimilarity()).notes if "uniform rows" in n]
    assert note.endswith("layer 0, head 0: 25.0%")


def test_single_head_layers_have_no_pairs_within():
    result = run(vit(depth=3, embed_dim=64, num_heads=1), images(4), HeadSimilarity())
    within = summary(result, "cosine_centred")
    assert not (within["layer"] == within["layer_b"]).any()
    assert len(pairs(result, "cosine_centred", 3)) == 3
    assert summary(result, "cosine_centred_last_minus_first").empty


def test_a_layer_that_is_not_finite_is_named_and_the_others_come_out():
    model = vit(depth=3)

    def spoil(module, args, output):
        broken = output.clone()
        broken[0, 0, 0] = float("nan")
        return broken

    with torch.no_grad():  # layer 1 gets its NaN in q alone and passes nothing on
        handle = model.blocks[1].attn.qkv.register_forward_hook(spoil)
        model.blocks[1].ls1 = torch.nn.Identity()
        model.blocks[1].attn.proj.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
        results = measure(model, [images(6)], ALL, progress=False)
    handle.remove()
    assert any("blocks.1.attn" in note and "not finite" in note for note in results.notes)
    for name in ("head_similarity", "head_divergence"):
        layers = set(results[name].frame["layer"].dropna())
        assert layers == {0, 2}, name


def copy_head(model, layer, source, target):
    """Make head ``target`` attend exactly like head ``source``."""
    attn = model.blocks[layer].attn
    d, dim = attn.head_dim, attn.qkv.in_features
    with torch.no_grad():
        for part in (0, 1):
            for tensor in (attn.qkv.weight, attn.qkv.bias):
                rows = tensor[part * dim : (part + 1) * dim]
                rows[target * d : (target + 1) * d] = rows[source * d : (source + 1) * d]
    return model


def test_a_copied_head_is_found_and_independent_heads_are_not():
    model = copy_head(vit(depth=2), layer=1, source=0, target=2)
    results = measure(model, [images(8)], ALL, progress=False)
    for quantity in ("cosine_raw", "cosine_centred", "cosine_content"):
        matrix = pairs(results["head_similarity"], quantity, 6)
        assert matrix[3, 5] == pytest.approx(1, abs=1e-5)
        if quantity != "cosine_raw":
            assert abs(matrix[0, 1]) < 0.2
            assert abs(matrix[3, 4]) < 0.2
    assert pairs(results["head_divergence"], "js_divergence", 6)[3, 5] == 0
    centred = pairs(results["head_similarity"], "cosine_centred", 6, column="null")
    assert centred[3, 5] < 0.5  # content, not position: on another image the copy attends elsewhere


def test_heads_that_see_only_positions_keep_their_similarity_on_another_image():
    model = vit(depth=1)
    with torch.no_grad():
        model.pos_embed.normal_(std=20.0)
    frame = run(model, images(8), HeadSimilarity()).frame
    alike = frame[(frame["quantity"] == "cosine_centred") & frame["head"].notna()]
    assert np.allclose(alike["null"].astype(float), alike["value"].astype(float), atol=0.05)


def test_permuting_heads_permutes_pairs_and_leaves_layer_rows(measured):
    model, batch, results = measured
    permuted = permute_heads(copy.deepcopy(model), [2, 0, 1])
    again = measure(permuted, [batch[:6], batch[6:]], ALL, progress=False)
    for name, quantity in [
        ("head_similarity", "cosine_centred"),
        ("head_divergence", "js_divergence"),
        ("head_output_cka", "head_output_cka"),
    ]:
        before, after = (summary(r[name], quantity)["value"].astype(float) for r in (results, again))
        np.testing.assert_allclose(after, before, atol=2e-5)
    before, after = (pairs(r["head_similarity"], "cosine_centred", 9)[:3, :3] for r in (results, again))
    assert after[0, 1] == pytest.approx(before[0, 2], abs=1e-5)  # heads 2 and 0
    assert not np.isclose(after[0, 1], before[0, 1], atol=1e-3)


def permute_heads(model, order):
    """The same network with the heads of every layer in another order."""
    for block in model.blocks:
        attn = block.attn
        d = attn.head_dim
        columns = torch.cat([torch.arange(h * d, (h + 1) * d) for h in order])
        rows = torch.cat([columns + part * attn.qkv.in_features for part in range(3)])
        with torch.no_grad():
            attn.qkv.weight.copy_(attn.qkv.weight[rows].clone())
            attn.qkv.bias.copy_(attn.qkv.bias[rows].clone())
            attn.proj.weight.copy_(attn.proj.weight[:, columns].clone())
    return model


# --------------------------------------------------------------------------------------------- head outputs


def test_head_outputs_add_up_to_the_attention_output():
    model = vit(depth=1, init_values=0.3)
    block = model.blocks[0]
    with torch.no_grad(), capture(model, ["blocks.0.attn.z", "blocks.0.attn.out"]) as seen:
        model(images(2))
        weights = head_output_weights(view(model), 0)
        whole = head_outputs(seen["blocks.0.attn.z"].transpose(1, 2), weights).sum(-2)
        expected = block.ls1(seen["blocks.0.attn.out"] - block.attn.proj.bias)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-6)


def direct_cka(model, batches):
    """Ratio of sums over batches of n (n - 3) HSIC_1, from features made by hand."""
    sums = 0
    for batch in batches:
        with torch.no_grad(), capture(model, "blocks.*.attn.z") as seen:
            model(batch)
        features = []
        for layer, z in enumerate(seen.values()):
            attn = model.blocks[layer].attn
            weight = attn.proj.weight.detach().unflatten(1, (attn.num_heads, -1))
            features += [z[:, h, 1:].mean(1) @ weight[:, h].T for h in range(attn.num_heads)]
        n = len(batch)
        sums = sums + n * (n - 3) * torch.stack(
            [torch.stack([hsic1(x, y) for y in features]) for x in features]
        )
    return sums / sums.diagonal().sqrt().outer(sums.diagonal().sqrt())


def test_head_output_cka_is_the_minibatch_estimator_with_an_exact_jackknife():
    model, batch = vit(depth=2), images(11)
    result = run(model, [batch[:6], batch[6:]], HeadOutputCKA(permutations=20))
    whole = direct_cka(model, [batch[:6], batch[6:]])
    upper = np.triu_indices(6, 1)
    np.testing.assert_allclose(pairs(result, "head_output_cka", 6, "pooled")[upper], whole[upper], atol=1e-5)
    kept = [np.delete(np.arange(11), i) for i in range(11)]
    leave_out = torch.stack([direct_cka(model, [batch[k[k < 6]], batch[k[k >= 6]]]) for k in kept])
    low, *_ = delete_group_jackknife(whole.numpy(), leave_out.numpy())
    found = pairs(result, "head_output_cka", 6, "pooled", column="low")
    np.testing.assert_allclose(found[upper], low[upper], atol=1e-4)


def test_head_output_cka_finds_a_copied_head_and_stays_within_its_null_otherwise():
    model = copy_head(vit(depth=2), layer=1, source=0, target=2)
    attn = model.blocks[1].attn
    with torch.no_grad():
        d, dim = attn.head_dim, attn.qkv.in_features
        attn.qkv.weight[2 * dim + 2 * d :] = attn.qkv.weight[2 * dim : 2 * dim + d]
        attn.qkv.bias[2 * dim + 2 * d :] = attn.qkv.bias[2 * dim : 2 * dim + d]
        rotation = torch.linalg.qr(torch.randn(dim, dim))[0]
        attn.proj.weight[:, 2 * d :] = 3 * rotation @ attn.proj.weight[:, :d]
    result = run(model, images(24).split(12), HeadOutputCKA(permutations=99))
    for tokens in ("pooled", "class"):  # turned and scaled, and still the same to CKA
        assert pairs(result, "head_output_cka", 6, tokens)[3, 5] == pytest.approx(1, abs=1e-5)
        assert pairs(result, "head_output_cka", 6, tokens, column="p")[3, 5] == pytest.approx(0.01)


def test_head_output_cka_names_batches_that_are_too_small():
    result = run(vit(depth=2), [images(6), images(3)], HeadOutputCKA(permutations=5))
    assert any("3 images came in batches of fewer than 4" in note for note in result.notes)
    assert (result.frame["n"] == 6).all()


def test_max_statistic_keeps_its_size():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):  # 15 cells, all null: the smallest p of a map is below 0.05 in at most 5 % of maps
        draws = (
            generator.standard_normal((100, 15))
            @ np.linalg.cholesky(np.full((15, 15), 0.3) + 0.7 * np.eye(15)).T
        )
        p = permutation_null(draws[0], draws[1:], np.ones(15, bool))["p"]
        hits += p.min() <= 0.05
    assert hits / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert hits / 400 > 0.02


# -------------------------------------------------------------------------------- contrasts and two models


def test_contrast_over_depth_and_its_difference_between_models():
    first, other, batch = vit(depth=6, seed=1), vit(depth=4, seed=2), images(12)
    for layer in (4, 5):
        copy_head(first, layer, source=0, target=1)
    results = measure({"copied": first, "other": other}, batch.split(6), ALL, progress=False)
    result = results["head_similarity"]
    within = summary(result, "cosine_centred", model="copied")
    within = within[within["layer"] == within["layer_b"]]["value"].astype(float).to_numpy()
    change = summary(result, "cosine_centred_last_minus_first")
    assert change.iloc[0]["value"] == pytest.approx(within[-2:].mean() - within[:2].mean())
    assert change.iloc[0]["low"] > 0.2
    apart = difference(result, "copied", "other", hs.THIRDS).frame
    row = apart[apart["quantity"] == "cosine_centred_last_minus_first_difference"].iloc[0]
    assert row["value"] == pytest.approx(change.iloc[0]["value"] - change.iloc[1]["value"])
    assert row["low"] > 0.2
    assert row["p"] < 1e-4
    outputs = difference(results["head_output_cka"], "copied", "other", hs.THIRDS).frame
    assert sorted(outputs["tokens"]) == ["class", "pooled"]
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        difference(result, "copied", "othr")


def test_a_model_does_not_differ_from_itself():
    model = vit(depth=3)
    result = run({"a": model, "b": model}, images(8), HeadSimilarity())
    frame = difference(result, "a", "b").frame
    assert (frame["value"] == 0).all()
    assert (frame["p"] == 1).all()


def test_a_difference_survives_saving(tmp_path):
    result = run({"a": vit(seed=1), "b": vit(seed=2)}, images(8), HeadSimilarity())
    before = difference(result, "a", "b").frame
    after = difference(Result.load(result.save(tmp_path / "heads.parquet")), "a", "b").frame
    np.testing.assert_allclose(after["value"].astype(float), before["value"].astype(float))


def test_p_of_a_paired_difference_keeps_its_size():
    generator = np.random.default_rng(1)
    small = 0
    for _ in range(400):
        # Two models see the same 20 images in 16 groups; nothing differs on average.
        shared, own = generator.exponential(size=20), generator.normal(size=(2, 20))
        groups = torch.arange(20) % 16
        counts = torch.zeros(16).double().index_add_(0, groups, torch.ones(20).double())
        a, b = (
            mean_estimate(torch.zeros(16).double().index_add_(0, groups, torch.tensor(x)), counts)
            for x in shared + own
        )
        small += (a - b).p < 0.05
    assert small / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert small > 4


# --------------------------------------------------------------------------------------------- random weights


def test_random_twin_is_the_architecture_with_other_weights_and_no_trace():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), num_classes=3, in_chans=1)
    state = torch.get_rng_state()
    one, same, other = random_twin(model), random_twin(model), random_twin(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.provenance.untrained
    weights = [m.blocks[0].attn.qkv.weight for m in (one, same, other, model)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], w) for w in weights[2:])
    assert one(torch.zeros(1, 1, 32, 48)).shape == (1, 3)


def test_random_twins_are_of_the_trained_models_alone():
    trained = load_model("small_hard_deep", "random", seed=1)
    trained.provenance = dataclasses.replace(trained.provenance, kind="bundled")
    found = random_twins({"a": trained, "b": load_model("small_hard_deep", "random")}, seed=3)
    assert list(found) == ["a, random"]
    assert "seed 3" in found["a, random"].provenance.label


def test_random_twin_refuses_what_a_name_cannot_rebuild():
    with pytest.raises(T2TError, match=r"blocks\.2\.\S+ is None in"):
        random_twin(vit(depth=2))


# ------------------------------------------------------------------------------------------ declared invariances


def turned(model, factor=3.0):
    """The same network up to a rotation, a factor and a shift of what layer 0 writes."""
    model = copy.deepcopy(model)
    attn = model.blocks[0].attn
    dim = attn.proj.out_features
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(2)))[0]
    with torch.no_grad():
        attn.proj.weight.copy_(factor * rotation @ attn.proj.weight)
        attn.proj.bias.add_(1.0)
    return model


def reordered(batch):
    """Images with their patches (16 px cells) in reverse order: keys and queries of all heads permuted."""
    cells = batch.unflatten(2, (-1, 16)).unflatten(4, (-1, 16))  # (B, C, rows, 16, columns, 16)
    return cells.flip(2, 4).flatten(4).flatten(2, 3)


def without_positions(model):
    with torch.no_grad():
        model.pos_embed.zero_()
    return model


@pytest.mark.parametrize("one", ALL, ids=lambda m: m.name)
def test_measures_keep_the_invariances_that_they_declare_and_no_others(one):
    quantity = {"head_similarity": "cosine_centred", "head_divergence": "js_divergence"}.get(
        one.name, one.name
    )
    model, batch = without_positions(vit(depth=1)), images(8)

    def values(model, batch):
        return summary(run(model, batch, one), quantity)["value"].astype(float).to_numpy()

    before = values(model, batch)
    changes = {
        "permute_heads": (permute_heads(copy.deepcopy(model), [1, 2, 0]), batch),
        "permute_keys": (model, reordered(batch)),
        "orthogonal": (turned(model), batch),
    }
    for name in changes.keys() & one.invariances:
        np.testing.assert_allclose(values(*changes[name]), before, atol=1e-4, err_msg=name)
    other = vit(depth=1, seed=9)
    assert not np.allclose(values(other, batch), before, atol=1e-3)
    stretched = copy.deepcopy(model)
    with torch.no_grad():
        stretched.blocks[0].attn.qkv.weight.mul_(2)  # sharper attention is not among them
    assert not np.allclose(values(stretched, batch), before, atol=1e-3)


def test_a_bias_in_the_attention_is_not_lost():
    """BEiT adds relative positions to its logits, so that q and k alone would give other maps."""
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", img_size=48, depth=1, embed_dim=48, num_heads=3).eval()
    with torch.no_grad():
        model.blocks[0].attn.relative_position_bias_table.normal_(std=2)
    maps = patch_maps(model, images(4))
    found = pairs(run(model, images(4), HeadSimilarity()), "cosine_centred", 3)
    expected = torch.stack([hm.head_cosine(m) for m in maps]).mean(0).numpy()
    np.testing.assert_allclose(found[np.triu_indices(3, 1)], expected[np.triu_indices(3, 1)], atol=1e-5)
