"""The recorded outputs of the authors' implementation, and the weights and input they were recorded with."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.json"))
#: Where the recorded name is not ours.
OURS = {"tokens_type_convolution": "t2t_vit_c_14", "vit_small_patch16_224": "vit_small_paper_patch16_224"}


def load(name: str) -> dict:
    return json.loads((HERE / f"{name}.json").read_text())


def our_name(name: str, record: dict) -> str:
    return OURS.get(name, record["name"])


def noise(name: str, size: int) -> np.ndarray:
    """Reproducible numbers in [-1, 1): a 32-bit hash of position and name; no random-number library needed."""
    h = (np.arange(size, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) % (
        1 << 32
    )
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) % (1 << 32)
    return (h ^ (h >> np.uint64(16))).astype(np.float64) / 2**31 - 1


def _value(key: str, shape: torch.Size) -> np.ndarray:
    u, last = noise(key, math.prod(shape)).reshape(shape), key.rsplit(".", 1)[-1]
    if key in ("cls_token", "dist_token", "pos_embed"):
        return 0.5 * u
    if last == "w":
        return u * math.sqrt(3 * shape[0] / shape[1])
    if len(shape) == 1:
        return 1 + 0.25 * u if last == "weight" else 0.25 * u
    gain = 0.625 if key.endswith(".kqv.weight") else 1.0
    gain = 1.5 if key.endswith((".qkv.weight", ".q.weight", ".k.weight")) else gain
    return u * gain * math.sqrt(3 / math.prod(shape[1:]))


def fill(model: torch.nn.Module, family: str = "t2t") -> torch.nn.Module:
    for key, tensor in model.state_dict().items():
        if not (key == "pos_embed" and family == "t2t"):
            tensor.copy_(torch.from_numpy(_value(key, tensor.shape)))
    return model


def images(side: int) -> torch.Tensor:
    b, c, y, x = np.meshgrid(np.arange(2), np.arange(3), np.arange(side), np.arange(side), indexing="ij")
    smooth = np.sin(0.05 * (y + 1) * (c + 1) + 0.9 * b) * np.cos(0.07 * (x + 1) + 0.5 * c * (b + 1))
    return torch.from_numpy(smooth + 0.5 * noise("input", 2 * 3 * side * side).reshape(2, 3, side, side))
