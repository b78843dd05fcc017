"""Tables that are made from the code: ``python -m tests.data_tables`` writes them anew.

Those of ``data/README.md``, and what ``python -m t2t_analysis models`` says of the networks. The columns that
``data/study/README.md`` explains are made here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch

from t2t_analysis._names import TABLE
from t2t_analysis._paths import data_dir
from t2t_analysis.data.crops import CROP, MIN_STD, FixedCrops, blocks, crop_classes, left_out, reduction
from t2t_analysis.data.photos import PHOTOS, load_photo
from t2t_analysis.models import MODELS, PUBLISHED
from t2t_analysis.tables import columns

__all__ = ["facts", "study_columns", "tables", "write_models", "write_tables"]

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def _markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _photo_table() -> str:
    rows = []
    for photo in PHOTOS:
        width, height = load_photo(photo.name).size
        rows.append((photo.name, photo.package, photo.file, f"{width} x {height}", photo.licence))
    return _markdown(("photograph", "package", "file", "pixels", "licence note"), rows)


def _crop_table() -> str:
    names = crop_classes()
    train, test = (torch.bincount(blocks(split).labels, minlength=len(names)) for split in ("train", "test"))
    rows: list[tuple[object, ...]] = [
        (label, name, int(train[label]), int(test[label]), 4 * int(test[label]))
        for label, name in enumerate(names)
    ]
    rows.append(("", "all", int(train.sum()), int(test.sum()), 4 * int(test.sum())))
    return _markdown(("label", "class", "train blocks", "test blocks", "test crops"), rows)


def _reduced() -> str:
    factors = {name: reduction(*load_photo(name).size) for name in crop_classes()}
    return ", ".join(f"{name} by {factor}" for name, factor in factors.items() if factor > 1) or "none"


def _faint() -> int:
    """Test crops with less than one grey level of spread: quarters of the test blocks."""
    quarters = blocks("test").pixels.unfold(1, CROP, CROP).unfold(2, CROP, CROP)  # (n, 2, 2, 32, 32)
    return int((quarters.std((-2, -1), correction=0) < MIN_STD).sum())


def tables() -> str:
    """Markdown of both tables."""
    out = ", ".join(left_out()) or "none"
    return (
        f"### photos: {len(PHOTOS)} photographs\n\n{_photo_table()}\n\n"
        f"### photo_crops: {len(crop_classes())} classes\n\n{_crop_table()}\n\n"
        f"Left out of photo_crops as too small for both splits: {out}. Reduced: {_reduced()}. "
        f"Test crops with less than one grey level of spread: {_faint()} of {len(FixedCrops())}.\n"
    )


def write_tables(path: Path | None = None) -> Path:
    """Put the tables between their marks in the README."""
    path = path or data_dir() / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}", encoding="utf-8")
    return path


def study_columns() -> str:
    """Columns of the study's tables as Markdown."""
    parts = []
    for table in ("runs", "curves"):
        rows = [(name, dtype, meaning) for name, (dtype, meaning) in columns(table).items()]
        parts.append(f"## {table}.csv\n\n{_markdown(('column', 'type', 'meaning'), rows)}\n")
    return "\n".join(parts)


def facts(name: str) -> dict[str, Any]:
    """What the table of models says of one, read from the network."""
    with torch.device("meta"):  # shapes only: nothing is drawn at random or held in memory
        model: Any = timm.create_model(name)
    tokens = getattr(model, "tokens_to_token", None)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "classes": model.num_classes,
        "input": "x".join(str(side) for side in model.default_cfg["input_size"][1:]),
        "tokeniser": "hard" if tokens is None else str(getattr(tokens, "tokens_type", "soft split")),
        "published": list(PUBLISHED.get(name, {})),
    }


def write_models() -> Path:
    """Write what is known of every model beside the networks."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(facts(name))}" for name in MODELS)
    TABLE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return TABLE


if __name__ == "__main__":
    print(write_tables(), write_models())
