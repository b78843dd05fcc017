"""Every model sees the same pictures through its own preprocessing, alone or in a pair, first or second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from t2t_analysis import explore, load_images, load_model, measure
from t2t_analysis.data.loading import as_seen_by, preprocessing, seen_by
from t2t_analysis.errors import DataError, ParameterError, T2TError, UnknownNameError
from t2t_analysis.measures import (
    EdgeDecodability,
    EffectiveRank,
    EffectiveReceptiveField,
    HeadMeans,
    HeadSimilarity,
    InvalidChannels,
    LayerCKA,
    explain,
    token_pca,
)
from t2t_analysis.measures.attribution_checks import map_agreement
from t2t_analysis.training.accuracy import accuracy


def _vit(size: int, seed: int, channels: int = 3, **config: object) -> torch.nn.Module:
    """A tiny transformer that wants its images in a way of its own."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        depth=2,
        embed_dim=48,
        num_heads=3,
        num_classes=2,
        in_chans=channels,
    )
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": (channels, size, size)} | config
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9, "interpolation": "bicubic"}
    usual = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
    return {
        "half": _vit(64, 0, **half),
        "large": _vit(96, 1, **usual, crop_pct=0.875),
        "grey": _vit(64, 2, channels=1, **usual, crop_pct=1.0),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes, not square."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(6):
            blocks = rng.integers(0, 256, (10, 13, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
            Image.fromarray(blocks).save(root / label / f"{i}.png")
    return root


def _own_rows(frame: pd.DataFrame, label: str) -> pd.DataFrame:
    return frame[(frame["model"] == label) & frame["model_b"].isna()].reset_index(drop=True)


def test_batches_are_what_each_models_transform_gives(models, folder):
    loader = load_images(folder, model=models["half"], batch_size=12)
    shared, which = seen_by(loader, list(models.values()))
    assert which == [0, 1, 2]
    batch = next(iter(shared))
    pictures = [loader.dataset.source.image(int(i)) for i in loader.dataset.chosen]
    for kind, model in zip(batch.images, models.values(), strict=True):
        config = preprocessing(model)
        made = create_transform(**config)
        grey = config["input_size"][0] == 1
        expected = [made(picture.convert("L") if grey else picture) for picture in pictures]
        torch.testing.assert_close(kind, torch.stack(expected))
    assert [tuple(kind.shape[1:]) for kind in batch.images] == [(3, 64, 64), (3, 96, 96), (1, 64, 64)]


@pytest.mark.parametrize("other", ["large", "grey"])
def test_a_model_gives_the_same_rows_first_second_and_alone(models, folder, other):
    measures = [
        HeadSimilarity(),
        InvalidChannels(),
        EffectiveRank(),
        LayerCKA(),
        EdgeDecodability(dim=8, draws=1),
    ]
    pair = {"half": models["half"], other: models[other]}
    turned = dict(reversed(pair.items()))

    def run(chosen: dict[str, torch.nn.Module]):
        loader = load_images(folder, model=next(iter(chosen.values())), batch_size=4)
        return measure(chosen, loader, measures, progress=False)

    first, second = run(pair), run(turned)
    for label, model in pair.items():
        alone = run({label: model})
        for one in measures:
            frames = [_own_rows(found[one.name].frame, label) for found in (first, second, alone)]
            assert len(frames[0]) > 0
            pd.testing.assert_frame_equal(frames[0], frames[1])
            pd.testing.assert_frame_equal(frames[0], frames[2])


def test_whatever_takes_a_loader_shows_a_model_its_own_images(models, folder):
    own, foreign = (load_images(folder, model=models[name], batch_size=4) for name in ("large", "half"))
    model = models["large"]
    assert accuracy(model, own).frame.equals(accuracy(model, foreign).frame)
    maps = [
        explain({"large": model}, loader, ["integrated_gradients"], n_images=4, progress=False)[0]
        for loader in (own, foreign)
    ]
    assert torch.equal(maps[0].maps["integrated_gradients"], maps[1].maps["integrated_gradients"])
    tokens = [token_pca({"large": model}, loader, n_images=4)[0].tokens for loader in (own, foreign)]
    assert np.array_equal(*tokens)
    means = [HeadMeans.of(model, loader).mean[0] for loader in (own, foreign)]
    assert torch.equal(*means)


def test_maps_of_models_that_see_other_crops_are_compared_where_both_look(models, folder):
    loader = load_images(folder, model=models["half"], batch_size=4)
    one, other = explain(models, loader, ["integrated_gradients"], n_images=8, progress=False)[:2]
    same = map_agreement(one, one).frame.set_index("quantity").loc["agreement", "value"]
    assert same == pytest.approx(1.0)
    assert map_agreement(one, other).frame["value"].notna().all()


def test_loaders_of_others_are_left_as_they_are(models):
    batches = [torch.rand(4, 3, 64, 64)]
    assert seen_by(batches, [models["half"], models["large"]]) == (batches, [0, 0])
    assert as_seen_by(batches, models["half"]) is batches


def test_crops_of_photographs_come_in_every_models_size(models):
    loader = load_images("photo_crops", model=models["half"], n_images=8)
    shared, _ = seen_by(loader, list(models.values()))
    shapes = [tuple(kind.shape) for kind in next(iter(shared)).images]
    assert shapes == [(8, 3, 64, 64), (8, 3, 96, 96), (8, 1, 64, 64)]


def test_a_model_of_other_channels_is_refused_by_name():
    with pytest.raises(DataError, match="takes images of 5 channels"):
        load_images("photos", model=_vit(64, 0, channels=5), n_images=1)


# ------------------------------------------------------------------------------------- what measure takes


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precision_run_as_they_are(folder, precision):
    model = _vit(64, 0)
    loader = load_images(folder, model=model, batch_size=4)
    expected = measure(model, loader, InvalidChannels(), progress=False)["invalid_channels"].frame
    found = measure(model.to(precision), loader, InvalidChannels(), progress=False)["invalid_channels"].frame
    np.testing.assert_allclose(found["value"], expected["value"], atol=0.05)


def test_names_and_classes_stand_for_measures_with_default_settings():
    model, images = _vit(64, 0), [torch.rand(4, 3, 64, 64)]
    for given in ("head_similarity", "HeadSimilarity", HeadSimilarity, [HeadSimilarity()]):
        assert "head_similarity" in measure(model, images, given, progress=False)
    with pytest.raises(UnknownNameError, match="did you mean 'head_similarity'"):
        measure(model, images, ["head_similarty"])
    with pytest.raises(T2TError, match="measure of type int"):
        measure(model, images, 3)
    with pytest.raises(T2TError, match="PruningCurves has no default settings"):
        measure(model, images, "pruning_curves")


_SIZES = [torch.rand(2, 3, 64, 64), torch.rand(2, 3, 96, 96)]


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ("photos", "load_images"),
        (None, "loader of type NoneType"),
        (_SIZES, "images of 3x64x64 and 3x96x96"),
    ],
)
def test_what_is_no_loader_is_named(loader, words):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, dynamic_img_size=True).eval()
    with pytest.raises(DataError, match=words):
        measure(model, loader, HeadSimilarity(), progress=False)


def test_gradients_are_had_inside_inference_mode_too():
    model = _vit(64, 0)
    with torch.inference_mode():
        images = [torch.rand(2, 3, 64, 64)]
        found = measure(model, images, EffectiveReceptiveField(), progress=False)
    assert found["effective_receptive_field"].frame["value"].notna().any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_images": 2.0}, "n_images=2.0: expected a whole number"),
        ({"batch_size": True}, "batch_size=True: expected a whole number"),
        ({"seed": -1}, "seed=-1: expected 0 or more"),
        ({"device": "cudda"}, "did you mean 'cuda'"),
        ({"data": None}, 'expected a name or a path, as "photos"'),
        ({"data": ""}, "expected a name or a path"),
        ({"model": "t2t_vit_7"}, "as load_model.'t2t_vit_7'. gives it"),
    ],
)
def test_arguments_of_load_images_are_checked(given, words):
    with pytest.raises((DataError, ParameterError), match=words):
        load_images(**{"data": "photos"} | given)


def test_what_is_no_model_is_named():
    for given in (None, 7):
        with pytest.raises(UnknownNameError, match="unknown model"):
            load_model(given)
        with pytest.raises(T2TError, match="expected a model, or a name"):
            explore(given)
    with pytest.raises(UnknownNameError, match="unknown weights None"):
        load_model("small_hard_deep", None)
    with pytest.raises(ParameterError, match="seed=-1"):
        load_model("small_hard_deep", "random", seed=-1)
