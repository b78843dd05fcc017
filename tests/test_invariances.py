"""What each similarity declares that it does not notice, and that it notices everything else.

A new function joins by a line in DECLARED and a row in CASES.
"""

import importlib
import pkgutil
from functools import partial
from typing import NamedTuple

import pytest
import torch

from t2t_analysis import measures
from t2t_analysis.measures import (
    EffectiveRank,
    InvalidChannels,
    attention,
    edge_channels,
    head_maps,
    redundancy,
    spectrum,
)
from t2t_analysis.measures.base import INVARIANCES

from . import references


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def features():
    x = normal(30, 6, seed=1)
    return x, x @ normal(6, 8, seed=2) + normal(30, 8, seed=3)


def sample():
    """One channel is a hundredth of the others."""
    return (normal(30, 6, seed=6) * torch.tensor([1.0, 2.0, 0.01, 1.0, 3.0, 1.0], dtype=torch.float64),)


def maps():
    return (normal(4, 5, 7, seed=4).softmax(-1),)  # (heads, queries, keys)


def token_maps():
    return (1e5 * normal(4, 6, 7, 7, seed=6),)  # (images, channels, rows, columns), large against any epsilon


def one_side(change):
    """Apply to the first argument alone."""
    return lambda args: (change(args[0]), *args[1:])


def every_side(change):
    return lambda args: tuple(change(a) for a in args)


SHUFFLED = {n: torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (4, 6, 7, 30)}

# domain -> transformation -> how it acts on the arguments; where it does not apply it is left out.
TRANSFORMS = {
    "features": {
        "orthogonal": one_side(lambda x: x @ rotation(6)),
        "scale": one_side(lambda x: -2.5 * x),
        "translation": one_side(lambda x: x + 3 * normal(6, seed=5)),
        "permute_channels": one_side(lambda x: x[:, SHUFFLED[6]]),
        "permute_images": every_side(lambda x: x[SHUFFLED[30]]),
    },
    "sample": {
        "orthogonal": every_side(lambda x: x @ rotation(6)),
        "scale": every_side(lambda x: -2.5 * x),
        "translation": every_side(lambda x: x + 3 * normal(6, seed=5)),
        "permute_channels": every_side(lambda x: x[:, SHUFFLED[6]]),
        "permute_images": every_side(lambda x: x[SHUFFLED[30]]),
    },
    "maps": {
        "orthogonal": every_side(lambda a: a @ rotation(7)),
        "scale": every_side(lambda a: 2.5 * a),
        "translation": every_side(lambda a: a + 0.3),
        "permute_keys": every_side(lambda a: a[:, :, SHUFFLED[7]]),
        "permute_heads": every_side(lambda a: a[SHUFFLED[4]]),
    },
    "token_maps": {
        "orthogonal": every_side(lambda a: torch.einsum("bchw,cd->bdhw", a, rotation(6))),
        "scale": every_side(lambda a: 2.5 * a),
        "translation": every_side(lambda a: a + 1e5 * normal(6, 1, 1, seed=7)),
        "permute_channels": every_side(lambda a: a[:, SHUFFLED[6]]),
        "permute_images": every_side(lambda a: a[SHUFFLED[4]]),
    },
}

# What no linear similarity may overlook.
NOTICED = {
    "features": {
        "invertible": one_side(lambda x: x @ (torch.eye(6) + 3 * normal(6, 6, seed=8))),
        "one side's images permuted": one_side(lambda x: x[SHUFFLED[30]]),
    },
    "sample": {"a channel silenced": every_side(lambda x: x * (torch.arange(6) > 0))},
    "maps": {"one head's keys permuted": every_side(lambda a: torch.cat([a[:1, :, SHUFFLED[7]], a[1:]]))},
    "token_maps": {"positions permuted": every_side(lambda a: a[..., SHUFFLED[7]])},
}


# What each function does not notice; images are permuted on both sides together, the rest on one side alone.
DECLARED = {
    "cka_unbiased": ("orthogonal", "scale", "translation", "permute_images", "permute_channels"),
    "hsic1": ("orthogonal", "translation", "permute_images", "permute_channels"),
    "decodability": ("orthogonal", "scale", "translation", "permute_channels"),
    "content": ("scale", "translation", "permute_channels"),
    "log_amplitude": ("scale", "permute_images", "permute_channels"),
    "high_frequency_share": ("scale", "translation", "orthogonal", "permute_images", "permute_channels"),
    "token_cosine": ("orthogonal", "scale", "permute_channels", "permute_images"),  # an image here is a token
    "flattened_cosine": ("permute_heads", "permute_keys", "scale", "orthogonal"),
    "column_cosine": ("permute_heads", "permute_keys", "scale"),
    "attention_distance": ("permute_heads", "scale"),
}


class Case(NamedTuple):
    function: object
    example: object
    domain: str
    declared: tuple[str, ...]
    name: str


def of_module(module, name, example, domain):
    return Case(getattr(module, name), example, domain, DECLARED[name], f"{module.__name__}.{name}")


HEADS = ("permute_heads", "permute_keys")
CASES = [
    *(of_module(references, name, features, "features") for name in ("cka_unbiased", "hsic1")),
    Case(references.linear_cka, features, "features", DECLARED["cka_unbiased"], "linear_cka"),
    Case(
        partial(head_maps.head_cosine, centred=True),
        maps,
        "maps",
        (*HEADS, "scale", "translation"),
        "centred",
    ),
    Case(partial(head_maps.head_cosine, centred=False), maps, "maps", (*HEADS, "scale", "orthogonal"), "raw"),
    Case(head_maps.pairwise_js_divergence, maps, "maps", HEADS, "js_divergence"),
    of_module(references, "decodability", features, "features"),
    Case(references.invalid_areas, sample, "sample", InvalidChannels.invariances, "invalid_areas"),
    Case(
        partial(
            edge_channels.content,
            targets=edge_channels.Targets(normal(4, 49, seed=10), normal(4, 49, seed=11)),
        ),
        token_maps,
        "token_maps",
        DECLARED["content"],
        "t2t_analysis.measures.edge_channels.content",
    ),
    Case(references.effective_rank_of, sample, "sample", EffectiveRank.invariances, "effective_rank_of"),
    *(
        of_module(spectrum, name, token_maps, "token_maps")
        for name in ("log_amplitude", "high_frequency_share")
    ),
    of_module(redundancy, "token_cosine", sample, "sample"),
    of_module(redundancy, "flattened_cosine", maps, "maps"),
    of_module(references, "column_cosine", maps, "maps"),
    Case(
        partial(attention.attention_distance, distance=normal(5, 7, seed=9).abs()),
        maps,
        "maps",
        DECLARED["attention_distance"],
        "t2t_analysis.measures.attention.attention_distance",
    ),
]


def answer(case, args):
    """Values in an order of their own, so that relabelled heads compare equal."""
    return case.function(*args).flatten().sort().values


CHECKS = [
    pytest.param(case, name, id=f"{case.name.rsplit('.')[-1]}-{name}")
    for case in CASES
    for name in TRANSFORMS[case.domain]
]


@pytest.mark.parametrize(("case", "name"), CHECKS)
def test_declared_invariances_hold_and_no_others(case, name):
    args = case.example()
    before, after = answer(case, args), answer(case, TRANSFORMS[case.domain][name](args))
    change = float((before - after).abs().max() / before.abs().max())
    if name in case.declared:
        assert change < 1e-9
    else:
        assert change > 1e-3, f"{case.name} does not notice {name}: declare it"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.rsplit(".")[-1])
def test_what_must_be_noticed(case):
    args = case.example()
    for name, change in NOTICED[case.domain].items():
        difference = answer(case, args) - answer(case, change(args))
        assert float(difference.abs().max()) > 1e-3, name


def modules():
    found = pkgutil.iter_modules(measures.__path__, measures.__name__ + ".")
    return [importlib.import_module(m.name) for m in found]


def test_every_declared_function_and_measure_is_known_and_checked():
    checked = {case.name.rsplit(".")[-1] for case in CASES}
    for name, declared in DECLARED.items():
        assert set(declared) <= INVARIANCES
        assert name in checked, f"add a row for {name} to CASES"
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, measures.Measure):
                assert value.invariances <= INVARIANCES, value
