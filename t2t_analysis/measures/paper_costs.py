"""Are the printed costs right? Every model that the paper's tables name, counted, against what is printed.

Yuan et al., "Tokens-to-Token ViT", ICCV 2021 (arXiv 2101.11986v3), and the README of the authors' release.
The literature counts multiply-accumulates in two ways, so both stand beside the printed number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas as pd

from ..results import Result
from .cost import Counts, Shapes, count

__all__ = ["PAPER", "Printed", "agreeing", "disagreeing", "printed_costs"]

#: all tables print one decimal
_ROUNDING = 0.05 + 1e-9


@dataclass(frozen=True)
class Printed:
    """One line of a table as printed: millions of parameters, 10^9 multiply-accumulates.

    ``name`` is the registered model that the line is about, with its arguments; None where no code says what
    it is, with the reason in ``why``.
    """

    table: str
    label: str
    name: str | None
    millions: float
    billions: float | None
    img_size: int = 224
    arguments: dict[str, Any] = field(default_factory=dict)
    why: str = ""


_UNPUBLISHED = "the paper gives depth and width, the release no code: MLP width and heads are unknown"
_HARD, _CONVOLUTION = {"tokens_type": "hard"}, {"tokens_type": "convolution"}
_RESNET18 = {"channels": (96, 192, 384, 768)}  # 1.5 times as wide; the stem keeps its 64 channels


def _rows(table: str, *lines: tuple[Any, ...]) -> Iterator[Printed]:
    for label, name, millions, billions, *rest in lines:
        yield Printed(table, label, name, millions, billions, **(rest[0] if rest else {}))


PAPER: tuple[Printed, ...] = (
    *_rows(
        "Table 1",
        ("T2T-ViT-7", "t2t_vit_7", 4.2, 1.1),
        ("T2T-ViT-12", "t2t_vit_12", 6.8, 1.8),
        ("ViT-B/16", "vit_base_patch16_224", 86.8, 17.6),
    ),
    *_rows(
        "Table 2",
        ("ViT-S/16", "vit_small_paper_patch16_224", 48.6, 10.1),
        ("DeiT-small", "deit_small_patch16_224", 22.1, 4.6),
        ("DeiT-small-Distilled", "deit_small_distilled_patch16_224", 22.1, 4.7),
        ("T2T-ViT-14", "t2t_vit_14", 21.5, 4.8),
        ("T2T-ViT-14 at 384", "t2t_vit_14", 21.5, 17.1, {"img_size": 384}),
        ("ViT-B/16", "vit_base_patch16_224", 86.4, 17.6),
        ("ViT-L/16", "vit_large_patch16_224", 304.3, 63.6),
        ("T2T-ViT-24", "t2t_vit_24", 64.1, 13.8),
    ),
    *_rows(
        "Table 3",
        ("ResNet50", "resnet50", 25.5, 4.3),
        ("ResNet101", "resnet101", 44.6, 7.9),
        ("ResNet152", "resnet152", 60.2, 11.6),
        ("T2T-ViT_t-14", "t2t_vit_t_14", 21.5, 6.1),
        ("T2T-ViT-19", "t2t_vit_19", 39.2, 8.5),
        ("T2T-ViT_t-19", "t2t_vit_t_19", 39.2, 9.8),
        ("T2T-ViT_t-24", "t2t_vit_t_24", 64.1, 15.0),
    ),
    *_rows(
        "Table 4",
        ("MobileNetV1 1.0x", "mobilenetv1_100", 4.2, 0.6),
        ("T2T-ViT-7", "t2t_vit_7", 4.3, 1.1),
        ("MobileNetV2 1.0x", "mobilenetv2_100", 3.5, 0.3),
        ("MobileNetV2 1.4x", "mobilenetv2_140", 6.9, 0.6),
        ("MobileNetV3", "mobilenetv3_large_100", 5.4, 0.2),
        ("T2T-ViT-12", "t2t_vit_12", 6.9, 1.8),
    ),
    *_rows(
        "Table 6",
        ("ResNet50", "resnet50", 25.6, 4.3),
        ("Wide-ResNet18x1.5", "resnet18", 26.0, 4.1, {"arguments": _RESNET18}),
        ("DenseNet201", "densenet201", 20.1, 4.4),
        ("SENet50", "seresnet50", 28.1, 4.9),
        ("ResNeXt50", "resnext50_32x4d", 25.0, 4.3),
        ("ResNet50-Ghost", None, 19.9, 3.2, {"why": "timm has no ghost version of ResNet50"}),
        ("ViT-S/16", "vit_small_paper_patch16_224", 48.6, 10.1),
        ("ViT-DN", None, 24.5, 5.5, {"why": _UNPUBLISHED}),
        ("ViT-SW", None, 47.9, 9.9, {"why": _UNPUBLISHED}),
        ("ViT-Dense", None, 46.7, 9.7, {"why": _UNPUBLISHED}),
        ("ViT-SE", None, 49.2, 10.2, {"why": _UNPUBLISHED}),
        ("ViT-ResNeXt", None, 48.6, 10.1, {"why": _UNPUBLISHED}),
        ("ViT-Ghost", None, 32.1, 6.9, {"why": _UNPUBLISHED}),
        ("T2T-ViT-14", "t2t_vit_14", 21.5, 4.8),
        ("T2T-ViT-Wide", "t2t_vit_14_wide", 25.1, 5.0),
        ("T2T-ViT-Dense", "t2t_vit_dense", 23.7, 5.5),
        ("T2T-ViT-SE", "t2t_vit_14_se", 21.9, 4.9),
        ("T2T-ViT-ResNeXt", "t2t_vit_14_resnext", 21.5, 4.8),
        ("T2T-ViT-Ghost", "t2t_vit_16_ghost", 16.3, 3.7),
    ),
    *_rows(
        "Table 7",
        ("T2T-ViT-14 wo T2T", "t2t_vit_14", 21.1, 4.2, {"arguments": _HARD}),
        ("T2T-ViT_c-14", "t2t_vit_14", 21.3, 4.6, {"arguments": _CONVOLUTION}),
        ("T2T-ViT-d768-4", "t2t_vit_14_wide", 25.0, 5.4),
    ),
    *_rows(
        "README",
        ("T2T-ViT-10", "t2t_vit_10", 5.9, 1.5),
        ("T2T-ViT-14 at 384", "t2t_vit_14", 21.7, None, {"img_size": 384}),
        ("T2T-ViT_t-19", "t2t_vit_t_19", 39.2, 9.8),
    ),
)  # fmt: skip


@cache
def _counts(name: str, img_size: int, arguments: tuple[tuple[str, Any], ...]) -> Counts:
    return count(Shapes.of(name, img_size, **dict(arguments)))


def printed_costs(lines: Iterable[Printed] = PAPER) -> Result:
    """Count every line of the paper's tables; its printed number is the null, for "what is printed is right".

    Parameters in millions, multiply-accumulates in 10^9. Lines whose model cannot be built are in the notes, with the
    reason. ``place`` is table and line.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for line in lines:
        if line.name is None:
            notes.append(f"{line.table}, {line.label}: not counted, {line.why}")
        else:
            rows += _tidy(line, _counts(line.name, line.img_size, tuple(line.arguments.items())))
    return Result("paper_costs", pd.DataFrame(rows), {"source": "arXiv 2101.11986v3"}, tuple(notes))


def agreeing(frame: pd.DataFrame, tolerance: float) -> pd.Series:
    """Which rows of `printed_costs` agree with the print: within ``tolerance`` of it, or equal once rounded.

    >>> rows = pd.DataFrame({"value": [4.31, 4.23, 6.11], "null": [4.3, 4.2, 6.9]})
    >>> agreeing(rows, 0.01).tolist()
    [True, True, False]
    """
    off = (frame["value"] - frame["null"]).abs()
    return (off <= tolerance * frame["null"]) | (off <= _ROUNDING)


def disagreeing(printed: Result, tolerance: float = 0.01) -> pd.DataFrame:
    """Lines of `printed_costs` whose count does not agree with the print, to be read: what, counted, printed."""
    frame = printed.frame[printed.frame["null"].notna() & (printed.frame["quantity"] != "trainable")]
    rows = frame[~agreeing(frame, tolerance)]
    return pd.DataFrame({
        "line": rows["place"], "what": rows["quantity"].map(_SAID), "counted": rows["value"].astype(float).round(3),
        "printed": rows["null"].astype(float),
    }).reset_index(drop=True)  # fmt: skip


_SAID = {"parameters": "parameters (10⁶)", "macs_all": "multiply-accumulates, all products (10⁹)",
         "macs_linear": "multiply-accumulates, linear layers (10⁹)"}  # fmt: skip


def _tidy(line: Printed, counts: Counts) -> Iterator[dict[str, Any]]:
    million, billion = "million parameters", "10^9 multiply-accumulates"
    columns = (
        (line.millions, million, 1e6, "all, the frozen position table included"),
        (line.millions, million, 1e6, "those that need a gradient"),
        (line.billions, billion, 1e9, "all products"),
        (line.billions, billion, 1e9, "linear layers and 2-D convolutions only"),
    )
    for (quantity, value), (printed, unit, scale, estimator) in zip(
        counts._asdict().items(), columns, strict=True
    ):
        yield {
            "measure": "paper_costs", "model": line.name, "weights": "no weights: counted on shapes",
            "place": f"{line.table}: {line.label}", "quantity": quantity, "value": value / scale,
            "value_unit": unit, "estimator": estimator, "interval": "none: counted, not sampled", "n": 1,
            "variant": "counted",
            "unit": "model", "null": printed, "null_kind": f"printed in {line.table}" if printed else "not printed",
        }  # fmt: skip
