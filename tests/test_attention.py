"""Attention distance, entropy, sinks, rollout, collapse and redundancy: identities, traps, planted truths."""

import copy
import math
import types

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import linear_sum_assignment

from t2t_analysis import models
from t2t_analysis.capture import TokenLayout, capture
from t2t_analysis.differences import difference
from t2t_analysis.errors import DataError
from t2t_analysis.measures import (
    AttentionGeometry,
    AttentionRollout,
    LayerCollapse,
    Redundancy,
    accumulate,
    collect,
    measure,
)
from t2t_analysis.measures import attention as A
from t2t_analysis.measures import collapse as C
from t2t_analysis.measures import redundancy as R
from t2t_analysis.measures import rollout as ro
from t2t_analysis.measures.feature_maps import correlation
from t2t_analysis.measures.head_measure import LAYERS
from t2t_analysis.plots import rollout_examples

from .references import column_cosine, rollout

ALL = [AttentionGeometry(), AttentionRollout(), LayerCollapse(), Redundancy()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_maps(*shape, s=1.0, seed=0):
    return (s * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)).softmax(-1)


def images(n=4, size=(32, 32), seed=0):
    return torch.randn(n, 3, *size, generator=generator(seed))


def small(name="vit_tiny_patch16_224", seed=0, spread=6.0, **kwargs):
    """A small model whose attention is peaked enough that heads differ."""
    torch.manual_seed(seed)
    defaults = {"img_size": 64, "depth": 3, "num_classes": 3}
    model = timm.create_model(name, **(defaults | kwargs)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(spread)
    return model


def rows(result, **where):
    frame = result.frame
    for column, value in where.items():
        frame = frame[frame[column].isna() if value is None else frame[column] == value]
    return frame


def one(result, **where):
    found = rows(result, **where)
    assert len(found) == 1, found
    return found.iloc[0]


# ------------------------------------------------------------------------------------------------ M6: distance


@pytest.mark.parametrize(
    ("grid", "pitch", "pixels", "share"),
    [(14, 16, 116.49, 0.5201), (24, 16, 200.05, 0.5210), (8, 4, 16.55, 0.5171), (7, 16, 57.75, 0.5156)],
)
def test_uniform_attention_has_the_recorded_distance(grid, pitch, pixels, share):
    found = A.uniform_distance((grid, grid), (pitch, pitch))
    assert found == pytest.approx(pixels, abs=0.005)
    assert found / (grid * pitch) == pytest.approx(share, abs=5e-5)
    distance = A.key_distance((grid, grid), (pitch, pitch))
    uniform = torch.full((grid**2, grid**2), grid**-2.0)
    assert A.attention_distance(uniform, distance).item() == pytest.approx(found, rel=1e-5)


def test_distance_identities():
    grid, pitch = (3, 5), (16, 8)
    distance = A.key_distance(grid, pitch)
    identity = torch.eye(15)
    right = (
        torch.eye(15).reshape(15, 3, 5).roll(1, dims=2).flatten(1)
    )  # every patch looks one column to the right
    inner = [i for i in range(15) if i % 5 < 4]
    assert A.attention_distance(identity, distance) == 0
    assert A.attention_distance(right[inner], distance[inner]).item() == 8
    down = torch.eye(15).roll(5, dims=1)[:10]
    assert A.attention_distance(down, distance[:10]).item() == 16
    a, b = random_maps(2, 15, 15).float()
    mixed = A.attention_distance(0.3 * a + 0.7 * b, distance)
    expected = 0.3 * A.attention_distance(a, distance) + 0.7 * A.attention_distance(b, distance)
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-6)
    worst = torch.nn.functional.one_hot(distance.argmax(-1), 15).float()
    ratio = A.attention_distance(worst, distance).item() / A.uniform_distance(grid, pitch)
    assert 1 < ratio < 2


def test_distance_is_of_the_renormalised_map():
    """Heads that spend 99 % on the class token look local if its column is just dropped."""
    distance = A.key_distance((4, 4), (16, 16))
    patches = random_maps(16, 16).float()
    heavy = torch.cat([torch.full((16, 1), 0.99), 0.01 * patches], dim=1)
    layout = TokenLayout(1, (4, 4))
    found = A.head_numbers(heavy[None, None], None, layout, (16, 16))[0, 0]
    expected = A.attention_distance(patches, distance).item() / 64  # of the side in pixels
    assert found[0].item() == pytest.approx(expected, rel=1e-5)
    assert found[1].item() == pytest.approx(A.attention_entropy(patches).item(), rel=1e-5)
    assert found[4].item() == pytest.approx(0.99, rel=1e-6)


def test_queries_without_any_patch_are_left_out():
    maps = random_maps(5, 5).float()
    distance = A.key_distance((1, 5), (4, 4))
    expected = A.attention_distance(maps[1:], distance[1:])
    maps[0] = 0
    torch.testing.assert_close(A.attention_distance(maps, distance), expected)
    assert A.attention_entropy(maps).isfinite()


def test_entropy_and_prefix_limits():
    assert A.attention_entropy(torch.eye(6)).item() == 0
    assert A.attention_entropy(torch.ones(6, 6)).item() == pytest.approx(math.log(6), rel=1e-6)
    assert A.prefix_attention(torch.full((3, 8), 1 / 8), 2).item() == pytest.approx(0.25)


def uniform_model(name, **kwargs):
    """Queries and keys of zero: uniform attention everywhere."""
    model = timm.create_model(name, num_classes=2, **kwargs).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "qkv" in key:
                weight[: 2 * weight.shape[0] // 3] = 0
    return model


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("t2t_vit_t_14", {"img_size": (64, 32), "depth": 1}, (64, 32)),
        ("deit_tiny_distilled_patch16_224", {"img_size": (32, 96), "depth": 1}, (32, 96)),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 1}, (56, 56)),
    ],
)
def test_uniform_attention_gives_every_null(name, kwargs, size):
    found = measure(uniform_model(name, **kwargs), [images(2, size)], AttentionGeometry(), progress=False)
    frame = found.frame
    assert np.allclose(frame["value"], frame["null"], rtol=1e-5)
    assert set(frame["quantity"]) >= {"attention_distance", "attention_entropy", "class_mass", "sink_mass"}
    if name.startswith("t2t"):
        assert {"tokens.0.attn", "tokens.1.attn", "blocks.0.attn", "blocks.*.attn"} == set(frame["place"])


def test_geometry_equals_a_direct_computation_and_names_every_head():
    model, x = small("deit_tiny_distilled_patch16_224", img_size=(64, 32)), images(3, (64, 32))
    found = measure(model, [x[:2], x[2:]], AttentionGeometry(), progress=False)["attention_geometry"]
    with torch.no_grad(), capture(model, "blocks.*.attn.pattern") as seen:
        model(x)
    pattern = seen["blocks.1.attn.pattern"]
    patches = pattern[:, :, 2:, 2:] / pattern[:, :, 2:, 2:].sum(-1, keepdim=True)
    distance = A.key_distance((4, 2), (16, 16))
    by_head = (patches * distance).sum(-1).mean((0, 2))
    for head in range(3):
        row = one(found, quantity="attention_distance", layer=1, head=head)
        assert row["value"] == pytest.approx(by_head[head].item() / math.sqrt(64 * 32), rel=1e-5)
        assert row["low"] < row["value"] < row["high"]
        assert (row["n"], row["unit"]) == (3, "image")
    row = one(found, quantity="attention_distance", layer=1, head=None)
    assert row["value"] == pytest.approx(by_head.mean().item() / math.sqrt(64 * 32), rel=1e-5)
    row = one(found, quantity="attention_entropy", layer=1, head=2, tokens="class")
    cls = pattern[:, 2, 0, 2:] / pattern[:, 2, 0, 2:].sum(-1, keepdim=True)
    assert row["value"] == pytest.approx(torch.special.entr(cls).sum(-1).mean().item(), rel=1e-5)
    row = one(found, quantity="class_mass", layer=1, head=0)
    assert row["value"] == pytest.approx(pattern[:, 0, 2:, 0].mean().item(), rel=1e-5)


def test_means_over_layers_leave_token_transformers_out_and_pair_two_models():
    models = {
        "t2t": timm.create_model("t2t_vit_t_14", img_size=64, depth=4, num_classes=2),
        "vit": small(depth=4),
    }
    found = measure(models, [images(4, (64, 64))], AttentionGeometry(), progress=False)["attention_geometry"]
    values = {}
    for name in models:
        layers = rows(found, model=name, quantity="attention_entropy", tokens="patch", head=None)
        blocks = layers[layers["layer"].notna()].sort_values("layer")["value"].to_numpy(float)
        mean = one(found, model=name, quantity="attention_entropy", tokens="patch", place=LAYERS)
        change = one(found, model=name, quantity="attention_entropy_last_minus_first", tokens="patch")
        assert mean["value"] == pytest.approx(blocks.mean(), abs=1e-12)
        assert change["value"] == pytest.approx(blocks[-1] - blocks[0], abs=1e-12)  # a third of 4 is 1
        assert mean["low"] < mean["value"] < mean["high"]
        values[name] = mean["value"]
    apart = difference(found, "vit", "t2t", LAYERS)
    row = one(apart, quantity="attention_entropy_difference", tokens="patch")
    assert row["value"] == pytest.approx(values["vit"] - values["t2t"], abs=1e-12)
    assert row["high"] < 0  # peaked attention against nearly uniform
    same = difference(found, "vit", "vit").frame
    assert (same["value"] == 0).all()


def test_token_transformers_are_worked_through_in_parts(monkeypatch):
    model = timm.create_model("t2t_vit_t_14", img_size=64, depth=1, num_classes=2)
    with torch.no_grad():
        model.tokens_to_token.attention1.attn.qkv.weight.mul_(20)
    x = images(2, (64, 64))
    with torch.no_grad(), capture(model, "tokens.0.attn.pattern") as seen:
        model.eval()(x)
    layout, pitch = TokenLayout(0, (16, 16)), (4.0, 4.0)
    whole = A.head_numbers(seen["tokens.0.attn.pattern"], None, layout, pitch).mean(0)[0]
    monkeypatch.setattr(A, "_CHUNK", 7 * 256)
    found = measure(model, [x], AttentionGeometry(), progress=False)["attention_geometry"]
    part = rows(found, place="tokens.0.attn", head=0).set_index("quantity")
    assert part.loc["attention_distance", "value"] == pytest.approx(whole[0].item(), rel=1e-5)
    assert part.loc["attention_entropy", "value"] == pytest.approx(whole[1].item(), rel=1e-5)
    assert part.loc["sink_mass", "value"] == pytest.approx(whole[5].item(), rel=1e-5)
    assert part.loc["attention_entropy", "value"] < 0.99 * math.log(256)


def test_a_performer_is_left_out_and_said_so():
    model = timm.create_model("t2t_vit_7", img_size=32, depth=1, num_classes=2)
    found = measure(model, [images(2)], AttentionGeometry(), progress=False)["attention_geometry"]
    assert set(found.frame["place"]) == {"blocks.0.attn", "blocks.*.attn"}
    assert sum("no attention matrix" in note for note in found.notes) == 2


# ------------------------------------------------------------------------------------------------ M7: rollout


def test_rollout_identities():
    n, maps = 12, [random_maps(2, 3, 12, 12, seed=s) for s in range(4)]
    identity = torch.eye(n).double().expand(2, 3, n, n)
    uniform = torch.full((2, 3, n, n), 1 / n, dtype=torch.float64)
    torch.testing.assert_close(rollout([identity] * 5), identity[:, 0])
    closed = 2.0**-5 * torch.eye(n).double() + (1 - 2.0**-5) / n
    torch.testing.assert_close(rollout([uniform] * 5), closed.expand(2, n, n))
    for depth in range(1, 5):
        torch.testing.assert_close(rollout(maps[:depth]).sum(-1), torch.ones(2, n).double())
    forward, backward = rollout(maps), rollout(maps[::-1])
    assert (forward - backward).abs().max() > 1e-3
    mixed = [(m.mean(1) + torch.eye(n).double()) / 2 for m in maps]
    torch.testing.assert_close(forward, mixed[3] @ mixed[2] @ mixed[1] @ mixed[0])


def test_rollout_measures_every_image():
    model, x = small(), images(5, (64, 64))
    with torch.no_grad(), capture(model, "blocks.*.attn.pattern") as seen:
        model(x)
    rolled = rollout(seen.values())
    row = rolled[:, 0, 1:]
    torch.testing.assert_close(
        ro.rollout_maps(model, x).flatten(1), row / row.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6
    )
    found = measure(model, [x[:4], x[4:]], AttentionRollout(), progress=False)["attention_rollout"]
    last = {q: one(found, quantity=q, layer=2) for q in set(found.frame["quantity"])}
    assert last["rollout_entropy"]["n"] == 5
    between = correlation(row[[0, 2]], row[[1, 3]])
    assert last["rollout_between_images"]["value"] == pytest.approx(between.mean().item(), abs=1e-5)
    assert (last["rollout_between_images"]["n"], last["rollout_between_images"]["unit"]) == (2, "image pair")


def test_a_map_that_ignores_the_image_has_correlation_one():
    model = small(spread=20.0)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()  # every image is the same; positions still differ
        model.pos_embed.mul_(50)
    found = measure(model, [images(4, (64, 64))], AttentionRollout(), progress=False)["attention_rollout"]
    assert np.allclose(rows(found, quantity="rollout_between_images")["value"], 1, atol=1e-4)


def test_rollout_without_class_token_reads_the_mean_of_the_patches():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, class_token=False, global_pool="avg"
    )
    found = measure(model, [images(2)], AttentionRollout(), progress=False)["attention_rollout"]
    assert set(rows(found, quantity="rollout_entropy")["tokens"]) == {"patch"}
    assert ro.rollout_maps(model.eval(), images(2)).shape == (2, 2, 2)


def test_a_layer_that_is_not_finite_ends_the_rollout_there():
    model = small()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[0] = math.inf
    found = measure(model, [images(2, (64, 64))], ALL, progress=False)
    assert set(found["attention_rollout"].frame["layer"]) == {0}
    assert any("blocks.1.attn.pattern is not finite" in note for note in found["attention_rollout"].notes)
    assert 0 in set(found["attention_geometry"].frame["layer"])
    assert 1 not in set(found["attention_geometry"].frame["layer"])


# ------------------------------------------------------------------------------------------------ M11: collapse


def test_column_cosine_identities():
    maps = random_maps(4, 7, 7, s=2.0)
    for centred in (False, True):
        cosine = column_cosine(maps, centred=centred)
        torch.testing.assert_close(cosine.diagonal(), torch.ones(4).double())
        torch.testing.assert_close(cosine, cosine.T)
    a, b = maps[:2]
    expected = torch.nn.functional.cosine_similarity(a, b, dim=0).mean()
    assert column_cosine(a[None], b[None]).item() == pytest.approx(expected.item())
    mixed = [column_cosine((1 - w) * maps + w / 7)[0, 1].item() for w in (0, 0.3, 0.6, 0.9)]
    assert mixed == sorted(mixed)  # mixing with uniform attention makes raw columns alike
    torch.testing.assert_close(
        column_cosine(0.4 * maps + 0.6 / 7, centred=True), column_cosine(maps, centred=True)
    )


def relabelled(model, layer, order):
    """The same function with the heads of one layer in another order."""
    attn = model.blocks[layer].attn
    head = attn.head_dim
    take = torch.cat([torch.arange(h * head, (h + 1) * head) for h in order])
    with torch.no_grad():
        for weight in (attn.qkv.weight, attn.qkv.bias):
            weight.copy_(torch.cat([part[take] for part in weight.chunk(3)]))
        attn.proj.weight.copy_(attn.proj.weight[:, take])
    return model


def copied_layer(spread=12.0):
    """Layer 1 attends exactly as layer 0: nothing is added to the residual stream, so both see the same."""
    model = small(spread=spread)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
        model.blocks[0].mlp.fc2.weight.zero_()
    model.blocks[1].attn.load_state_dict(model.blocks[0].attn.state_dict())
    return model


def test_a_copied_layer_is_found_and_matching_undoes_a_new_order_of_heads():
    x = images(4, (64, 64))
    plain = measure(copied_layer(), [x], LayerCollapse(), progress=False)["layer_collapse"]
    moved = measure(relabelled(copied_layer(), 1, [2, 0, 1]), [x], LayerCollapse(), progress=False)[
        "layer_collapse"
    ]
    for found in (plain, moved):
        row = one(found, quantity="column_cosine_matched_centred", layer=0, layer_b=1)
        assert row["value"] == pytest.approx(1, abs=1e-4)


def test_collapse_equals_a_direct_computation(monkeypatch):
    model, x = small(), images(3, (64, 64))
    monkeypatch.setattr(C, "_CHUNK", 5 * 9 * 16)  # several parts of the keys
    found = measure(model, [x], LayerCollapse(), progress=False)["layer_collapse"]
    with torch.no_grad(), capture(model, "blocks.*.attn.pattern") as seen:
        model(x)
    maps = torch.stack([p[:, :, 1:, 1:] / p[:, :, 1:, 1:].sum(-1, keepdim=True) for p in seen.values()])

    def matched(first, second):  # (B, H, Q, K) each
        cosine = torch.nn.functional.cosine_similarity(first[:, :, None], second[:, None], dim=-2).mean(
            (0, -1)
        )
        return cosine[linear_sum_assignment(cosine, maximize=True)].mean().item()

    row = one(found, quantity="column_cosine_matched", layer=0, layer_b=2)
    assert row["value"] == pytest.approx(matched(maps[0], maps[2]), rel=1e-4)
    assert row["null"] == pytest.approx(matched(maps[0][[0, 1]], maps[2][[1, 0]]), rel=1e-4)
    mean = one(found, quantity="column_cosine_matched_centred_neighbours")
    beside = [one(found, quantity="column_cosine_matched_centred", layer=i, layer_b=i + 1) for i in range(2)]
    assert mean["value"] == pytest.approx(np.mean([row["value"] for row in beside]), abs=1e-12)
    assert mean["null"] == pytest.approx(np.mean([row["null"] for row in beside]), abs=1e-12)
    assert mean["low"] < mean["value"] < mean["high"]


def test_models_are_paired_by_how_alike_the_attention_of_their_neighbouring_layers_is():
    x = images(6, (64, 64))
    found = measure({"copied": copied_layer(), "plain": small()}, [x], LayerCollapse(), progress=False)
    apart = difference(found["layer_collapse"], "copied", "plain", LAYERS)
    row = one(apart, quantity="column_cosine_matched_centred_neighbours_difference")
    assert row["low"] > 0.1  # one of two neighbouring pairs is a copy
    assert row["p"] < 0.01


# ------------------------------------------------------------------------------------------------ M12: redundancy


def test_token_similarity_identities():
    x = torch.randn(2, 30, 8, generator=generator(), dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=-1)
    pairs = (unit @ unit.mT)[:, ~torch.eye(30, dtype=torch.bool)].mean(-1)
    torch.testing.assert_close(R.token_cosine(x), pairs)
    torch.testing.assert_close(R.token_cosine(x + 5, centred=True), R.token_cosine(x, centred=True))
    torch.testing.assert_close(R.token_cosine(3 * x), R.token_cosine(x))
    assert R.token_cosine(torch.ones(5, 4)).item() == pytest.approx(1)
    assert (R.token_cosine(x + 5) > 0.9).all()  # a shared mean makes all tokens alike ...
    assert (R.mean_share(x + 5) > 0.9).all()  # ... and this says so
    assert R.mean_share(x).mean().item() == pytest.approx(1 / 30, abs=0.03)


def test_dirichlet_energy_identities():
    x = torch.randn(400, 30, 8, generator=generator(), dtype=torch.float64)
    assert R.dirichlet_energy(x, (5, 6)).mean().item() == pytest.approx(1, abs=0.01)
    assert R.dirichlet_energy(torch.ones(1, 30, 8), (5, 6)).item() == 0
    torch.testing.assert_close(R.dirichlet_energy(7 * x, (5, 6)), R.dirichlet_energy(x, (5, 6)))
    shifted = x + 0.7
    shuffled = (1 - R.mean_share(shifted)) * 30 / 29
    assert R.dirichlet_energy(shifted, (5, 6)).mean().item() == pytest.approx(
        shuffled.mean().item(), rel=0.01
    )
    smooth = x[:1].unflatten(1, (5, 6)).cumsum(1).cumsum(2).flatten(1, 2)
    assert R.dirichlet_energy(smooth, (5, 6)).item() < 0.5


def test_flattened_cosine_leaves_a_head_with_itself_out():
    maps = torch.eye(16, dtype=torch.float64)[:3].reshape(3, 4, 4)  # disjoint, so orthogonal
    assert R.flattened_cosine(maps).item() == 0
    assert R.flattened_cosine(torch.stack([maps[0]] * 3)).item() == pytest.approx(1)
    assert R.flattened_cosine(maps[:1]).isnan()
    independent = random_maps(6, 50, 50, s=0.3)
    assert R.flattened_cosine(independent).item() == pytest.approx(math.exp(-0.09), abs=0.01)
    assert R.flattened_cosine(independent, centred=True).item() == pytest.approx(0, abs=0.02)


def test_the_spectrum_of_a_product_is_found_in_few_dimensions():
    a, b = torch.randn(2, 1, 4, 30, generator=generator(), dtype=torch.float64)
    direct = torch.linalg.svdvals(a[0].T @ b[0])[:4]
    torch.testing.assert_close(R._product_spectrum(a, b)[0], direct)


def test_random_weights_have_the_ranks_of_random_matrices_and_a_planted_low_rank_has_not():
    model = small(spread=1.0)
    with torch.no_grad():
        query = model.blocks[2].attn.qkv.weight[:64]
        query.copy_(torch.outer(torch.randn(64), torch.randn(192)))  # head 0
    found = measure(model, [images(2, (64, 64))], Redundancy(), progress=False)["redundancy"]
    ranks = found.frame[found.frame["quantity"].str.contains("rank")]
    planted = (ranks["layer"] == 2) & (ranks["head"] == 0) & ranks["quantity"].str.endswith("qk")
    assert np.allclose(ranks[planted]["value"].astype(float), 1 / 64, atol=1e-3)
    rest = ranks[~planted]
    inside = (rest["value"] >= rest["null_low"]) & (rest["value"] <= rest["null_high"])
    assert inside.mean() > 0.75
    assert np.allclose(rest["value"].astype(float), rest["null"].astype(float), rtol=0.2)


def test_layers_carry_the_mean_rank_of_their_heads():
    found = measure(small(), [images(2, (64, 64))], Redundancy(), progress=False)["redundancy"]
    heads = rows(found, quantity="effective_rank_qk", layer=1)
    mean = heads[heads["head"].isna()]["value"].item()
    assert mean == pytest.approx(heads[heads["head"].notna()]["value"].astype(float).mean(), abs=1e-12)


def test_redundancy_finds_copied_heads_and_equal_tokens():
    model = small(spread=40.0)
    attn = model.blocks[1].attn
    with torch.no_grad():
        for start in (0, 192):  # queries and keys of heads 1 and 2 become those of head 0
            for h in (1, 2):
                for weight in (attn.qkv.weight, attn.qkv.bias):
                    weight[start + 64 * h : start + 64 * (h + 1)] = weight[start : start + 64]
    found = measure(model, [images(4, (64, 64))], Redundancy(), progress=False)["redundancy"]
    for quantity in ("attention_cosine", "attention_cosine_centred"):
        assert one(found, quantity=quantity, layer=1)["value"] == pytest.approx(1, abs=1e-5)
    assert one(found, quantity="attention_cosine_centred", layer=0)["value"] < 0.5
    null = one(found, quantity="token_dirichlet_energy", place="embed")
    assert null["null_low"] < null["null"] < null["null_high"]
    constant = torch.ones(2, 3, 64, 64)
    same = measure(model, [constant], Redundancy(), progress=False)["redundancy"]
    assert one(same, quantity="token_cosine", place="embed")["value"] == pytest.approx(1, abs=1e-5)
    assert one(same, quantity="token_dirichlet_energy", place="embed")["value"] == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ as measures


def test_two_shares_equal_one_and_batches_do_not_matter():
    model, x = small(), images(8, (64, 64))
    batches = [x[i : i + 2] for i in range(0, 8, 2)]
    whole = accumulate(model, [x], ALL, progress=False)
    parts = accumulate(model, batches, ALL, progress=False)
    first, second = (accumulate(model, share, ALL, progress=False) for share in (batches[:2], batches[2:]))
    merged = [copy.deepcopy(a) for a in first]
    for a, b in zip(merged, second, strict=True):
        a.merge_state(b)
    expected = collect(whole).frame["value"].to_numpy(float)
    for other in (parts, merged):
        np.testing.assert_allclose(
            collect(other).frame["value"].to_numpy(float), expected, rtol=1e-4, atol=1e-5
        )


def test_one_pass_answers_everything_for_a_whole_t2t_vit():
    model = timm.create_model("t2t_vit_16_ghost", img_size=32, depth=2, num_classes=2)
    found = measure(model, [images(2, (64, 64))], ALL, progress=False)
    assert set(found) == {m.name for m in ALL}
    frame = found.frame
    assert frame["value"].notna().all()
    assert frame["null"].notna().all()
    assert frame["null_kind"].notna().all()
    assert frame["interval"].notna().mean() > 0.95  # missing only where two images make one pair


# ------------------------------------------------------------------------------------------------ drawn


@pytest.fixture(scope="module")
def found():
    twin = small(seed=1, spread=1.0)
    twin.provenance = models.Provenance("random", "made here")
    return measure({"one": small(), "twin": twin}, [images(4, (64, 64))], ALL, progress=False)


def test_rollouts_are_drawn_on_one_scale_about_uniform():
    photographs = np.full((2, 3, 8, 8), 0.5)
    uniform, peaked = np.full((2, 2), 0.25), np.array([[0.625, 0.125], [0.125, 0.125]])
    maps = {"one": np.stack([uniform, peaked]), "one, random": np.stack([uniform, uniform])}
    figure = rollout_examples(photographs, maps, weights={"one, random": "UNTRAINED (seed 0)"})
    drawn = [ax.images[0] for ax in figure.fig.axes if ax.images and ax.images[0].get_array().shape == (2, 2)]
    assert len(drawn) == 4
    ends = {tuple(np.round(image.get_clim(), 9)) for image in drawn}
    assert ends == {(0.4, 2.5)}  # as far below 1 as above, in logarithms
    assert "`one` 0.50 to 2.50" in figure.caption
    faint = rollout_examples(photographs[:1], {"one": uniform[None] * [[1.02, 0.98]]})
    assert faint.fig.axes[1].images[0].get_clim()[1] == pytest.approx(1.5)
    assert not figure.caption.startswith("**UNTRAINED")
    assert "the same, UNTRAINED" in figure.caption
    alone = rollout_examples(photographs, {"one": maps["one"]}, weights={"one": "UNTRAINED (seed 0)"})
    assert alone.caption.startswith("**UNTRAINED")
    with pytest.raises(DataError, match="2 photographs"):
        rollout_examples(photographs, {"one": maps["one"][:1]})


def test_example_rollouts_are_those_of_the_first_images():
    models, x = {"a": small(), "b": small(seed=1)}, images(6, (64, 64))
    batches = [types.SimpleNamespace(images=part) for part in x.split(2)]
    found = ro.example_rollouts(models, batches, 3)
    assert found.photographs.shape == (3, 3, 64, 64)
    assert (found.photographs.amin((1, 2, 3)).tolist(), found.photographs.amax((1, 2, 3)).tolist()) == (
        [0] * 3,
        [1] * 3,
    )
    torch.testing.assert_close(found.maps["b"], ro.rollout_maps(models["b"], x[:3]))
    assert set(found.weights) == {"a", "b"}
    assert len(ro.example_rollouts(models, batches, 99).photographs) == 6
    with pytest.raises(DataError, match="no images"):
        ro.example_rollouts(models, [])
