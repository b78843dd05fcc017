"""Broken, strange and hostile files: each loads correctly or ends in an error that names it; none runs anything.

Mutants are drawn from seeds. ``make test`` tries one of each kind, ``make stress`` as many rounds as
``T2T_ANALYSIS_STRESS`` says, and prints the counts.
"""

# ruff: noqa: PT017 - whether there is an error is what is counted
from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from t2t_analysis.data.reading import read_rgb
from t2t_analysis.errors import CheckpointError, DataError
from t2t_analysis.models import load_model

ROUNDS = int(os.environ.get("T2T_ANALYSIS_STRESS", "1"))
MODEL = "test_vit"
LOADS, REFUSED, EITHER = "loads", "refused", "either"
State = dict[str, torch.Tensor]
KINDS: dict[str, tuple[str, Callable]] = {}


def kind(outcome: str) -> Callable:
    """Register a mutant: a function that writes ``path`` from a good state."""

    def add(function: Callable) -> Callable:
        KINDS[function.__name__] = outcome, function
        return function

    return add


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(7)
    return {
        k: torch.randn_like(v) * 0.05 for k, v in timm.create_model(MODEL, num_classes=7).state_dict().items()
    }


def _bytes(state: State, how: int) -> bytes:
    if how == 0:
        return safetensors.torch.save(state)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=how == 1)
    return stream.getvalue()


def _suffix(path: Path, how: int) -> Path:
    return path.with_suffix(".safetensors" if how == 0 else ".pth")


# ---- how a file comes to be broken -----------------------------------------------------------------------


@kind(REFUSED)
def truncated(state, path, rng):
    how = int(rng.integers(3))
    content = _bytes(state, how)
    _suffix(path, how).write_bytes(content[: int(rng.integers(len(content) - 1))])


@kind(EITHER)  # safetensors and the old format have no checksum
def flipped_bits(state, path, rng):
    how = int(rng.integers(3))
    content = bytearray(_bytes(state, how))
    for at in rng.integers(len(content), size=int(rng.integers(1, 20))):
        content[at] ^= 1 << int(rng.integers(8))
    _suffix(path, how).write_bytes(content)


@kind(REFUSED)
def flipped_weights_of_a_zip(state, path, rng):
    content = bytearray(_bytes(state, 1))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        part = max(archive.infolist(), key=lambda info: info.file_size)
    content[part.header_offset + 200 + int(rng.integers(part.file_size - 400))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@kind(EITHER)
def flipped_header(state, path, rng):
    content = bytearray(_bytes(state, 0))
    for at in rng.integers(2000, size=3):
        content[at] = int(rng.integers(256))
    path.with_suffix(".safetensors").write_bytes(content)


@kind(REFUSED)
def noise(state, path, rng):
    _suffix(path, int(rng.integers(2))).write_bytes(rng.bytes(int(rng.integers(1, 5000))))


@kind(REFUSED)
def something_else(state, path, rng):
    texts = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"<!doctype html><p>log in</p>",
        b"", b"\n\n", b"{}", b'{"error": "not found"}', b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"\x80\x02.", b"\x80\x04N.",
    ]  # fmt: skip
    _suffix(path, int(rng.integers(2))).write_bytes(texts[int(rng.integers(len(texts)))])


@kind(REFUSED)
def a_folder(state, path, rng):
    path.mkdir()


@kind(REFUSED)
def a_link_to_nothing(state, path, rng):
    path.symlink_to(path.parent / "nowhere")


# ---- what else is in it ----------------------------------------------------------------------------------


@kind(LOADS)
def nested_prefixes(state, path, rng):
    prefix = "".join(rng.choice(["module.", "_orig_mod."], size=int(rng.integers(1, 3)), replace=False))
    entry = rng.choice(["", "state_dict", "model", "net", "state_dict_ema", "model_ema"])
    content = {prefix + key: value for key, value in state.items()}
    torch.save({str(entry): content, "epoch": 3} if entry else content, path)


@kind(LOADS)
def harmless_things_beside(state, path, rng):
    beside = [
        np.float32(0.5),
        np.int64(3),
        Path("runs/a"),
        argparse.Namespace(lr=1e-3, out=Path("a")),
        None,
        {"a": [1]},
    ]
    torch.save({"state_dict": state, "x": beside[int(rng.integers(len(beside)))], 7: "seven"}, path)


@kind(LOADS)
def other_precision(state, path, rng):
    dtype = [torch.float16, torch.bfloat16, torch.float64][int(rng.integers(3))]
    torch.save({key: value.to(dtype) for key, value in state.items()}, path)


@kind(REFUSED)
def other_numbers(state, path, rng):
    dtype = [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64][int(rng.integers(5))]
    torch.save(state | {"norm.weight": state["norm.weight"].to(dtype)}, path)


@kind(REFUSED)
def no_plain_tensor(state, path, rng):
    value = state["head.weight"]
    odd = [
        value.to_sparse(), value.to("meta"), value[:1, :1].expand(10**8, value.shape[1]), value.flatten(), value[0, 0],
        torch.empty(0), torch.full_like(value, torch.nan), torch.full_like(value, -torch.inf),
    ]  # fmt: skip
    torch.save(state | {"head.weight": odd[int(rng.integers(len(odd)))]}, path)


@kind(REFUSED)
def a_tensor_less(state, path, rng):
    gone = rng.choice([key for key in state if not key.startswith("head.")])
    torch.save({key: value for key, value in state.items() if key != gone}, path)


@kind(REFUSED)
def a_tensor_more(state, path, rng):
    name = rng.choice(
        ["extra.weight", "blocks.99.norm1.weight", "a\x1b[31mred", "<script>", "日本", "a\nb", ""]
    )
    torch.save(state | {str(name): torch.zeros(3)}, path)


@kind(REFUSED)
def a_tensor_turned(state, path, rng):
    names = [
        k for k, v in state.items() if v.ndim == 2 and v.shape[0] != v.shape[1] and not k.startswith("head")
    ]
    name = str(rng.choice(names))
    torch.save(state | {name: state[name].T.contiguous()}, path)


@kind(REFUSED)
def another_architecture(state, path, rng):
    other = timm.create_model(str(rng.choice(["test_vit2", "test_resnet", "test_efficientnet"])))
    torch.save(other.state_dict(), path)


@kind(REFUSED)
def foreign_names(state, path, rng):
    old, new = [("blocks", "encoder.layers"), ("attn.qkv", "self_attn"), ("norm", "ln")][int(rng.integers(3))]
    torch.save({key.replace(old, new): value for key, value in state.items()}, path)


@kind(REFUSED)
def no_weights(state, path, rng):
    contents = [
        {},
        [],
        3,
        "text",
        None,
        {"epoch": 3},
        {"state_dict": {}},
        [state],
        {"state_dict": [1, 2]},
        {1: {2: 3}},
        {("a",): torch.zeros(2), "x" * 10**6: torch.zeros(2)},
    ]
    torch.save(contents[int(rng.integers(len(contents)))], path)


@kind(LOADS)
def what_it_says_of_itself(state, path, rng):
    said = [
        {"num_classes": 10**10},
        {"img_size": 10**9},
        {"img_size": [0, -1]},
        {"in_chans": 10**8},
        {"img_size": "x"},
    ]
    torch.save({"state_dict": state, "hyper_parameters": {"model_args": said[int(rng.integers(5))]}}, path)


# ---- what wants to run something, or to fill the memory ----------------------------------------------------


class Evil:
    """Makes a folder called harm when it is unpickled by anybody who runs what pickles ask for."""

    def __init__(self, how: str, harm: Path) -> None:
        self.how, self.harm = how, str(harm)

    def __reduce__(self):
        calls = {
            "mkdir": (os.mkdir, (self.harm,)),
            "system": (os.system, (f"mkdir {self.harm}",)),
            "eval": (eval, (f"__import__('os').mkdir({self.harm!r})",)),
            "exec": (exec, (f"import os; os.mkdir({self.harm!r})",)),
            "getattr": (getattr, ("text", "upper")),
            "import": (__import__, ("antigravity",)),
            "load": (torch.load, (self.harm,)),
            "hub": (torch.hub.load, (self.harm, "x")),
        }
        return calls[self.how]


@kind(REFUSED)
def evil_pickle(state, path, rng):
    names = ["mkdir", "system", "eval", "exec", "getattr", "import", "load", "hub"]
    thing = Evil(str(rng.choice(names)), path.parent / "harm")
    content = [thing, {"state_dict": state, "x": thing}, {"state_dict": state | {"x": thing}}, {thing: 1}][
        int(rng.integers(4))
    ]
    how = int(rng.integers(3))
    if how == 2:
        path.write_bytes(pickle.dumps(content, int(rng.integers(6))))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == 0)


RAW = {
    "global": b"cos\nmkdir\n(S'harm'\ntR.", "inst": b"(S'harm'\nios\nmkdir\n.", "obj": b"(cos\nmkdir\nS'harm'\no.",
    "build": b"\x80\x02cargparse\nNamespace\n)\x81}X\x09\x00\x00\x00__class__cos\nsystem\nsb.",
    "extension": b"\x80\x02\x82\x01.", "persistent": b"\x80\x02cos\nmkdir\nQ.", "memo": b"\x80\x02h\x05.",
    "stack": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x04harm\x85R.",
    "deep list": b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 9999 + b"K\x01s.", "huge": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "endless key": b"\x80\x02})q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"K\x01s.",
    "endless lists": b"\x80\x02]q\x00" + b"".join(b"]q%ch%cah%ca" % (i + 1, i, i) for i in range(60)) + b".",
}  # fmt: skip


@kind(REFUSED)
def raw_pickle(state, path, rng):
    """Opcodes that Python's own pickler does not write, plain and as torch's archives hold them."""
    program = RAW[str(rng.choice(list(RAW)))]
    if rng.random() < 0.5:
        path.write_bytes(program)
        return
    with zipfile.ZipFile(io.BytesIO(_bytes({}, 1))) as good, zipfile.ZipFile(path, "w") as archive:
        for part in good.infolist():
            archive.writestr(part, program if part.filename.endswith("data.pkl") else good.read(part))


@kind(REFUSED)
def a_program(state, path, rng):
    module = torch.nn.Linear(2, 2)
    if rng.random() < 0.5:
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), path)
    else:
        torch.save(module, path)


@kind(EITHER)
def other_image_size(state, path, rng):
    """A table of positions for another square; the model is built at the size of the file."""
    side, old = int(rng.integers(2, 12)), state["pos_embed"]
    torch.save(state | {"pos_embed": torch.randn(1, 1 + side**2, old.shape[-1])}, path)


@kind(REFUSED)
def bomb(state, path, rng):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/data.pkl", "a/data/0", "a/version"):
            archive.writestr(name, bytes(int(rng.integers(10**6, 10**7))))


@kind(REFUSED)
def lying_header(state, path, rng):
    header = {"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}
    lies = [
        {"shape": [10**12]}, {"data_offsets": [0, 10**12]}, {"data_offsets": [256, 0]}, {"data_offsets": [-4, 252]},
        {"dtype": "F1"}, {"shape": [-64]}, {"shape": "x"}, {"dtype": "F8_E8M0"}, {"shape": [2**63, 2]},
    ]  # fmt: skip
    header["norm.weight"] |= lies[int(rng.integers(len(lies)))]
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.7 else int(rng.integers(2**40, 2**62))
    path.with_suffix(".safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(256))


# ---- trying them -------------------------------------------------------------------------------------------


def _try(path: Path, state: State, outcome: str) -> str:
    try:
        model = load_model(MODEL, path)
    except CheckpointError as error:
        assert path.name in str(error), f"{error} does not name {path.name}"
        assert "\x1b" not in str(error)
        assert len(str(error)) < 5000
        assert outcome != LOADS, error
        return "error named"
    assert outcome != REFUSED, "loaded"
    own = model.state_dict()
    assert all(value.isfinite().all() for value in own.values())
    if outcome == LOADS:
        assert all(torch.allclose(own[key], state[key], rtol=1e-2, atol=1e-3) for key in state)
    return "loaded"


@pytest.mark.parametrize("name", KINDS)
def test_checkpoints(name: str, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, make = KINDS[name]
    counts: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(state, folder / "file.pth", np.random.default_rng([number, *name.encode()]))
        (path,) = (one for one in folder.iterdir() if one.name.startswith("file."))
        try:
            counts[_try(path, state, outcome)] += 1
        except BaseException as error:
            raise AssertionError(f"{name}, seed {number}: {type(error).__name__}: {error}") from error
        assert not (folder / "harm").exists(), f"{name}, seed {number} was executed"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 600_000, f"{grown:,} KiB more"
    print(f"checkpoints, {name}: {ROUNDS} tried, {dict(counts)}, crashes 0")


@pytest.mark.parametrize("name", RAW)
def test_no_opcode_is_executed(
    name: str, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.pth").write_bytes(RAW[name])
    assert _try(Path("file.pth"), state, REFUSED) == "error named"
    assert os.listdir() == ["file.pth"]


FORMATS = {"AVIF": ".avif",
           "PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp", "PPM": ".ppm",
           "TGA": ".tga", "JPEG2000": ".jp2", "MPO": ".mpo"}  # fmt: skip
MODES = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"],
         "JPEG": ["L", "RGB", "CMYK"], "GIF": ["P"], "WEBP": ["RGB", "RGBA"]}  # fmt: skip


def _picture(kind: str, rng: np.random.Generator) -> bytes:
    size = [(1, 1), (1, 5000), (37, 23), (64, 64)][int(rng.integers(4))]
    mode = str(rng.choice(MODES.get(kind, ["RGB"])))
    frame = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode == "I;16":
        frame = Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), dtype=np.uint16))
    elif mode == "F":
        frame = Image.fromarray(rng.random((size[1], size[0]), dtype=np.float32))
    else:
        frame = frame.convert(mode)
    options: dict = {}
    if (
        kind in ("GIF", "TIFF", "WEBP", "PNG", "MPO")
        and mode not in ("I;16", "F", "CMYK")
        and rng.random() < 0.5
    ):
        options = {"save_all": True, "append_images": [frame.copy()]}
    if kind in ("JPEG", "WEBP", "PNG") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(1, 9))
        options["exif"] = exif
    stream = io.BytesIO()
    frame.save(stream, kind, **options)
    return stream.getvalue()


def _damaged(content: bytes, how: str, rng: np.random.Generator) -> bytes:
    if how == "truncated":
        return content[: int(rng.integers(len(content)))]
    if how == "flipped":
        damaged = bytearray(content)
        for at in rng.integers(len(content), size=8):
            damaged[at] = int(rng.integers(256))
        return bytes(damaged)
    return {"whole": content, "text": b"not an image\n", "zeros": bytes(len(content)), "empty": b""}[how]


@pytest.mark.parametrize("kind", FORMATS)
def test_images(kind: str, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    path = tmp_path / f"日 é{FORMATS[kind]}"
    for number in range(max(4, ROUNDS)):
        rng = np.random.default_rng([number, *kind.encode()])
        whole = _picture(kind, rng)
        for how in ("whole", "truncated", "flipped", "text", "zeros", "empty"):
            path.write_bytes(_damaged(whole, how, rng))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    image = read_rgb(path, str(path))
                assert image.mode == "RGB"
                assert how in ("whole", "truncated", "flipped"), f"{how} was read"
                counts["read"] += 1
            except DataError as error:
                assert str(path) in str(error)
                assert how != "whole", error
                counts["error named"] += 1
            except BaseException as error:
                raise AssertionError(
                    f"{kind}, seed {number}, {how}: {type(error).__name__}: {error}"
                ) from error
    print(f"images, {kind}: {sum(counts.values())} tried, {dict(counts)}, crashes 0")
