"""What is said of costs follows the numbers: on made-up results, nothing is counted or timed."""

import math

import pandas as pd
import pytest

from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import CostParams
from t2t_analysis.results import Result
from t2t_analysis.sentences.cost import cost_conclusions, cost_findings

MODEL, BASELINE = "soft", "hard"
TABLE = {  # line: (model, parameters and multiply-accumulates counted and printed)
    "Table 2: T2T-ViT-14": ("t2t_vit_14", 21.546, 21.5, 4.783, 4.8),
    "Table 2: ViT-S/16": ("vit_small_paper_patch16_224", 48.754, 48.6, 9.889, 10.1),
    "Table 2: DeiT-small": ("deit_small_patch16_224", 22.051, 22.1, 4.599, 4.6),
    "Table 3: T2T-ViT_t-14": ("t2t_vit_t_14", 21.541, 21.5, 6.089, 6.1),
    "Table 4: MobileNetV2 1.4x": ("mobilenetv2_140", 6.109, 6.9, 0.582, 0.6),
}


def _printed(table=TABLE, notes=()):
    rows = []
    for place, (model, parameters, printed, macs, printed_macs) in table.items():
        found = {"parameters": (parameters, printed), "macs_all": (macs, printed_macs)}
        found["macs_linear"] = (0.9 * macs, printed_macs)
        rows += [
            {"measure": "paper_costs", "model": model, "place": place, "quantity": q, "value": v, "null": n}
            for q, (v, n) in found.items()
        ]
    return Result("paper_costs", pd.DataFrame(rows), {}, notes)


def _counted(macs=(60.0, 60.0), memory=True):
    values = {"parameters": (802.0, 801.0), "macs_all": macs}
    values |= {"peak_training": (3 * 2**20, 2 * 2**20), "tokeniser_saved": (2**20, 0)} if memory else {}
    rows = [
        {"measure": "cost", "model": name, "quantity": quantity, "value": value, "at": 16}
        for quantity, pair in values.items()
        for name, value in zip((MODEL, BASELINE), pair, strict=True)
    ]
    return Result("cost", pd.DataFrame(rows), {})


def _timed(*ratios, step="forward pass"):
    """Of (batch size, value, low, high)."""
    rows = [
        {
            "measure": "latency", "model": MODEL, "quantity": "latency_ratio", "at": at, "value": value,
            "low": low, "high": high, "n": 9, "estimator": f"median, {step}",
        }
        for at, value, low, high in ratios
    ]  # fmt: skip
    meta = {"device": "cpu, x86_64", "threads": 1, "cores": 2, "load": 0.5}
    return Result("latency", pd.DataFrame(rows, columns=None if rows else ["model", "quantity", "at"]), meta)


SLOWER = _timed((1, 1.2, 1.1, 1.3), (32, 1.5, 1.4, 1.7))


def _findings(printed=None, counted=None, timed=SLOWER, step=SLOWER):
    return cost_findings(printed or _printed(), counted or _counted(), timed, step, MODEL, BASELINE)


def _conclusions(printed=None, counted=None, timed=SLOWER, step=SLOWER):
    return cost_conclusions(printed or _printed(), counted or _counted(), timed, step, MODEL, BASELINE)


def _with(place, **changed):
    names = ("model", "parameters", "printed", "macs", "printed_macs")
    line = dict(zip(names, TABLE[place], strict=True)) | changed
    return {**TABLE, place: tuple(line.values())}


@pytest.mark.parametrize(
    ("macs", "first", "last"),
    [
        (4.783, "no more than half of either, as the paper claims", "less than half; as the paper claims"),
        (
            4.95,
            "no more than half of either, as the paper claims",
            "half, to within 1 %; as the paper claims",
        ),
        (5.2, "more than half of the multiply-accumulates, contrary to", "more than half; contrary to"),
    ],
)
def test_half_is_judged_by_the_rule(macs, first, last):
    printed = _printed(_with("Table 2: T2T-ViT-14", macs=macs))
    assert first in _findings(printed)[0]
    products = _conclusions(printed)[1]
    assert last in products
    assert f"is {macs / 9.889:.3f}" in products


def test_the_first_sentence_holds_the_pair_and_its_time_with_interval():
    first = _findings(counted=_counted(macs=(74.0, 60.0)))[0]
    assert "`soft` has 100.1 % of the parameters and 123.3 % of the multiply-accumulates of `hard`" in first
    assert "1.500 [1.400, 1.700] times as long for 32 images (median of 9 repeats" in first


def test_the_half_is_no_half_of_another_vit():
    assert any("97.7 % of the parameters and 104.0 %" in line and "not of" in line for line in _findings())
    smaller = _printed(_with("Table 2: DeiT-small", parameters=44.0))
    line = next(line for line in _findings(smaller) if "DeiT-small" in line)
    assert "49.0 % of the parameters" in line
    assert "not of the other" not in line


def test_agreement_with_the_print_is_counted():
    lines = _findings(_printed(notes=("one", "two")))
    said = next(line for line in lines if line.startswith("The printed numbers"))
    assert "parameters on 4 of 5 lines" in said
    assert "on 4 of 5 lines counting all products" in said
    assert "on 0 of 5 lines counting linear layers only" in said
    assert "2 lines have no code" in said
    assert "6.9 million printed and 6.11 counted (−11.5 %)" in " ".join(lines)


def test_one_model_printed_in_two_ways_is_named():
    assert not any("one and the same" in line for line in _findings())
    twice = {**TABLE, "Table 6: T2T-ViT-Wide": ("w", 25.2, 25.1, 5.2, 5.0)}
    twice["Table 7: T2T-ViT-d768-4"] = ("w", 25.2, 25.0, 5.2, 5.4)
    line = next(line for line in _findings(_printed(twice)) if "one and the same" in line)
    assert "T2T-ViT-Wide or T2T-ViT-d768-4 25.1 and 25.0 million parameters" in line
    assert "5.0 and 5.4 × 10⁹" in line


def test_memory_is_named_where_it_was_counted():
    assert any("3.0 MiB" in line and "1.500 times" in line and "1.0 MiB" in line for line in _findings())
    assert not any("MiB" in line for line in _findings(counted=_counted(memory=False)))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.4, 1.7, "longer than its multiply-accumulates say, 1.200 times"),
        (0.9, 1.1, "less than its multiply-accumulates say, 1.200 times"),
        (1.195, 1.205, "takes 1.300 [1.195, 1.205] times that of `hard`: what its multiply-accumulates say"),
        (1.1, 1.7, "not settled against its multiply-accumulates"),
        (math.nan, math.nan, "too few repeats for an interval"),
    ],
)
def test_time_is_held_against_the_counts(low, high, words):
    timed = _timed((32, 1.3, low, high), step="training step without optimiser")
    line = _conclusions(counted=_counted(macs=(72.0, 60.0)), step=timed)[-1]
    assert words in line
    assert "a training step" in line


def test_what_is_missing_is_said_and_breaks_nothing():
    lines = _findings(
        _printed({"Table 2: ViT-S/16": TABLE["Table 2: ViT-S/16"]}), timed=_timed(), step=_timed()
    )
    assert "no verdict on half" in lines[0]
    assert "was not timed" in lines[0]
    ends = _conclusions(_printed({"Table 2: ViT-S/16": TABLE["Table 2: ViT-S/16"]}), timed=_timed())
    assert ends[0] == "Parameters: not counted, no verdict."
    assert "Time against counts: not measured." in ends


def test_the_machine_is_named():
    assert any("cpu, x86_64, 1 thread, load 0.5 on 2 cores" in line for line in _findings())


@pytest.mark.parametrize("given", [{"batch_sizes": "0,4"}, {"batch_sizes": ""}, {"repeats": 5}])
def test_timings_that_make_no_interval_are_refused(given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        validate(CostParams, given)
    assert validate(CostParams, {"batch_sizes": "4,1"}).timed() == [1, 4]
