"""Training: resumes to the same weights, refuses other runs, exports true cards."""

import json
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from t2t_analysis import cli
from t2t_analysis.data import Batch, DataInfo
from t2t_analysis.errors import DataError, T2TError
from t2t_analysis.models import Provenance, load_model
from t2t_analysis.training import Recipe
from t2t_analysis.training.accuracy import accuracy, calibration_error
from t2t_analysis.training.export import rounded
from t2t_analysis.training.module import AtomicCheckpointIO, Classifier, EpochSampler
from t2t_analysis.training.train import train

RECIPE = Recipe(epochs=3, batch_size=8, drop_path=0.2, ema=0.9, mixup=0.2)


class Stripes(Dataset):
    """Horizontal or vertical stripes in noise that depends on (epoch, index)."""

    def __init__(self, n=24):
        self.n, self.epoch = n, 0
        self.info = DataInfo("stripes", "train", n, ("horizontal", "vertical"), "", 0.5)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        rng = np.random.default_rng([self.epoch, index])
        wave = np.sin(np.arange(32) * np.pi / 2)
        image = np.broadcast_to(wave[:, None] if index % 2 == 0 else wave, (32, 32))
        noisy = image + 0.1 * rng.standard_normal((3, 32, 32))
        return torch.tensor(noisy, dtype=torch.float32), index % 2


def stripes(*_args, **_kwargs):
    return Stripes()


class Killed(BaseException):
    """Stands for a kill: nothing in Lightning catches it."""


class KillAfter(L.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            raise Killed


def run(out, **kwargs):
    options = {"recipe": RECIPE, "dataset": stripes, "quiet": True, "accelerator": "cpu"} | kwargs
    return train("small_hard_wide", "stripes", out=out, **options)


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", callbacks=(KillAfter(2),))
    curve = (tmp_path / "killed" / "curve.csv").read_text().splitlines()
    assert len(curve) == 3  # head and two epochs
    resumed = run(tmp_path / "killed")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in resumed.history]
    assert rows == [{k: v for k, v in row.items() if k != "images_per_second"} for row in whole.history]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # The average moved, and is not the last weights.
    state = whole.state_dict()
    assert not torch.equal(state["model.head.weight"], state["ema.module.head.weight"])


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = run(tmp_path, recipe=Recipe(epochs=1, batch_size=8))
    again = run(tmp_path, recipe=Recipe(epochs=1, batch_size=8))
    assert torch.equal(first.state_dict()["model.head.weight"], again.state_dict()["model.head.weight"])
    with pytest.raises(T2TError, match="another run"):
        run(tmp_path, recipe=Recipe(epochs=1, batch_size=8, lr=5e-4))
    assert run(tmp_path, recipe=Recipe(epochs=1, batch_size=8, lr=5e-4), restart=True).global_step == 3


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, recipe=Recipe(epochs=1, batch_size=8))
    before = (tmp_path / "last.ckpt").read_bytes()

    def dies(*_args, **_kwargs):
        raise Killed

    monkeypatch.setattr("t2t_analysis.training.module.os.replace", dies)
    with pytest.raises(Killed):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_the_sampler_depends_on_seed_and_epoch_only_and_shares_out():
    data = Stripes(23)
    whole = EpochSampler(data, seed=1)
    whole.set_epoch(4)
    assert data.epoch == 4
    order = list(whole)
    assert sorted(order) == list(range(23))
    parts = [EpochSampler(Stripes(23), 1, rank, 2) for rank in (0, 1)]
    for part in parts:
        part.set_epoch(4)
    first, second = map(list, parts)
    assert len(first) == len(second) == 11
    assert sorted(first + second) == sorted(order[:22])


def test_smoothed_targets_sum_to_one():
    module = Classifier("small_hard_wide", {"num_classes": 4}, Recipe(smoothing=0.2).as_dict(), 10)
    targets = module._targets(torch.tensor([0, 3]))
    assert targets.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert targets[0, 0].item() == pytest.approx(0.85)


def test_too_large_a_batch_and_unknown_names_are_named(tmp_path):
    with pytest.raises(T2TError, match=r"batch_size=64 is larger .*24 images"):
        run(tmp_path, recipe=Recipe(batch_size=64))
    with pytest.raises(ValueError, match="did you mean 'small_hard_wide'"):
        train("small_hard_wyde", "stripes", out=tmp_path, dataset=stripes)


# --- accuracy ------------------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Puts out the logits that the images carry."""

    num_classes = 2

    def forward(self, x):
        return x[:, :, 0, 0]


def loader_of(right, n=40, clusters=None):
    labels = torch.arange(n) % 2
    logits = torch.nn.functional.one_hot(torch.where(torch.arange(n) < right, labels, 1 - labels), 2) * 4.0
    info = DataInfo("made", "test", n, ("a", "b"), "", 0.5)
    dataset = SimpleNamespace(info=info, **({} if clusters is None else {"clusters": clusters}))

    class Loader(list):
        pass

    loader = Loader([Batch(logits[:, :, None, None], labels, torch.arange(n))])
    loader.dataset = dataset
    return loader


def test_accuracy_has_wilson_interval_and_chance():
    rows = accuracy(Fixed(), loader_of(30)).frame.set_index("quantity")
    top1 = rows.loc["top1"]
    assert (top1["value"], top1["null"]) == (0.75, 0.5)
    assert (round(top1["low"], 4), round(top1["high"], 4)) == (0.5981, 0.8581)  # Wilson, 30 of 40
    assert rows.loc["top5", "value"] == 1.0
    confidence = float(torch.tensor([4.0, 0.0]).softmax(0)[0])
    assert rows.loc["calibration_error", "value"] == pytest.approx(abs(0.75 - confidence), abs=1e-6)


def test_images_of_a_cluster_count_once():
    clustered = accuracy(Fixed(), loader_of(30, clusters=np.arange(40) // 10)).frame.iloc[0]
    alone = accuracy(Fixed(), loader_of(30)).frame.iloc[0]
    assert (clustered["n"], clustered["unit"]) == (4, "image cluster")
    assert clustered["high"] - clustered["low"] > alone["high"] - alone["low"]


@pytest.mark.parametrize(
    ("right", "kind", "warned"), [(3, "file", True), (30, "file", False), (3, "random", False)]
)
def test_trained_weights_that_only_guess_get_a_warning(right, kind, warned):
    model = Fixed()
    model.provenance = Provenance(kind, "seed 0")
    assert any("no better than chance" in note for note in accuracy(model, loader_of(right)).notes) is warned


def test_wrong_number_of_classes_is_named():
    loader = loader_of(3)
    model = Fixed()
    model.num_classes = 1000
    with pytest.raises(DataError, match="1000 classes"):
        accuracy(model, loader)


def test_calibration_error_of_perfect_and_overconfident_guesses():
    hits = np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(hits, np.full(4, 0.75)) == pytest.approx(0.0)
    assert calibration_error(hits, np.full(4, 1.0)) == pytest.approx(0.25)


# --- the command and the card --------------------------------------------------------------------------------------


def test_train_command_exports_weights_that_load_with_a_true_card(tmp_path, capsys):
    file = tmp_path / "small_hard_wide.safetensors"
    words = [
        "train",
        "--model",
        "small_hard_wide",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--fraction",
        "0.02",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--export", str(file)]) == 0
    said = capsys.readouterr().out
    card = json.loads(file.with_suffix(".json").read_text())
    assert f"{card['test_accuracy']['value']:.4f}" in said
    assert card["command"] == " ".join(["python -m t2t_analysis", *words])
    assert card["num_classes"] == 19
    model = load_model("small_hard_wide", file)
    from t2t_analysis.data import load_images

    measured = accuracy(model, load_images("photo_crops", batch_size=256)).frame.iloc[0]
    assert measured["value"] == pytest.approx(card["test_accuracy"]["value"], abs=1e-4)
    assert not any(p.dtype == torch.float16 for p in model.parameters())
    checkpoint = load_model("small_hard_wide", tmp_path / "run" / "last.ckpt")
    assert torch.equal(rounded(checkpoint).head.weight, model.head.weight)


def test_evaluate_command(tmp_path, capsys):
    words = ["evaluate", "--model", "small_hard_wide", "--weights", "random", "--n-images", "19"]
    out = tmp_path / "accuracy.csv"
    assert cli.main([*words, "--out", str(out)]) == 2  # ten classes, not nineteen
    assert "10 classes" in capsys.readouterr().err
