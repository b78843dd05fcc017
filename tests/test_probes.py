"""Probes and token PCA: planted labels are read, shuffled ones are not, and nothing leaks or is left behind."""

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from t2t_analysis.capture import capture
from t2t_analysis.data.loading import Batch
from t2t_analysis.errors import DataError, T2TError, UnknownNameError
from t2t_analysis.measures.probes import (
    accuracy_columns,
    collect_features,
    probe,
    shuffled_labels,
    whole_clusters,
)
from t2t_analysis.measures.token_components import fit_pca, pca_result, token_pca


def vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **small | kwargs).eval()


def loader_of(images, labels, clusters=None):
    batches = [
        Batch(images[i : i + 20], labels[i : i + 20], torch.arange(i, min(i + 20, len(images))))
        for i in range(0, len(images), 20)
    ]

    class Loader(list):
        dataset = type("Data", (), {"clusters": clusters})()

    return Loader(batches)


def coloured(n, seed, classes=3):
    """Noise whose mean colour gives the class away."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    shift = torch.eye(3)[labels % 3][:, :, None, None]
    return torch.randn(n, 3, 32, 32, generator=g) + 0.5 * shift, labels


TRAIN, TEST = loader_of(*coloured(60, 0)), loader_of(*coloured(42, 1))


def values(result, quantity):
    return result.frame[result.frame["quantity"] == quantity].set_index("layer")


# ------------------------------------------------------------------------------------------ features


def test_features_are_those_that_capture_sees_and_the_model_is_left_alone():
    model = vit(reg_tokens=1)
    model.blocks[0].train()
    images, labels = coloured(30, 0)
    found = collect_features(model, loader_of(images, labels), tokens="pooled")
    first = collect_features(model, loader_of(images, labels), "blocks.1.resid_post", tokens="class")
    assert model.blocks[0].training
    assert not model.blocks[1].training
    model.eval()
    with torch.no_grad(), capture(model, "blocks.1.resid_post") as seen:
        model(images)
    tokens = seen["blocks.1.resid_post"]
    assert np.allclose(found.values["blocks.1.resid_post"], tokens[:, 2:].mean(1), atol=1e-5)
    assert np.allclose(first.values["blocks.1.resid_post"], tokens[:, 0], atol=1e-5)
    assert list(found.values) == ["blocks.0.resid_post", "blocks.1.resid_post"]
    assert found.labels.tolist() == labels.tolist()


def test_what_features_need():
    images, labels = coloured(6, 0)
    with pytest.raises(DataError, match="6 of 6"):
        collect_features(vit(), loader_of(images, labels * 0 - 1))
    with pytest.raises(T2TError, match="no class token"):
        collect_features(vit(class_token=False, global_pool="avg"), loader_of(images, labels), tokens="class")
    with pytest.raises(UnknownNameError, match="pooled"):
        collect_features(vit(), loader_of(images, labels), tokens="pool")


# ------------------------------------------------------------------------------------------ probes


def test_planted_classes_are_read_at_every_layer_and_shuffled_ones_are_not():
    result = probe({"a": vit()}, TRAIN, TEST, progress=False)
    for quantity in ("linear_accuracy", "knn_accuracy"):
        rows = values(result, quantity)
        assert rows.index.tolist() == [0, 1]
        assert (rows["value"] > 0.9).all()
        assert (rows["null"] < 0.6).all()
        assert (rows["low"] > rows["null_high"]).all()
        assert (rows["n"] == 42).all()
    assert result.frame[["estimator", "null_kind", "interval", "unit", "tokens"]].notna().all(axis=None)


def test_images_that_say_nothing_give_chance():
    labels = torch.arange(60) % 3
    noise = torch.randn(2, 60, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    train, test = (loader_of(images, labels) for images in noise)
    result = probe(vit(), train, test, progress=False)
    assert (result.frame["low"] < 1 / 3).all()
    assert (result.frame["high"] > 1 / 3).all()
    assert ((result.frame["null"] - 1 / 3).abs() < 0.15).all()


def test_linear_probe_is_the_logistic_regression_it_says():
    rows = values(probe(vit(), TRAIN, TEST, kinds=["linear"], shuffles=1, progress=False), "linear_accuracy")
    strength = float(rows.loc[1, "estimator"].split("C=")[1].split()[0])
    train, test = (collect_features(vit(), loader) for loader in (TRAIN, TEST))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    model.fit(train.values["blocks.1.resid_post"], train.labels)
    assert rows.loc[1, "value"] == pytest.approx(model.score(test.values["blocks.1.resid_post"], test.labels))


def test_nothing_of_the_test_split_is_learned():
    images, labels = coloured(42, 1)
    swapped = loader_of(images, (labels + 1) % 3)
    rows = probe(vit(), TRAIN, swapped, shuffles=1, progress=False).frame
    assert (rows["value"] < 0.1).all()


def test_clusters_stay_together_in_folds_nulls_and_intervals():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 5)
    labels = (clusters % 3)[np.arange(60)]
    shuffled = shuffled_labels(labels, clusters, rng)
    assert all(len(set(shuffled[clusters == c])) == 1 for c in range(12))
    assert sorted(shuffled) == sorted(labels)
    correct = (rng.random(12) < 0.5)[clusters]
    together, apart = accuracy_columns(correct, clusters), accuracy_columns(correct, np.arange(60))
    assert together["high"] - together["low"] > 1.8 * (apart["high"] - apart["low"])
    perfect = accuracy_columns(np.ones(60, bool), clusters)
    assert perfect["value"] == 1
    assert perfect["low"] < 0.8  # twelve clusters say no more than twelve images


def test_an_accuracy_of_clusters_covers_the_truth():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        level = rng.beta(4, 4, size=40)  # each cluster has its own
        correct = rng.random((40, 4)) < level[:, None]
        row = accuracy_columns(correct.ravel(), np.repeat(np.arange(40), 4))
        hits += row["low"] <= 0.5 <= row["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_folds_leak_no_cluster_and_hold_every_class():
    clusters = np.repeat(np.arange(30), 4)
    labels = clusters % 2
    held = []
    for learned, out in whole_clusters(labels, clusters, seed=0):
        assert not set(clusters[learned]) & set(clusters[out])
        assert set(labels[out]) == {0, 1}
        held.extend(out)
    assert sorted(held) == list(range(120))


def test_what_a_probe_refuses():
    images, labels = coloured(12, 0)
    with pytest.raises(DataError, match=r"classes \[2\]"):
        probe(vit(), loader_of(images, labels % 2), TEST, progress=False)
    with pytest.raises(DataError, match="has 2 of 3"):
        probe(vit(), loader_of(images[:6], labels[:6]), TEST, progress=False)
    with pytest.raises(UnknownNameError, match="linear"):
        probe(vit(), TRAIN, TEST, kinds=["lineal"], progress=False)


def test_a_layer_that_is_not_finite_is_named_and_the_other_comes_out():
    model = vit()
    model.blocks[1].mlp.fc2.bias.data[0] = float("inf")
    result = probe({"a": model}, TRAIN, TEST, kinds=["knn"], progress=False)
    assert result.frame["place"].tolist() == ["blocks.0.resid_post"]
    assert "a: blocks.1.resid_post is not finite, left out" in result.notes


# ------------------------------------------------------------------------------------------ PCA


def test_pca_finds_planted_directions_with_a_fixed_sign():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    scores = rng.normal(size=(400, 3)) * [5.0, 3.0, 2.0]
    tokens = scores @ basis[:, :3].T + 0.1 * rng.normal(size=(400, 10))
    found, explained = fit_pca(tokens, 3)
    for k in range(3):
        assert abs(np.corrcoef(found[:, k], scores[:, k])[0, 1]) > 0.99
    assert explained[0] == pytest.approx(25 / 38.1, abs=0.06)
    flipped, _ = fit_pca(tokens[:, ::-1].copy(), 3)
    assert np.allclose(np.abs(flipped), np.abs(found), atol=1e-6)
    again, _ = fit_pca(np.concatenate([tokens[200:], tokens[:200]]), 3)
    assert np.allclose(again, np.roll(found, 200, axis=0), atol=1e-6)
    with pytest.raises(DataError, match="components"):
        fit_pca(tokens[:2], 3)


def test_token_pictures_lie_on_the_grid():
    images, labels = coloured(6, 0)
    images[:, :, :16] += 4  # the upper half is another thing
    one = token_pca({"a": vit()}, loader_of(images, labels), n_images=6)[0]
    assert one.place == "blocks.1.resid_post"
    assert one.maps.shape == (6, 4, 4, 3)
    assert one.rgb.shape == (6, 4, 4, 3)
    assert one.rgb.min() >= 0
    assert one.rgb.max() <= 1
    first = one.maps[..., 0]
    assert abs(first[:, :2].mean() - first[:, 2:].mean()) > 2 * first[:, :2].std()
    with pytest.raises(T2TError, match="three"):
        token_pca(vit(), loader_of(images, labels), components=2)


def test_explained_variance_has_its_null():
    images, labels = coloured(6, 0)
    images[:, :, :16] += 4
    frame = pca_result(token_pca({"a": vit()}, loader_of(images, labels), n_images=6)).frame
    assert frame["at"].tolist() == [1, 2, 3]
    assert (frame["low"] <= frame["value"]).all()
    assert (frame["value"] <= frame["high"]).all()
    assert frame["value"][0] > 1.5 * frame["null"][0]  # the halves


# ------------------------------------------------------------------------------------------ plots
