"""Parameters: checked all at once, as papermill gives them. Notebooks: kept in one shape."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import nbformat
import pandas as pd
import papermill
import pytest
from pydantic import BeforeValidator, Field

from t2t_analysis._names import known_models, our_models
from t2t_analysis._paths import notebooks_dir
from t2t_analysis._show import called, table_data
from t2t_analysis.errors import ParameterError
from t2t_analysis.notebooks import Run, check, set_up, validate
from t2t_analysis.parameters import PARAMS, CommonParams, HeadRedundancyParams, _listed

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
RUNNABLE = [path for path in NOTEBOOKS if path.stem in PARAMS]


class LayerParams(CommonParams):
    layers: Annotated[list[int], BeforeValidator(_listed)] = Field(default=[0, 5])
    threshold: float = 0.5
    shared: bool = True
    heads: Annotated[int | None, Field(gt=0)] = None


# ------------------------------------------------------------------------------------------------ parameters


def test_every_problem_is_named_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ParameterError) as caught:
        validate(HeadRedundancyParams, {"modle": "x", "n_images": 0, "data": "photo_crop", "device": "cudda"})
    text = str(caught.value)
    assert "modle='x': unknown parameter; did you mean 'model'?" in text
    assert "n_images=0: Input should be greater than 0" in text
    assert "did you mean 'photo_crops'?" in text
    assert "did you mean 'cuda'?" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"layers": "0,5,11"}, ("layers", [0, 5, 11])),  # -p layers 0,5,11
        ({"layers": "[0, 5, 11]"}, ("layers", [0, 5, 11])),  # -p layers '[0, 5, 11]'
        ({"layers": [1]}, ("layers", [1])),  # -y 'layers: [1]'
        ({"layers": ""}, ("layers", [])),
        ({"model_label": 0}, ("model_label", "0")),  # -p model_label 0
        ({"threshold": "1e-3"}, ("threshold", 1e-3)),  # YAML 1.1 reads 1e-3 as text
        ({"shared": "false"}, ("shared", False)),  # -p shared false
        ({"n_images": "16"}, ("n_images", 16)),  # -r n_images 16
        ({"n_images": 16.0}, ("n_images", 16)),
        ({"baseline": None}, ("baseline", "small_hard_deep")),  # -p baseline None
        ({"device": None}, ("device", "auto")),
        ({"data": "torch/cifar10"}, ("data", "torch/cifar10")),
        ({"weights": "published/384"}, ("weights", "published/384")),
        ({"model": "t2t_vit_14", "baseline": "small_hard_deep"}, ("data", "photos")),
        ({"baseline": "none"}, ("labels", ("small_performer_deep",))),
        ({}, ("n_images", 256)),
        ({"model": "t2t_vit_24"}, ("n_images", None)),
        ({"model": "t2t_vit_24"}, ("data", "photos")),
        ({"model": "vit_tiny_patch16_224.augreg_in21k"}, ("baseline", "deit_small_patch16_224")),
    ],
)
def test_values_as_papermill_gives_them(given: dict[str, Any], expected: tuple[str, Any]) -> None:
    name, value = expected
    found = getattr(validate(LayerParams, given), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": "a,b"}, "layers.0='a': Input should be a valid integer"),
        ({"n_images": "many"}, "n_images='many': Input should be a valid integer"),
        ({"batch_size": 0}, "greater than 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"model": None}, "valid string"),
        ({"model": 24}, "model=24: a number; text that looks like one is given with -r, as -r model 24"),
        ({"n_images": True}, "n_images=True: true or false says nothing here"),
        ({"data": 12}, "-r data 12"),
        ({"data": ""}, "data='': empty"),
        ({"seed": 10**20}, "seed=100000000000000000000: Input should be less than"),
        ({"model_label": " "}, "a label is one line of text"),
        ({"model": "t2t_vit_41"}, "did you mean"),
        ({"baseline": "deit_smal_patch16_224"}, "did you mean 'deit_small_patch16_224'"),
        ({"weights": "publshed"}, "did you mean 'published'?"),
        ({"weights": "nowhere/x.pth"}, "no such weights file"),
        ({"data": "nowhere/photos"}, "no such folder, tar or data set"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"baseline": "small_performer_deep"}, "the same model with the same weights twice"),
        ({"model_label": "T2T", "baseline_label": "T2T"}, "need labels that differ"),
        ({"model_label": "a", "baseline_label": "a, random"}, "need labels that differ"),
    ],
)
def test_bad_values_are_refused_in_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        validate(LayerParams, given)


def _namespace(*cells: str) -> dict[str, Any]:
    """A notebook's globals after these cells ran."""
    space: dict[str, Any] = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, space)
    return space


def test_two_checkpoints_of_one_model_are_called_by_what_differs(tmp_path: Path) -> None:
    paths = []
    for seed in ("seed0", "seed1"):
        (tmp_path / seed).mkdir()
        paths.append(tmp_path / seed / "best.safetensors")
        paths[-1].touch()
    pair = {"model": "deit_tiny_patch16_224", "baseline": "deit_tiny_patch16_224"}
    first, second = (str(path) for path in paths)
    made = validate(CommonParams, pair | {"weights": first, "baseline_weights": second})
    assert made.labels == ("seed0", "seed1")
    assert made.subject == "seed0 against seed1"
    made = validate(CommonParams, pair | {"weights": first, "baseline_weights": "random"})
    assert made.labels == ("best", "untrained")
    made = validate(CommonParams, pair | {"weights": first, "baseline_weights": second, "model_label": "後"})
    assert made.labels == ("後", "seed1")


PLAIN = 'model: str = "small_performer_deep"\nn_images: int = None'


def test_injected_parameters_are_read_by_name() -> None:
    space = _namespace(PLAIN, "# Parameters\nmodel = 'small_hard_wide'\nlayer = '3'\n")
    with pytest.raises(ParameterError, match="layer='3': unknown parameter; did you mean 'layers'"):
        check(LayerParams, space)


def test_a_typing_error_in_the_parameters_cell_itself_is_found() -> None:
    with pytest.raises(ParameterError, match="bacth_size=4: unknown parameter; did you mean 'batch_size'"):
        check(CommonParams, _namespace(PLAIN + "\nbacth_size: int = 4"))


def test_a_corrected_cell_counts_not_the_one_before() -> None:
    space = _namespace("modle: str = 'x'", PLAIN, "# Parameters\nmodel = 'small_hard_wide'\n")
    assert check(CommonParams, space).model == "small_hard_wide"


def test_names_that_are_no_parameters_do_no_harm() -> None:
    assert check(CommonParams, _namespace("threshold = 3\nmodle = 1", PLAIN)).n_images == 256


def test_the_paths_that_papermill_injects_are_no_parameters() -> None:
    space = _namespace(PLAIN, "# Parameters\nPAPERMILL_INPUT_PATH = 'a.ipynb'\nseed = 3\n")
    assert check(CommonParams, space).seed == 3


def _set_up(monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[Run, str]:
    """What a notebook works with, and its title."""
    said: list[str] = []
    monkeypatch.setattr(
        "t2t_analysis._show._publish", lambda data, role, **_: said.append(data["text/plain"])
    )
    made = set_up(validate(HeadRedundancyParams, {"n_images": 2} | given))
    return made, "\n".join(said)


def test_a_model_alone_is_set_up_beside_its_untrained_control(monkeypatch: pytest.MonkeyPatch) -> None:
    made, title = _set_up(monkeypatch, model="small_hard_deep", baseline="none")
    assert list(made.models) == ["small_hard_deep", "small_hard_deep, random"]
    assert made.alone
    assert list(made.asked) == ["small_hard_deep"]
    assert [model.provenance.untrained for model in made.models.values()] == [False, True]
    assert "untrained control" in title
    assert "**UNTRAINED" not in title
    assert made.params.subject == "small_hard_deep"


def test_two_models_are_named_in_full_once_and_then_by_their_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    _, title = _set_up(monkeypatch, model="small_performer_deep", baseline="small_hard_deep")
    assert title.startswith("T2T is `small_performer_deep`, ViT is `small_hard_deep`.")
    said = "`small_performer_deep` less `small_performer_deep, random`, small_hard_deep, small_\nhard_deep"
    assert called(said) == "T2T less T2T, random, ViT, ViT"
    for other in (
        "small_hard_deep_se",
        "runs/small_hard_deep",
        "small_hard_deep.pt",
        "bundled small_hard_deep",
    ):
        assert called(other) == other
    _set_up(monkeypatch, model="small_performer_deep", baseline="small_hard_deep", baseline_label="mine")
    assert called("small_performer_deep, mine, small_hard_deep") == "T2T, mine, small_hard_deep"
    _set_up(monkeypatch, model="small_hard_deep", baseline="none")
    assert called("small_performer_deep small_hard_deep") == "small_performer_deep small_hard_deep"


def test_tables_write_numbers_below_zero_with_a_minus_and_leave_out_what_is_missing() -> None:
    html = table_data(pd.DataFrame({"a": [-0.02584, 1e-9, None], "b": ["x-y", "", ""]}), "<c>")["text/html"]
    assert "<td>−0.0258</td>" in html
    assert "<td>1e−09</td>" in html
    assert "<td>x-y</td>" in html
    assert "NaN" not in html
    assert "<caption>&lt;c&gt;</caption>" in html


def test_what_models_of_different_size_see_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"baseline": "vit_tiny_patch16_224", "baseline_weights": "random"}
    _, title = _set_up(monkeypatch, model="small_hard_deep", **pair)
    assert "`small_hard_deep` 32x32 pixels of 100 % of a side, 8x8 tokens" in title
    assert "`vit_tiny_patch16_224` 224x224 pixels of 90 % of a side, 14x14 tokens" in title


def test_labels_name_models_and_differences_of_training_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = {"model": "small_hard_wide", "baseline": "small_hard_deep"}
    made, title = _set_up(monkeypatch, model_label="T2T <$x_1$>", **pair)
    assert [(label, model.provenance.model) for label, model in made.models.items()] == [
        ("T2T <$x_1$>", "small_hard_wide"),
        ("small_hard_deep", "small_hard_deep"),
    ]
    assert "`T2T <$x_1$>`" in title
    recipes = {model.provenance.recipe for model in made.models.values()}
    assert ("More than the models differs: recipe" in title) == (len(recipes) > 1)
    with pytest.raises(ParameterError, match="these are the weights of the model"):
        _set_up(
            monkeypatch,
            model="small_hard_deep",
            baseline="small_hard_deep",
            weights="bundled",
            baseline_weights="auto",
        )


def test_names_read_from_the_sources_are_those_that_timm_registers() -> None:
    import timm

    import t2t_analysis.models

    assert set(our_models()) == set(t2t_analysis.models.MODELS)
    assert set(timm.list_models()) <= set(known_models())


def test_the_check_needs_no_torch() -> None:
    code = (
        "import sys; from t2t_analysis.notebooks import validate; "
        "from t2t_analysis.parameters import HeadRedundancyParams; validate(HeadRedundancyParams, {}); "
        "print(sorted({'torch', 'timm', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_papermill_ends_with_a_few_lines_and_a_bad_status(tmp_path: Path) -> None:
    """The user's own path: a name that nothing takes must not end in a report about the default model."""
    cells = [
        nbformat.v4.new_markdown_cell("# A question"),
        nbformat.v4.new_code_cell(PLAIN, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from t2t_analysis.notebooks import check\n"
            "from t2t_analysis.parameters import CommonParams\np = check(CommonParams, globals())"
        ),
    ]
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "o.ipynb"), "-p", "modle", "x"]
    done = subprocess.run(
        [*command, "--no-progress-bar", "--log-level", "ERROR"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    cell = next(c for c in nbformat.read(tmp_path / "o.ipynb", as_version=4).cells if c.get("outputs"))
    shown = "\n".join(cell.outputs[0].traceback)
    assert "did you mean 'model'?" in shown
    assert len(shown.splitlines()) <= 4
    assert "did you mean 'model'?" in done.stderr


# ------------------------------------------------------------------------------------------ the notebooks


def _tagged(path: Path, tag: str) -> list[int]:
    cells = nbformat.read(path, as_version=4).cells
    return [i for i, cell in enumerate(cells) if tag in cell.metadata.get("tags", [])]


def test_every_notebook_has_parameters_and_every_parameters_class_a_notebook() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PARAMS)


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_papermill_reads_the_parameters_cell_as_the_model_does(path: Path) -> None:
    params = PARAMS[path.stem]
    read = papermill.inspect_notebook(path)
    assert list(read) == list(params.model_fields)
    for name, entry in read.items():
        field = params.model_fields[name]
        assert ast.literal_eval(entry["default"]) == field.default, name
        assert entry["help"] == field.description, name
        assert entry["inferred_type_name"] in {"str", "int", "float", "bool", "list"}, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_hygiene(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    ids = [cell.id for cell in nb.cells]
    assert text == nbformat.writes(nb, indent=1).rstrip("\n") + "\n"
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch("[a-z][a-z0-9-]*", i)] == []
    assert set(nb.metadata) == {"kernelspec", "language_info", "title"}
    assert nb.metadata.kernelspec.name == "python3"
    assert nb.metadata.language_info == {"name": "python"}
    assert nb.cells[0].cell_type == "markdown"
    assert nb.cells[0].source.startswith("# ")
    (place,) = _tagged(path, "parameters")
    assert nb.cells[place + 1].id == "check"
    assert "check(" in nb.cells[place + 1].source
    assert sum(cell.source.startswith("# ") for cell in nb.cells if cell.cell_type == "markdown") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_prose_and_calls(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
        assert len(cell.source.splitlines()) <= 20
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)], cell.id
        assert not re.search(r"\bplt\.|matplotlib|seaborn|\.plot\(|print\(", cell.source), cell.id
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert 250 <= words <= 1500
