"""All measures in one pass, and the page that lists them."""

import inspect
from pathlib import Path

import pytest
import timm
import torch

from t2t_analysis import capture, measures
from t2t_analysis.measures import Measure, measure
from t2t_analysis.measures.catalogue import ALL, COMPARISONS, page
from t2t_analysis.quantities import quantity

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_what_the_docstrings_say():
    assert (ROOT / "docs" / "measures.md").read_text() == page()


def test_every_exported_measure_is_listed():
    exported = {value for value in vars(measures).values() if inspect.isclass(value)}
    concrete = {kind for kind in exported if issubclass(kind, Measure) and kind is not Measure}
    # one takes the orders that two other measures give, one a pass for every pair of heads, one a plain transformer
    needs_more = {measures.PruningCurves, measures.HeadPairs, measures.ShortcutShare}
    assert concrete - {type(m) for m in (*ALL, *COMPARISONS)} == needs_more


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5)
    images, labels = (torch.rand(12, 3, 64, 64) - 0.5) / 0.5, torch.arange(12) % 5  # as the model normalises
    loader = [(images[i : i + 6], labels[i : i + 6]) for i in (0, 6)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measure(model, loader, ALL, progress=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return found


def test_one_pass_answers_everything(results):
    assert set(results) == {m.name for m in ALL}


@pytest.mark.parametrize("name", [m.name for m in ALL])
def test_no_number_stands_alone(results, name):
    frame = results[name].frame
    assert len(frame)
    assert frame["value"].notna().any()
    for column in ("quantity", "n", "unit", "estimator", "model", "weights"):
        assert frame[column].notna().all(), column
    assert all(quantity(name).words for name in frame["quantity"].unique())
    lone = frame[frame["value"].notna() & (frame["null"].isna() | frame["null_kind"].isna())]
    assert sorted(set(lone["quantity"])) == [], "values without a null"
    assert (frame["low"].isna() | (frame["low"] <= frame["value"] + 1e-9)).all()
    assert (frame["high"].isna() | (frame["high"] >= frame["value"] - 1e-9)).all()


def test_names_of_places_are_those_of_capture(results):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3)
    known = {place.rsplit(".", 1)[0] for place in capture.names(model)} | set(capture.names(model))
    used = {
        place for place in results["invalid_channels"].frame["place"].dropna() if "*" not in place
    }  # means
    assert used <= known
