"""Pairs of heads taken out together: against `ablated`, planted stand-ins, layers skipped."""

import pytest
import timm
import torch

from t2t_analysis.errors import T2TError
from t2t_analysis.measures import (
    HeadMeans,
    HeadPairs,
    HeadSimilarity,
    LayerCKA,
    ablated,
    measure,
    similar_pairs_stand_in,
    skips_beside_cka,
)
from t2t_analysis.measures.ablation_measure import kl_divergence
from t2t_analysis.sentences.head_ablation import pair_findings

from .helpers import one


def small(heads=3, depth=2):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=depth, embed_dim=24 * heads,
                              num_heads=heads, num_classes=5).eval()  # fmt: skip
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.normal_(std=0.2)
            block.attn.proj.weight.normal_(std=0.1)
        model.head.weight.normal_(std=0.5)
    return model


def images(n=16):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(model, *measures):
    return measure({"m": model}, list(images().split(8)), list(measures), progress=False)


def test_pairs_and_skips_are_what_ablated_and_a_skipped_block_give():
    model, x = small(), images()
    means = HeadMeans.of(model, x)
    frame = run(model, HeadPairs(calibration=x)).frame
    with torch.no_grad():
        full = model(x)

        def loss(*heads):
            with ablated(model, dict.fromkeys(heads, "mean"), means=means):
                return kl_divergence(full, model(x)).mean().item()

        both = loss((1, 0), (1, 2))
        row = one(frame, quantity="pair_kl", layer=1, head=0, head_b=2)
        assert row.value == pytest.approx(both, rel=1e-4)
        row = one(frame, quantity="pair_interaction", layer=1, head=0, head_b=2)
        assert row.value == pytest.approx(both - loss((1, 0)) - loss((1, 2)), rel=1e-3, abs=1e-6)
        assert row.low < row.value < row.high
        block, model.blocks[0] = model.blocks[0], torch.nn.Identity()
        skipped = kl_divergence(full, model(x)).mean().item()
        model.blocks[0] = block
    assert one(frame, quantity="layer_skip_kl", layer=0).value == pytest.approx(skipped, rel=1e-4)
    assert (frame.quantity == "pair_kl").sum() == 6


def standing_in():
    """Heads 0 and 1 of the last layer are one head twice; a token-wise nonlinearity saturates when either is there."""
    model = small(heads=4, depth=1)
    attn = model.blocks[0].attn
    with torch.no_grad():
        for part in range(3):
            start = part * 96
            attn.qkv.weight[start + 24 : start + 48] = attn.qkv.weight[start : start + 24]
            attn.qkv.bias[start + 24 : start + 48] = attn.qkv.bias[start : start + 24]
        attn.proj.weight[:, 24:48] = attn.proj.weight[:, :24]
    return model


def test_a_head_and_its_copy_interact_and_are_the_similar_pair():
    found = run(standing_in(), HeadPairs(), HeadSimilarity())
    pairs = found["head_pairs"]
    contrast = similar_pairs_stand_in(pairs, found["head_similarity"]).frame
    copies = one(pairs.frame, quantity="pair_interaction", head=0, head_b=1)
    assert copies.value > 0
    assert copies.p < 0.05
    less = one(contrast, quantity="pair_interaction_contrast")
    parts = [one(contrast, quantity="pair_interaction", variant=v).value for v in ("similar", "dissimilar")]
    assert less.value == pytest.approx(parts[0] - parts[1])
    assert less.value > 0
    assert less.n == 16
    assert one(contrast, quantity="pair_kl", variant="similar").value > 0


def test_few_heads_and_no_classifier_are_named():
    found = run(small(heads=2), HeadPairs(), HeadSimilarity())
    with pytest.raises(T2TError, match="no layer has two pairs"):
        similar_pairs_stand_in(found["head_pairs"], found["head_similarity"])
    model = small()
    model.reset_classifier(0)
    with pytest.raises(T2TError, match="no classifier"):
        run(model, HeadPairs())
    many = run(small(heads=6, depth=1), HeadPairs(most=4)).frame
    assert (many.quantity == "pair_kl").sum() == 4


def test_blocks_that_do_nothing_are_alike_and_cheap_to_skip():
    model = small(depth=7)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):  # each changes the tokens less than the one before
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.mul_(2.0 / 3**i)
                last.bias.zero_()
    found = run(model, HeadPairs(), HeadSimilarity(), LayerCKA())
    row = skips_beside_cka(found["head_pairs"], found["layer_cka"]).frame.iloc[0]
    assert row.value < -0.8
    assert row.p < 0.05
    assert (row.n, row.unit) == (6, "layer")
    sentences = pair_findings(found["head_pairs"], found["head_similarity"], found["layer_cka"], "m")
    assert len(sentences) == 2
    assert "skipping 6 costs least" in sentences[1]
