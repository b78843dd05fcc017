"""Shared by all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_SLOW = """
ablation alone any_input attention attribution behaviour boundaries catalogue channels cka claims cli cost explorer
head_pairs heads interrupted invariances locality look models notebooks plots probes project release reports sentences
sinks stress study training
"""
#: files that train, run notebooks, start processes or measure many models; ``--fast`` leaves them out
SLOW = {f"test_{name}.py" for name in _SLOW.split()}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--fast``, for the inner loop; what lands has passed all tests."""
    parser.addoption("--fast", action="store_true", help="leave out the files that take longest")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Not even import the slow files, nor the package for its examples."""
    if not config.getoption("--fast"):
        return None
    return True if collection_path.name in SLOW or collection_path.name == "t2t_analysis" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that need a GPU where there is none; they are listed as deselected, not as passed."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


@pytest.fixture(autouse=True)
def _full_names() -> Iterator[None]:
    """Short names of a notebook's two models end with the test that set it up."""
    yield
    if (shown := sys.modules.get("t2t_analysis._show")) is not None:
        shown._SHORT.clear()
