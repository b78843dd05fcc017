"""Training on permuted labels: the labels are permuted once for all, and the model that comes back is named."""

import torch

from t2t_analysis.training.random_labels import RECIPE, _Permuted, train_random_labels
from t2t_analysis.training.recipe import Recipe
from t2t_analysis.training.resident import resident_loader


def test_labels_belong_to_other_images_and_stay_so():
    loader = resident_loader("photo_crops", split="train", most=76)
    data = _Permuted(loader, seed=0, passes=3)
    assert len(data) == 3 * 76
    images, labels = data.__getitems__([0, 76, 152])
    assert torch.equal(images[0], images[1])
    assert labels.unique().numel() == 1
    assert sorted(data.labels.tolist()) == sorted(loader.labels.tolist())  # as many of each class
    assert (data.labels == loader.labels).double().mean() < 0.2
    assert not torch.equal(data.labels, _Permuted(loader, seed=1, passes=3).labels)


def test_a_short_run_gives_a_model_of_the_same_classes():
    recipe = Recipe(**RECIPE.as_dict() | {"epochs": 1, "batch_size": 8})
    found = train_random_labels("small_hard_wide", images=16, recipe=recipe, passes=1)
    assert found.images == 16
    assert 0 <= found.accuracy <= 1
    assert not found.model.training
    assert found.model(torch.zeros(1, 3, 32, 32)).shape == (1, 19)
