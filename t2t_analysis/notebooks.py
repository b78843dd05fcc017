"""Inside a notebook: parameters that are checked before torch is imported, and what is shown to the reader.

Every notebook has one class in `parameters`; ``check`` applies it to what the cells of a notebook assign.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._files import writable_folder
from ._names import TWIN
from ._show import code, findings, plain, reproduce, save, say, show, table, title_block, verdicts
from .errors import ParameterError
from .parameters import CommonParams, P, unknown_parameter, validate

__all__ = [
    "Run", "check", "code", "findings", "plain", "reproduce", "save", "say", "set_up", "show", "table",
    "validate", "verdicts",
]  # fmt: skip


def _assignments(source: str) -> Iterator[tuple[str, str, bool]]:
    """Yield ``(name, value as written, whether it is annotated)`` for every plain assignment in a cell."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic; papermill's and our own parameter cells have none
        return
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, ast.unparse(node.value), True
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, ast.unparse(node.value), False


def _last_parameters(cells: Sequence[str]) -> dict[str, str]:
    """What the latest parameters cell and the latest cell injected by papermill assign."""
    injected = [source for source in cells if source.startswith("# Parameters\n")]
    written = [source for source in cells if any(noted for *_, noted in _assignments(source))]
    assigned = {}
    for source in (*written[-1:], *injected[-1:]):
        assigned.update({name: value for name, value, _ in _assignments(source)})
    return assigned


def check(params: type[P], namespace: Mapping[str, Any]) -> P:
    """Return the checked parameters of the notebook whose ``globals()`` are ``namespace``.

    papermill runs a notebook with an unknown parameter and only warns, so that a typing error would make a
    report about the wrong model. Here the assigned names are read from the cells that ran before, and every
    unknown one is an error, together with every bad value.

    Raises
    ------
    ParameterError
        as ``validate``; IPython shows it in a few lines, and papermill ends with a non-zero status.
    """
    assigned = _last_parameters(list(namespace.get("In", [])))
    assigned = {n: v for n, v in assigned.items() if not n.startswith("PAPERMILL_")}  # of --inject-paths
    problems = [unknown_parameter(params, n, v) for n, v in assigned.items() if n not in params.model_fields]
    values = {name: namespace[name] for name in params.model_fields if name in namespace}
    return validate(params, values, problems)


@dataclass(frozen=True, eq=False)
class Run:
    """What a notebook works with.

    Attributes
    ----------
    models : label -> model: the model in question first, then what it is compared with: the baseline or, of a model
        alone, its untrained control (the same architecture with random weights).
    images : loader of the images that all see.
    reference : a further network by its label, where the parameters name one.
    """

    params: CommonParams
    models: dict[str, Any]
    images: Any
    reference: dict[str, Any]

    @property
    def alone(self) -> bool:
        """Whether there is no baseline."""
        return len(self.params.names) == 1

    @property
    def asked(self) -> dict[str, Any]:
        """The models that the parameters name, without a control."""
        return {label: self.models[label] for label in self.params.labels}

    def more_images(self, **changes: Any) -> Any:
        """Return another loader of the same data, as ``load_images`` with ``changes``."""
        return _images(self.params, self.models, **changes)


def set_up(params: CommonParams) -> Run:
    """Load models and images of a notebook and show what is compared on what.

    Raises
    ------
    ParameterError
        model and baseline turn out to be the same network.
    DataError
        nothing can be written into the folder for results.
    """
    from .models import load_model

    if params.results_dir != "auto":
        writable_folder(params.results_dir)
    device, seed = params.torch_device(), params.seed
    weights = (params.weights, params.baseline_weights)
    loaded: list[Any] = [
        load_model(name, origin, device=device, seed=seed)
        for name, origin in zip(params.names, weights, strict=False)
    ]
    if len(loaded) == 2 and _same(*(model.provenance for model in loaded)):
        raise ParameterError(
            f"baseline_weights={params.baseline_weights!r}: these are the weights of the model, "
            f"{loaded[0].provenance.label}; give others, or baseline=none for the model alone"
        )
    models: dict[str, Any] = dict(zip(params.labels, loaded, strict=True))
    if len(loaded) == 1:
        from .measures import random_twin

        models[params.labels[0] + TWIN] = random_twin(loaded[0], seed=seed + 1)
    third = getattr(params, "reference", "none")
    reference = {} if third == "none" else {third: load_model(third, device=device, seed=seed)}
    run = Run(params, models, _images(params, models), reference)
    title_block(run)
    return run


def _same(one: Any, other: Any) -> bool:
    """Whether two origins are the same network with the same weights."""
    if one.model != other.model:
        return False
    return one.sha256 == other.sha256 if one.sha256 else one.source == other.source


def _images(params: CommonParams, models: Mapping[str, Any], **changes: Any) -> Any:
    from .data import load_images

    asked = {"n_images": params.n_images, "batch_size": params.batch_size, "seed": params.seed}
    first = next(iter(models.values()))
    return load_images(params.data, model=first, device=params.torch_device(), **asked | changes)
