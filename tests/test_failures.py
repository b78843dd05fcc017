"""What existing tools get wrong, row by row; each test is of our own code and fails if it shares the mistake."""

import copy
import gc

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from t2t_analysis import capture
from t2t_analysis.errors import UnknownNameError
from t2t_analysis.measures import CrossLayerCKA, LayerCKA, measure
from t2t_analysis.measures.attention import attention_distance, key_distance
from t2t_analysis.measures.rollout import rollout_maps
from t2t_analysis.measures.spectrum import diagonal_frequencies

from .references import cka_unbiased, hsic1, linear_cka, rollout


def tiny(depth=2):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=depth, num_classes=3).eval()


def features(n=96, p=40, q=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator)
    return x, x[:, :q] + torch.randn(n, q, generator=generator)


def diagonal(frame, quantity="cka_unbiased"):
    rows = frame[(frame["quantity"] == quantity) & (frame["place"] == frame["place_b"])]
    return rows["value"].astype(float)


def test_same_weights_in_two_objects_with_a_shuffling_loader_have_diagonal_one():
    model = tiny()
    loader = DataLoader(TensorDataset(torch.randn(24, 3, 32, 32)), batch_size=8, shuffle=True)
    for tokens in ("pooled", "flattened"):
        found = measure(
            [model, copy.deepcopy(model)], loader, [CrossLayerCKA(tokens=tokens)], progress=False
        ).frame
        values = diagonal(found)
        assert len(values) == 2
        assert values.to_numpy() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("constant", [10.0, 100.0, 1000.0])
def test_a_constant_added_to_float32_features_changes_nothing(constant):
    x, y = features()
    # What float32 itself loses by the shift is not ours to mend: compare with the shifted features taken back.
    shifted = x + constant
    back = shifted.double() - constant
    for similarity in (linear_cka, cka_unbiased):
        truth = similarity(x, y).item()
        assert similarity(shifted, y).item() == pytest.approx(similarity(back, y).item(), abs=1e-9)
        assert similarity(shifted, y).item() == pytest.approx(truth, abs=1e-6 if constant < 1000 else 1e-5)


def test_independent_features_scatter_around_zero_and_are_not_clamped():
    values = torch.stack([
        cka_unbiased(features(seed=seed)[0][:16], features(seed=seed + 1000)[0][:16]) for seed in range(200)
    ])  # fmt: skip
    spread = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 4 * spread
    assert 0.35 < (values < 0).double().mean() < 0.65


def test_all_batches_count_not_only_the_last():
    model, images = tiny(), torch.randn(24, 3, 32, 32)
    loader = DataLoader(TensorDataset(images), batch_size=6)
    found = measure(model, loader, [LayerCKA()], progress=False).frame
    with capture.capture(model, "blocks.*.resid_post") as seen, torch.no_grad():
        model(images)
    first, second = (seen[f"blocks.{layer}.resid_post"][:, 1:].mean(1) for layer in (0, 1))
    expected = cka_unbiased(first, second).item()
    row = found[(found["quantity"] == "cka_unbiased") & (found["layer"] == 0) & (found["layer_b"] == 1)]
    assert row["value"].item() == pytest.approx(expected, abs=1e-6)
    last = cka_unbiased(first[-6:], second[-6:]).item()
    assert abs(last - expected) > 1e-4  # so the test can tell


def test_a_place_that_never_runs_is_an_error_that_names_it():
    model = tiny()
    with (
        pytest.raises(UnknownNameError, match="attn_drop"),
        capture.capture(model, "blocks.0.attn.attn_drop"),
    ):
        model(torch.randn(1, 3, 32, 32))


def test_containers_keep_their_own_labels():
    model = tiny(depth=3)
    images = torch.randn(2, 3, 32, 32)
    with capture.capture(model, ["blocks.*.resid_post", "blocks.*.mlp.hidden"]) as seen, torch.no_grad():
        model(images)
    by_hand, x = {}, model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            by_hand[f"blocks.{layer}.resid_post"] = x = block(x)
    for name, expected in by_hand.items():
        assert torch.equal(seen[name], expected), name


def test_a_pass_keeps_no_graph_and_little_memory():
    model = tiny()
    loader = DataLoader(TensorDataset(torch.randn(32, 3, 32, 32)), batch_size=8)
    gc.collect()
    before = [t for t in gc.get_objects() if type(t) is torch.Tensor]  # held, so that no id is used again
    known = {id(t) for t in before}
    results = measure(model, loader, [LayerCKA()], progress=False)
    gc.collect()
    kept = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in known]
    assert results
    assert not any(t.grad_fn is not None for t in kept)
    assert sum(t.numel() for t in kept) < 5e6  # float64 at most: 40 MB


def test_rollout_rows_sum_to_one_for_every_image():
    model, images = tiny(), torch.randn(3, 3, 32, 32)
    with capture.capture(model, "blocks.*.attn.pattern") as seen, torch.no_grad():
        model(images)

    rolled = rollout([seen[f"blocks.{layer}.attn.pattern"] for layer in (0, 1)])
    assert rolled.shape[0] == 3
    assert rolled.sum(-1).sub(1).abs().max() < 1e-5
    assert rolled.sum(-2).sub(1).abs().max() > 1e-3  # columns do not: the mistake would show
    maps = rollout_maps(model, images)
    assert (maps[0] - maps[2]).abs().max() > 1e-6


def test_attention_distance_does_not_depend_on_what_the_class_token_takes():
    grid, pitch = (4, 4), (16.0, 16.0)
    distance = key_distance(grid, pitch)
    logits = torch.randn(1, 1, 17, 17, dtype=torch.float64)
    greedy = logits.clone()
    greedy[..., 0] += 5.0  # nearly everything goes to the class token
    values = [attention_distance(x.softmax(-1)[..., 1:, 1:], distance).item() for x in (logits, greedy)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    dropped = (greedy.softmax(-1)[..., 1:, 1:] * distance).sum(-1).mean().item()
    assert dropped < 0.3 * values[0]  # without renormalising it looks local


def test_last_point_of_the_spectrum_is_at_its_true_frequency():
    assert diagonal_frequencies((14, 14))[-1].item() == pytest.approx(12 / 14)
    assert diagonal_frequencies((7, 7))[-1].item() == pytest.approx(6 / 7)


def test_shuffled_rows_do_not_look_alike_to_the_unbiased_estimator():
    x, _ = features(n=64, p=256)
    shuffled = x[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert linear_cka(x, shuffled) > 0.5  # the biased one hardly notices
    assert hsic1(x, shuffled).abs() < 0.2 * hsic1(x, x)
