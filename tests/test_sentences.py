"""Sentences meet real measures: every notebook's cells run on trained weights, with the figures left out."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from t2t_analysis import notebooks
from t2t_analysis.claims.base import Effect
from t2t_analysis.claims.headlines import pair_order
from t2t_analysis.claims.ledger import effect_verdict
from t2t_analysis.errors import T2TError, UnknownNameError
from t2t_analysis.models.provenance import Kind, Provenance
from t2t_analysis.results import Result
from t2t_analysis.sentences.attention_geometry import geometry_findings
from t2t_analysis.sentences.template import MOST, Facts, kept
from t2t_analysis.sentences.training_from_scratch import study_conclusions, study_findings

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
#: what makes a run short
FEW: dict[str, Any] = {"n_images": 24, "batch_size": 12, "data": "photo_crops"}


def _nothing(name: str) -> Any:
    """Any plot function, which draws nothing; no attribute that Python itself asks a module for."""
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: None


def said_by(monkeypatch: pytest.MonkeyPatch, name: str, **parameters: Any) -> list[list[str]]:
    """What the cells of a notebook say, one list for each call of ``findings``."""
    said: list[list[str]] = []
    silent = ModuleType("t2t_analysis.plots")
    silent.__getattr__ = _nothing  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "t2t_analysis.plots", silent)
    for shown in ("show", "save", "say", "table", "verdicts", "reproduce"):
        monkeypatch.setattr(notebooks, shown, lambda *args, **kwargs: None)
    monkeypatch.setattr(notebooks, "title_block", lambda *args, **kwargs: None)
    monkeypatch.setattr(notebooks, "findings", lambda sentences: said.append(list(sentences)))
    space: dict[str, Any] = {}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
            if "parameters" in cell["metadata"].get("tags", []):
                space.update(FEW, **parameters)
    return said


@pytest.mark.parametrize(
    ("name", "asked", "quantities"),
    [
        ("head_redundancy", {}, ["Centred cosine of attention maps, change", "CKA of head outputs, change"]),
        ("local_structure", {"baseline": "none"}, ["R² of edges, own cell", "gradient outside its own cell"]),
    ],
)
def test_sentences_meet_real_measures_of_trained_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: dict[str, Any], quantities: list[str]
) -> None:
    """A renamed quantity would leave its sentence out; a trained pair gets verdicts, and so does one model alone."""
    said = said_by(monkeypatch, name, weights="bundled", **asked)
    first, last = said[0], said[-1]
    assert len(first) <= MOST
    alone = "baseline" in asked
    assert re.search(
        r"\*\*[A-Z][a-z ]+\*\* for `[^`]+` alone, over images" if alone else " against `", first[0]
    )
    assert last[-1].startswith("What would change the verdict")
    for words in quantities:
        (line,) = [
            sentence for sentence in first if sentence.startswith(words) or words in sentence.split(":")[0]
        ][:1]
        assert re.search(r"\[[−\d.]+, [−\d.]+\]", line), line
    assert not any("nan" in sentence or "<NA>" in sentence for block in said for sentence in block)


# ------------------------------------------------------------------------------------------------- the standard form


def network(model: str, kind: Kind = "file") -> Any:
    return type("Model", (), {"provenance": Provenance(kind, "made", model=model)})


def row(quantity: str, model: str, value: float, half: float = 0.01, **columns: Any) -> dict[str, Any]:
    ends = {
        "value": value,
        "low": value - half,
        "high": value + half,
        "n": 64,
        "unit": "image",
        "weights": "file",
    }
    return {"measure": "m", "quantity": quantity, "model": model} | ends | columns


PAIR = {"T2T": network("t2t_vit_14"), "ViT": network("vit_small_patch16_224")}


def facts(*rows: dict[str, Any], models: dict[str, Any] = PAIR) -> Facts:
    return Facts([Result("m", pd.DataFrame(list(rows))), None], models)


def test_the_standard_form_has_values_null_control_difference_and_n() -> None:
    found = facts(
        row("invalid_area", "T2T", 0.02, null=0.0),
        row("invalid_area", "ViT", 0.05, null=0.0),
        row("invalid_area", "ViT, random", 0.01),
        row("invalid_area_difference", "T2T", -0.03, model_b="ViT"),
    )
    assert found.line("invalid_area") == (
        "Zero or too large channels, mean over thresholds: 2.0 % [1.0, 3.0] in `T2T` and 5.0 % [4.0, 6.0] in `ViT` "
        "(null 0.0 %; `ViT` untrained 1.0 %); the first minus the second −3.0 points [−4.0, −2.0], n = 64 images."
    )
    assert found.line("zero_area") == ""  # not measured
    with pytest.raises(UnknownNameError):
        found.line("invalid_aera")
    twice = facts(row("kl", "T2T", 0.1, layer=0), row("kl", "T2T", 0.2, layer=1))
    with pytest.raises(T2TError, match="2 rows of kl"):
        twice.line("kl")
    assert "0.200 nats" in twice.line("kl", layer=1)


def test_one_model_alone_stands_beside_its_control() -> None:
    models = {
        "ViT": network("vit_small_patch16_224"),
        "ViT, random": network("vit_small_patch16_224", "random"),
    }
    found = facts(
        row("kl", "ViT", 0.5),
        row("kl", "ViT, random", 0.1),
        row("kl_difference", "ViT", 0.4, model_b="ViT, random"),
        models=models,
    )
    line = found.line("kl")
    assert line.startswith(
        "KL divergence from the full model: 0.500 nats [0.490, 0.510] in `ViT` (untrained 0.100 nats); "
        "`ViT` minus the untrained control 0.4"
    )
    assert found.untrained == []  # a control is no model in question
    assert found.judged([Effect("kl", "similarity", pair="kl")]) == []  # nothing is claimed of it


def test_a_page_says_what_the_ledger_says_whichever_model_comes_first() -> None:
    rows = {
        "T2T": row("cosine_centred_last_minus_first", "T2T", 0.1),
        "ViT": row("cosine_centred_last_minus_first", "ViT", 0.4),
    }
    assert pair_order(PAIR) == ("T2T", "ViT")
    assert pair_order(dict(reversed(PAIR.items()))) == ("T2T", "ViT")
    assert (
        pair_order({"a": PAIR["ViT"], "b": PAIR["ViT"]}) is None
    )  # both split hard: the claims do not compare them
    same = facts(*rows.values(), models={"a": PAIR["ViT"], "b": PAIR["ViT"]})
    assert same.claim("head-similarity") == []
    one = facts(*rows.values(), models={"T2T": network("t2t_vit_14", "random"), "ViT": PAIR["ViT"]})
    assert one.claim("head-similarity") == ["No verdict from random weights: `T2T`."]


def test_differences_without_a_claim_are_judged_by_the_same_rule() -> None:
    effect = Effect("channels that follow the outline", "channel_share", pair="outline_channels")
    found = facts(row("outline_channels_difference", "T2T", 0.1, model_b="ViT"))
    (said,) = found.judged([effect])
    assert said == (
        "Channels that follow the outline, said to be more in `T2T` than in `ViT`: **supported**. `T2T` minus `ViT` "
        "10.0 points [9.0, 11.0], n = 64 images; smallest that counts 1.0 points."
    )
    turned = row("outline_channels_difference", "ViT", -0.1, model_b="T2T")
    (same,) = facts(turned, models=dict(reversed(PAIR.items()))).judged([effect])
    assert "said to be more in `T2T` than in `ViT`: **supported**. `ViT` minus `T2T` −10.0 points" in same
    assert facts(row("outline_channels_difference", "a", 0.1, model_b="b"),
                 models={"a": PAIR["ViT"], "b": PAIR["ViT"]}).judged([effect]) == []  # fmt: skip
    assert effect_verdict(effect, "pair", found.difference("outline_channels")).verdict == "supported"


def test_how_far_attention_looks_is_said_in_words_first() -> None:
    where = {"null": 0.5, "tokens": "patch", "place": "blocks.*.attn"}
    rows = [row("attention_distance", name, value, **where) for name, value in (("T2T", 0.55), ("ViT", 0.45))]
    first = geometry_findings([Result("attention_geometry", pd.DataFrame(rows))], PAIR)[0]
    near = "farther than uniform attention would in `T2T` and nearer than uniform attention would in `ViT`"
    assert first.startswith(f"On average attention looks {near}. Attention distance")
    rows = [row("attention_distance", "ViT", 0.505, **where)]
    (alone,) = geometry_findings([Result("attention_geometry", pd.DataFrame(rows))], {"ViT": PAIR["ViT"]})
    assert "neither clearly nearer nor clearly farther than uniform attention would in `ViT`" in alone


def test_no_page_says_more_than_eight_things() -> None:
    assert kept("", *map(str, range(20))) == list("01234567")


# ------------------------------------------------------------------------------------------------------- the study


def test_the_study_in_words_is_the_ledger() -> None:
    rows = [
        row("tokeniser_effect", "soft split", 0.145, 0.02, model_b="hard split", unit="run", se=0.01, df=16),
        row("se_effect_performer", "with gates", 0.0, 0.1, model_b="plain", unit="run", se=0.05, df=4),
    ]
    result = Result("study_effects", pd.DataFrame(rows))
    runs = pd.DataFrame(
        {"model": ["a", "b"], "seed": [0, 0], "epochs": [4, 4], "reduced": [True, True], "data": "d"}
    )
    said = study_findings(result, runs)
    first = "Top-1 accuracy, over both backbones, soft split minus hard split: 14.5 points [12.5, 16.5]"
    assert said[0].startswith(first)
    assert "**supported**." in said[0]
    assert "not testable" in said[1]
    assert said[-1] == "2 runs of 2 kinds of model, 1 seed each, 4 epochs (of longer ones planned), d."
    assert study_conclusions(result)[0] == "Supported: t2t-helps (top-1 accuracy, over both backbones)."
    assert (
        "No effect can be estimated yet"
        in study_findings(Result("study_effects", result.frame.iloc[:0]), runs)[0]
    )
