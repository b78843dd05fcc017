"""Inside a notebook: parameters that are checked before torch is imported, and what is shown to the reader.

Every notebook has one class of parameters here, found by the notebook's name in ``PARAMS``. The same class
checks the parameters in the notebook (``check``) and, before any kernel starts, in the report command
(``validate``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ._names import default_baseline, is_small, model_problem
from ._show import code, findings, plain, reproduce, save, say, show, table, title_block
from .errors import ParameterError, nearest

__all__ = [
    "PARAMS",
    "CommonParams",
    "ExploreParams",
    "HeadRedundancyParams",
    "IntList",
    "check",
    "code",
    "findings",
    "model_field",
    "params_for",
    "plain",
    "reproduce",
    "save",
    "say",
    "show",
    "table",
    "title_block",
    "validate",
]

_DATA = ("auto", "photos", "photo_crops")
_DATASET = re.compile(r"^(torch|tfds|hfds|hfids|wds)/\S")
_WEIGHTS = ("auto", "bundled", "published", "random")
_VARIANT = re.compile(r"^(bundled|published)/\S+$")
_DEVICE = re.compile(r"^(auto|cpu|mps|cuda(:\d+)?)$")


def _listed(value: Any) -> Any:
    """A list given as text, all that papermill's ``-p`` can give: ``"0,5,11"`` or ``"[0, 5, 11]"``."""
    if not isinstance(value, str):
        return value
    inside = value.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
    return [part.strip().strip("'\"") for part in inside.split(",") if part.strip()]


IntList = Annotated[list[int], BeforeValidator(_listed)]


def model_field(value: str) -> str:
    """Return ``value`` if a model has that name."""
    if problem := model_problem(value):
        raise ValueError(problem)
    return value


def _among(what: str, value: str, choices: Sequence[str], also: str) -> ValueError:
    close = nearest(value, choices, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"unknown {what}; {guess}(one of {', '.join(choices)}, or {also})")


class CommonParams(BaseModel):
    """What every notebook takes; ``auto`` and ``None`` mean: choose what fits, and ``resolve`` says what."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    notebook: ClassVar[str] = ""

    model: str = Field(default="small_performer_deep", description="model in question")
    baseline: str = Field(default="auto", description="what it is compared with")
    weights: str = Field(default="auto", description="auto, bundled, published, random or a file")
    baseline_weights: str = Field(default="auto", description="the same for the baseline")
    data: str = Field(default="auto", description="photos, photo_crops, a folder, a tar or a timm dataset")
    n_images: int | None = Field(
        default=None, gt=0, description="how many images, None for what fits the data"
    )
    batch_size: int = Field(default=16, gt=0, description="images per forward pass")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 or mps")
    seed: int = Field(default=0, ge=0, description="seed of every random choice")
    results_dir: str = Field(default="auto", description="folder for the tables behind the figures")

    @field_validator(
        "baseline", "weights", "baseline_weights", "data", "device", "results_dir", mode="before"
    )
    @classmethod
    def _none_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else str(value) if isinstance(value, Path) else value

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        return model_field(value)

    @field_validator("baseline")
    @classmethod
    def _baseline(cls, value: str) -> str:
        return value if value == "auto" else model_field(value)

    @field_validator("weights", "baseline_weights")
    @classmethod
    def _weights(cls, value: str) -> str:
        if value in _WEIGHTS or _VARIANT.match(value) or Path(value).expanduser().is_file():
            return value
        if "/" in value or "." in value:
            raise ValueError("no such weights file")
        raise _among("weights", value, _WEIGHTS, "the path of a file")

    @field_validator("data")
    @classmethod
    def _data(cls, value: str) -> str:
        if value in _DATA or _DATASET.match(value) or Path(value).expanduser().exists():
            return value
        if "/" in value or value.endswith(".tar"):
            raise ValueError("no such folder, tar or data set")
        raise _among("data", value, _DATA, "a folder, a .tar, or a name such as torch/cifar10")

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not _DEVICE.match(value):
            raise _among("device", value, ("auto", "cpu", "cuda", "mps"), "cuda with a number, as cuda:1")
        return value

    def resolve(self) -> Self:
        """Return a copy in which baseline, data and n_images name what ``auto`` stands for.

        >>> p = HeadRedundancyParams(model="t2t_vit_14").resolve()
        >>> p.baseline, p.data
        ('deit_small_patch16_224', 'photos')
        """
        baseline = default_baseline(self.model) if self.baseline == "auto" else self.baseline
        data = self.data
        if data == "auto":
            data = "photo_crops" if is_small(self.model) else "photos"
        n_images = self.n_images or (256 if data == "photo_crops" else None)
        return self.model_copy(update={"baseline": baseline, "data": data, "n_images": n_images})

    def pair_problem(self) -> str | None:
        """Say why model and baseline cannot be shown the same images, or None."""
        if is_small(self.model) == is_small(self.baseline):
            return None
        small, large = sorted((self.model, self.baseline), key=lambda name: not is_small(name))
        return (
            f"baseline={self.baseline!r}: {small} reads 32x32 crops and {large} larger images, but a "
            f"comparison needs the same images; for model={self.model!r} take for example "
            f"{default_baseline(self.model)!r}"
        )

    def torch_device(self) -> str:
        """Return the device by torch's name; ``auto`` is CUDA where there is one, else the CPU."""
        import torch

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ParameterError(f"device={self.device!r}: no CUDA device here; take 'cpu' or 'auto'")
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


class HeadRedundancyParams(CommonParams):
    """Parameters of ``head_redundancy.ipynb``."""

    notebook: ClassVar[str] = "head_redundancy"


class ExploreParams(CommonParams):
    """Parameters of ``explore.ipynb``."""

    notebook: ClassVar[str] = "explore"

    image: int = Field(default=0, ge=0, description="number of the image that is shown first")
    layer: str | None = Field(
        default=None, description="number of a block, or embed or tokens.0; None for the middle"
    )
    head: int = Field(default=0, ge=0, description="attention head")
    channel: int = Field(default=0, ge=0, description="channel of the feature maps")
    row: int | None = Field(default=None, ge=0, description="row of the token, None for the middle")
    column: int | None = Field(default=None, ge=0, description="column of the token, None for the middle")

    @field_validator("layer", mode="before")
    @classmethod
    def _block(cls, value: Any) -> Any:
        return f"blocks.{value}" if isinstance(value, int) or str(value).isdigit() else value

    def resolve(self) -> Self:
        """Return a copy as all notebooks do, with a few images: they are looked at one by one."""
        return super().resolve().model_copy(update={"n_images": self.n_images or 8})


#: name of a notebook -> its parameters
PARAMS: dict[str, type[CommonParams]] = {cls.notebook: cls for cls in (HeadRedundancyParams, ExploreParams)}

P = TypeVar("P", bound=CommonParams)


def params_for(notebook: str) -> type[CommonParams]:
    """Return the parameters of a notebook by name; one that is not of this suite takes the common ones."""
    return PARAMS.get(notebook, CommonParams)


def validate(params: type[P], values: Mapping[str, Any], problems: Iterable[str] = ()) -> P:
    """Return ``params`` made from ``values`` and resolved.

    Raises
    ------
    ParameterError
        names every unknown name and every bad value at once, each with the nearest valid choice.

    >>> validate(HeadRedundancyParams, {"modle": "t2t_vit_14", "n_images": 0})
    Traceback (most recent call last):
    t2t_analysis.errors.ParameterError: bad parameters of head_redundancy
      modle='t2t_vit_14': unknown parameter; did you mean 'model'?
      n_images=0: Input should be greater than 0
    """
    problems = list(problems)
    known = {name: value for name, value in values.items() if name in params.model_fields}
    problems += [_unknown(params, n, repr(v)) for n, v in values.items() if n not in known]
    made = None
    try:
        made = params(**known).resolve()
    except ValidationError as error:
        problems += [_readable(entry) for entry in error.errors()]
    if made is not None and (pair := made.pair_problem()):
        problems.append(pair)
    if problems or made is None:
        names = f"parameters of {params.notebook}" if params.notebook else "parameters"
        raise ParameterError("\n  ".join([f"bad {names}", *problems]))
    return made


def _unknown(params: type[CommonParams], name: str, value: str) -> str:
    close = nearest(name, params.model_fields, n=1)
    if close:
        return f"{name}={value}: unknown parameter; did you mean {close[0]!r}?"
    return f"{name}={value}: unknown parameter; known are {', '.join(params.model_fields)}"


def _readable(entry: Any) -> str:
    """One line for one pydantic error."""
    where = ".".join(str(part) for part in entry["loc"])
    return f"{where}={entry['input']!r}: {entry['msg'].removeprefix('Value error, ')}"


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
    problems = [_unknown(params, n, v) for n, v in assigned.items() if n not in params.model_fields]
    values = {name: namespace[name] for name in params.model_fields if name in namespace}
    return validate(params, values, problems)
