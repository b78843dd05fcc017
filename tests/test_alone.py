"""Notebooks run on one model alone and on two checkpoints of one model, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from safetensors.torch import save_file

from t2t_analysis import load_model
from t2t_analysis._paths import notebooks_dir


def _run(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **given: Any) -> dict[str, list[str]]:
    """Run the cells of a notebook; what it shows, by role."""
    shown: dict[str, list[str]] = {}
    monkeypatch.setattr(
        "t2t_analysis._show._publish",
        lambda data, role, **_: shown.setdefault(role, []).append(data["text/plain"]),
    )
    space: dict[str, Any] = {"In": [""]}
    for cell in nbformat.read(notebooks_dir() / f"{name}.ipynb", as_version=4).cells:
        sources = [cell.source] if cell.cell_type == "code" else []
        if cell.id == "parameters":
            values = given | {"n_images": 4, "batch_size": 4, "results_dir": str(folder)}
            sources.append(
                "# Parameters\n" + "\n".join(f"{key} = {value!r}" for key, value in values.items())
            )
        for source in sources:
            exec(compile(source, f"{name}:{cell.id}", "exec"), space)
            space["In"].append(source)
    plt.close("all")
    return shown


def test_a_model_alone_is_judged_beside_its_control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = _run("head_redundancy", monkeypatch, tmp_path, model="small_hard_deep", baseline="none")
    said = "\n".join(shown["findings"])
    assert "The heads of this model's later layers are nearly identical. **" in said
    assert "for `small_hard_deep` alone, over images" in said
    assert "`small_hard_deep` minus the untrained control" in said
    assert "No verdict" not in said
    assert not any(text.startswith("Untrained weights") for text in shown["figure"])


def test_two_checkpoints_of_one_model_are_told_apart_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, paths = load_model("small_hard_deep"), {}
    for name in ("before", "after"):
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file({key: value.clone() for key, value in model.state_dict().items()}, paths[name])
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    pair = {"model": "small_hard_deep", "baseline": "small_hard_deep"}
    files = {"weights": str(paths["before"]), "baseline_weights": str(paths["after"])}
    shown = _run("channel_zeros", monkeypatch, tmp_path, **pair, **files)
    said = "\n".join(shown["findings"])
    assert "`before`" in said
    assert "`after`" in said
    assert "small_hard_deep" not in said
