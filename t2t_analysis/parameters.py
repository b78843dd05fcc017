"""What every notebook takes: one pydantic model each over a common base, found by name in ``PARAMS``.

Loads neither torch nor timm nor pandas, so that a typing error is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator, BeforeValidator, field_validator

from ._device import torch_device
from ._names import TWIN, default_baseline, is_small, known_model, what_differs
from .errors import ParameterError, UnknownNameError, nearest

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


def _of(default: Any, words: str, **limits: Any) -> Any:
    """A field with what a reader is told of it."""
    return Field(default=default, description=words, **limits)


def _label(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("a label is one line of text, not an empty one")
    return value.strip()


def _weights(value: str) -> str:
    if value in _WEIGHTS or _VARIANT.match(value) or Path(value).expanduser().is_file():
        return value
    if "/" in value or "." in value:
        raise ValueError("no such weights file")
    raise UnknownNameError("weights", value, _WEIGHTS, "or the path of a file")


def _data(value: str) -> str:
    if not value:
        raise ValueError("empty; expected a name, a folder or a tar")
    if value in _DATA or _DATASET.match(value) or Path(value).expanduser().exists():
        return value
    if "/" in value or value.endswith(".tar"):
        raise ValueError("no such folder, tar or data set")
    raise UnknownNameError("data", value, _DATA, "or a folder, a .tar, or a name such as torch/cifar10")


def _device(value: str) -> str:
    if not _DEVICE.match(value):
        raise UnknownNameError(
            "device", value, ("auto", "cpu", "cuda", "mps"), "or one with a number, as cuda:1"
        )
    return value


def _folder(value: str | None) -> str | None:
    if value is not None and not Path(value).expanduser().is_dir():
        raise ValueError("no such folder")
    return value


def _categories(value: str) -> str:
    if value != "none" and not Path(value).expanduser().is_file():
        raise ValueError("no such file; expected a CSV with the columns imagenet_index and category")
    return value


def _block(value: Any) -> Any:
    return f"blocks.{value}" if isinstance(value, int) or str(value).isdigit() else value


Model = Annotated[str, AfterValidator(known_model)]
ModelOrWord = Annotated[
    str, AfterValidator(lambda value: value if value in ("auto", "none") else known_model(value))
]
Name = Annotated[str, AfterValidator(_label)]
Weights = Annotated[str, AfterValidator(_weights)]


#: name of a notebook -> its parameters, in the order of the questions
PARAMS: dict[str, type[CommonParams]] = {}


class CommonParams(BaseModel):
    """What every notebook takes; ``auto`` and ``None`` mean: choose what fits, and ``resolve`` says what."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    notebook: ClassVar[str] = ""
    #: crops that are taken when nothing is said; of photographs all are
    usual_images: ClassVar[int] = 256
    usual_photos: ClassVar[int | None] = None
    measures_time: ClassVar[bool] = False  # whether it measures time, so that nothing may run beside it
    measures_all: ClassVar[bool] = False  # whether it measures what the others do too, and so takes longest
    #: whether it reads the study's tables, so that a new row makes its report stale
    reads_study: ClassVar[bool] = False

    model: Model = _of("small_performer_deep", "model in question")
    baseline: ModelOrWord = _of("auto", "what it is compared with, none for nothing")
    weights: Weights = _of("auto", "auto, bundled, published, random or a file")
    baseline_weights: Weights = _of("auto", "the same for the baseline")
    model_label: Name = _of("auto", "what the model is called, auto for what tells it apart")
    baseline_label: Name = _of("auto", "the same for the baseline")
    data: Annotated[str, AfterValidator(_data)] = _of(
        "auto", "photos, photo_crops, a folder, a tar or a timm dataset"
    )
    n_images: int | None = _of(None, "how many images, None for what fits the data", gt=0)
    batch_size: int = _of(16, "images per forward pass", gt=0)
    device: Annotated[str, AfterValidator(_device)] = _of("auto", "auto, cpu, cuda, cuda:1 or mps")
    seed: int = _of(0, "seed of every random choice", ge=0, lt=2**31)
    results_dir: str = _of("auto", "folder for the tables behind the figures")

    def __init_subclass__(
        cls, notebook: str = "", images: int = 256, photos: int | None = None, reads_study: bool = False, **more: Any
    ) -> None:  # fmt: skip
        """Parameters of a notebook, see ``PARAMS``.

        Parameters
        ----------
        images, photos : how many crops, and photographs, are taken when nothing is said; None means all.
        reads_study : whether it reads the study's tables, so that a new row makes its report stale.
        """
        super().__init_subclass__(**more)
        cls.notebook, cls.reads_study = notebook, reads_study
        cls.usual_images, cls.usual_photos = images, photos
        if notebook:
            PARAMS[notebook] = cls

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Papermill reads 12 and True as a number and a truth value, also where a folder or a count was meant."""
        name = str(info.field_name)
        field = cls.model_fields[name]
        text = field.annotation is str
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("true or false says nothing here; text of that kind is given with -r")
        if text and isinstance(value, int | float):
            if name.endswith("_label"):
                return str(value)
            raise ValueError(f"a number; text that looks like one is given with -r, as -r {name} {value}")
        if text and value is None and field.default == "auto":
            return "none" if name == "reference" else "auto"
        return str(value) if isinstance(value, Path) else value

    def resolve(self) -> Self:
        """Return a copy in which baseline, data and n_images name what ``auto`` stands for.

        >>> p = HeadRedundancyParams(model="t2t_vit_14").resolve()
        >>> p.baseline, p.data
        ('deit_small_patch16_224', 'photos')
        """
        baseline = default_baseline(self.model) if self.baseline == "auto" else self.baseline
        data = self.data
        if data == "auto":
            small = all(is_small(name) for name in (self.model, baseline) if name != "none")
            data = "photo_crops" if small else "photos"
        usual = self.usual_images if data == "photo_crops" else self.usual_photos
        found = {"baseline": baseline, "data": data, "n_images": self.n_images or usual}
        return self.model_copy(update=found)

    @property
    def names(self) -> tuple[str, ...]:
        """Registered name of the model, and of the baseline if there is one."""
        return (self.model,) if self.baseline == "none" else (self.model, self.baseline)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model and the baseline, if there is one, are called: unique, and the key of everything else.

        >>> HeadRedundancyParams(model="t2t_vit_14", baseline="none").labels
        ('t2t_vit_14',)
        >>> HeadRedundancyParams(model="t2t_vit_7", baseline="t2t_vit_7", baseline_weights="random").labels
        ('trained', 'untrained')
        """
        found = self.names
        if found == (self.model, self.model):
            found = what_differs(self.weights, self.baseline_weights)
        given = (self.model_label, self.baseline_label)
        return tuple(made if label == "auto" else label for made, label in zip(found, given, strict=False))

    @property
    def subject(self) -> str:
        """Model against baseline, or the model alone, in words."""
        return " against ".join(self.labels)

    def pair_problem(self) -> str | None:
        """Say why model and baseline cannot be told apart, or None."""
        if self.names == (self.model, self.model) and self.weights == self.baseline_weights:
            return (
                f"baseline={self.baseline!r}: the same model with the same weights twice; give baseline_weights, "
                "or baseline=none for the model alone"
            )
        first, *others = self.labels
        if any(other in (first, first + TWIN) or other + TWIN == first for other in others):
            why = f"model and baseline need labels that differ, got {self.labels}"
            return f"baseline_label={others[0]!r}: {why}"
        return None

    def torch_device(self) -> str:
        """Return the device by torch's name; ``auto`` is CUDA where there is one, else the CPU."""
        return str(torch_device(self.device))


class FeatureMapsParams(CommonParams, notebook="feature_maps", images=192):
    """Parameters of ``feature_maps.ipynb``; few images: four networks, a second path and probes."""

    reference: ModelOrWord = _of(
        "auto", "third network, auto takes resnet50 for large images, none for no third"
    )
    image: int | None = _of(
        None, "number of the image that is drawn, None for one with a clear outline", ge=0
    )
    layer: int = _of(0, "block whose feature maps are drawn", ge=0)

    def resolve(self) -> Self:
        """Return a copy in which ``reference`` names a network too, or none.

        >>> FeatureMapsParams().resolve().reference, FeatureMapsParams(model="t2t_vit_14").resolve().reference
        ('none', 'resnet50')
        """
        usual = "none" if is_small(self.model) else "resnet50"
        found = super().resolve()
        return found.model_copy(update={"reference": usual}) if self.reference == "auto" else found

    def pair_problem(self) -> str | None:
        """Say also that the third network would go by a name that is taken."""
        if self.reference in self.labels:
            return f"reference={self.reference!r}: model and baseline are called {self.labels}; take another"
        return super().pair_problem()


class ChannelZerosParams(CommonParams, notebook="channel_zeros", images=96):
    """Parameters of ``channel_zeros.ipynb``; few images: each is run by six paths that differ in one step."""


class HeadRedundancyParams(CommonParams, notebook="head_redundancy"):
    """Parameters of ``head_redundancy.ipynb``."""


class LayerSimilarityParams(CommonParams, notebook="layer_similarity", images=192):
    """Parameters of ``layer_similarity.ipynb``; few images: four networks are measured, twins included."""


class LocalStructureParams(CommonParams, notebook="local_structure", images=192):
    """Parameters of ``local_structure.ipynb``; few images: each is run with a graph and 16 times shifted."""

    categories: Annotated[str, AfterValidator(_categories)] = _of(
        "none", "CSV of the outputs that belong to each class of the data, or none"
    )


class AttentionGeometryParams(CommonParams, notebook="attention_geometry"):
    """Parameters of ``attention_geometry.ipynb``."""


class HeadAblationParams(CommonParams, notebook="head_ablation", images=48, photos=8):
    """Parameters of ``head_ablation.ipynb``; few images: each is run some hundred times."""

    n_images: int | None = _of(None, "how many images, None for what fits the data", ge=4)
    kinds: Annotated[list[Literal["mean", "zero", "resample"]], BeforeValidator(_listed)] = _of(
        ["mean"], "how heads are taken out: mean, zero or resample; the first is drawn", min_length=1
    )
    random_orders: int = _of(10, "random orders to prune by", ge=2)

    def resolve(self) -> Self:
        """Also make batches so small that there are four to be dealt to two halves, of two images at least.

        >>> HeadAblationParams().resolve().batch_size, HeadAblationParams(n_images=4).resolve().batch_size
        (12, 2)
        """
        found = super().resolve()
        quarter = max(2, (found.n_images or 4 * self.batch_size) // 4)
        return found.model_copy(update={"batch_size": min(self.batch_size, quarter)})


class AttributionParams(CommonParams, notebook="attribution", images=12, photos=4):
    """Parameters of ``attribution.ipynb``; few images: every map takes tens of forward or backward passes."""

    steps: int = _of(12, "points of the path of integrated gradients", gt=0)
    squares: int = _of(16, "most squares that occlusion covers in turn", gt=0)
    stages: int | None = _of(None, "looks while weights are randomised, None for 3, at photos 1", gt=0)

    def resolve(self) -> Self:
        """Also look once, at the end, while weights of a large model are randomised: a look costs all maps anew.

        >>> AttributionParams().resolve().stages, AttributionParams(model="t2t_vit_14").resolve().stages
        (3, 1)
        """
        found = super().resolve()
        usual = 3 if found.data == "photo_crops" else 1
        return found.model_copy(update={"stages": self.stages or usual})

    def pair_problem(self) -> str | None:
        """Say also what the checks cannot be made with: a single image."""
        if self.n_images == 1:
            return "n_images=1: maps are compared with maps of other images, which takes two or more"
        return super().pair_problem()


class CostParams(CommonParams, notebook="cost", images=32, photos=8):
    """Parameters of ``cost.ipynb``; as many images as the largest batch that is timed."""

    measures_time: ClassVar[bool] = True

    batch_sizes: Annotated[list[PositiveInt], BeforeValidator(_listed)] = _of(
        [1, 8, 32], "images a batch when timed, at most n_images", min_length=1
    )
    repeats: int = _of(9, "timings per model and batch size, 6 or more", ge=6)

    def timed(self) -> list[int]:
        """Batch sizes in order, cut to the number of images.

        >>> CostParams(n_images=16).timed(), CostParams(n_images=4, batch_sizes="16,64").timed()
        ([1, 8, 16], [4])
        """
        most = self.n_images or max(self.batch_sizes)
        return sorted({min(size, most) for size in self.batch_sizes})


class TrainingFromScratchParams(CommonParams, notebook="training_from_scratch", reads_study=True):
    """Parameters of ``training_from_scratch.ipynb``."""

    study: Annotated[str | None, AfterValidator(_folder)] = _of(
        None, "folder of the study's tables, None for the shipped one"
    )
    study_data: str = _of("photo_crops", "data set of the runs, as the table names it")
    epochs: int | None = _of(None, "length of the runs, None for the longest complete", gt=0)


class ClaimsParams(CommonParams, notebook="claims", reads_study=True):
    """Parameters of ``claims.ipynb``."""

    measures_all: ClassVar[bool] = True


class ExploreParams(CommonParams, notebook="explore", images=8, photos=8):
    """Parameters of ``explore.ipynb``; few images: they are looked at one by one."""

    image: int = _of(0, "number of the image that is shown first", ge=0)
    layer: Annotated[str | None, BeforeValidator(_block)] = _of(
        None, "number of a block, or embed or tokens.0; None for the middle"
    )
    head: int = _of(0, "attention head", ge=0)
    channel: int = _of(0, "channel of the feature maps", ge=0)
    row: int | None = _of(None, "row of the token, None for the middle", ge=0)
    column: int | None = _of(None, "column of the token, None for the middle", ge=0)


def params_for(notebook: str) -> type[CommonParams]:
    """Return the parameters of a notebook by name; one that is not of this suite takes the common ones."""
    return PARAMS.get(notebook, CommonParams)


P = TypeVar("P", bound=CommonParams)


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
    problems += [unknown_parameter(params, n, repr(v)) for n, v in values.items() if n not in known]
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


def unknown_parameter(params: type[CommonParams], name: str, value: str) -> str:
    """Say that there is no such parameter, and which is nearest."""
    close = nearest(name, params.model_fields, n=1)
    if close:
        return f"{name}={value}: unknown parameter; did you mean {close[0]!r}?"
    return f"{name}={value}: unknown parameter; known are {', '.join(params.model_fields)}"


def _readable(entry: Any) -> str:
    """One line for one pydantic error."""
    where = ".".join(str(part) for part in entry["loc"])
    return f"{where}={entry['input']!r}: {entry['msg'].removeprefix('Value error, ')}"
