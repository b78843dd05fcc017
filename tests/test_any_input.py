"""Any input: what is valid gives a result, what is not the documented error, and nothing is left behind by either.

``make test`` tries a few examples of each kind, ``make stress`` as many as ``T2T_ANALYSIS_STRESS`` says.
"""

# ruff: noqa: PT017 - whether there is an error is what is tried
from __future__ import annotations

import itertools
import math
import os
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Lt, MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from timm.models.vision_transformer import VisionTransformer

from t2t_analysis import capture, explore, load_images, load_model, quantity, stats
from t2t_analysis.claims.rule import VERDICTS, judge, overall
from t2t_analysis.data import train_data
from t2t_analysis.data.info import DataInfo
from t2t_analysis.data.loading import Batch
from t2t_analysis.errors import DataError, ParameterError, T2TError
from t2t_analysis.estimates import Estimate
from t2t_analysis.measures import (
    HeadMeans,
    HeadPairs,
    PruningCurves,
    ShortcutShare,
    attribution,
    behaviour,
    example_rollouts,
    explain,
    probe,
    shortcut_features,
    token_pca,
)  # fmt: skip
from t2t_analysis.measures.catalogue import ALL, COMPARISONS
from t2t_analysis.measures.engine import measure
from t2t_analysis.notebooks import validate
from t2t_analysis.parameters import PARAMS, CommonParams
from t2t_analysis.training.accuracy import accuracy

ROUNDS = int(os.environ.get("T2T_ANALYSIS_STRESS", "1"))
quick = settings(
    max_examples=10 * ROUNDS, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow],
    database=None,
)  # fmt: skip

# ------------------------------------------------------------------------------------------ notebook parameters

TEXTS = {
    "model": st.sampled_from(["small_hard_deep", "small_performer_wide", "t2t_vit_7", "deit_small_patch16_224"]),
    "baseline": st.sampled_from(["auto", "none", "small_hard_wide", "vit_tiny_patch16_224"]),
    "reference": st.sampled_from(["auto", "none", "resnet18"]),
    "weights": st.sampled_from(["auto", "random", "published"]),
    "baseline_weights": st.just("bundled"),
    "model_label": st.sampled_from(["auto", "before", "模型 $x_1$ <b>"]),
    "baseline_label": st.sampled_from(["auto", "after", 'a & "b"']),
    "data": st.sampled_from(["auto", "photos", "photo_crops", "torch/cifar10"]),
    "device": st.sampled_from(["auto", "cpu", "cuda:3"]),
    "results_dir": st.sampled_from(["auto", "tables"]),
    "study": st.just("."),
    "categories": st.sampled_from(["none", __file__]),
    "study_data": st.sampled_from(["photo_crops", "cifar10"]),
    "layer": st.sampled_from(["0", "embed", "tokens.0"]),
}  # fmt: skip


def _numbers(field: Any) -> st.SearchStrategy[int]:
    bounds = {type(one): one for one in field.metadata}
    least = bounds[Gt].gt + 1 if Gt in bounds else bounds[Ge].ge if Ge in bounds else 0
    return st.integers(least, bounds[Lt].lt - 1 if Lt in bounds else 10**6)


def _fitting(name: str, field: Any) -> st.SearchStrategy[Any]:
    """Values of the field's kind within its bounds."""
    kinds = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    (kind,) = [one for one in kinds if one is not types.NoneType]
    if kind is str:
        found = TEXTS[name]
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = _numbers(field)
    else:  # a list of numbers or of words
        (item,) = typing.get_args(kind)
        words = typing.get_origin(item) is typing.Literal
        items = st.sampled_from(typing.get_args(item)) if words else st.integers(1, 9)
        least = max([one.min_length for one in field.metadata if isinstance(one, MinLen)], default=0)
        found = st.lists(items, min_size=least, max_size=3, unique=True)
    return found | st.none() if len(kinds) > 1 else found


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
    st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@pytest.mark.parametrize("notebook", PARAMS)
@given(data=st.data())
@quick
def test_fitting_parameters_pass_alone_and_together(notebook: str, data: Any) -> None:
    params = PARAMS[notebook]
    fields = {name: _fitting(name, field) for name, field in params.model_fields.items()}
    for name in fields:
        params(**{name: data.draw(fields[name], label=name)}).resolve()
    drawn = data.draw(st.fixed_dictionaries({}, optional=fields))
    made = params(**drawn).resolve()
    assert "auto" not in (made.baseline, made.data)
    assert len(made.labels) == len(made.names)
    made.pair_problem()


@pytest.mark.parametrize("notebook", PARAMS)
@given(data=st.data())
@quick
def test_any_parameters_pass_or_are_named_in_one_error(notebook: str, data: Any) -> None:
    params = PARAMS[notebook]
    names = st.sampled_from(list(params.model_fields)) | st.text(min_size=1, max_size=12)
    drawn = data.draw(st.dictionaries(names, ANYTHING, max_size=4))
    try:
        made = validate(params, drawn)
    except ParameterError as error:
        for name in drawn.keys() - params.model_fields.keys():
            assert f"{name}=" in str(error)
    else:
        assert isinstance(made, CommonParams)
        assert drawn.keys() <= params.model_fields.keys()


# ------------------------------------------------------------------------------------------ arguments of functions

SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text("ab 日\0<", max_size=5), st.binary(max_size=3),
    st.lists(st.integers(-3, 40), max_size=3), st.tuples(st.integers(-3, 40), st.integers(-3, 40)),
)  # fmt: skip
#: function, arguments that it must have, arguments that it may have
ARGUMENTS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "photos": (
        partial(load_images, "photos"), "",
        "n_images batch_size split workers device seed img_size on_error shard model"
    ),
    "crops": (partial(load_images, "photo_crops"), "", "n_images batch_size split seed img_size shard"),
    "load_images": (load_images, "data", ""),
    "train_data": (train_data, "", "split img_size fraction seed crops_per_block"),
    "a model": (partial(load_model, "small_hard_wide"), "", "weights img_size num_classes in_chans device seed"),
    "load_model": (load_model, "name", ""),
    "quantity": (quantity, "name", ""),
    "names": (capture.names, "model", ""),
    "measure": (partial(measure, progress=False), "models loader measures", ""),
    "explore": (explore, "model", "image"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
@given(data=st.data())
@quick
def test_functions_take_any_argument_or_name_it(name: str, data: Any) -> None:
    function, must, may = ARGUMENTS[name]
    fixed, optional = (dict.fromkeys(names.split(), SMALL) for names in (must, may))
    try:
        function(**data.draw(st.fixed_dictionaries(fixed, optional=optional)))
    except T2TError as error:
        assert str(error)


# ------------------------------------------------------------------------------------------ numbers

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)
SAMPLES = arrays(np.float64, st.integers(0, 12), elements=FLOATS)
FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "jackknife": lambda x, y: stats.jackknife(x, 0.0),
    "permutation_p": lambda x, y: stats.permutation_p(0.5, x),
    "holm": lambda x, y: stats.holm(x),
    "mcnemar": lambda x, y: stats.mcnemar(x > 0, y > 0),
    "of_units": lambda x, y: Estimate.of_units(x).low,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(x=SAMPLES, y=SAMPLES)
@quick
def test_statistics_of_any_sample_have_a_value_or_a_named_error(name: str, x: Any, y: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numpy and scipy, about infinities
        try:
            FUNCTIONS[name](x, y)
        except DataError as error:
            assert str(error)


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)))
@quick
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p: np.ndarray) -> None:
    found = stats.holm(p)
    assert (found >= p).all()
    assert (found <= 1).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


@given(array_shapes(min_dims=1, max_dims=2, max_side=9).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e3, 1e3))
))  # fmt: skip
@quick
def test_a_mean_lies_in_its_interval_and_does_not_depend_on_the_order(x: np.ndarray) -> None:
    forth, back = Estimate.of_units(x), Estimate.of_units(x[::-1])
    np.testing.assert_allclose(forth.value, back.value, atol=1e-9)
    np.testing.assert_allclose(forth.se, back.se, atol=1e-6)
    if len(x) > 1:
        assert (forth.low <= forth.value + 1e-9).all()
        assert (forth.value <= forth.high + 1e-9).all()


EFFECTS = st.fixed_dictionaries({"value": FLOATS, "se": st.floats(0, 10), "df": st.floats(1, 50)})


@given(
    row=EFFECTS, direction=st.sampled_from([-1, 0, 1]), smallest=st.floats(0, 1), family=st.integers(1, 20)
)
@quick
def test_verdicts_of_any_effect(row: Any, direction: int, smallest: float, family: int) -> None:
    found = judge(row, direction=direction, smallest=smallest, family=family).verdict
    assert found in VERDICTS
    turned = judge(
        row | {"value": -row["value"]}, direction=-direction, smallest=smallest, family=family
    ).verdict
    assert turned == found
    more = judge(row, direction=direction, smallest=smallest, family=family + 5).verdict
    weaker = {
        "contradicted",
        "no difference that counts",
    }  # of these a wider interval may leave the exclusion
    assert more in {found, "open", "not testable", *["claimed effect excluded"] * (found in weaker)}


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=6))
@quick
def test_effects_say_together_what_each_says_in_any_order(verdicts: list[str]) -> None:
    assert overall(verdicts) == overall(verdicts[::-1]) == overall(verdicts * 2)
    assert overall(verdicts) in VERDICTS
    assert overall(verdicts) != "supported" or set(verdicts) == {"supported"}


# ------------------------------------------------------------------------------------------ images into measures

PICTURES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _with(value: float) -> torch.Tensor:
    images = PICTURES.clone()
    images[1, :, 5, 7] = value
    return images


ODD = {
    "one image": PICTURES[:1],
    "two images that are one": PICTURES[:1].repeat(2, 1, 1, 1),
    "black": torch.zeros(4, 3, 32, 32),
    "grey": torch.full((4, 3, 32, 32), 0.5),
    "not a number": _with(math.nan),
    "infinite": _with(math.inf),
    "huge": PICTURES * 1e30,
    "tiny": PICTURES * 1e-30,
    "double precision": PICTURES.double(),
    "none": PICTURES[:0],
}
#: heads of the small network, layer by layer
HEADS = [(layer, head) for layer in (0, 1) for head in (0, 1)]
EVERY = (*ALL, *COMPARISONS, HeadPairs(), PruningCurves({"forward": HEADS}, random=3), ShortcutShare())
FEW = attribution.Settings(steps=2)


class Loader(list):
    """One batch, with the words of a loader of `load_images`."""

    def __init__(self, images: torch.Tensor) -> None:
        labels = torch.arange(len(images)) % 3
        super().__init__([Batch(images, labels, torch.arange(len(images)))])
        self.dataset = types.SimpleNamespace(
            info=DataInfo("x", "test", len(images), ("a", "b", "c"), "", 0.5)
        )


FUNCTIONS_OF_IMAGES: dict[str, Callable[[Any, Any], Any]] = {
    "accuracy": accuracy,
    "behaviour": lambda model, images: behaviour(model, images, distortions=["shuffle"], progress=False),
    "explain": lambda model, images: explain(model, images, n_images=None, settings=FEW, progress=False),
    "explore": explore,
    "means of heads": HeadMeans.of,
    "probe": lambda model, images: probe(model, images, images, kinds=["knn"], shuffles=1, progress=False),
    "rollouts": lambda model, images: example_rollouts({"a": model}, images),
    "token_pca": lambda model, images: token_pca(model, images, n_images=None),
}


def net(depth: int = 2, heads: int = 2, **kwargs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_classes": 3}
    return VisionTransformer(**size | {"depth": depth, "num_heads": heads} | kwargs).train()


@contextmanager
def nothing_left_behind(model: torch.nn.Module) -> Iterator[None]:
    def state() -> dict[str, Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "hooks": sum(len(getattr(part, name)) for part in model.modules() for name in hooks),
            "training": [part.training for part in model.modules()],
            "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "grad": torch.is_grad_enabled(),
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "threads": torch.get_num_threads(),
            "matplotlib": dict(mpl.rcParams),
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mpl.MatplotlibDeprecationWarning)
        before = state()
        yield
        after = state()
    assert {name: before[name] for name in before if after[name] != before[name]} == {}


def some(first: Iterable[Any], second: Iterable[Any], every: int = 3) -> list[tuple[Any, Any]]:
    """Pairs of both, all of them in long runs, else one of ``every`` so that each part is there."""
    numbered = itertools.product(enumerate(first), enumerate(second))
    return [(a, b) for (i, a), (j, b) in numbered if ROUNDS > 1 or (i + j) % every == 0]


@pytest.mark.parametrize(("one", "odd"), some(EVERY, ODD), ids=lambda part: getattr(part, "name", part))
def test_odd_images_give_a_result_or_a_named_error(one: Any, odd: str) -> None:
    model = net()
    with nothing_left_behind(model), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            results = measure(model, ODD[odd], one, progress=False)
        except T2TError as error:
            assert str(error)
            return
    check_numbers(results[one.name].frame)


def check_numbers(frame: Any) -> None:
    settled = frame[["low", "high"]].notna().all(axis=1)
    numbers = frame.loc[settled, ["low", "value", "high"]]
    assert not np.isinf(numbers.to_numpy(float)).any()
    assert (numbers.low <= numbers.high).all()


SMALLEST = {
    "one head": {"heads": 1},
    "one layer": {"depth": 1},
    "one of each": {"depth": 1, "heads": 1},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "one patch": {"patch_size": 32},
    "no classifier": {"num_classes": 0},
}


@pytest.mark.parametrize(
    ("one", "kind"), some(EVERY, SMALLEST, 4), ids=lambda part: getattr(part, "name", part)
)
def test_the_smallest_models_give_a_result_or_a_named_error(one: Any, kind: str) -> None:
    model = net(**SMALLEST[kind])
    with nothing_left_behind(model), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            results = measure(model, PICTURES, one, progress=False)
        except T2TError as error:
            assert str(error)
            return
    check_numbers(results[one.name].frame)


@pytest.mark.parametrize(("name", "odd"), some(FUNCTIONS_OF_IMAGES, ODD))
def test_functions_of_odd_images_give_a_result_or_a_named_error(name: str, odd: str) -> None:
    model = net()
    with nothing_left_behind(model), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            FUNCTIONS_OF_IMAGES[name](model, Loader(ODD[odd]))
        except T2TError as error:
            assert str(error)


NO_LOADERS = {
    "a name": "photos", "nothing": None, "a number": 3, "no batches": [], "texts": ["a.jpg"],
    "one image": [PICTURES[0]], "pairs": [(PICTURES, torch.tensor([0, 1, 2, 0]))],
    "tensors": [PICTURES[:2], PICTURES[2:]], "a tensor": PICTURES,
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), some(FUNCTIONS_OF_IMAGES, NO_LOADERS))
def test_functions_take_what_measure_takes_or_name_it(name: str, kind: str) -> None:
    model = net()
    with nothing_left_behind(model):
        try:
            FUNCTIONS_OF_IMAGES[name](model, NO_LOADERS[kind])
        except T2TError as error:
            assert str(error)


def fail(module: torch.nn.Module, *_: Any) -> None:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("name", [*FUNCTIONS_OF_IMAGES, "shortcut_features"])
def test_a_model_that_fails_in_a_function_is_left_as_it_was(name: str) -> None:
    model = net()
    model.blocks[0].eval()  # a mode of its own, which must come back
    model.blocks[1].mlp.register_forward_pre_hook(fail)
    run = FUNCTIONS_OF_IMAGES.get(name, lambda model, images: shortcut_features(model, PICTURES, 32))
    with nothing_left_behind(model), pytest.raises(RuntimeError, match="broken on purpose"):
        run(model, Loader(PICTURES))


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_a_model_that_fails_half_way_is_left_as_it_was(one: Any) -> None:
    model = net()
    model.blocks[1].mlp.register_forward_pre_hook(fail)
    with nothing_left_behind(model), pytest.raises(RuntimeError, match="broken on purpose"):
        measure(model, PICTURES, one, progress=False)
