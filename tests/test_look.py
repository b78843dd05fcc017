"""One photograph in one model: numbers that are known, pages that hold what they are given, errors in a line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_analysis.cli import main
from t2t_analysis.commands.look import look, page, summary
from t2t_analysis.errors import CaptureError, DataError, UnknownNameError
from t2t_analysis.measures.glance import glance, half_share
from t2t_analysis.plots.glance import glance_depth, glance_maps


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=64).eval()


IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_attention_sums_to_one_and_the_picture_is_what_the_model_was_given(model):
    seen = glance(model, (IMAGE - 0.5) / 0.5)
    assert seen.asks == "class token"
    assert seen.attention.shape == seen.norms.shape == (len(model.blocks), 4, 4)
    np.testing.assert_allclose(seen.attention.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(seen.image, IMAGE[0].permute(1, 2, 0), atol=1e-5)
    assert (seen.explained > 0).all()
    assert seen.explained.sum() <= 1


def test_tokens_whose_norm_is_planted_stand_apart(model):
    with torch.no_grad():
        model.pos_embed[0, 1 + 5] += 50
        seen = glance(model, IMAGE)
        model.pos_embed[0, 1 + 5] -= 50
    assert np.argwhere(seen.apart[0].ravel()).ravel().tolist() == [5]
    assert seen.apart_ratio > 5
    assert not glance(model, IMAGE).apart[0].ravel()[5]


def test_heads_that_are_made_equal_agree_most(model):
    block = model.blocks[1].attn
    width = block.head_dim
    with torch.no_grad():
        before = block.qkv.weight.clone()
        for part in (0, 1):  # queries and keys of the second head become those of the first
            start = part * block.num_heads * width
            block.qkv.weight[start + width : start + 2 * width] = block.qkv.weight[start : start + width]
        seen = glance(model, IMAGE)
        block.qkv.weight.copy_(before)
    assert seen.closest_heads == (1, 0, 1, pytest.approx(1, abs=1e-5))


def test_half_of_the_weights():
    assert half_share(np.array([0.5, 0.3, 0.2, 0.0])) == 0.25
    assert half_share(np.eye(10)[0]) == 0.1


def test_without_a_class_token_the_mean_patch_asks():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=1, class_token=False, global_pool="avg"
    )
    seen = glance(model.eval(), IMAGE)
    assert (seen.asks, seen.attention.shape) == ("mean patch", (1, 4, 4))


def test_the_command_writes_a_page_that_asks_for_nothing(tmp_path, capsys):
    photo = tmp_path / "<b>$x_1$ & y.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(photo)
    out = tmp_path / "pages" / "a.html"
    assert (
        main(["look", str(photo), "--model", "small_hard_wide", "--weights", "random", "--out", str(out)])
        == 0
    )
    said = capsys.readouterr().out
    assert "UNTRAINED" in said
    assert "One photograph: no intervals" in said
    text = out.read_text(encoding="utf-8")
    assert "&lt;b&gt;$x_1$ &amp; y.png" in text
    assert "<b>" not in text
    assert not re.search(r"https?://|<script|<link", text)
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]{40,}\"", text)) == 2


def test_a_trained_model_has_its_untrained_control(tmp_path):
    seen = look("chelsea", "small_hard_wide")
    assert [one.untrained for one in seen] == [False, True]
    rows = summary(seen)
    assert rows[0][1:] == ("trained", "UNTRAINED")
    assert all(len(row) == 3 for row in rows)
    assert "%" in rows[-1][1]
    assert rows[-1][2] == "not asked: random weights"
    assert "UNTRAINED" in page("chelsea", seen, rows, [glance_maps(seen), glance_depth(seen)])


def test_what_cannot_be_looked_at_is_said(tmp_path):
    with pytest.raises((DataError, UnknownNameError), match="chelsae"):
        look("chelsae", "small_hard_wide", "random")
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(DataError, match=r"a\.jpg"):
        look(str(tmp_path / "a.jpg"), "small_hard_wide", "random")
    with pytest.raises(CaptureError, match="cannot observe EfficientNet"):
        look("chelsea", "test_efficientnet", "random")
