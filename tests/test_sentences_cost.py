"""What is said of costs follows the numbers: on made-up results, nothing is counted or timed."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import CostParams
from t2t_analysis.results import Result
from t2t_analysis.sentences import cost
from t2t_analysis.sentences.cost import cost_conclusions, cost_findings, printed_finding

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


def _timed(*ratios, variant="inference"):
    """Of (batch size, value, low, high)."""
    rows = [
        {
            "measure": "latency", "model": MODEL, "quantity": "latency_ratio", "at": at, "value": value,
            "low": low, "high": high, "n": 9, "unit": "repeat", "variant": variant,
        }
        for at, value, low, high in ratios
    ]  # fmt: skip
    meta = {"device": "cpu, x86_64", "threads": 1, "cores": 2, "load": 0.5}
    return Result("latency", rows, meta)


SLOWER = _timed((1, 1.2, 1.1, 1.3), (32, 1.5, 1.4, 1.7))


MODELS = {name: SimpleNamespace(provenance=SimpleNamespace(untrained=True)) for name in (MODEL, BASELINE)}


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    """The paper's models are counted elsewhere."""
    row = {
        "measure": "evidence",
        "model": "T2T-ViT-14",
        "model_b": "the paper's ViT-S/16",
        "unit": "model",
        "n": 1,
    }
    found = [
        row | {"quantity": f"cost:{name}_over_half", "value": v, "low": v, "high": v}
        for name, v in (("parameters", -0.06), ("macs_all", -0.02))
    ]
    monkeypatch.setattr(cost, "cost_rows", lambda: found)


def _findings(printed=None, counted=None, timed=SLOWER, step=SLOWER, models=MODELS):
    return cost_findings(printed or _printed(), counted or _counted(), timed, step, models)


def test_the_claim_is_judged_by_the_ledger_first():
    first = _findings()[0]
    assert "half the parameters" in first
    assert (
        "**Supported** by the paper's models; those of this page are drawn. Parameters, ratio less one half"
        in first
    )


def test_the_pair_is_counted_and_timed_with_interval():
    said = " ".join(_findings())
    assert "1.50 [1.40, 1.70] in `soft`" in said
    assert "a forward pass of 32 images" in said
    assert "3 MiB in `soft` and 2 MiB in `hard`, 150.0 % of it (counted)" in said
    ends = " ".join(cost_conclusions(_counted(), SLOWER, SLOWER, MODELS))
    assert "cpu, x86_64, 1 thread, load 0.5 on 2 cores" in ends


def test_one_model_alone_has_a_time_and_no_null():
    row = {"measure": "latency", "model": MODEL, "quantity": "latency", "at": 4, "value": 2.0, "low": 1.0, "high": 3.0,
           "null": 2.0, "n": 9, "unit": "repeat", "variant": "inference"}  # fmt: skip
    said = _findings(timed=Result("latency", [row], {}), step=_timed(), models={MODEL: MODELS[MODEL]})
    line = next(line for line in said if line.startswith("Time of a batch"))
    assert "2.0 ms [1.0, 3.0] in `soft`, n = 9 repeats" in line


def test_what_was_not_measured_is_left_out():
    said = " ".join(_findings(counted=_counted(memory=False), timed=_timed(), step=_timed()))
    assert "MiB" not in said
    assert "forward pass" not in said
    assert cost_conclusions(_counted(), _timed(), _timed(), MODELS)[0].startswith("Timed on")


def test_the_half_is_no_half_of_another_vit():
    line = _findings()[-1]
    assert "T2T-ViT-14 has 44.2 %, 48.4 % and 48.4 % of ViT-S/16" in line
    assert "T2T-ViT-14 has 97.7 %, 104.0 % and 104.0 % of DeiT-small" in line


def test_agreement_with_the_print_is_counted():
    line = printed_finding(_printed(notes=("one", "two")))
    assert "on 4 of 5 lines (parameters), 4 of 5 lines (multiply-accumulates, all products)" in line
    assert "0 of 5 lines (multiply-accumulates, linear layers only)" in line
    assert "2 lines have no code" in line


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.4, 1.7, "supported"),
        (0.9, 1.1, "contradicted"),
        (1.1, 1.7, "not testable"),
        (math.nan, math.nan, "not tested"),
    ],
)
def test_time_is_held_against_the_counts(low, high, verdict):
    timed = _timed((32, (low + high) / 2 if low == low else 1.3, low, high), variant="training")
    line = cost_conclusions(_counted(macs=(72.0, 60.0)), _timed(), timed, MODELS)[0]
    assert line.startswith("A training step without optimiser of `soft` takes longer than")
    assert f"**{verdict}** on this machine" in line
    assert "1.200 times its multiply-accumulates" in line


@pytest.mark.parametrize("given", [{"batch_sizes": "0,4"}, {"batch_sizes": ""}, {"repeats": 5}])
def test_timings_that_make_no_interval_are_refused(given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        validate(CostParams, given)
    assert validate(CostParams, {"batch_sizes": "4,1"}).timed() == [1, 4]
