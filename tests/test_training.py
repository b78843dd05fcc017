"""Training: resumes to the same weights, refuses other runs, exports true cards."""

import json
import re
from dataclasses import asdict
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
from t2t_analysis.training.module import AtomicCheckpointIO, Classifier, LegSampler, Length, Trunk
from t2t_analysis.training.optimiser import Muon, make_optimiser
from t2t_analysis.training.precision import LINEAR, native_bf16, usual, with_bf16_products
from t2t_analysis.training.recipe import rate_at
from t2t_analysis.training.rows import rounded
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


class KillAt(L.Callback):
    """Kill before the first step of a leg; with 24 images in batches of 8 an epoch has three legs of one step."""

    def __init__(self, leg):
        self.leg = leg

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.leg:
            raise Killed


def run(out, **kwargs):
    options = {"recipe": RECIPE, "dataset": stripes, "accelerator": "cpu"} | kwargs
    return train("small_hard_wide", "stripes", out=out, **options)


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", callbacks=(KillAt(7),))  # inside the third epoch
    curve = (tmp_path / "killed" / "curve.csv").read_text().splitlines()
    assert len(curve) == 3  # head and two epochs
    resumed = run(tmp_path / "killed")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    rows = learned(resumed)
    assert rows == learned(whole)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # The average moved, and is not the last weights.
    state = whole.state_dict()
    assert not torch.equal(state["model.head.weight"], state["ema.module.head.weight"])


class Legs(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, module):
        self.seen.append(trainer.current_epoch)


def learned(module):
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "cpu_seconds")}
        for row in module.history
    ]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_branch_of_a_shorter_runs_trunk_is_the_run_itself(tmp_path, optimizer):
    short, long = (Recipe(epochs=n, batch_size=8, optimizer=optimizer, warmup=1.0) for n in (2, 3))
    alone = run(tmp_path / "alone", recipe=long)
    run(tmp_path / "short", recipe=short, trunks=tmp_path / "trunks")
    (trunk,) = (tmp_path / "trunks").iterdir()
    assert trunk.stem.endswith("_5")  # of six legs; it decays over the last
    legs = Legs()
    branch = run(tmp_path / "long", recipe=long, trunks=tmp_path / "trunks", callbacks=(legs,))
    assert legs.seen == [5, 6, 7, 8]  # the shorter run did the first five
    for key, value in alone.state_dict().items():
        assert torch.equal(value, branch.state_dict()[key]), key
    assert learned(alone) == learned(branch)
    other = Classifier(**dict(branch.hparams) | {"recipe": asdict(long) | {"lr": 1e-4}})
    assert Trunk(tmp_path / "trunks").find(other) is None
    half = Classifier(**dict(branch.hparams) | {"recipe": asdict(long) | {"epochs": 1}})
    assert Trunk(tmp_path / "trunks").find(half) is None  # it decays before that trunk ends


def test_the_decay_is_a_fifth_of_any_length_and_ends_at_zero():
    for epochs in (3, 6, 12, 24):
        length = Length.of(6080, Recipe(epochs=epochs))
        assert length.total == 95 * epochs
        assert length.branch_leg * length.steps == pytest.approx(0.8 * length.total)
        rates = [rate_at(step, 28, length.branch_leg * 19, length.total) for step in range(length.total + 1)]
        assert max(rates) == rates[28] == rates[length.branch_leg * 19] == 1
        assert rates[-1] == 0 < rates[-2] < 0.15
        assert np.diff(rates[length.branch_leg * 19 :]).max() < 0


def test_muon_steps_as_timms_does():
    from timm.optim import Muon as Timms

    torch.manual_seed(0)
    start, grads = torch.randn(2, 32, 48), torch.randn(3, 2, 32, 48)
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    made = (
        Muon([{"params": ours, "matrices": True, "weight_decay": 0.1}], lr=0.01),
        Timms(theirs, lr=0.01, weight_decay=0.1),
    )
    for grad in grads:
        for optimiser, params in zip(made, (ours, theirs), strict=True):
            for p, g in zip(params, grad, strict=True):
                p.grad = g.clone()
            optimiser.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b - before).norm()
        assert (a - b).norm() < 0.02 * moved  # theirs works in bfloat16


def test_muon_takes_the_matrices_inside_the_network_and_leaves_no_parameter_out():
    model = Classifier("small_performer_wide", {"num_classes": 4}, asdict(Recipe()), 640).model
    optimiser = make_optimiser(model, Recipe())
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    matrices = {names[id(p)] for g in optimiser.param_groups if g["matrices"] for p in g["params"]}
    assert {names.pop(id(p)) for g in optimiser.param_groups for p in g["params"]} >= matrices
    assert not names
    assert "blocks.0.attn.qkv.weight" in matrices
    assert not {"head.weight", "cls_token", "norm.weight"} & matrices
    for optimizer in ("muon", "adamw"):
        free = make_optimiser(model, Recipe(optimizer=optimizer, weight_decay=0.0))
        assert not any(group["weight_decay"] for group in free.param_groups)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ema": 5.0}, "ema=5.0: expected a number from 0 to 0.999999"),
        ({"ema": True}, "ema=True: expected a number"),
        ({"lr": float("nan")}, "lr=nan: expected a number from 1e-12"),
        ({"lr": "fast"}, "lr='fast': expected a number"),
        ({"weight_decay": -1}, "weight_decay=-1: expected a number from 0"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1"),
        ({"epochs": 2.5}, "epochs=2.5: expected a whole number"),
        ({"optimizer": "adamwe"}, "did you mean 'adamw'"),
    ],
)
def test_a_recipe_that_nothing_can_be_trained_with_names_value_and_range(given, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        Recipe(**given)


def test_products_in_bfloat16_stay_near_those_in_float32(tmp_path):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.GELU(), torch.nn.Linear(48, 8, bias=False))
    other = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.GELU(), torch.nn.Linear(48, 8, bias=False))
    other.load_state_dict(plain.state_dict())
    with_bf16_products(other)
    x = torch.randn(5, 7, 64)
    for model in (plain, other):
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert b.dtype == b.grad.dtype == torch.float32
        assert 0 < (a.grad - b.grad).norm() < 0.02 * a.grad.norm()
    assert torch.equal(plain.eval()(x), other.eval()(x))  # evaluation is float32
    assert usual(cuda=False) == (LINEAR if native_bf16() else "32-true")
    module = run(tmp_path, recipe=Recipe(epochs=1, batch_size=8), precision=LINEAR)
    assert (
        module.state_dict().keys()
        == Classifier(**module.hparams | {"precision": "32-true"}).state_dict().keys()
    )


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

    monkeypatch.setattr("t2t_analysis._files.os.replace", dies)
    with pytest.raises(Killed):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_legs_make_up_a_permutation_of_seed_and_epoch_and_are_shared_out():
    data = Stripes(23)
    whole = LegSampler(data, seed=1, legs=2, images=10)

    def leg(sampler, number):
        sampler.set_epoch(number)
        return list(sampler)

    first, second = leg(whole, 8), leg(whole, 9)
    assert data.epoch == 4
    assert len({*first, *second}) == 20
    assert leg(whole, 8) == first
    assert leg(whole, 6) != first
    parts = [leg(LegSampler(Stripes(23), 1, 2, 10, rank, 3), 8) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert {*parts[0], *parts[1], *parts[2]} < set(first)


def test_smoothed_targets_sum_to_one():
    module = Classifier("small_hard_wide", {"num_classes": 4}, asdict(Recipe(smoothing=0.2)), 640)
    targets = module._targets(torch.tensor([0, 3]))
    assert targets.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert targets[0, 0].item() == pytest.approx(0.85)


def test_too_large_a_batch_and_unknown_names_are_named(tmp_path):
    with pytest.raises(T2TError, match="epochs=0: expected 1"):
        run(tmp_path, recipe=Recipe(epochs=0))
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "0"], "epochs=0: expected 1 or more"),
        (["--lr", "nan"], "lr=nan: expected"),
        (["--ema", "5"], "ema=5.0: expected a number from 0 to 0.999999"),
        (["--fraction", "0"], "fraction=0.0"),
        (["--smoothing", "-1"], "smoothing=-1.0"),
        (["--optimizer", "adamwe"], "did you mean 'adamw'"),
        (["--precision", "17"], "unknown precision '17'"),
        (["--out", "/dev/null/x"], "cannot write into /dev/null/x"),
        (["--epoch", "1"], "did you mean '--epochs'"),
    ],
)
def test_what_nothing_can_be_trained_with_is_refused_in_a_line(words, said, capsys):
    assert cli.main(["train", "--model", "small_hard_wide", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_an_interrupted_training_says_so(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "training_step", interrupt)
    words = [
        "train",
        "--model",
        "small_hard_wide",
        "--epochs",
        "1",
        "--fraction",
        "0.02",
        "--batch-size",
        "16",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_train_command_leaves_weights_that_load_with_a_true_card(tmp_path, capsys):
    file = tmp_path / "run" / "weights.safetensors"
    words = [
        "train",
        "--model",
        "small_hard_wide",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--optimizer",
        "adamw",
        "--fraction",
        "0.02",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    card = json.loads(file.with_suffix(".json").read_text())
    assert f"test accuracy {100 * card['test_accuracy']['value']:.1f} % [" in said
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
