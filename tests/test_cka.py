"""Centred kernel alignment: identities, published traps as measured, nulls, intervals and the layer maps."""

from itertools import permutations as orders

import numpy as np
import pytest
import timm
import torch

from t2t_analysis import stats
from t2t_analysis.capture import capture
from t2t_analysis.errors import DataError, T2TError, UnknownNameError
from t2t_analysis.measures import CrossLayerCKA, LayerCKA, accumulate, collect, difference, measure
from t2t_analysis.measures import cka as C

from .references import cka_unbiased, hsic1, hsic1_from_grams, linear_cka


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n=40, p=6, q=9, seed=0):
    x = normal(n, p, seed=seed)
    return x, x @ normal(p, q, seed=seed + 1) + normal(n, q, seed=seed + 2)


# ------------------------------------------------------------------------------------------ M1


@pytest.mark.parametrize("cka", [linear_cka, cka_unbiased])
@pytest.mark.parametrize(("n", "p", "q"), [(40, 6, 9), (12, 30, 20)])
def test_identities(cka, n, p, q):
    x, y = related(n, p, q)
    assert float(cka(x, x)) == pytest.approx(1, abs=1e-12)
    assert float(cka(x, y)) == pytest.approx(float(cka(y, x)), abs=1e-12)
    padded = torch.cat([x, torch.zeros(n, 60)], 1)  # also moves from one form to the other
    assert float(cka(padded, y)) == pytest.approx(float(cka(x, y)), abs=1e-12)
    assert float(cka(x, y)) < 1


def test_biased_cka_is_hsic0_over_its_norms():
    x, y = related()
    h = torch.eye(40) - 1 / 40
    K, L = x @ x.T, y @ y.T

    def hsic0(a, b):
        return torch.trace(a @ h.double() @ b @ h.double())

    assert float(linear_cka(x, y)) == pytest.approx(float(hsic0(K, L) / (hsic0(K, K) * hsic0(L, L)).sqrt()))


@pytest.mark.parametrize(("n", "p", "expected"), [(256, 512, 0.667), (500, 64, 0.113)])
def test_biased_cka_of_independent_features_is_far_from_zero(n, p, expected):
    pairs = [(normal(n, p, seed=s), normal(n, p, seed=100 + s)) for s in range(8)]
    biased = np.mean([float(linear_cka(*pair)) for pair in pairs])
    assert biased == pytest.approx(expected, abs=0.002)
    assert biased == pytest.approx(p / (n + p), abs=0.002)
    assert abs(np.mean([float(cka_unbiased(*pair)) for pair in pairs])) < 0.005


def outlier_in(x, direction, rows):
    x = x.clone()
    x[rows] += 300 * direction
    return x


def test_one_shared_outlier_fools_the_biased_estimator_and_one_percent_fool_both():
    x, y = normal(500, 64), normal(500, 64, seed=1)
    far = normal(2, 64, seed=2)
    one = outlier_in(x, far[0], [0]), outlier_in(y, far[1], [0])
    assert float(linear_cka(*one)) > 0.999
    assert abs(float(cka_unbiased(*one))) < 0.05
    many = outlier_in(x, far[0], range(5)), outlier_in(y, far[1], range(5))
    assert float(cka_unbiased(*many)) > 0.999
    keep = C.without_top_images(*many, count=5)
    assert keep.tolist() == list(range(5, 500))
    assert abs(float(cka_unbiased(many[0][keep], many[1][keep]))) < 0.05


def test_top_components_carry_the_value():
    shared = 20 * normal(200, 1)
    x, y = (torch.cat([shared, normal(200, 8, seed=s)], 1) for s in (1, 2))
    assert float(cka_unbiased(x, y)) > 0.99
    assert abs(float(cka_unbiased(C.without_top_pcs(x), C.without_top_pcs(y)))) < 0.05
    assert (
        float(C.without_top_pcs(x, 2).norm())
        < float(C.without_top_pcs(x, 1).norm())
        < float(C.centred(x).norm())
    )


def test_what_counts_as_a_sample_decides():
    position = normal(1, 16, 24)
    a, b = (position + normal(120, 16, 24, seed=s) for s in (1, 2))
    assert float(cka_unbiased(a.flatten(0, 1), b.flatten(0, 1))) > 0.3  # token = sample
    assert abs(float(cka_unbiased(a.mean(1), b.mean(1)))) < 0.05
    assert abs(float(cka_unbiased(a.flatten(1), b.flatten(1)))) < 0.05


# ------------------------------------------------------------------------------------------ M2


def test_hsic1_is_the_u_statistic_over_quadruples():
    n = 7
    x, y = related(n, 3, 4)
    K, L = x @ x.T, y @ y.T
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in orders(range(n), 4)]
    expected = float(torch.stack(terms).mean())
    assert float(hsic1_from_grams(K, L)) == pytest.approx(expected, rel=1e-12)
    assert float(hsic1(x, y)) == pytest.approx(expected, rel=1e-12)


def test_hsic1_is_songs_formula_and_ignores_row_and_column_offsets():
    n = 30
    x, y = related(n)
    K, L = (g - torch.diag(g.diagonal()) for g in (x @ x.T, y @ y.T))
    one = torch.ones(n, dtype=torch.float64)
    mixed = 2 / (n - 2) * (one @ K @ L @ one)
    song = (torch.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - mixed) / (
        n * (n - 3)
    )
    f = normal(n, seed=5)
    for gram in (K, K + f[:, None] + f[None]):
        assert float(hsic1_from_grams(gram, L)) == pytest.approx(float(song), rel=1e-10)


@pytest.mark.parametrize("n", [8, 16, 64])
def test_unbiased_at_any_n_and_negative_half_of_the_time(n):
    pairs = normal(1500, n, 5), normal(1500, n, 5, seed=1)
    values = hsic1_from_grams(*(C.gram(x) for x in pairs))
    assert abs(float(values.mean())) < 3.5 * float(values.std()) / 1500**0.5
    assert 0.4 < float((values < 0).double().mean()) < 0.65


def test_constant_offsets_in_float32_change_nothing():
    x, y = (v.float() for v in related(64, 12, 8))
    truth = float(cka_unbiased(x, y)), float(linear_cka(x, y))
    for constant in (10, 100, 1000):
        shifted = x.double() + constant, y.double() + constant
        assert (float(cka_unbiased(*shifted)), float(linear_cka(*shifted))) == pytest.approx(truth, abs=1e-10)
        single = x + constant, y + constant  # here the inputs themselves have lost digits
        assert float(cka_unbiased(*single)) == pytest.approx(truth[0], abs=2e-5 * constant / 1000 + 1e-6)


def test_minibatch_cka_is_a_ratio_of_means():
    batches = [related(8, seed=10 * s) for s in range(6)]
    sums = [
        sum(hsic1(*pair) for pair in kind)
        for kind in zip(*[((x, y), (x, x), (y, y)) for x, y in batches], strict=True)
    ]
    of_means = float(C.ratio_of_means(*sums))
    mean_of = float(torch.stack([cka_unbiased(x, y) for x, y in batches]).mean())
    assert of_means != pytest.approx(mean_of, abs=1e-4)
    means = [s / 6 for s in sums]
    assert float(C.ratio_of_means(*means)) == pytest.approx(of_means)


@pytest.mark.parametrize("cka", [cka_unbiased, hsic1])
def test_too_few_images_are_named(cka):
    with pytest.raises(DataError, match="3 images are too few"):
        cka(normal(3, 2), normal(3, 2))


def test_no_variance_is_undefined_not_zero():
    assert torch.isnan(cka_unbiased(torch.ones(6, 2), normal(6, 2)))


# ------------------------------------------------------------------------------------------ M3


def u_grams(*features):
    return torch.stack([C.u_centred(C.gram(x)) for x in features])


def test_leave_one_out_is_recomputation_without_the_image():
    x, y = related(9)
    left = C.gram_cka_leave_one_out(u_grams(x, y), u_grams(y, x))
    for i in range(9):
        keep = [j for j in range(9) if j != i]
        assert float(left[i, 0, 0]) == pytest.approx(float(cka_unbiased(x[keep], y[keep])), abs=1e-12)
        assert float(left[i, 0, 1]) == pytest.approx(1, abs=1e-12)
    with pytest.raises(DataError, match="3 images"):
        C.gram_cka_leave_one_out(u_grams(x[:4]), u_grams(y[:4]))


def test_null_is_recomputation_with_permuted_images():
    x, y = related(9)
    perms = C.permutations(9, 5, 0)
    null = C.gram_cka_null(u_grams(x), u_grams(y, x), perms)
    for k, perm in enumerate(perms):
        assert float(null[k, 0, 0]) == pytest.approx(float(cka_unbiased(x, y[perm])), abs=1e-12)
        assert float(null[k, 0, 1]) == pytest.approx(float(cka_unbiased(x, x[perm])), abs=1e-12)


def test_permutations_depend_on_their_key_only():
    assert torch.equal(C.permutations(7, 3, 1, 2), C.permutations(7, 3, 1, 2))
    assert not torch.equal(C.permutations(7, 3, 1, 2), C.permutations(7, 3, 1, 3))
    assert (C.permutations(7, 50, 0).sort(1).values == torch.arange(7)).all()


def test_p_values_are_calibrated_over_whole_maps():
    found = []
    for s in range(200):
        a = normal(20, 4, seed=1000 + s)
        b = normal(20, 4, seed=5000 + s)
        # Layers of one model resemble each other, and the two models share nothing.
        one, other = u_grams(a, a + 0.5 * normal(20, 4, seed=s)), u_grams(b, b.exp())
        null = C.gram_cka_null(one, other, C.permutations(20, 59, s)).numpy()
        value = C.gram_cka(one, other).numpy()
        found.append((stats.permutation_p(value, null)[0, 0], stats.max_statistic_p(value, null).min()))
    sampling = 3 * np.sqrt(0.05 * 0.95 / 200)
    plain, largest = (np.array(found) <= 0.05 + 1e-9).mean(0)
    assert plain <= 0.05 + sampling
    assert largest <= 0.05 + sampling
    assert (np.array(found)[:, 0] <= 0.5).mean() == pytest.approx(0.5, abs=0.12)


def test_jackknife_covers_the_population_value():
    mixing = normal(3, 3, seed=7)
    xy, yy = mixing, mixing.T @ mixing + torch.eye(3)
    truth = float(xy.square().sum() / (3**0.5 * yy.norm()))
    covered = 0
    for s in range(300):
        x = normal(80, 3, seed=s)
        y = x @ mixing + normal(80, 3, seed=10_000 + s)
        a, b = u_grams(x), u_grams(y)
        left = C.gram_cka_leave_one_out(a, b).numpy()
        low, high, _ = stats.delete_group_jackknife(C.gram_cka(a, b).numpy(), left)
        covered += bool(low[0, 0] <= truth <= high[0, 0])
    assert 0.90 <= covered / 300 <= 0.985


# ------------------------------------------------------------------------------------------ maps of layers


def tiny(depth=2, dim=48, seed=0):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=dim, num_heads=3)


IMAGES = torch.randn(22, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Batches(list):
    """Plain batches whose length is known."""

    def __init__(self, images, size):
        super().__init__(images.split(size))
        self.dataset = range(len(images))


def table(result, quantity="cka_unbiased", column="value"):
    rows = result.frame[result.frame.quantity == quantity]
    return rows.pivot(index="place", columns="place_b", values=column).to_numpy(dtype=float, na_value=np.nan)


def run(models, measures, size=8, images=IMAGES, **kwargs):
    return measure(models, Batches(images, size), measures, progress=False, **kwargs)


def reduced(model, place, how):
    with torch.no_grad(), capture(model.eval(), place) as seen:
        model(IMAGES)
    value = seen[place].double()
    return {"pooled": value[:, 1:].mean(1), "class": value[:, 0], "flattened": value[:, 1:].flatten(1)}[how]


@pytest.mark.parametrize("tokens", ["pooled", "class"])
@pytest.mark.parametrize("retain", [1024, 16])
def test_map_is_cka_of_the_captured_features(tokens, retain):
    a, b = tiny(), tiny(3, 24, seed=5)
    result = run([a, b], CrossLayerCKA(tokens, retain=retain))["cross_layer_cka"]
    kept = torch.arange(22) if retain > 22 else -(-torch.arange(retain) * 22 // retain)  # evenly spread
    features = [
        [reduced(m, f"blocks.{i}.resid_post", tokens)[kept] for i in range(depth)]
        for m, depth in ((a, 2), (b, 3))
    ]
    expected = [[float(cka_unbiased(x, y)) for y in features[1]] for x in features[0]]
    assert table(result) == pytest.approx(np.array(expected), abs=1e-6)
    assert any("16 of 22 images, evenly spread" in note for note in result.notes) == (retain == 16)
    assert (table(result, column="low") < table(result)).all()
    assert set(result.frame.tokens) == {tokens}
    assert result.meta["n_interval"] == min(22, retain)


def test_flattened_tokens_sum_over_batches_and_keep_short_ones():
    model = tiny()
    result = run(model, LayerCKA("flattened"))["layer_cka"]  # batches of 8, 8 and 6
    x, y = (reduced(model, f"blocks.{i}.resid_post", "flattened").split(8) for i in (0, 1))
    sums = [
        sum(len(a) * (len(a) - 3) * hsic1(a, b) for a, b in zip(*pair, strict=True))
        for pair in ((x, y), (x, x), (y, y))
    ]
    assert table(result)[0, 1] == pytest.approx(float(C.ratio_of_means(*sums)), abs=1e-6)
    assert result.frame.n.unique().tolist() == [22]
    assert result.frame.unit.unique().tolist() == ["image"]
    short = run(model, LayerCKA("flattened"), size=7)["layer_cka"]  # 7, 7, 7 and 1
    assert short.meta["images_dropped"] == 1
    assert any("1 images in batches of fewer than 4" in note for note in short.notes)
    with pytest.raises(DataError, match="larger batch_size"):
        run(model, LayerCKA("flattened"), size=3)


@pytest.mark.parametrize("tokens", ["pooled", "class", "flattened"])
def test_same_weights_in_two_objects_have_diagonal_one(tokens):
    shuffled = IMAGES[torch.randperm(22)]
    result = run([tiny(), tiny()], CrossLayerCKA(tokens), images=shuffled)["cross_layer_cka"]
    assert np.diag(table(result)) == pytest.approx(1, abs=1e-6)
    assert table(result, column="p").max() < 0.05


def test_within_one_model_the_map_is_symmetric_with_an_untested_diagonal():
    result = run(tiny(3), LayerCKA())["layer_cka"]
    value, p = table(result), table(result, column="p")
    assert value == pytest.approx(value.T)
    assert np.diag(value) == pytest.approx(1)
    assert np.isnan(np.diag(p)).all()
    assert not np.isnan(p[~np.eye(3, dtype=bool)]).any()


def test_the_mean_leaves_out_a_layer_with_itself_and_pairs_two_models():
    alike = tiny(3)
    for block in alike.blocks:  # blocks that change nothing: all layers are one
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.mlp.fc2.weight)
    found = run({"alike": alike, "other": loud(tiny(3, seed=2))}, LayerCKA())["layer_cka"]
    frame = found.frame[found.frame.model == "other"]
    cells = frame[(frame.quantity == "cka_unbiased") & (frame.layer != frame.layer_b)]
    mean = frame[frame.quantity == "cka_mean"].iloc[0]
    assert mean.value == pytest.approx(cells.value.astype(float).mean(), abs=1e-12)
    assert mean.low < mean.value < mean.high
    assert mean.null_low < mean.null < mean.null_high < mean.value
    row = difference(found.where(quantity="cka_mean"), "alike", "other").frame.iloc[0]
    assert row.quantity == "cka_mean_difference"
    assert row.value == pytest.approx(1 - mean.value, abs=1e-9)
    assert row.high - row.value == pytest.approx(
        mean.high - mean.value, rel=1e-6
    )  # the other side is constant


def loud(model):
    """The same with blocks that add much, so that layers differ."""
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight.mul_(200)
    return model


def test_unrelated_models_give_the_null():
    model, other = tiny(), tiny(seed=4)
    noise = normal(22, 3, 32, 32, seed=9).float()
    other.register_forward_pre_hook(lambda module, args: (noise[: len(args[0])],))  # it sees other images
    result = run([model, other], CrossLayerCKA(), size=22)["cross_layer_cka"]
    rows = result.frame[result.frame.quantity == "cka_unbiased"]
    assert (rows.null.abs() < 0.1).all()
    assert ((rows.low < 0) & (rows.high > 0)).all()
    assert (rows.p > 0.05).all()


def test_null_and_interval_accompany_every_value():
    frame = run([tiny(), tiny(seed=2)], CrossLayerCKA())["cross_layer_cka"].frame
    main = frame[frame.quantity == "cka_unbiased"]
    assert (
        not main[["low", "high", "null", "null_low", "null_high", "p", "ceiling", "n", "unit"]]
        .isna()
        .any()
        .any()
    )
    assert set(frame.quantity) >= {"cka_without_top_images", "cka_without_top_pcs"}


@pytest.mark.parametrize("retain", [1024, 8])
@pytest.mark.parametrize("tokens", ["pooled", "flattened"])
def test_two_shares_merged_equal_one(tokens, retain):
    model = tiny().double()
    batches = [
        type("B", (), {"images": x.double(), "labels": None, "index": i})
        for x, i in zip(IMAGES.split(8), torch.arange(22).split(8), strict=True)
    ]

    class Share(list):
        def __init__(self, items, shard):
            super().__init__(items)
            self.dataset = type("D", (), {"shard": shard, "__len__": lambda self: 22})()

    proto = LayerCKA(tokens, retain=retain, permutations=20)
    whole = accumulate(model, Share(batches, (0, 1)), proto, progress=False)
    one = accumulate(model, Share(batches[::2], (0, 2)), proto, progress=False)
    two = accumulate(model, Share(batches[1::2], (1, 2)), proto, progress=False)
    one[0].merge_state(two[0])
    a, b = (collect(x)["layer_cka"].frame for x in (whole, one))
    numbers = ["value", "low", "high", "null", "p", "n"]
    assert np.allclose(
        a[numbers].astype(float), b[numbers].astype(float), atol=1e-12, rtol=1e-12, equal_nan=True
    )


def test_a_place_that_is_not_finite_is_named_and_the_others_come_out():
    model = tiny(3)
    model.blocks[1].register_forward_hook(lambda m, args, out: torch.where(out == out.amax(), torch.nan, out))
    model.blocks[2].register_forward_hook(lambda m, args, out: out.nan_to_num())
    result = run(model, LayerCKA())["layer_cka"]
    value = table(result)
    assert np.isnan(value[1]).all()
    assert np.isnan(value[:, 1]).all()
    assert not np.isnan(value[[0, 0, 2, 2], [0, 2, 0, 2]]).any()
    # A block's output is the next one's input, which is where NaN arrives as well.
    assert any("blocks.1.resid_post is not finite" in note for note in result.notes)


def test_bad_requests_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'pooled'"):
        LayerCKA("poold")
    with pytest.raises(T2TError, match="retain=2"):
        LayerCKA(retain=2)
    with pytest.raises(UnknownNameError, match=r"blocks\.\*\.resid_pos"):
        run(tiny(), LayerCKA(places="blocks.*.resid_pos"))
    with pytest.raises(DataError, match="3 images are too few"):
        run(tiny(), LayerCKA(), images=IMAGES[:3])
    no_class = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, class_token=False, global_pool="avg"
    )
    with pytest.raises(T2TError, match="no class token"):
        run(no_class, LayerCKA("class"))


# ----------------------------------------------------------------------------------- failures of others


def test_rows_are_bound_to_tensors_not_to_the_order_of_hooks():
    model = tiny(3)
    result = run(model, LayerCKA(places="blocks.[0-2].attn.out"))["layer_cka"]
    x, y = (reduced(model, f"blocks.{i}.attn.out", "pooled") for i in (0, 2))
    row = result.frame.query("place == 'blocks.0.attn.out' and place_b == 'blocks.2.attn.out'").iloc[0]
    assert row.value == pytest.approx(float(cka_unbiased(x, y)), abs=1e-6)
    assert (row.layer, row.layer_b) == (0, 2)


def test_no_graph_is_kept_and_states_do_not_grow_with_the_images():
    def states(images):
        (found,) = accumulate(tiny(), Batches(images, 6), LayerCKA(retain=16), progress=False)
        return found.metric_state

    few, many = states(torch.randn(18, 3, 32, 32)), states(torch.randn(60, 3, 32, 32))
    assert not any(state.requires_grad for state in many.values())
    assert {k: v.shape for k, v in few.items()} == {k: v.shape for k, v in many.items()}


def test_all_batches_count():
    model = tiny()
    whole, last = run(model, LayerCKA())["layer_cka"], run(model, LayerCKA(), images=IMAGES[-8:])["layer_cka"]
    assert abs(table(whole)[0, 1] - table(last)[0, 1]) > 1e-4
    assert table(whole) == pytest.approx(table(run(model, LayerCKA(), size=22)["layer_cka"]), abs=1e-6)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_few_images_give_what_can_be_had(n):
    result = run(tiny(), LayerCKA(), images=IMAGES[:n])["layer_cka"]
    assert not np.isnan(table(result)).any()
    assert np.isnan(table(result, column="low")).any() == (n == 4)
    assert any("too few for a jackknife" in note for note in result.notes) == (n == 4)


def test_images_that_are_numbered_wrongly_are_named():
    class Batch:
        images, labels, index = IMAGES[:8], None, torch.arange(8)

    batches = Batches(IMAGES[:16], 8)
    batches[:] = [Batch(), Batch()]
    with pytest.raises(DataError, match="same image number came twice"):
        measure(tiny(), batches, LayerCKA(), progress=False)
    batches.dataset = range(5)
    with pytest.raises(DataError, match="image number 7 in a data set of 5"):
        measure(tiny(), batches, LayerCKA(), progress=False)


def test_a_batch_with_an_image_that_is_not_finite_is_left_out_and_the_rest_is_used():
    images = IMAGES[:20].clone()
    images[3] = torch.nan
    found = run(tiny(), LayerCKA(permutations=9), 4, images)["layer_cka"]
    expected = run(tiny(), LayerCKA(permutations=9), 4, images[torch.arange(20) // 4 != 0])["layer_cka"]
    ours, theirs = (
        r.frame[r.frame.quantity == "cka_unbiased"].value.astype(float) for r in (found, expected)
    )
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-9)
    assert any("their batches are left out" in note for note in found.notes)


def test_leaving_out_a_group_of_a_batch_is_leaving_out_a_row():
    x, y = related(n=20)
    grams = torch.stack([x @ x.T, y @ y.T])
    groups = torch.arange(20) % 3
    state = torch.zeros(4, 2, 2, dtype=torch.float64)
    C.add_inner(state, grams, groups)
    whole = C.u_centred(grams)
    torch.testing.assert_close(state.sum(0), C.inner(whole, whole))
    for group in range(3):
        left = C.u_centred(grams[:, groups != group][:, :, groups != group])
        torch.testing.assert_close(state.sum(0) - state[group], C.inner(left, left))
