"""load_model: every source of weights, every layout of a file, and what bad input gets."""

import argparse
import errno
import inspect
import json
import logging
import os
import pickle
import re
import socket
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from t2t_analysis import _paths
from t2t_analysis.errors import CheckpointError, DownloadError, ParameterError, UnknownNameError
from t2t_analysis.models import PUBLISHED, Provenance, available_weights, load_model, save_weights
from t2t_analysis.models.download import file_sha256
from t2t_analysis.results import as_json

SOFT, HARD = "small_performer_deep", "small_hard_deep"
tiny = partial(load_model, "t2t_vit_7", depth=1)


@pytest.fixture(scope="module")
def state():
    """A state dict that no seed of ours draws, for 7 classes at 32 px."""
    return random_state(SOFT, num_classes=7)


def random_state(name, **kwargs):
    torch.manual_seed(1234)
    drawn = timm.create_model(name, **kwargs).state_dict()
    return {k: torch.randn_like(v) * 0.05 if v.is_floating_point() else v for k, v in drawn.items()}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path, monkeypatch):
    """No cache, no bundled files, no network: what is there is what the test makes."""
    monkeypatch.setenv("T2T_ANALYSIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("T2T_ANALYSIS_RELEASES", "http://127.0.0.1:9/")
    monkeypatch.setattr(_paths, "data_dir", lambda: tmp_path / "data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub_at(monkeypatch, "http://127.0.0.1:9")


def hub_at(monkeypatch, address):
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(f"{constants}ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", template)


# --- random -----------------------------------------------------


def test_random_weights_are_seeded_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load_model(HARD, "random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(load_model(HARD, "random"), model.state_dict())
    assert not same(load_model(HARD, "random", seed=1), model.state_dict())
    assert not model.training
    assert model.provenance == Provenance("random", "seed 0", model=HARD, seed=0)
    assert model.provenance.untrained
    assert model.provenance.label == "UNTRAINED (random weights, seed 0)"


def test_arguments_reach_the_model_and_its_configuration():
    model = load_model(SOFT, "random", img_size=(32, 64), num_classes=3, in_chans=1, depth=2)
    assert model(torch.zeros(1, 1, 32, 64)).shape == (1, 3)
    assert model.pretrained_cfg["input_size"] == (1, 32, 64)
    assert len(model.blocks) == 2
    with pytest.raises(ParameterError, match=r"resnet18 cannot be built with \{'img_size': 32\}"):
        load_model("resnet18", "random", img_size=32)
    with pytest.raises(ParameterError, match="device='abacus'"):
        load_model(HARD, "random", device="abacus")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("t2t_vit_41", "auto", "did you mean 't2t_vit_"),
        ("small_hard_depp", "auto", "did you mean 'small_hard_deep'"),
        ("vit_tiny_patch16_224.augreg", "auto", "augreg_in21k_ft_in1k"),
        ("t2t_vit_14", "publishd", "did you mean 'published'"),
        ("t2t_vit_14", "published/385", "did you mean '384'"),
    ],
)
def test_unknown_names(name, weights, said):
    with pytest.raises(UnknownNameError) as error:
        load_model(name, weights)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"img_size": "x"}, {"img_size": -4}, {"img_size": (32,)}, {"img_size": 10**7}, {"num_classes": -1},
        {"num_classes": 2.5}, {"in_chans": 0}, {"in_chans": True}, {"seed": -1}, {"seed": None}, {"weights": " "},
    ],
)  # fmt: skip
def test_sizes_that_are_none(given):
    (name, value), *_ = given.items()
    with pytest.raises((ParameterError, UnknownNameError), match=f"{name}[= ]{re.escape(repr(value))}"):
        load_model(HARD, **{"weights": "random"} | given)


# --- files ------------------------------------------------------

LAYOUTS = {
    "authors, both": lambda s: {"state_dict_ema": s, "state_dict": other(s), "epoch": 3},
    "authors, average only": lambda s: {"state_dict_ema": s},
    "training file": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=1e-3),
        "optimizer": {"state": {}},
    },
    "transfer learning": lambda s: {"net": prefixed("module.", s), "acc": 98.3, "epoch": 5},
    "model": lambda s: {"model": s},
    "bare": lambda s: s,
    "bare, data parallel": lambda s: prefixed("module.", s),
    "compiled": lambda s: {"state_dict": prefixed("_orig_mod.", s)},
    "lightning": lambda s: {"state_dict": prefixed("model.", s), "hyper_parameters": {"model": SOFT}},
    "lightning with average": lambda s: {
        "state_dict": prefixed("model.", other(s)) | prefixed("ema.module.", s),
        "hyper_parameters": {"model": SOFT, "model_args": {"num_classes": 7, "img_size": 32}},
        "callbacks": {},
        "pytorch-lightning_version": "2.5",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_file_gives_the_same_weights(tmp_path, state, layout):
    path = tmp_path / "weights.pth.tar"
    torch.save(LAYOUTS[layout](state), path)
    model = load_model(SOFT, path)
    assert same(model, state)
    origin = model.provenance
    assert (origin.kind, origin.source, origin.sha256) == ("file", str(path), file_sha256(path))
    assert origin.label == f"file {SOFT} (weights.pth.tar)"
    assert not origin.untrained


def test_the_copy_that_was_taken_is_said(tmp_path, state):
    torch.save(LAYOUTS["lightning with average"](state), tmp_path / "a.ckpt")
    assert load_model(SOFT, tmp_path / "a.ckpt").provenance.notes == (
        "weights taken from 'state_dict: ema.*'",
    )
    torch.save(LAYOUTS["authors, both"](state), tmp_path / "b.pth")
    assert load_model(SOFT, tmp_path / "b.pth").provenance.notes == ("weights taken from 'state_dict_ema'",)


@pytest.mark.parametrize("legacy", [False, True])
def test_half_precision_and_the_old_file_format(tmp_path, state, legacy):
    halves = {key: value.half() for key, value in state.items()}
    torch.save(halves, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert same(load_model(SOFT, tmp_path / "a.pth"), {key: value.float() for key, value in halves.items()})


def test_safetensors(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert same(load_model(SOFT, str(tmp_path / "a.safetensors")), state)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle 2", "pickle 5"])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, state, how):
    path, harm = tmp_path / "evil.pth", tmp_path / "harm"
    content = {"state_dict": state, "extra": Malicious(harm)}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps({"state_dict": Malicious(harm)}, int(how[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        CheckpointError, match=rf"refused.*{os.mkdir.__module__}\.mkdir.*nothing was executed"
    ):
        load_model(SOFT, path)
    assert not harm.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>login</html>"]
)
def test_damaged_files_are_named(tmp_path, state, suffix, damage):
    path = tmp_path / f"broken{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"broken{suffix} is truncated or not a") as error:
        load_model(SOFT, path)
    assert "weights_only" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no weights file .*close to it: model_best\.pth"):
        load_model(SOFT, tmp_path / "model_bset.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_model(SOFT, tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_model(SOFT, tmp_path / "nowhere" / "a.pth")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setattr("t2t_analysis.models.checkpoint.file_sha256", refuse)  # root may read everything
    with pytest.raises(CheckpointError, match=r"cannot read the weights file .*a\.pth: Permission denied"):
        load_model(SOFT, tmp_path / "a.pth")


def test_a_program_says_how_to_get_at_its_weights(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt is a TorchScript program.*state_dict\(\)"):
        load_model(SOFT, tmp_path / "a.pt")


def test_a_file_without_weights(tmp_path):
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"has no weights.*it has epoch, loss"):
        load_model(SOFT, tmp_path / "a.pth")
    torch.save([torch.zeros(1)], tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(SOFT, tmp_path / "b.pth")


def test_a_foreign_checkpoint_names_both_sides(tmp_path, state):
    foreign = {key.replace("blocks.", "encoder."): value for key, value in state.items()}
    foreign["norm.weight"] = torch.zeros(5)
    torch.save(foreign, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        load_model(SOFT, tmp_path / "a.pth")
    said = str(error.value)
    assert "missing from the file: blocks.0." in said
    assert "unknown to the model: encoder.0.norm1.weight (nearest: blocks.0.norm1.weight)" in said
    assert "norm.weight: model (96,), file (5,)" in said


def test_a_diverged_checkpoint(tmp_path, state):
    torch.save(state | {"norm.weight": torch.full((96,), torch.nan)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"not finite .*norm\.weight"):
        load_model(SOFT, tmp_path / "a.pth")


ODD = {
    "expanded": (torch.zeros(1, 96).expand(10**10, 96), r"head\.weight claims the shape \(10000000000, 96\)"),
    "without storage": (torch.empty(7, 96, device="meta"), r"head\.weight is strided float32 on meta"),
    "complex": (torch.zeros(7, 96, dtype=torch.complex64), r"head\.weight is strided complex64"),
    "sparse": (torch.zeros(7, 96).to_sparse(), r"head\.weight is sparse_coo float32"),
    "quantised": (torch.zeros(7, 96, dtype=torch.int8), r"1 whole numbers .*quantised.*: head\.weight"),
    "no dimension": (torch.zeros(()), r"head\.weight: model \(\d+, 96\), file \(\)"),
}


@pytest.mark.parametrize("rows", [torch.zeros(3, 3), torch.full((3, 3), 10**9), torch.ones(2, 3)])
def test_windows_that_are_none(tmp_path, state, rows):
    torch.save(state | {"tokens_to_token.geometry": rows}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="geometry holds no windows of three soft splits"):
        load_model(SOFT, tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers(tmp_path, state, kind):
    value, said = ODD[kind]
    torch.save(state | {"head.weight": value}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        load_model(SOFT, tmp_path / "a.pth")


def test_harmless_values_beside_the_tensors(tmp_path, state):
    beside = {
        "best": np.float64(0.7),
        "epoch": np.int64(3),
        "out": Path("runs/a"),
        "args": argparse.Namespace(lr=1),
    }
    torch.save({"state_dict": state, **beside}, tmp_path / "a.pth")
    assert same(load_model(SOFT, tmp_path / "a.pth"), state)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"\n <!doctype html><html>", "it holds a web page"),
        (b"\x1f\x8b\x08rest", "it is compressed by gzip"),
        (b"", "it is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_else_was_saved_as_weights(tmp_path, content, said, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_model(SOFT, tmp_path / f"a{suffix}")


def test_safetensors_by_another_name(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "pytorch_model.bin")
    assert same(load_model(SOFT, tmp_path / "pytorch_model.bin"), state)


def test_a_flipped_bit_and_a_bomb(tmp_path, state):
    path = tmp_path / "a.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: the checksum of its part 'a/data/"):
        load_model(SOFT, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match=r"is refused: its .* bytes would unpack to 10,000,000"):
        load_model(SOFT, path)


def test_timm_converts_older_layouts_of_its_own_models(tmp_path):
    old = random_state("test_vit", num_classes=5)
    flat = old | {"patch_embed.proj.weight": old["patch_embed.proj.weight"].flatten(1)}
    torch.save(flat, tmp_path / "a.pth")
    model = load_model("test_vit", tmp_path / "a.pth")
    assert same(model, old)
    assert model.provenance.notes == ("names converted by timm's filter",)


# --- adapting ---------------------------------------------------


@pytest.mark.parametrize(("name", "size", "patch"), [(SOFT, 32, 4), ("test_vit", 160, 16)])
def test_position_tables_are_resized(tmp_path, caplog, name, size, patch):
    trained = random_state(name, num_classes=5)
    torch.save(trained, tmp_path / "a.pth")
    wide = (size // 2, size * 3)
    model = load_model(name, tmp_path / "a.pth", img_size=wide)
    table, old = model.pos_embed, trained["pos_embed"]
    grid = [side // patch for side in wide]
    assert torch.equal(table[:, 0], old[:, 0])
    assert torch.equal(table, resample_abs_pos_embed(old, grid, num_prefix_tokens=1))
    assert model(torch.zeros(1, 3, *wide)).shape == (1, 5)
    assert (
        f"position table resized from {size // patch}x{size // patch} to {grid[0]}x{grid[1]}" in caplog.text
    )
    assert len(caplog.records) == 1


def test_a_table_that_is_not_square_fits_its_own_size_only(tmp_path):
    trained = random_state(SOFT, num_classes=5, img_size=(32, 64))
    torch.save(trained, tmp_path / "a.pth")
    assert same(load_model(SOFT, tmp_path / "a.pth", img_size=(32, 64)), trained)
    with pytest.raises(CheckpointError, match="129 rows, which are no square grid"):
        load_model(SOFT, tmp_path / "a.pth", img_size=48)
    said = {"model_args": {"img_size": (32, 64), "num_classes": 5}}
    torch.save({"state_dict": trained, "hyper_parameters": said}, tmp_path / "b.ckpt")
    known = load_model(SOFT, tmp_path / "b.ckpt")
    assert same(known, trained)
    assert known.provenance.notes == ("weights taken from 'state_dict'",)
    turned = load_model(SOFT, tmp_path / "b.ckpt", img_size=(64, 32))
    assert torch.equal(turned.pos_embed, resample_abs_pos_embed(trained["pos_embed"], [16, 8], [8, 16]))
    assert "position table resized from 8x16 to 16x8 tokens" in turned.provenance.notes


@pytest.mark.parametrize(
    ("name", "size"), [(SOFT, (16, 64)), ("test_vit", (80, 320)), ("test_vit", (64, 128))]
)
def test_a_table_of_the_same_shape_is_kept_and_what_else_it_could_be_is_said(tmp_path, name, size):
    """A square has as many rows as 1:4, so the number of rows does not tell."""
    trained = random_state(name, num_classes=5, img_size=size)
    torch.save(trained, tmp_path / "a.pth")
    model = load_model(name, tmp_path / "a.pth", img_size=size)
    assert same(model, trained)
    rows, columns = (side // (4 if name == SOFT else 16) for side in size)
    note = model.provenance.notes[-1]
    assert f"taken as {rows}x{columns} tokens, which the file does not say" in note
    assert f"{columns}x{rows}" in note
    turned = load_model(name, tmp_path / "a.pth", img_size=size[::-1])
    assert f"taken as {columns}x{rows} tokens" in turned.provenance.notes[-1]


def test_an_image_size_that_the_table_contradicts(tmp_path, state):
    said = {"model_args": {"img_size": 48}}
    torch.save({"state_dict": state, "hyper_parameters": said}, tmp_path / "a.ckpt")
    model = load_model(SOFT, tmp_path / "a.ckpt")
    assert same(model, state)
    assert model.provenance.notes[-1] == "a position table of 64 rows, though the file says 12x12 tokens"


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"num_classes": 10**10}, 32),
        ({"img_size": 10**9}, 32),
        ({"img_size": (32, "x")}, 32),
        ({"in_chans": 10**9, "img_size": [32, 32, 32]}, 32),
    ],
)
def test_what_a_file_says_of_itself_is_not_built_unseen(tmp_path, state, said, size):
    torch.save({"state_dict": state, "hyper_parameters": {"model_args": said}}, tmp_path / "a.ckpt")
    assert same(load_model(SOFT, tmp_path / "a.ckpt"), state)


@pytest.mark.parametrize(("name", "size"), [(SOFT, 48), ("test_vit", 96)])
def test_without_a_size_the_one_of_the_weights_is_taken(tmp_path, name, size):
    trained = random_state(name, num_classes=5, img_size=size)
    torch.save(trained, tmp_path / "a.pth")
    model = load_model(name, tmp_path / "a.pth")
    assert same(model, trained)
    assert model.pretrained_cfg["input_size"] == (3, size, size)


def test_heads_are_replaced_on_demand_only_and_it_is_said(tmp_path, state, caplog):
    torch.save(state, tmp_path / "a.pth")
    model = load_model(SOFT, tmp_path / "a.pth", num_classes=3)
    assert model.provenance.new_head
    assert model.provenance.notes == ("classifier of 7 classes replaced by an UNTRAINED one of 3",)
    assert "classifier UNTRAINED" in model.provenance.label
    assert len(caplog.records) == 1
    assert "replaced" in caplog.text
    again = load_model(SOFT, tmp_path / "a.pth", num_classes=3)
    assert torch.equal(again.head.weight, model.head.weight)
    assert torch.equal(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    headless = load_model(SOFT, tmp_path / "a.pth", num_classes=0)
    assert headless(torch.zeros(1, 3, 32, 32)).shape == (1, 96)
    assert not headless.provenance.new_head
    same_count = load_model(SOFT, tmp_path / "a.pth", num_classes=7)
    assert same(same_count, state)
    assert same_count.provenance.notes == ()


def test_a_file_without_a_head(tmp_path, state):
    torch.save(
        {key: value for key, value in state.items() if not key.startswith("head.")}, tmp_path / "a.pth"
    )
    with pytest.raises(
        CheckpointError, match=r"missing from the file: head\.weight, head\.bias\n.*give num_classes"
    ):
        load_model(SOFT, tmp_path / "a.pth")
    assert load_model(SOFT, tmp_path / "a.pth", num_classes=3).provenance.new_head


def test_input_channels(tmp_path, state):
    torch.save(random_state(HARD), tmp_path / "hard.pth")
    colour = load_model(HARD, tmp_path / "hard.pth")
    grey = load_model(HARD, tmp_path / "hard.pth", in_chans=1)
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(1, 3, 32, 32)), rtol=1e-4, atol=1e-5)
    assert "adapted from 3 to 1 input channels" in grey.provenance.notes[0]
    torch.save(state, tmp_path / "soft.pth")
    with pytest.raises(CheckpointError, match="a soft split cannot be adapted to other input channels"):
        load_model(SOFT, tmp_path / "soft.pth", in_chans=1)


# --- bundled ----------------------------------------------------

CARD = {
    "model": SOFT,
    "data": "photo_crops",
    "recipe": "five epochs",
    "seed": 0,
    "commit": "abc",
    "test_accuracy": {"value": 0.8, "low": 0.75, "high": 0.85, "n": 500},
    "num_classes": 7,
    "img_size": 32,
    "in_chans": 3,
}


@pytest.fixture
def bundle(tmp_path, state):
    return save_weights(state, tmp_path / "data" / "weights" / f"{SOFT}.safetensors", CARD)


def test_bundled_weights_and_their_card(bundle, state):
    assert bundle.stat().st_mode == bundle.with_suffix(".json").stat().st_mode  # others may read both
    model = load_model(SOFT)
    assert same(model, {key: value.half().float() for key, value in state.items()})
    origin = model.provenance
    assert origin.label == f"bundled {SOFT} (photo_crops, seed 0)"
    assert (
        origin.sha256 == file_sha256(bundle) == json.loads(bundle.with_suffix(".json").read_text())["sha256"]
    )
    assert origin.accuracy == (0.8, 0.75, 0.85, 500)
    assert json.loads(json.dumps(as_json(origin)))["accuracy"] == CARD["test_accuracy"]
    assert available_weights(SOFT) == ["auto", "random", "bundled", "bundled/photo_crops"]


def test_accuracy_does_not_survive_a_change(bundle):
    assert load_model(SOFT, "bundled", img_size=48).provenance.accuracy is None
    assert load_model(SOFT, "bundled", num_classes=3).provenance.accuracy is None
    assert load_model(SOFT, "bundled", img_size=32, num_classes=7).provenance.accuracy is not None


def test_several_bundled_data_sets(bundle, state):
    save_weights(
        state, bundle.with_name(f"{SOFT}__cifar10.safetensors"), CARD | {"data": "cifar10", "seed": 3}
    )
    assert load_model(SOFT, "bundled").provenance.data == "photo_crops"
    assert load_model(SOFT, "bundled/cifar10").provenance.label == f"bundled {SOFT} (cifar10, seed 3)"
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        load_model(SOFT, "bundled/cifar")
    with pytest.raises(CheckpointError, match=f"no bundled weights for {HARD}; there are: {SOFT}"):
        load_model(HARD, "bundled")


def test_bundled_files_that_do_not_match_their_card(bundle):
    card = bundle.with_suffix(".json")
    good = card.read_text()
    for text, said in [
        (
            good.replace(file_sha256(bundle), "0" * 64),
            "is not the file that its card describes: expected 000",
        ),
        (good.replace(SOFT, HARD), f"is for {HARD}; expected {SOFT}"),
        (good.replace('"seed"', '"sed"'), "lacks seed"),
        ("{", "cannot be read"),
    ]:
        card.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            load_model(SOFT)
    with pytest.raises(ParameterError, match="the card lacks recipe"):
        save_weights({}, bundle, {key: value for key, value in CARD.items() if key != "recipe"})
    assert bundle.is_file()


@pytest.mark.parametrize("beside", ["{", "[1]", '{"architecture": "vit"}', '{"model": 1}'])
def test_a_json_file_that_is_no_card_is_left_alone(tmp_path, state, beside):
    torch.save(state, tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(beside)
    assert same(load_model(SOFT, tmp_path / "a.pth"), state)


def test_a_card_of_somebody_else_says_no_more_than_numbers(bundle, state):
    odd = {"test_accuracy": "good", "img_size": 10**9, "num_classes": "seven", "in_chans": None}
    card = json.loads(bundle.with_suffix(".json").read_text()) | odd
    bundle.with_suffix(".json").write_text(json.dumps(card))
    model = load_model(SOFT, bundle)
    assert model.provenance.accuracy is None
    assert model.num_classes == 7


# --- published --------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder as a plain file server, and ``owner/name/resolve/...`` as the model hub does."""

    def log_message(self, *args):
        pass

    def end_headers(self):
        if "/resolve/" in self.path:
            self.send_header("ETag", '"etag-of-the-file"')
            self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder whose files the authors' release consists of."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        monkeypatch.setenv("T2T_ANALYSIS_RELEASES", f"http://127.0.0.1:{http.server_port}")
        hub_at(monkeypatch, f"http://127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield folder
        http.shutdown()


def test_published_weights_are_downloaded_once(served, caplog, monkeypatch):
    weights = random_state("t2t_vit_7", depth=1)
    torch.save({"state_dict_ema": weights}, served / "71.7_T2T_ViT_7.pth.tar")
    model = tiny()
    assert same(model, weights)
    origin = model.provenance
    assert origin.kind == "published"
    assert origin.label == "published t2t_vit_7 (71.7_T2T_ViT_7.pth.tar)"
    assert origin.accuracy == (0.717, None, None, 50_000)
    monkeypatch.setenv("T2T_ANALYSIS_RELEASES", "http://127.0.0.1:9/")
    assert same(tiny(weights="published"), weights)
    assert not caplog.records
    small = tiny(img_size=64, num_classes=4).provenance
    assert small.accuracy is None
    assert [note.split()[0] for note in small.notes] == ["weights", "position", "classifier"]


def test_published_variants(served):
    cifar = random_state("t2t_vit_14", depth=1, num_classes=10)
    torch.save(
        {"net": prefixed("module.", cifar), "acc": 98.3}, served / PUBLISHED["t2t_vit_14"]["cifar10"].file
    )
    model = load_model("t2t_vit_14", "published/cifar10", depth=1)
    assert same(model, cifar)
    assert model.pretrained_cfg["mean"] == (0.4914, 0.4822, 0.4465)
    large = random_state("t2t_vit_14", depth=1, img_size=384)
    torch.save({"state_dict_ema": large}, served / PUBLISHED["t2t_vit_14"]["384"].file)
    model = load_model("t2t_vit_14", "published/384", depth=1)
    assert same(model, large)
    assert model.pretrained_cfg["input_size"] == (3, 384, 384)
    labelled = random_state("t2t_vit_24", depth=1)
    extra = {"aux_head.weight": torch.zeros(1000, 512), "aux_head.bias": torch.zeros(1000)}
    torch.save({"state_dict": labelled | extra}, served / PUBLISHED["t2t_vit_24"]["token_labelling"].file)
    assert same(load_model("t2t_vit_24", "published/token_labelling", depth=1), labelled)


def test_a_missing_release_raises_or_falls_through(served, caplog):
    with pytest.raises(DownloadError, match=r"71\.7_T2T_ViT_7\.pth\.tar answered 404"):
        tiny(weights="published")
    assert tiny().provenance.untrained
    assert len(caplog.records) == 1
    assert "UNTRAINED" in caplog.text
    assert "answered 404" in caplog.text


def test_a_page_in_place_of_the_file_does_not_stay_in_the_cache(served, tmp_path):
    (served / "71.7_T2T_ViT_7.pth.tar").write_text("<html>please log in</html>")
    with pytest.raises(DownloadError, match="did not answer with a weights file"):
        tiny(weights="published")
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_damaged_file_in_the_cache_is_named(tmp_path):
    path = tmp_path / "cache" / "releases" / "71.7_T2T_ViT_7.pth.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=str(path)):
        tiny()
    assert path.exists()


def test_timm_weights_come_through_the_hub_and_its_cache(served, monkeypatch):
    config = timm.get_pretrained_cfg("test_vit")
    folder = served / config.hf_hub_id / "resolve" / "main"
    folder.mkdir(parents=True)
    weights = random_state("test_vit")
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    model = load_model("test_vit")
    assert same(model, weights)
    assert model.provenance.kind == "timm"
    assert model.provenance.sha256 == file_sha256(folder / "model.safetensors")
    hub_at(monkeypatch, "http://127.0.0.1:9")
    adapted = load_model("test_vit", "published", img_size=64, num_classes=3, in_chans=1)
    assert adapted(torch.zeros(1, 1, 64, 64)).shape == (1, 3)
    assert adapted.provenance.new_head
    assert len(adapted.provenance.notes) == 3


@pytest.mark.parametrize("name", ["t2t_vit_7", "test_vit"])
@pytest.mark.parametrize("hang", ["name look-up", "silent server"])
def test_without_a_network_auto_is_random_in_time_and_says_so(name, hang, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        if hang == "name look-up":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(2))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("T2T_ANALYSIS_RELEASES", address)
        hub_at(monkeypatch, address)
        start = time.monotonic()
        model = load_model(name, timeout=0.3, depth=1)
        assert time.monotonic() - start < 1.5
        with pytest.raises(DownloadError, match="cannot reach"):
            load_model(name, "published", timeout=0.3, depth=1)
    assert model.provenance.untrained
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "\n" not in caplog.text.strip()
    assert inspect.signature(load_model).parameters["timeout"].default <= 3


def test_offline_mode_of_the_hub_is_respected(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        load_model("test_vit", "published")


def test_models_without_a_release(caplog):
    with pytest.raises(CheckpointError, match="nobody has published weights for t2t_vit_14_wide"):
        load_model("t2t_vit_14_wide", "published", depth=1)
    assert load_model("t2t_vit_14_wide", depth=1, img_size=32).provenance.untrained
    assert len(caplog.records) == 1
