"""The study: what is planned, that it resumes, what its rows say, and the effects read from them."""

import argparse
import dataclasses
import functools
import threading
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from t2t_analysis import cli, quantities, tables
from t2t_analysis._paths import data_dir
from t2t_analysis.claims import recorded
from t2t_analysis.data import load_images, train_data
from t2t_analysis.errors import DataError, ParameterError
from t2t_analysis.models import load_model
from t2t_analysis.sentences.training_from_scratch import adamw_table
from t2t_analysis.training import Recipe, design, effects, rates, rows, runner, study, table
from t2t_analysis.training.design import CORNERS, Run, plan, recipe_for
from t2t_analysis.training.resident import PAD, fixed_images, resident_train
from tests.data_tables import study_columns

# --- what is planned -----------------------------------------------------------------------------------------------


def parsed(*words):
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    return parser.parse_args(words)


def test_the_whole_plan_is_the_design():
    runs = study.planned(parsed())
    seeds, fractions, lengths = ({} for _ in range(3))
    for run in runs:
        fractions.setdefault(run.model, set()).add(run.recipe.fraction)
        if run.recipe.fraction == 1:
            seeds.setdefault(run.model, set()).add(run.recipe.seed)
            lengths.setdefault(run.model, set()).add(run.recipe.epochs)
    assert set(seeds) == set(design.GROUPS["all"])
    assert all(len(found) == (5 if model in CORNERS else 3) for model, found in seeds.items())
    assert fractions["small_hard_deep"] == fractions["small_performer_deep"] == {0.1, 0.25, 0.5, 1.0}
    assert fractions["small_conv_deep"] == {1.0}
    every = {3, 6, 12, 24}
    assert {model for model, found in lengths.items() if found == every} == {*CORNERS, *design.PARTS}
    assert lengths["small_conv_deep"] == {24}
    assert len({run.name for run in runs}) == len(runs)
    # A study that is cut short has whole seeds, and the shorter runs that longer ones go on from.
    assert [(run.model, run.recipe.epochs) for run in runs[:8]] == list(product(CORNERS, (3, 6)))[::2] + list(
        product(CORNERS, (3, 6))
    )[1::2]
    assert {run.recipe.seed for run in runs[:16]} == {0}


def test_a_run_plans_itself_and_no_other():
    runs = [
        *plan(["small_hard_deep"], "photo_crops", epochs=[4], seeds=[1], sweep={"lr": [5e-4, 3e-3]}),
        *plan(["small_conv_wide"], "torch/cifar10", fractions=[0.25], seeds=[2]),
        *plan(["small_hard_wide"], "photo_crops", epochs=[24], seeds=[2], optimizer="adamw"),
        *plan(["small_hard_deep"], "digits", seeds=[0], task="probe", source="photo_crops"),
    ]
    for run in runs:
        assert study.planned(parsed(*run.words())) == [run]
        assert run.command().startswith(
            f"python -m t2t_analysis study --data {run.data} --cells {run.model} "
        )
    assert [run.sweep for run in runs] == [True, True, False, False, False]
    assert [run.reduced for run in runs] == [True, True, False, False, False]


def test_what_identifies_a_run():
    run = Run("small_hard_deep", "photo_crops", Recipe())
    others = [
        dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, **change))
        for change in ({"seed": 1}, {"fraction": 0.5}, {"epochs": 4}, {"lr": 5e-4}, {"optimizer": "adamw"})
    ]
    others += [dataclasses.replace(run, model="small_hard_wide"), dataclasses.replace(run, data="digits")]
    assert len({r.name for r in [run, *others]}) == 8
    # The fixed recipe of a data set with one learning rate of a sweep is the study's own run.
    usual = recipe_for(run.model, run.data)
    swept = plan([run.model], run.data, sweep={"lr": [usual.lr]}, epochs=[usual.epochs])
    assert [r.name for r in swept] == [Run(run.model, run.data, usual).name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cells", "hard_deap"], "did you mean 'small_hard_deep'"),
        (["--seeds", "0-x"], "no number"),
        (["--seeds", "0.5"], "seed=0.5: expected a whole number"),
        (["--fractions", "0,1"], "fraction=0.0: expected a number from 1e-09 to 1"),
        (["--sweep", "rl=1"], "unknown field of the recipe 'rl'"),
        (["--task", "probe"], "needs --source"),
        (["--source", "photo_crops"], "takes no weights"),
        (["--epochs", "0"], "at least 1"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises((ParameterError, ValueError), match=message):
        study.planned(parsed(*words))


def test_paths_are_shortened_in_what_is_recorded(tmp_path):
    run = Run("small_hard_deep", str(tmp_path / "sets" / "stripes.tar"), Recipe())
    assert "--data stripes.tar" in run.command()
    assert str(tmp_path) not in run.command() + run.name
    assert recipe_for("small_hard_deep", "torch/cifar10").epochs == 12


# --- images on the device ------------------------------------------------------------------------------------------


def test_resident_crops_equal_the_ordinary_ones():
    ordinary, resident = train_data("photo_crops", seed=3), resident_train("photo_crops", seed=3)
    assert len(ordinary) == len(resident)
    for epoch in (0, 5):
        ordinary.set_epoch(epoch)
        resident.set_epoch(epoch)
        images, labels = resident.batch([0, 77, 401])
        expected = ordinary.__getitems__([0, 77, 401])
        assert torch.equal(images, torch.stack([image for image, _ in expected]))
        assert labels.tolist() == [label for _, label in expected]


def test_a_fraction_changes_the_images_not_the_steps():
    whole, tenth = resident_train("photo_crops"), resident_train("photo_crops", fraction=0.1)
    assert len(whole) == len(tenth)
    assert tenth.different < 0.15 * whole.different


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A tree of 2 x 24 training and 2 x 8 test pictures of 32 pixels: stripes along one axis or the other."""
    root = tmp_path_factory.mktemp("sets") / "stripes"
    rng = np.random.default_rng(0)
    wave = 60 * np.sin(np.arange(32) * np.pi / 2)
    for split, count in (("train", 24), ("test", 8)):
        for name in ("down", "across"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture = np.broadcast_to(wave[:, None] if name == "down" else wave, (32, 32))
                noisy = picture + 128 + rng.normal(scale=10, size=(32, 32))
                Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(root / split / name / f"{i:02}.png")
    return root


def test_resident_images_are_cropped_flipped_and_replayed(stripes):
    data = resident_train(str(stripes), seed=1)
    assert (len(data), data.different) == (48, 48)
    data.set_epoch(2)
    first, labels = data.batch(range(48))
    assert first.shape == (48, 3, 32, 32)
    assert sorted(labels.tolist()) == [0] * 24 + [1] * 24
    data.set_epoch(3)
    assert not torch.equal(data.batch(range(48))[0], first)
    data.set_epoch(2)
    assert torch.equal(data.batch(range(48))[0], first)
    # By hand: sample 5, from the pixels.
    turn, top, left, flip = data._draws[5].tolist()
    pixels = torch.tensor(np.asarray(Image.open(sorted(stripes.glob("train/*/*.png"))[turn]))).float() / 255
    padded = torch.nn.functional.pad(pixels, (PAD,) * 4)[top : top + 32, left : left + 32]
    expected = (padded.flip(1) if flip else padded) - 0.485
    assert torch.allclose(first[5, 0], expected / 0.229, atol=1e-5)


def test_resident_images_go_through_a_fraction_several_times(stripes):
    data = resident_train(str(stripes), fraction=0.25)
    assert (len(data), data.different) == (48, 12)
    turns = np.bincount(data._draws[:, 0].numpy())
    assert turns.tolist() == [4] * 12


def test_evaluation_images_are_those_of_load_images(stripes):
    model = torch.nn.Conv2d(3, 4, 1)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 32, 32)}
    for data in ("photo_crops", str(stripes)):
        ours = fixed_images(data, model=model)
        loaded = load_images(data, model=model, img_size=32, batch_size=4096)
        theirs = next(iter(loaded))
        images = torch.cat([batch.images for batch in ours])
        labels = torch.cat([batch.labels for batch in ours])
        assert ours.dataset.info.classes == loaded.dataset.info.classes
        assert labels.bincount().tolist() == theirs.labels.bincount().tolist()
        assert torch.allclose(
            images.double().square().sum((1, 2, 3)).sort().values,
            theirs.images.double().square().sum((1, 2, 3)).sort().values,
            rtol=1e-5,
        )
    assert len(np.unique(fixed_images("photo_crops").dataset.clusters)) * 4 == len(
        load_images("photo_crops").dataset
    )


def test_evaluation_on_the_images_that_were_trained_on(stripes):
    loader = fixed_images(str(stripes), split="train", fraction=0.25, seed=4, most=6, img_size=32)
    (some,) = loader
    chosen = resident_train(str(stripes), fraction=0.25, seed=4)
    raw = chosen._pixels[:, :, PAD:-PAD, PAD:-PAD].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    known = ((raw - mean) / std).flatten(1)
    assert len(some.labels) == 6
    assert some.labels.bincount().tolist() == [3, 3]
    assert (torch.cdist(some.images.flatten(1), known).min(1).values < 1e-3).all()


def test_digits_are_pictures_like_any_others():
    whole = {"img_size": 32, "batch_size": 2000}
    train, test = (next(iter(fixed_images("digits", split=split, **whole))) for split in ("train", "test"))
    assert (len(train.labels), len(test.labels)) == (1198, 599)
    assert train.images.shape[1:] == (3, 32, 32)
    counts = train.labels.bincount(minlength=10), test.labels.bincount(minlength=10)
    assert (counts[0] / counts[1]).sub(2).abs().max() < 0.1
    # Ink is bright: a centre that is dark inside a bright ring is a nought.
    noughts = train.images[train.labels == 0].mean((0, 1))
    assert noughts[14:18, 14:18].mean() < noughts[14:18, 4:14].amax()
    with pytest.raises(ValueError, match="split of digits"):
        fixed_images("digits", split="validation")


def test_what_cannot_be_held_is_refused(tmp_path, stripes):
    with pytest.raises(DataError, match="below 64 pixels"):
        resident_train(str(stripes), img_size=224)
    with pytest.raises(DataError, match="no split folders"):
        resident_train(str(stripes / "train"))


# --- one run -------------------------------------------------------------------------------------------------------

WORDS = [
    "--cells",
    "hard_wide",
    "--seeds",
    "0",
    "--fractions",
    "1",
    "--sweep",
    "batch_size=16",
    "--devices",
    "cpu",
]


def do(stripes, tmp_path, *more, epochs=2):
    out, runs = str(tmp_path / "table"), str(tmp_path / "runs")
    words = ["study", "--data", str(stripes), *WORDS, "--epochs", str(epochs), "--out", out, "--runs", runs]
    return cli.main([*words, *more])


def test_a_killed_run_goes_on_and_a_finished_one_is_left_alone(stripes, tmp_path, capsys, monkeypatch):
    assert do(stripes, tmp_path / "whole") == 0
    (row,) = table.read_runs(tmp_path / "whole" / "table").to_dict("records")

    class Killed(BaseException):
        pass

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:  # killed in the second epoch, after the first checkpoint
        patch.setattr("t2t_analysis.training.module.Classifier.on_train_epoch_start", _at_leg(4, dies))
        with pytest.raises(Killed):
            do(stripes, tmp_path / "killed")
    (folder,) = (tmp_path / "killed" / "runs").glob("small*")
    assert (folder / "last.ckpt").exists()
    assert table.finished(tmp_path / "killed" / "table") == set()
    assert do(stripes, tmp_path / "killed") == 0
    (again,) = table.read_runs(tmp_path / "killed" / "table").to_dict("records")
    same = ("run", "test_loss", "test_accuracy", "train_loss", "calibration_error", "steps", "data_hash")
    assert {key: again[key] for key in same} == {key: row[key] for key in same}
    curves = [table.read_curves(tmp_path / name / "table") for name in ("whole", "killed")]
    kept = ["epoch", "train_loss", "train_accuracy"]
    pd.testing.assert_frame_equal(curves[0][kept], curves[1][kept])
    # The checkpoint is gone, the weights are there with a card that says what the row says.
    assert not (folder / "last.ckpt").exists()
    model = load_model("small_hard_wide", folder / "weights.safetensors")
    assert model.provenance.accuracy.value == pytest.approx(row["test_accuracy"], abs=1e-4)
    # What the row says of the run.
    assert (row["steps"], row["images_seen"], row["test_n"]) == (6, 96, 16)
    assert row["reduced"]
    assert row["sweep"]
    assert row["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert row["peak_memory"] > 5e7
    assert row["matrix_share"] == pytest.approx(
        6 * row["macs"] * row["images_per_second"] / row["matrix_rate"], 1e-4
    )
    assert str(tmp_path) not in (tmp_path / "whole" / "table" / "runs.csv").read_text()
    # Once in the table, nothing runs again.
    capsys.readouterr()
    monkeypatch.setattr(runner, "train", dies)
    assert do(stripes, tmp_path / "killed") == 0
    assert "nothing to do" in capsys.readouterr().out


def _at_leg(leg, dies):
    from t2t_analysis.training.module import Classifier

    before = Classifier.on_train_epoch_start

    def hook(self):
        if self.current_epoch == leg:
            dies()
        before(self)

    return hook


def test_a_folder_that_cannot_be_written_into_is_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    nowhere, run = tmp_path / "file" / "out", Run("small_hard_wide", "digits", Recipe())
    monkeypatch.setattr(runner, "_images", lambda *_: pytest.fail("began to work"))
    monkeypatch.setattr(runner, "_train", lambda *_: pytest.fail("began to work"))
    for place in (runner.Place(nowhere, tmp_path), runner.Place(tmp_path, nowhere)):
        with pytest.raises(DataError, match=r"cannot write into .*file/out.*: Not a directory"):
            runner.execute(run, place)
    with pytest.raises(DataError, match="cannot write into"):
        runner.trial("small_hard_wide", "digits", Recipe(), runner.Place(nowhere, tmp_path))
    with pytest.raises(DataError, match="cannot write into"):
        next(recorded.record("small_hard_wide", "auto", "photos", folder=nowhere))


def test_two_processes_never_do_the_same_run(tmp_path):
    from filelock import FileLock

    run = Run("small_hard_wide", "digits", Recipe())
    folder = tmp_path / "runs" / run.name
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(runner.BusyError, match="another process"):
        runner.execute(run, runner.Place(tmp_path / "out", tmp_path / "runs"))


# --- rates ---------------------------------------------------------------------------------------------------------


def test_rates_are_tried_until_the_best_has_both_neighbours_and_never_on_test_images(
    stripes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(rates, "EPOCHS", 1)
    monkeypatch.setattr(study, "Recipe", functools.partial(Recipe, batch_size=16))
    seen = []

    def loader(data, **kwargs):
        assert kwargs["split"] == "train"
        seen.append(fixed_images(data, **kwargs))
        return seen[-1]

    monkeypatch.setattr(runner, "fixed_images", loader)
    words = ["study", "--rates", "--data", str(stripes), "--cells", "hard_wide", "--devices", "cpu"]
    words += ["--out", str(tmp_path / "table"), "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == 0
    losses = rates.tried("small_hard_wide", "stripes", folder=tmp_path / "table")
    best = rates.chosen("small_hard_wide", "stripes", folder=tmp_path / "table")
    assert losses[best] == min(losses.values())
    assert {best / 2, best * 2} <= set(losses)
    (held_out,), used = seen[0], resident_train(str(stripes), fraction=rates.SHARE, seed=0)
    assert (len(held_out.labels), used.different) == (10, 38)
    raw = used._pixels[:, :, PAD:-PAD, PAD:-PAD].float().flatten(1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    assert torch.cdist((held_out.images * std + mean).flatten(1), raw).min() > 0.1
    capsys.readouterr()
    assert cli.main(words) == 0  # what was tried is not tried again
    assert capsys.readouterr().out == f"small_hard_wide, muon: rate {best:g}\n"


def test_a_run_of_the_design_waits_for_its_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "chosen", lambda *_: None)
    run = plan(["small_conv_wide"], "torch/cifar10", seeds=[0])[0]
    with pytest.raises(ParameterError, match=r"--rates --cells small_performer_wide --data torch/cifar10"):
        runner.execute(run, runner.Place(tmp_path, tmp_path))


# --- many runs -----------------------------------------------------------------------------------------------------


class Process:
    """Stands for a process that takes a moment and ends with ``status``."""

    def __init__(self, status=0):
        self.status, self.ended, self.over = status, False, threading.Event()

    def wait(self):
        self.over.wait(0.01)
        return self.status

    def terminate(self):
        self.ended = True


def test_slots_are_kept_busy_and_a_failure_stops_nothing(tmp_path, capsys):
    runs = plan(
        ["small_hard_deep", "small_hard_wide"], "photo_crops", seeds=[0, 1, 2], epochs=[3], fractions=[1.0]
    )
    started, at_once, lock = [], [], threading.Lock()

    class Counted(Process):
        def wait(self):
            status = super().wait()
            with lock:
                at_once.append(at_once[-1] - 1)
            return status

    def launch(run, device, log):
        with lock:
            started.append((run.recipe.seed, device))
            at_once.append((at_once or [0])[-1] + 1)
        log.write(f"{run.name}: test accuracy 0.5\n")
        return Counted({0: 0, 1: 1, 2: study.BUSY}[run.recipe.seed])

    counts = study._all(runs, ["cuda:0", "cuda:1"], tmp_path, launch)
    assert sorted(seed for seed, _ in started) == [0, 0, 1, 1, 2, 2]
    assert {device for _, device in started} == {"cuda:0", "cuda:1"}
    assert max(at_once) == 2
    assert counts == {0: 2, 1: 2, study.BUSY: 2}
    said = capsys.readouterr().err
    assert said.count("failed with status 1; see") == 2
    assert said.count("another process is at it") == 2
    assert said.count("done, test accuracy 0.5") == 2
    assert "[6 of 6, about 0:00 left] " in said


def test_an_interruption_ends_the_processes_and_starts_no_more(tmp_path):
    runs = plan(["small_hard_deep"], "photo_crops", seeds=[0, 1, 2], epochs=[12], fractions=[1.0])
    processes = []

    class Long(Process):
        def wait(self):
            self.over.wait(60)
            return self.status

        def terminate(self):
            super().terminate()
            self.over.set()

    def launch(*_):
        if processes:
            raise KeyboardInterrupt
        processes.append(Long())
        return processes[0]

    with pytest.raises(KeyboardInterrupt):
        list(study.work(runs, ["cpu", "cpu"], tmp_path, launch))
    assert [process.ended for process in processes] == [True]


def test_a_process_that_cannot_start_is_an_error_and_leaves_no_thread_behind(tmp_path):
    runs = plan(["small_hard_deep"], "photo_crops", seeds=[0, 1, 2], epochs=[12], fractions=[1.0])
    before = set(threading.enumerate())

    def launch(*_):
        raise OSError("no more processes")

    with pytest.raises(OSError, match="no more processes"):
        list(study.work(runs, ["cpu"], tmp_path, launch))
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_dry_run_prints_what_is_missing_and_what_it_costs(tmp_path, capsys):
    done, todo = plan(["small_hard_deep"], "photo_crops", seeds=[0, 1], epochs=[12], fractions=[1.0])
    table.add_row(made_row(done, 0.6, images_per_second=100.0), [], tmp_path)
    words = [
        "study",
        "--cells",
        "hard_deep",
        "--seeds",
        "0,1",
        "--fractions",
        "1",
        "--epochs",
        "12",
        "--devices",
        "cpu",
        "--dry-run",
    ]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert todo.name in said
    assert done.name not in said
    # 12 epochs of 6080 crops, and 2020 test and 2028 training crops forward only, at 100 a second.
    expected = (12 * 6080 + (len(load_images("photo_crops").dataset) + 6080) // 3) / 100
    assert f"about {study.clock(expected)} (100 images/s by rows of the table)" in said
    assert "1 runs to do, 1 done" in said


# --- the table -----------------------------------------------------------------------------------------------------


def made_row(run, accuracy, **columns):
    """A row as a run with this accuracy would leave."""
    row = dict.fromkeys(tables.columns("runs")) | rows.identity(run)
    row |= {"test_accuracy": accuracy, "chance": 0.1, "data_hash": "abc", "device": "made", "commit": "none"}
    return row | {"precision": "32-true, made"} | columns


def test_rows_keep_their_types_and_replace_their_like(tmp_path):
    run = Run("small_hard_deep", "photo_crops", Recipe(epochs=2))
    curve = [{"epoch": e, "train_loss": 1.0, "train_accuracy": 0.5, "lr": 1e-3} for e in (0, 1)]
    table.add_row(made_row(run, 0.25), curve, tmp_path)
    table.add_row(made_row(run, 0.5, macs=10**12), curve, tmp_path)
    rows = table.read_runs(tmp_path)
    assert rows["test_accuracy"].tolist() == [0.5]
    assert rows["macs"].tolist() == [10**12]
    assert {name: str(dtype) for name, dtype in rows.dtypes.items()} == {
        n: t for n, (t, _) in tables.columns("runs").items()
    }
    assert rows.loc[0, "reduced"] is np.True_ or rows.loc[0, "reduced"] is True
    assert rows.loc[0, "source"] == ""
    assert pd.isna(rows.loc[0, "steps"])
    assert len(table.read_curves(tmp_path)) == 2
    with pytest.raises(DataError, match="lacks"):
        table.add_row({"run": "x"}, [], tmp_path)
    with pytest.raises(DataError, match="unknown columns"):
        table.add_row(made_row(run, 0.5) | {"speed": 1}, [], tmp_path)


def test_the_readme_documents_every_column():
    text = (data_dir() / "study" / "README.md").read_text(encoding="utf-8")
    assert study_columns() in text


# --- effects -------------------------------------------------------------------------------------------------------


def made_table(truth, seeds=5, noise=0.01, fractions=(1.0,), epochs=24, optimizer="muon", **changes):
    """Runs with accuracy truth(model, fraction) plus normal noise."""
    rng = np.random.default_rng(0)
    rows = []
    for model, fraction, seed in product(truth.cells, fractions, range(seeds)):
        usual = recipe_for(model, "photo_crops", optimizer)
        recipe = dataclasses.replace(usual, epochs=epochs, seed=seed, fraction=fraction, **changes)
        run = Run(model, "photo_crops", recipe)
        rows.append(made_row(run, truth(model, fraction) + noise * rng.standard_normal()))
    return tables.typed(rows, "runs")


class Truth:
    cells = CORNERS

    def __call__(self, model, fraction):
        soft, deep = "performer" in model, "deep" in model
        return 0.6 + 0.03 * soft - 0.02 * deep + 0.01 * (soft and deep) - 0.02 * soft * np.log2(fraction)


class High(Truth):
    def __call__(self, model, fraction):
        return 0.93


def by_quantity(result):
    return result.frame.set_index("quantity")


def test_effects_are_students_t_of_contrasts_within_seeds():
    from scipy.stats import ttest_1samp, ttest_rel

    made = made_table(Truth())
    found = by_quantity(effects.effects(made))
    wide = made.astype({"test_accuracy": float}).pivot(index="seed", columns="model", values="test_accuracy")
    hard_deep, hard_wide, soft_deep, soft_wide = (wide[model] for model in CORNERS)
    each = {
        "tokeniser_effect": (soft_deep + soft_wide - hard_deep - hard_wide) / 2,
        "backbone_effect": (soft_deep + hard_deep - soft_wide - hard_wide) / 2,
        "interaction": soft_deep - hard_deep - soft_wide + hard_wide,
    }
    for quantity, values in each.items():
        test, row = ttest_1samp(values, 0), found.loc[quantity]
        ci = test.confidence_interval()
        assert row[["value", "low", "high", "p"]].tolist() == pytest.approx(
            [values.mean(), ci.low, ci.high, test.pvalue]
        )
        assert (row["n"], row["unit"], row["df"]) == (5, "seed", 4)
        assert row["se"] == pytest.approx(values.sem())
    test = ttest_rel(soft_deep, hard_deep)
    assert found.loc["tokeniser_effect_deep", "p"] == pytest.approx(test.pvalue)
    odds = np.log(wide / (1 - wide))
    row = found.loc["t2t_minus_vit_log_odds"]
    assert row["value"] == pytest.approx((odds[CORNERS[2]] - odds[CORNERS[1]]).mean())
    # A seed that misses a cell of the contrast takes no part in it, and in others it does.
    fewer = made[~((made["model"] == CORNERS[0]) & (made["seed"] == 4))]
    again = by_quantity(effects.effects(fewer))
    assert again.loc["tokeniser_effect", "n"] == 4
    assert again.loc["tokeniser_effect_wide", "n"] == 5


def test_no_interval_of_an_accuracy_goes_beyond_one():
    made = made_table(High(), seeds=2, noise=0.05)
    found = by_quantity(effects.effects(made.assign(test_accuracy=made["test_accuracy"].clip(upper=0.99))))
    accuracies = found.loc["accuracy"]
    assert accuracies["high"].max() == 1.0
    assert (accuracies["low"] < accuracies["value"]).all()


def test_without_a_run_there_is_a_reason_and_what_the_paper_prints():
    empty = tables.typed([], "runs")
    result = effects.effects(empty, "torch/cifar100")
    assert result.notes[0].startswith("no runs of task 'train' on 'torch/cifar100'")
    assert result.frame["quantity"].str.endswith("_published").all()
    runs, _ = effects.runs_so_far(empty)
    assert runs.empty


def test_sides_without_a_common_seed_are_compared_by_welchs_t():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(3)
    made = pd.DataFrame({"model": ["a"] * 3 + ["b"] * 4, "seed": range(7), "y": rng.normal(size=7)})
    found = effects.contrast(made, {"a": 1.0, "b": -1.0}, of="y")
    groups = [made.loc[made["model"] == name, "y"] for name in "ab"]
    test = ttest_ind(*groups, equal_var=False)
    ci = test.confidence_interval()
    assert [found.low, found.high, found.df] == pytest.approx([ci.low, ci.high, test.df])


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):  # cells of unlike spread that share what their seed brings
        y = 0.5 + rng.normal(0, 0.02, 5)[:, None] + rng.normal(0, [0.01, 0.05, 0.01, 0.002], (5, 4))
        made = pd.DataFrame(
            {"model": np.tile(CORNERS, 5), "seed": np.repeat(range(5), 4), "test_accuracy": y.ravel()}
        )
        found = effects.contrast(made, effects.CONTRASTS["interaction"])
        hits += found.low <= 0 <= found.high
    assert 182 <= hits <= 198


def test_effects_are_followed_over_length_at_equal_cost():
    """Accuracy 0.5 + rise x log2(epochs); T2T rises faster, and takes twice the products and four times the time."""
    parts = []
    for epochs in (3, 6, 12, 24):
        made = made_table(Truth(), seeds=2, noise=0, epochs=epochs)
        soft = made["tokeniser"] == "performer"
        made["test_accuracy"] = 0.3 + np.where(soft, 0.05, 0.03) * np.log2(epochs) + 0.01 * made["seed"]
        made["images_seen"], made["macs"] = 1000 * epochs, np.where(soft, 2000, 1000)
        made["cpu_seconds"] = np.where(soft, 40.0, 10.0) * epochs
        parts.append(made)
    result = effects.effects(pd.concat(parts, ignore_index=True))
    found = result.frame.groupby("quantity")

    def curve(quantity):
        rows = found.get_group(quantity)
        return dict(zip(rows["at"], rows["value"], strict=True))

    lengths = np.log2([3, 6, 12, 24])
    assert list(curve("tokeniser_effect_at_epochs").values()) == pytest.approx(0.02 * lengths)
    assert by_quantity(result).loc["tokeniser_effect_growth_per_doubling", "value"] == pytest.approx(0.02)
    # At equal products T2T is one doubling behind, at equal time two; what it has not reached is left out.
    equal = curve("tokeniser_effect_at_macs")
    assert list(equal) == pytest.approx([3000.0 * 1000 * n for n in (6, 12, 24)])
    assert list(equal.values()) == pytest.approx(0.02 * lengths[1:] - 0.05)
    equal = curve("tokeniser_effect_at_time")
    assert list(equal) == pytest.approx([120.0, 240.0])
    assert list(equal.values()) == pytest.approx(0.02 * lengths[2:] - 0.1)
    assert result.frame["quantity"].map(lambda name: bool(quantities.quantity(name))).all()


def test_the_gap_grows_as_data_shrink():
    result = effects.effects(made_table(Truth(), fractions=(0.1, 0.25, 0.5, 1.0), noise=0.002))
    row = by_quantity(result).loc["gap_growth_per_halving"]
    assert row["low"] < 0.02 < row["high"]
    assert row["high"] - row["low"] < 0.004
    gaps = by_quantity(result).loc["tokeniser_effect_deep_at_fraction"]
    assert gaps["at"].tolist() == [0.1, 0.25, 0.5, 1.0]
    assert gaps["value"].is_monotonic_decreasing


def test_runs_of_other_lengths_sweeps_and_pixels_are_kept_apart():
    short, long = made_table(Truth(), epochs=4), made_table(Truth(), epochs=12)
    swept = made_table(Truth(), seeds=1, lr=3e-3, epochs=12)
    both = pd.concat([short, long, swept], ignore_index=True)
    assert len(effects.runs_of(both)) == len(long)
    assert len(effects.runs_of(both, epochs=4)) == len(short)
    partly = pd.concat([short, long[long["model"] == "small_hard_deep"]], ignore_index=True)
    result = effects.effects(partly)  # the longest with all four corners
    assert result.meta["epochs"] == 4
    assert result.notes[0] == "reduced: 4 epochs, the last length is 24"
    mixed = pd.concat([long, long.assign(data_hash="other")], ignore_index=True)
    with pytest.raises(DataError, match="different pixels"):
        effects.runs_of(mixed)
    with pytest.raises(DataError, match="study --data digits"):
        effects.runs_of(both, "digits")


def test_adamw_and_single_seeds_stand_beside():
    made = made_table(Truth(), seeds=1, noise=0)
    other = made_table(Truth(), seeds=1, noise=0, optimizer="adamw")
    other.loc[other["model"] == CORNERS[1], "test_accuracy"] -= 0.1
    found = by_quantity(effects.effects(pd.concat([made, other], ignore_index=True)))
    assert found.loc["t2t_minus_vit_adamw", ["value", "at"]].tolist() == pytest.approx(
        [found.loc["t2t_minus_vit", "value"] + 0.1, 24]
    )
    shown = adamw_table(effects.effects(pd.concat([made, other], ignore_index=True))).set_index("effect")
    line = shown.loc[quantities.quantity("t2t_minus_vit").words]
    assert [line["epochs"], line["AdamW"], line["Muon"]] == [
        24,
        "12.0 points (no interval)",
        "2.0 points (no interval)",
    ]
    # One seed per cell: the effect has a value, and says why it has no interval.
    assert found.loc["tokeniser_effect", "value"] == pytest.approx(0.035)
    assert pd.isna(found.loc["tokeniser_effect", "low"])
    assert pd.isna(found.loc["tokeniser_effect", "se"])
    assert found.loc["tokeniser_effect", "interval"] == "none: one seed per cell"


def test_chosen_rates_are_told_with_what_was_tried(tmp_path):
    for rate, loss in ((2e-3, 1.0), (1e-3, 1.2), (4e-3, 0.9), (8e-3, 1.1)):
        row = dict.fromkeys(tables.columns("rates")) | {
            "model": CORNERS[0],
            "data": "digits",
            "optimizer": "muon",
        }
        rates.add(row | {"lr": f"{rate:g}", "held_out_loss": loss}, tmp_path)
    frame = pd.DataFrame(effects.rate_rows("digits", folder=tmp_path))
    assert frame.loc[frame["quantity"] == "best_learning_rate", "value"].tolist() == [4e-3]
    assert frame.loc[frame["quantity"] == "held_out_loss", "at"].tolist() == [1e-3, 2e-3, 4e-3, 8e-3]


def test_what_is_missing_is_said_and_the_paper_stands_beside():
    result = effects.effects(made_table(Truth()))
    assert any(
        note.startswith("se_effect not estimated: no runs of small_hard_deep_se") for note in result.notes
    )
    assert any("not on the same scale" in note for note in result.notes)
    found = by_quantity(result)
    assert found.loc["tokeniser_effect_deep_published", "value"] == 0.020
    assert set(effects.published("train")) <= set(effects.CONTRASTS)
    assert found.loc["accuracy", "n"].tolist() == [5] * 4


def test_two_runs_of_one_seed_are_not_averaged_into_one():
    rows = pd.DataFrame({"model": ["a", "a", "b"], "seed": [0, 0, 0], "test_accuracy": [0.5, 0.7, 0.4]})
    with pytest.raises(DataError, match="several runs of a with seed 0"):
        effects.contrast(rows, {"a": 1.0, "b": -1.0})


@pytest.mark.parametrize("weights", effects.CONTRASTS.values(), ids=list(effects.CONTRASTS))
def test_contrasts_sum_to_zero_over_cells_of_the_design(weights):
    assert sum(weights.values()) == pytest.approx(0)
    assert set(weights) <= set(design.GROUPS["all"])


# --- transfer ------------------------------------------------------------------------------------------------------


def transfer(data, tmp_path, task, *more):
    words = [
        "study",
        "--data",
        str(data),
        "--task",
        task,
        "--cells",
        "hard_wide",
        "--seeds",
        "0",
        "--devices",
        "cpu",
    ]
    where = ["--out", str(tmp_path / "table"), "--runs", str(tmp_path / "runs")]
    return cli.main([*words, *where, *more])


@pytest.fixture(scope="module")
def trained(stripes, tmp_path_factory):
    """A table with one run on the stripes, and its weights."""
    root = tmp_path_factory.mktemp("trained")
    out, runs = ["--out", str(root / "table")], ["--runs", str(root / "runs")]
    words = ["study", "--data", str(stripes), "--cells", "hard_wide", "--seeds", "0", "--epochs", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(design, "recipe_for", lambda *_: Recipe(epochs=2, batch_size=16))
        assert cli.main([*words, "--devices", "cpu", *out, *runs]) == 0
    return root


@pytest.fixture
def brief(monkeypatch):
    """Three steps of fine-tuning in place of the recipe's."""
    monkeypatch.setattr(design, "recipe_for", lambda *_: Recipe(epochs=1, batch_size=4, lr=5e-4))


def read(root, task):
    rows = table.read_runs(root / "table")
    return rows[rows["task"] == task].to_dict("records")


def cifar100(root):
    """Torchvision's CIFAR-100 in little: pickles of 3072 bytes an image, with the names of the classes."""
    import pickle

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 6)):
        content = {
            "data": rng.integers(0, 255, (count, 3072), dtype=np.uint8),
            "fine_labels": [0, 1, 2] * (count // 3),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bee", "can"]}))


def flowers102(root):
    """Torchvision's Flowers-102 in little: numbered photographs, labels from 1, lists of three splits."""
    from scipy.io import savemat

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, 103 * 2 + 1):
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(
            folder / f"jpg/image_{number:05d}.jpg"
        )
    savemat(folder / "imagelabels.mat", {"labels": np.arange(206) % 102 + 1})
    splits = {"trnid": np.arange(1, 103), "valid": np.arange(103, 105), "tstid": np.arange(105, 205)}
    savemat(folder / "setid.mat", splits)


@pytest.mark.parametrize(
    ("name", "make", "classes"), [("cifar100", cifar100, 3), ("flowers102", flowers102, 102)]
)
def test_torchvisions_sets_by_name(trained, tmp_path, monkeypatch, brief, name, make, classes):
    monkeypatch.setenv("T2T_ANALYSIS_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", [["train", None]])
    monkeypatch.setattr("torchvision.datasets.CIFAR100.train_list", [["train", None]])
    monkeypatch.setattr("torchvision.datasets.CIFAR100.test_list", [["test", None]])
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.Flowers102._check_integrity", lambda self: True)
    make(tmp_path / "datasets" / f"torch--{name}")
    weights = next((trained / "runs").glob("*/weights.safetensors"))
    for task in ("probe", "finetune") if name == "cifar100" else ("probe",):
        assert transfer(f"torch/{name}", tmp_path, task, "--weights", str(weights)) == 0
        (row,) = read(tmp_path, task)
        assert (row["data"], row["classes"], row["source_run"]) == (
            f"torch/{name}",
            classes,
            "weights.safetensors",
        )
        assert str(trained) not in (tmp_path / "table" / "runs.csv").read_text()


def test_probe_and_fine_tuning_from_the_studys_own_weights(trained, stripes, brief, capsys):
    assert transfer(stripes, trained, "probe", "--source", str(stripes)) == 0
    assert transfer(stripes, trained, "probe", "--weights", "random") == 0
    assert transfer(stripes, trained, "finetune", "--source", str(stripes), "--sweep", "batch_size=24") == 0
    own, null = read(trained, "probe")
    (tuned,) = read(trained, "finetune")
    assert [row["source"] for row in (own, null, tuned)] == ["stripes", "random", "stripes"]
    assert own["source_run"].startswith("small_hard_wide__stripes__f100__e2__s0")
    assert own["parameters"] == (192 + 1) * 2
    assert (own["epochs"], own["train_images"], own["test_n"]) == (0, 48, 16)
    assert own["test_accuracy"] > 0.8  # stripes along one axis or the other: any features tell them apart
    assert own["train_accuracy"] == 1.0
    assert (tuned["steps"], tuned["lr"]) == (2, 5e-4)
    assert transfer("digits", trained, "probe", "--source", "photo_crops") == 2
    assert "study --data photo_crops --cells small_hard_wide --seeds 0" in capsys.readouterr().err


def test_fine_tuning_trains_every_parameter_from_the_weights_given(trained, stripes, tmp_path):
    weights = next((trained / "runs").glob("*/weights.safetensors"))
    from t2t_analysis.training.train import train
    from t2t_analysis.training.transfer import start

    run = Run(
        "small_hard_wide", str(stripes), Recipe(epochs=1, batch_size=48), "finetune", weights=str(weights)
    )
    model = start(run, weights, "cpu", 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    source = load_model("small_hard_wide", weights).state_dict()
    assert all(torch.equal(before[key], source[key]) for key in before if not key.startswith("head."))
    assert not torch.equal(
        before["head.weight"], source["head.weight"]
    )  # a fresh head, although the classes are two
    options = {"accelerator": "cpu", "dataset": resident_train, "init": model}
    module = train(run.model, run.data, recipe=run.recipe, out=tmp_path / "run", **options)
    trainable = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert {"cls_token", "norm.weight", "norm.bias", "head.weight"} <= trainable
    in_optimiser = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    by_name = dict(module.model.named_parameters())
    assert {id(by_name[name]) for name in trainable} == in_optimiser
    # One step from the weights given: all of them moved, by no more than Adam's step allows.
    for name in trainable:
        moved = (by_name[name].detach() - before[name]).abs().max()
        assert 0 < moved < 5e-3, name


def test_the_probe_is_scikit_learns(trained, stripes):
    from sklearn.linear_model import LogisticRegression

    from t2t_analysis.training.transfer import features, linear_probe

    model = load_model("small_hard_wide", next((trained / "runs").glob("*/weights.safetensors")))
    train, test = (fixed_images(str(stripes), split=s, model=model) for s in ("train", "test"))
    x, y = features(model, train)
    assert x.shape == (48, 192)
    with torch.no_grad():
        logits = model(next(iter(train)).images)
    assert torch.allclose(model.head(torch.tensor(x, dtype=torch.float32)), logits, atol=1e-5)
    found, seen = linear_probe(model, train, test)
    mean, std = x.mean(0), x.std(0)
    x_test, y_test = features(model, test)
    probe = LogisticRegression(C=1.0, max_iter=2000).fit((x - mean) / std, y)
    chances = probe.predict_proba((x_test - mean) / std)
    assert np.allclose(found.loss, -np.log(chances[np.arange(len(y_test)), y_test]), atol=1e-4)
    assert found.top1.mean() == (chances.argmax(1) == y_test).mean()
    assert len(seen.top1) == 48


def test_large_models_stream_their_images_and_take_the_authors_files(stripes, tmp_path):
    import timm

    for picture in stripes.glob("*/*/0[01].png"):
        target = tmp_path / "few" / picture.relative_to(stripes)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture.read_bytes())

    state = timm.create_model("t2t_vit_7").state_dict()
    torch.save(
        {"state_dict_ema": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "7.pth.tar"
    )
    words = [
        "study",
        "--data",
        str(tmp_path / "few"),
        "--task",
        "probe",
        "--weights",
        str(tmp_path / "7.pth.tar"),
    ]
    where = ["--out", str(tmp_path / "table"), "--runs", str(tmp_path / "runs"), "--devices", "cpu"]
    assert cli.main([*words, "--cells", "t2t_vit_7", "--seeds", "0", *where]) == 0
    (row,) = read(tmp_path, "probe")
    assert (row["source"], row["train_images"], row["tokeniser"]) == ("7.pth.tar", 4, "")
    assert row["data_hash"].startswith("names-")


def test_effects_of_transfer_are_read_apart():
    rows = []
    for model, seed in product(CORNERS, range(3)):
        run = Run(model, "digits", Recipe(epochs=0, seed=seed), "probe", source="photo_crops")
        named = {"source_run": f"{model}__photo_crops__f100__e4__s{seed}__x"}
        rows.append(made_row(run, 0.9 + 0.01 * ("performer" in model) + 0.001 * seed, **named))
    made = tables.typed(rows, "runs")
    result = effects.effects(made, "digits", task="probe", source="photo_crops")
    assert by_quantity(result).loc["tokeniser_effect", "value"] == pytest.approx(0.01)
    assert not result.frame["quantity"].str.endswith("_published").any()
    made.loc[0, "source_run"] = made.loc[0, "source_run"].replace("e4", "e12")
    with pytest.raises(DataError, match="keep them apart"):
        effects.effects(made, "digits", task="probe", source="photo_crops")
