"""Exploring by hand: maps and numbers that are known beforehand, what is refused, controls without a browser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_analysis import explore, load_model
from t2t_analysis._controls import Controls, Outputs, show_exploration
from t2t_analysis.errors import CaptureError, DataError, T2TError, UnknownNameError
from t2t_analysis.explorer import Exploration
from t2t_analysis.results import tidy
from t2t_analysis.scene import CLASS, Look, Subject


def tiny(**kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "img_size": (64, 48),
        "depth": 3,
        "patch_size": 16,
        "embed_dim": 24,
        "num_heads": 3,
        "num_classes": 4,
    }
    return timm.create_model("vit_tiny_patch16_224", **sizes | kwargs).eval()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair(images: torch.Tensor) -> Exploration:
    """A T2T model beside a ViT of other depth, heads and widths."""
    soft = load_model("small_transformer_deep", "random", img_size=(32, 24))
    return explore(
        soft, images[:, :, ::2, ::2], tiny(img_size=(32, 24), patch_size=8, embed_dim=12, num_heads=2)
    )


def numbers(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["quantity"], row["tokens"]): row for row in rows}


# ------------------------------------------------------------------------------------------------ what is shown


def test_attention_is_the_row_of_the_models_own_pattern(model: torch.nn.Module, images: torch.Tensor) -> None:
    scene = Subject(model, images).scene(1, (0.6, 0.4), Look("blocks.1", head=2))
    attn = model.blocks[1].attn
    captured: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        handle = attn.qkv.register_forward_hook(lambda _m, _i, out: captured.update(qkv=out))
        model(images[1:2])
        handle.remove()
    q, k, _ = captured["qkv"].reshape(13, 3, 3, 8).permute(1, 2, 0, 3)  # 1 + 4 * 3 tokens, 3 heads of 8
    row = (q[2] @ k[2].T * 8**-0.5).softmax(-1)[1 + 2 * 3 + 1]  # row 2 of 4, column 1 of 3
    torch.testing.assert_close(scene.attention, (row[1:] * 13).reshape(4, 3))
    assert scene.cell == (32, 16, 16, 16)
    assert numbers(scene.rows)["prefix_mass", scene.token]["value"] == pytest.approx(float(row[0]), abs=1e-6)


def test_uniform_attention_is_its_own_null(images: torch.Tensor) -> None:
    flat = tiny()
    torch.nn.init.zeros_(flat.blocks[0].attn.qkv.weight)
    torch.nn.init.zeros_(flat.blocks[0].attn.qkv.bias)
    scene = Subject(flat, images).scene(0, (0.1, 0.9), Look("blocks.0"))
    torch.testing.assert_close(scene.attention, torch.ones(4, 3))
    for row in scene.rows:
        if row["quantity"].startswith(("attention", "prefix")):
            assert row["value"] == pytest.approx(row["null"], rel=1e-5), row["quantity"]
    assert ("cosine_centred", "patch") not in numbers(scene.rows)  # heads without a direction


def test_a_copied_head_is_the_most_similar_one(images: torch.Tensor) -> None:
    copied = tiny()
    with (
        torch.no_grad()
    ):  # rows of qkv: 3 x (3 heads of 8); queries and keys of head 2 become those of head 0
        for part in (0, 24):
            copied.blocks[2].attn.qkv.weight[part + 16 : part + 24] = copied.blocks[2].attn.qkv.weight[
                part : part + 8
            ]
    row = numbers(Subject(copied, images).scene(0, (0.5, 0.5), Look("blocks.2", head=0)).rows)[
        "cosine_centred", "patch"
    ]
    assert row["head_b"] == 2
    assert row["value"] == pytest.approx(1, abs=1e-5)
    assert row["null"] < 0.999  # the copy on another image


@pytest.mark.parametrize(("factor", "state"), [(0.0, "zero"), (1.0, "ordinary"), (1e4, "too large")])
def test_planted_channels_are_named(images: torch.Tensor, factor: float, state: str) -> None:
    planted = tiny()
    with torch.no_grad():
        planted.patch_embed.proj.weight[5] *= factor
        planted.patch_embed.proj.bias[5] *= factor
    scene = Subject(planted, images).scene(0, (0.5, 0.5), Look("embed", channel=5))
    assert scene.state == state
    peak = numbers(scene.rows)["channel_peak", "patch"]
    assert peak["value"] == pytest.approx(float(scene.feature.abs().max()), rel=1e-5)
    assert state in peak["estimator"]


def test_a_constant_channel_is_flat(images: torch.Tensor) -> None:
    planted = tiny()
    torch.nn.init.zeros_(planted.patch_embed.proj.weight[5])
    torch.nn.init.ones_(planted.patch_embed.proj.bias[5:6])
    scene = Subject(planted, images).scene(0, (0.5, 0.5), Look("embed", channel=5))
    assert scene.state == "flat"


def test_a_hard_split_sees_its_own_cell_only(model: torch.nn.Module, images: torch.Tensor) -> None:
    subject = Subject(model, images)
    scene = subject.scene(0, (0.3, 0.99), Look("embed"))
    inside = torch.zeros(64, 48, dtype=torch.bool)
    inside[16:32, 32:48] = True
    assert torch.equal(scene.field > 0, inside)
    found = numbers(scene.rows)
    assert found["gradient_outside", scene.token]["value"] == 0
    assert found["erf_radius_95", scene.token]["value"] < math.hypot(8, 8)
    later = numbers(subject.scene(0, (0.3, 0.99), Look("blocks.2")).rows)
    assert later["gradient_outside", scene.token]["value"] > 0


def test_every_number_has_a_null_and_says_why_it_has_no_interval(pair: Exploration) -> None:
    frame = pair.select(layer=4, head=3, channel=7, token=(3, 2)).frame()
    assert frame["null"].notna().all()
    assert frame["null_kind"].notna().all()
    assert (frame["interval"] == "none: one image").all()
    assert frame["low"].isna().all()
    table = pair.table()
    values = [column for column in table if ": null" not in column and column not in ("what", "null is")]
    assert len(values) == 2
    assert int(table[values].notna().to_numpy().sum()) == len(
        frame
    )  # nothing is lost on the way to the table


# ------------------------------------------------------------------------------------------------ two models, grids


def test_the_second_model_follows_by_relative_depth_and_place(pair: Exploration) -> None:
    first, second = pair.select(layer=9, head=3, channel=90, token=(7, 5)).scenes()
    assert (first.look.place, second.look) == ("blocks.9", Look("blocks.2", 1, 11))
    assert first.token == "token at row 7, column 5"
    assert second.token == "token at row 3, column 2"
    stage, embed = pair.select(layer="tokens.0", head=0, channel=3).scenes()
    assert (stage.look.place, embed.look.place) == ("tokens.0", "embed")
    assert stage.attention is not None
    assert stage.attention.shape == (16, 12)
    assert embed.missing["attention"] == "this is the tokeniser's output"


def test_the_class_token_has_attention_and_a_field_but_no_place(pair: Exploration) -> None:
    first, _ = pair.select(layer=5, head=0, channel=0, token=CLASS).scenes()
    assert first.cell is None
    assert first.attention is not None
    assert first.field is not None
    assert {row["quantity"] for row in first.rows} & {"erf_radius_50", "gradient_outside"} == set()
    stage, _ = pair.select(layer="tokens.1").scenes()
    assert stage.attention is None
    assert stage.missing == {"attention": "no class token here", "field": "no class token here"}
    pair.select(token=(0, 0))


def test_a_performer_says_that_it_has_no_matrix() -> None:
    seen = explore("small_performer_deep", "photo_crops", layer="tokens.0", n_images=2)
    assert "no attention matrix" in seen.scenes()[0].missing["attention"]
    assert "no attention matrix" in seen.figure().caption


# ------------------------------------------------------------------------------------------------ one pass per image


def test_each_image_runs_once_until_it_is_forgotten(model: torch.nn.Module, images: torch.Tensor) -> None:
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    subject = Subject(model, images)
    calls.clear()
    for place in ("embed", "blocks.0", "blocks.2"):
        for point in ((0.1, 0.1), (0.9, 0.4)):
            subject.scene(0, point, Look(place, channel=3))
    assert calls == [1, 1]  # the image, and the next one for the null of the similarity
    for image in (0, 1, 2, 0):
        subject.run(image)
    assert calls == [1] * 4  # 2, and 0 again, since two are kept
    handle.remove()


def test_training_mode_and_gradients_are_left_alone(images: torch.Tensor) -> None:
    model = tiny(proj_drop_rate=0.5).train()
    model.norm.eval()
    first, second = (Subject(model, images).scene(0, (0.5, 0.5), Look("blocks.1")) for _ in range(2))
    torch.testing.assert_close(first.feature, second.feature)  # no dropout
    assert model.training
    assert not model.norm.training
    assert all(p.grad is None for p in model.parameters())
    assert not [m for m in model.modules() if m._forward_hooks]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"layer": 30}, "unknown layer 'blocks.30'"),
        ({"layer": "token.0"}, "did you mean 'tokens.0'"),
        ({"layer": "-1"}, "unknown layer 'blocks.-1'"),
        ({"head": 4}, "head 4: blocks.5 of small_transformer_deep has 4, numbered from 0"),
        ({"channel": 96}, "channel 96: blocks.5 of small_transformer_deep has 96, numbered from 0"),
        ({"token": (16, 0)}, "8 rows and 6 columns"),
        ({"token": 5}, "token is 5: expected (row, column)"),
        ({"token": "klass"}, "did you mean 'class'"),
        ({"image": 3}, "there are 3, numbered from 0"),
    ],
)
def test_what_is_not_there_is_named(pair: Exploration, choice: dict[str, Any], words: str) -> None:
    pair.select(layer=5, head=0, channel=0, token=(0, 0))
    before = pair.selection
    with pytest.raises((UnknownNameError, DataError), match=re.escape(words)):
        pair.select(**choice)
    assert pair.selection == before


def test_models_and_images_that_do_not_fit() -> None:
    with pytest.raises(CaptureError):
        explore(timm.create_model("resnet18"), torch.zeros(1, 3, 32, 32))
    with pytest.raises(DataError, match=r"expected \(3, H, W\)"):
        explore(tiny(), torch.zeros(64, 48))
    with pytest.raises(T2TError, match="image of type int: expected a tensor"):
        explore(tiny(), 7)
    with pytest.raises(T2TError, match="model of type int: expected a model"):
        explore(7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"uint8: expected pixels that are preprocessed"):
        explore(tiny(), torch.zeros(3, 64, 48, dtype=torch.uint8))
    with pytest.raises(DataError, match="not finite"):
        explore(tiny(), torch.full((3, 64, 48), math.nan))
    with pytest.raises(DataError, match=r"does not take images of 32x32 pixels"):
        explore(tiny(), torch.zeros(3, 32, 32))
    with pytest.raises(DataError, match="n_images=0 must be at least 1"):
        explore(tiny(), "photos", n_images=0)


def test_images_come_in_many_ways(tmp_path: Path, images: torch.Tensor) -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8))
    grey.save(tmp_path / "a.png")
    model = tiny(img_size=64)
    assert explore(model, grey).subjects[0].images.shape == (1, 3, 64, 64)
    assert explore(model, tmp_path / "a.png").names == ("a.png",)
    assert len(explore(tiny(), images, n_images=2).names) == 2
    from t2t_analysis import load_images

    loader = load_images(tmp_path, model=model, batch_size=1)
    assert explore(model, loader).subjects[0].images.shape == (1, 3, 64, 64)


def test_two_models_of_one_name_are_told_apart(images: torch.Tensor) -> None:
    seen = explore(tiny(), images, tiny())
    assert len({subject.label for subject in seen.subjects}) == 2
    assert seen.frame()["model"].nunique() == 2


# ------------------------------------------------------------------------------------------------ figure and outputs


def test_the_figure_says_what_it_shows(pair: Exploration) -> None:
    figure = pair.select(layer=5, head=1, channel=2, token=(4, 4)).figure()
    assert figure.caption.startswith("**UNTRAINED")
    assert "no interval" in figure.caption
    assert "blocks.5" in figure.alt
    first = figure.png()
    assert first == pair.figure().png()  # the same selection gives the same bytes
    assert first != pair.select(channel=3).figure().png()


def test_names_are_no_formulas(images: torch.Tensor) -> None:
    seen = Exploration([Subject(tiny(), images, label="a$b$_{c}")], ["x$y$.png", "b", "c"])
    assert len(seen.figure().png()) > 1000


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What ``display`` is given: kind, data and metadata of each output, and of each update."""
    seen: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    class Handle:
        def update(self, data: dict[str, Any], **words: Any) -> None:
            seen.append(("update", data, words["metadata"]))

    def display(data: dict[str, Any], **words: Any) -> Handle:
        seen.append(("display", data, words["metadata"]))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    return seen


def test_without_widgets_there_are_figure_caption_and_table(pair: Exploration, shown: list[Any]) -> None:
    show_exploration(pair, interactive=False)
    assert [about["t2t_analysis"]["role"] for _, _, about in shown] == ["figure", "table"]
    assert ' alt="' in shown[0][1]["text/html"]
    page = shown[1][1]["text/html"]
    assert "<caption>" in page
    assert page.count("<th>null</th>") == 2
    assert "Attention entropy, this token" in page
    assert " nats" in page


def test_with_widgets_the_same_and_controls_with_a_fallback(pair: Exploration, shown: list[Any]) -> None:
    show_exploration(pair, interactive=True)
    fields, *rest = shown
    assert "application/vnd.jupyter.widget-view+json" in fields[1]
    assert "JupyterLab" in fields[1]["text/markdown"]
    assert [about["t2t_analysis"]["role"] for _, _, about in rest] == ["figure", "table"]


# ------------------------------------------------------------------------------------------------ controls


def controls(exploration: Exploration) -> tuple[Controls, list[bytes]]:
    pictures: list[bytes] = []
    made = Controls(exploration, lambda figure, table: pictures.append(figure.png()))
    made.draw()
    return made, pictures


def test_changing_a_field_redraws_once_and_moves_the_selection(pair: Exploration) -> None:
    pair.select(image=0, layer=5, head=1, channel=2, token=(4, 4))
    made, pictures = controls(pair)
    for name, value in {"head": 3, "channel": 9, "row": 0, "image": 2, "query": CLASS}.items():
        made.widgets[name].value = value
        assert pictures[-1] != pictures[-2], name
    assert len(pictures) == 6
    assert pair.selection == replace(pair.selection, image=2, row=0, column=4, head=3, channel=9, query=CLASS)
    assert made.widgets["row"].disabled  # the class token has no place
    assert made.note.value == ""


def test_ranges_follow_the_layer_and_the_second_model_the_first(pair: Exploration) -> None:
    pair.select(image=0, layer=9, head=3, channel=95, token=(4, 4))
    made, pictures = controls(pair)
    assert pair.looks()[1].place == "blocks.2"
    made.widgets["place"].value = "tokens.1"  # one head, 32 channels
    assert (made.widgets["head"].max, made.widgets["channel"].max) == (0, 31)
    assert len(pictures) == 2
    assert [scene.look for scene in pair.scenes()] == [Look("tokens.1", 0, 31), Look("embed", 0, 11)]
    assert "small_transformer_deep" in made.box.children[2].value


def test_fields_have_names_and_say_their_range_and_that_a_picture_is_coming(pair: Exploration) -> None:
    made, _ = controls(pair.select(layer=9, head=3, channel=95))
    assert all(widget.description for widget in (*made.widgets.values(), made.photograph))
    said: list[str] = []
    made.note.observe(lambda change: said.append(change["new"]), names="value")
    made.widgets["place"].value = "tokens.1"
    assert made.widgets["channel"].description == "channel, 0 to 31"
    assert said == ["Computing the picture …", ""]


def test_a_photograph_of_ones_own_is_opened_by_its_path(pair: Exploration, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "mine.png")
    made, pictures = controls(pair)
    known = len(pair.names)
    made.photograph.value = str(tmp_path / "mine.png")
    assert len(pictures) == 2
    assert pair.names[-1] == "mine.png"
    assert pair.selection.image == made.widgets["image"].value == known
    with pytest.raises(DataError):
        made.photograph.value = str(tmp_path / "none.png")
    assert "none.png" in made.note.value


def test_an_error_is_shown_below_the_controls(pair: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.select(image=0, layer=5, head=0, channel=0, token=(4, 4))
    made, _ = controls(pair)
    monkeypatch.setattr(made, "publish", lambda *_: (_ for _ in ()).throw(DataError("<gone>")))
    with pytest.raises(DataError):
        made.widgets["channel"].value = 1
    assert made.note.value == "<b>DataError: &lt;gone&gt;</b>"


def test_changing_a_field_is_quick() -> None:
    """The bundled pair, where everything but the picture is kept: under half a second of one core."""
    import time

    made, pictures = controls(explore("small_hard_deep", "photo_crops", "small_performer_deep", n_images=2))
    spent = []
    for channel in range(1, 5):
        start = time.process_time()
        made.widgets["channel"].value = channel
        spent.append(time.process_time() - start)
    assert min(spent) < 0.5
    assert len(set(pictures)) == 5


def test_outputs_are_replaced_not_added(pair: Exploration, shown: list[Any]) -> None:
    outputs = Outputs()
    outputs(*pair.select(channel=0).picture())
    first = [kind for kind, *_ in shown].count("display")
    outputs(*pair.select(channel=1).picture())
    kinds = [kind for kind, *_ in shown]
    assert kinds.count("display") == first > 0
    assert kinds.count("update") >= first


def test_numbers_are_tidy(pair: Exploration) -> None:
    rows = [row for scene in pair.scenes() for row in scene.rows]
    assert len(tidy(rows)) == len(rows)


def test_a_class_token_is_not_looked_for_where_there_is_none() -> None:
    shape = {"img_size": 32, "patch_size": 8, "depth": 1, "class_token": False, "global_pool": "avg"}
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    with pytest.raises(DataError, match="no class token; expected"):
        explore(model, torch.rand(1, 3, 32, 32), token="class")
