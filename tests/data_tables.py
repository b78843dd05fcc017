"""The tables of ``data/README.md``, made from what the code loads: ``python -m tests.data_tables``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from t2t_analysis._paths import data_dir
from t2t_analysis.data.crops import CROP, MIN_STD, FixedCrops, blocks, crop_classes, left_out, reduction
from t2t_analysis.data.photos import PHOTOS, load_photo

__all__ = ["tables", "write_tables"]

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


if __name__ == "__main__":
    print(write_tables())
