"""Attention-head similarity: identities, measured numbers, planted truths, nulls, and two processes against one."""

import math

import numpy as np
import pytest
import torch

from t2t_analysis.measures import head_maps as hm

LN2 = math.log(2)
TOKENS = 197


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
    order, keys = torch.randperm(6), torch.randperm(30)
    torch.testing.assert_close(cosine.diagonal(), torch.ones(6).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine, cosine.T, rtol=0, atol=1e-6)
    assert cosine.abs().max() <= 1 + 1e-6
    assert torch.linalg.eigvalsh((cosine + cosine.T) / 2).min() > -1e-6
    torch.testing.assert_close(hm.head_cosine(maps[order], centred=centred), cosine[order][:, order])
    torch.testing.assert_close(hm.head_cosine(maps[..., keys], centred=centred), cosine)
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
    assert hm.js_divergence(p, p).abs().max() == 0
    torch.testing.assert_close(hm.js_divergence(p, q), hm.js_divergence(q, p), rtol=0, atol=0)
    torch.testing.assert_close(hm.js_divergence(p[:, keys], q[:, keys]), hm.js_divergence(p, q))
    assert hm.js_divergence(disjoint[0], disjoint[1]).item() == pytest.approx(LN2, rel=1e-7)
    assert ((hm.js_divergence(p, q) > 0) & (hm.js_divergence(p, q) < LN2)).all()
    pair = hm.pairwise_js_divergence(torch.stack([p, q]))
    assert pair[0, 1] == pair[1, 0] == pytest.approx(hm.js_divergence(p, q).mean().item())
    assert hm.js_divergence_of_all(torch.stack([p, q])).item() == pytest.approx(pair[0, 1].item(), rel=1e-5)
    assert hm.js_divergence_of_all(disjoint[:, None, :]).item() == pytest.approx(math.log(4))


def test_divergence_root_is_a_metric():
    p = random_maps(heads=3, tokens=8, s=3.0, queries=500).double()
    d = torch.stack([hm.js_divergence(p[i], p[j]).sqrt() for i, j in [(0, 1), (1, 2), (0, 2)]])
    assert (d[0] + d[1] >= d[2] - 1e-12).all()


# ------------------------------------------------------------------------------------------- recorded numbers


@pytest.mark.parametrize(("s", "raw", "jsd"), [(0.1, 0.990, 0.0025), (0.3, 0.914, 0.022), (1, 0.396, 0.199), (2, 0.082, 0.484)])
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


def test_content_covariance_is_unbiased_and_sees_only_content():
    generator = torch.Generator().manual_seed(3)
    mean = 5 * torch.randn(3, 4, 5, generator=generator).double()
    shared = torch.randn(4000, 1, 4, 5, generator=generator).double()
    content = torch.randn(4000, 3, 4, 5, generator=generator).double()
    content[:, 1] = content[:, 0]  # heads 0 and 1 share all of their content, 0 and 2 half of its variance
    maps = mean + content + shared
    estimate = torch.stack([hm.pair_content_covariance(*maps[i : i + 2]) for i in range(0, 4000, 2)]).mean(0)
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
