"""What a newcomer meets first: set-up files that agree, a light import, a wheel that works."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def requirements():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    return [Requirement(r) for r in PROJECT["dependencies"] + extras]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_holds_nothing_that_could_drift():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, through_pip = environment["dependencies"]
    assert pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    asked = Requirement(PROJECT["name"] + PROJECT["requires-python"]).specifier
    assert Version(python.removeprefix("python=")) in asked
    assert environment["channels"] == ["conda-forge"]


def test_every_requirement_is_pinned_within_its_range():
    pins = {canonical(name): pin for name, pin in PINS.items()}
    for requirement in requirements():
        pin = pins[canonical(requirement.name)]
        assert Version(pin) in requirement.specifier, f"{requirement} is pinned to {pin}"


def test_constraints_suit_every_platform_and_index():
    text = (ROOT / "constraints.txt").read_text().lower()
    for word in ("nvidia", "cuda", "triton", "://", "@", "index"):
        assert not [
            line for line in text.split() if line.startswith(word) or (word in "://@" and word in line)
        ], word


def test_every_requirement_has_its_reason():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| ([a-z][a-z-]+) \|", text, flags=re.MULTILINE)) - {"package"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert named == {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}


def test_torch_and_torchvision_are_a_pair():
    import torch
    import torchvision

    torch.ops.torchvision.nms  # noqa: B018 - missing where the two were built apart
    torch_minor, vision_minor = (int(version(m.__name__).split(".")[1]) for m in (torch, torchvision))
    assert torch_minor - vision_minor == int(PINS["torch"].split(".")[1]) - int(
        PINS["torchvision"].split(".")[1]
    )


def test_import_is_light():
    code = """
import sys, time
start = time.perf_counter()
import t2t_analysis
spent = time.perf_counter() - start
heavy = {"torch", "timm", "pandas", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
print(spent)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.1


def test_training_and_measuring_import_without_the_notebook_stack():
    absent = ("captum", "papermill", "pydantic", "nbformat", "nbconvert", "jupyterlab", "IPython", "seaborn")
    code = f"""
import sys
for name in {absent!r}:
    sys.modules[name] = None
import t2t_analysis.models, t2t_analysis.data, t2t_analysis.capture, t2t_analysis.measures
import t2t_analysis.training.train, t2t_analysis.training.rows, t2t_analysis.training.cli
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_public_names_resolve_and_unknown_ones_say_so():
    import t2t_analysis

    for name in t2t_analysis.__all__:
        assert getattr(t2t_analysis, name) is not None
    with pytest.raises(AttributeError, match="public names"):
        t2t_analysis.mesure  # noqa: B018


#: folders of the package, each above those that it may import
LAYERS = (
    "models",
    "data",
    "capture",
    "measures",
    "training",
    "claims",
    "plots",
    "sentences",
    "reports",
    "commands",
)
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "t2t_analysis").rglob("*.py")
}


def imported(module):
    """Modules of the package that a module imports, at its head or inside functions; not those for types alone."""
    path, found = SOURCES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            home = ".".join(
                [*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""]
            )
            names = [f"{home.rstrip('.')}.{alias.name}" for alias in node.names]
            found |= {name if name in SOURCES else home.rstrip(".") for name in names}
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            waiting += [child for handler in getattr(node, "handlers", ()) for child in handler.body]
    return found - {module}


def test_no_module_imports_itself_on_a_way_round():
    TopologicalSorter({module: imported(module) for module in SOURCES}).prepare()


def test_no_folder_imports_one_above_it():
    def rank(module):
        folder = module.split(".")[1] if "." in module else ""
        return LAYERS.index(folder) if folder in LAYERS else -1

    up = {(m, other) for m in SOURCES for other in imported(m) if rank(m) >= 0 and rank(other) > rank(m)}
    assert up == set()


def test_packages_are_all_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "t2t_analysis").rglob("__init__.py")}
    assert {name for name in listed if not name.rpartition(".")[2].startswith("_")} == found


def test_wheel_builds_and_its_script_runs_alone(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("notebooks/head_redundancy.ipynb", "data/README.md", "reports/template/", "py.typed"):
        packed = needed.replace("notebooks/", "_notebooks/").replace("data/", "_data/")
        assert [n for n in names if n.startswith(f"t2t_analysis/{packed}")], needed
    assert not [n for n in names if n.startswith(("tests/", "docs/"))]
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run(install, check=True, capture_output=True)
    script = tmp_path / "empty" / "bin" / "t2t-analysis"
    said = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    for command in ("report", "models", "train", "evaluate", "bench"):
        assert re.search(rf"^\s+{command}\s", said, re.MULTILINE), command


def test_cards_are_true_of_their_files():
    from t2t_analysis._paths import bundled_weights
    from t2t_analysis.models.cards import read_card

    found = bundled_weights()
    assert {"small_hard_deep", "small_performer_deep"} <= set(found)
    for by_data in found.values():
        for path in by_data.values():
            card = read_card(path)
            accuracy = card["test_accuracy"]
            assert accuracy["low"] < accuracy["value"] < accuracy["high"]
            assert card["precision"] == "float16"
    total = sum(path.stat().st_size for by_data in found.values() for path in by_data.values())
    assert total < 40e6


def test_no_text_names_this_machine():
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if tracked.returncode:
        files = [
            p
            for p in ROOT.rglob("*")
            if p.suffix in (".py", ".md", ".ipynb", ".toml") and ".venv" not in p.parts
        ]
    else:
        files = [ROOT / name for name in tracked.stdout.split()]
    bad = re.compile(r"(^|[^\w./-])/(?:work|root|home)/\w|extra-index-url|--find-links")
    for path in files:
        if path.suffix in (".py", ".md", ".ipynb", ".toml", ".txt", ".yml", ".json") and path.is_file():
            found = [line for line in path.read_text(errors="ignore").splitlines() if bad.search(line)]
            found = [line for line in found if "bad = re.compile" not in line]  # the pattern itself
            assert not found, f"{path}: {found[:2]}"


def test_no_text_points_out_of_the_project():
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True
    ).stdout.split()
    texts = [ROOT / name for name in tracked] or [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*/*.py"),
    ]
    upwards = re.compile(r"(?<![\w./-])(?:\.\./)+\w[\w./-]*")
    assert upwards.findall("see ../secret/x.md, `../../y`") == ["../secret/x.md", "../../y"]
    for path in texts:
        if (
            path.suffix not in (".py", ".md", ".ipynb", ".toml", ".txt", ".yml")
            or path == Path(__file__).resolve()
        ):
            continue
        for found in upwards.findall(path.read_text(errors="ignore")):
            target = (path.parent / found).resolve()
            assert target.is_relative_to(ROOT.resolve()), f"{path}: {found}"
            assert target.exists(), f"{path}: {found}"


def test_notebook_files_are_json():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        json.loads(path.read_text())
