"""What every number of the suite is called and how it is written: words, axis, unit, digits, smallest effect, claim.

One entry a quantity. What is derived from it by a rule, such as a difference between two models or a change over depth,
is resolved from its name: ``quantity("cosine_centred_last_minus_first_difference")``. Nothing else formats a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pandas as pd

from .errors import UnknownNameError

__all__ = ["MISSING", "QUANTITIES", "Quantity", "enough_digits", "number", "p_words", "quantity"]

#: in place of a value that is not there
MISSING = "not measured"


@dataclass(frozen=True)
class Quantity:
    """One kind of number.

    Parameters
    ----------
    name : as in the column ``quantity``.
    words : as a sentence says it, without an article.
    axis : as an axis says it; ``words`` where left out.
    unit : as it is written after the number: ``%`` and ``points`` multiply by 100; empty where there is none.
    digits : after the decimal point, as a rule.
    smallest : smallest difference between two models that counts, in the unit of the value; None where none is set.
    claimed : sign of "T2T-ViT minus ViT" that the paper claims; 0 for no difference, None where it says nothing.
    bounds : smallest and largest value that there can be, None where there is no end.
    scale : what a value is multiplied by before it is written.
    """

    name: str
    words: str
    axis: str = ""
    unit: str = ""
    digits: int = 3
    smallest: float | None = None
    claimed: Literal[-1, 0, 1] | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The words with a capital letter."""
        return self.words[:1].upper() + self.words[1:]

    @property
    def label(self) -> str:
        """Label of an axis, with the unit."""
        axis = self.axis or self.words
        return f"{axis} ({self.unit})" if self.unit else axis

    def shown(self, value: Any) -> Any:
        """A value, or an array of values, in the unit in which it is written."""
        return value * self.scale

    def number(self, value: Any, *, unit: bool = True) -> str:
        """A value in words.

        >>> quantity("cosine_centred").number(-0.1234), quantity("zero_area").number(0.0031)
        ('−0.123', '0.3 %')
        >>> quantity("accuracy_difference").number(0.0204), quantity("zero_area").number(0.0031, unit=False)
        ('2.0 points', '0.3')
        """
        if pd.isna(value):
            return MISSING
        text = number(float(value) * self.scale, self.digits)
        return f"{text} {self.unit}" if unit and self.unit else text

    def interval(self, row: Mapping[str, Any] | pd.Series, *, unit: bool = True) -> str:
        """Value and interval of a row in one precision, with a digit more where one of them would read as 0.

        >>> quantity("cosine_centred").interval({"value": 0.1234, "low": 0.1, "high": 0.15})
        '0.123 [0.100, 0.150]'
        >>> quantity("cosine_centred").interval({"value": -0.0011, "low": -0.0021, "high": -0.0002})
        '−0.0011 [−0.0021, −0.0002]'
        >>> quantity("zero_area").interval({"value": 0.179, "low": 0.142, "high": 0.217})
        '17.9 % [14.2, 21.7]'
        >>> quantity("zero_area").interval({"value": 0.179, "low": None, "high": None})
        '17.9 % (no interval)'
        """
        ends = [row[name] for name in ("value", "low", "high")]
        if pd.isna(ends[0]) or pd.isna(ends[1]) or pd.isna(ends[2]):
            text = self.number(ends[0], unit=unit)
            return text if pd.isna(ends[0]) else f"{text} (no interval)"
        shown = [float(x) * self.scale for x in ends]
        digits = _digits(self.digits, *shown)
        value, low, high = (_text(x, digits) for x in shown)
        return f"{value}{f' {self.unit}' if unit and self.unit else ''} [{low}, {high}]"


def number(value: Any, digits: int = 3) -> str:
    """A number in ``digits`` decimals, more where it would read as 0, with a true minus sign; a missing one in words.

    >>> number(0.1234), number(-0.00004), number(-0.0), number(float("nan"))
    ('0.123', '−0.00004', '0.000', 'not measured')
    """
    return MISSING if pd.isna(value) else _text(float(value), _digits(digits, float(value)))


def p_words(p: Any) -> str:
    """A p-value as a sentence says it.

    >>> p_words(0.0321), p_words(0.00012), p_words(None)
    ('p = 0.032', 'p < 0.001', 'no p')
    """
    if pd.isna(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _digits(digits: int, *values: float) -> int:
    """``digits``, or as many as the largest value needs, and one more where a value that is not 0 would read so."""
    largest = max(abs(x) for x in values)
    if 0 < largest < 0.5 * 10**-digits:
        digits = min(9, math.ceil(-math.log10(largest)))
    return enough_digits(digits, *values)


def enough_digits(digits: int, *values: float) -> int:
    """``digits``, or one more where a value that is not 0 would read as 0: whether an interval holds 0 has to be seen.

    >>> enough_digits(3, 0.0011, 0.0002, 0.0021), enough_digits(3, 0.1, 0.0, 0.2)
    (4, 3)
    """
    return digits + any(round(x, digits) == 0 != round(x, digits + 1) for x in values)


def _text(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "−")


# ------------------------------------------------------------------------------------------ the registry

SIMILARITY, CHANNELS, EDGES, GRADIENT, RANK_CORRELATION = 0.05, 0.01, 0.02, 0.05, 0.1
ACCURACY, BACKBONE, CONVOLUTION, COST = 0.005, 0.01, 0.003, 0.01

QUANTITIES: dict[str, Quantity] = {}
#: what is told of a quantity by the unit of its values
_SHARE: dict[str, Any] = {"unit": "%", "digits": 1, "scale": 100.0, "bounds": (0.0, 1.0)}
_POINTS: dict[str, Any] = {"unit": "points", "digits": 1, "scale": 100.0}
_COSINE: dict[str, Any] = {"bounds": (-1.0, 1.0)}
_UP: dict[str, Any] = {"bounds": (0.0, None)}
_NATS: dict[str, Any] = {"unit": "nats", **_UP}


def _add(name: str, words: str, axis: str = "", **about: Any) -> None:
    QUANTITIES[name] = Quantity(name, words, axis, **about)


# heads
_ALIKE: dict[str, Any] = {"smallest": SIMILARITY, "claimed": -1}
_add("cosine_raw", "raw cosine of attention maps", "raw cosine", bounds=(0.0, 1.0), **_ALIKE)
_add("cosine_centred", "centred cosine of attention maps", "centred cosine", **_COSINE, **_ALIKE)
_add("cosine_content", "content similarity of attention maps", "content similarity", **_COSINE, **_ALIKE)
_add(
    "cosine_floor",
    "raw cosine that independent heads would have",
    "raw cosine of independent heads",
    bounds=(0, 1),
)
_add("position_prior", "cosine of a head's maps of two images", "cosine of two images", **_COSINE)
_add("logit_spread", "spread of the attention logits", "standard deviation of logits", **_UP)
_add("sink_likeness", "likeness of heads that attention sinks make", "fall of the centred cosine", **_COSINE)
_add("sink_columns", "attention sinks of an image", unit="columns", digits=1, **_UP)
_add("sink_attention", "attention that the sinks get", **_SHARE)
_add("sink_value_ratio", "size of what sinks write over that of other patches", "value norm / others'", **_UP)
_add("sink_position", "images in which a patch is a sink", **_SHARE)
_add("dominant_mass", "attention that the most attended token gets", **_SHARE)
_add("dominant_queries", "queries that give half of their attention to one token", **_SHARE)
_add("column_peak", "attention of the most attended token over that of the median one", digits=1, **_UP)
_add("dominant_prefix", "images whose most attended token is a prefix token", **_SHARE)
_add("dominant_same", "pairs of images with the same most attended token", **_SHARE)
_add("dominant_value_ratio", "size of what the most attended token writes over that of the others", **_UP)
_add("update_stable_rank", "stable rank of what a head writes", digits=2, bounds=(1.0, None))
_add("sink_events", "images in which nine queries in ten look at one token", **_SHARE)
_add("sinks_that_do_nothing", "images in which that token writes next to nothing", **_SHARE)
_add("sinks_that_broadcast", "images in which that token writes the same everywhere", **_SHARE)
_add("js_divergence", "Jensen-Shannon divergence of attention maps", "divergence", unit="nats",
     bounds=(0.0, math.log(2)), smallest=SIMILARITY, claimed=1)  # fmt: skip
_add(
    "js_divergence_of_all",
    "Jensen-Shannon divergence of all heads of a layer",
    "divergence of all heads",
    **_NATS,
)
_add("entropy", "entropy of attention rows", "entropy", **_NATS)
_add("head_output_cka", "CKA of head outputs", "unbiased CKA", bounds=(0.0, 1.0), **_ALIKE)
# removing heads
_add("kl", "KL divergence from the full model", "KL", **_NATS)
_add("kl_layer", "KL divergence without a layer's heads", "KL without the layer", **_NATS)
_add("kl_all_but_one", "KL divergence with one head of a layer left", "KL with this head alone", **_NATS)
_add("loss_change", "change of the loss", unit="nats")
_add("accuracy_change", "change of accuracy", **_POINTS)
_add("pair_kl", "KL divergence without two heads", "KL without both", **_NATS)
_add(
    "pair_interaction",
    "KL divergence without two heads less that without each",
    "interaction",
    unit="nats",
    digits=4,
)
_add("pair_interaction_contrast", "interaction of similar pairs of heads less that of dissimilar ones",
     "similar less dissimilar", unit="nats", digits=4)  # fmt: skip
_add(
    "skip_cka_spearman",
    "rank correlation of CKA across a block with the loss without it",
    "Spearman",
    **_COSINE,
)
_add("layer_skip_kl", "KL divergence without a block", "KL without the block", **_NATS)
_add("prediction_change", "images whose predicted class changes", **_SHARE)
_add("output_shift", "change of the output", "share of the output's variance", **_UP)
_add("importance", "importance by gradients", "importance (layer norm 1)", **_UP)
_add("importance_label_free", "importance by gradients, without labels", "importance (layer norm 1)", **_UP)
_add("similarity_effect_spearman", "rank correlation of similarity with the loss of removing a head", "Spearman",
     smallest=RANK_CORRELATION, claimed=-1, **_COSINE)  # fmt: skip
_add("pruned_accuracy", "accuracy without heads", **_SHARE)
_add("pruned_kl", "KL divergence without heads", "KL from the full model", **_NATS)
_add("pruning_area_accuracy", "mean accuracy over all shares of removed heads", **_SHARE)
_add("pruning_area_kl", "mean KL over all shares of removed heads", **_NATS)
_add("removable_by_accuracy", "heads that can be removed before accuracy falls", **_SHARE)
_add("removable_by_kl", "heads that can be removed before the output changes", **_SHARE)
# layers
_add("cka_unbiased", "CKA of layers", "unbiased CKA", bounds=(0.0, 1.0), smallest=SIMILARITY, claimed=-1)
_add("cka", "CKA of two different layers", "unbiased CKA", bounds=(0.0, 1.0), smallest=SIMILARITY, claimed=-1)
_add("cka_calibrated", "CKA beyond chance", bounds=(0.0, 1.0))
_add("cka_largest_influence", "largest change of CKA by one image", **_UP)
_add("cka_without_top_images", "CKA without the images of largest norm", "unbiased CKA", bounds=(0.0, 1.0))
_add("cka_without_top_pcs", "CKA without the first principal components", "unbiased CKA", bounds=(0.0, 1.0))
_add("p_uncorrected", "p of one cell alone", "p", bounds=(0.0, 1.0))
for _kind, _heads in (
    ("same_head", "same head"),
    ("matched", "heads matched"),
    ("averaged", "heads averaged"),
):
    _add(f"column_cosine_{_kind}", f"cosine of attention columns of two layers, {_heads}", "cosine of columns",
         smallest=SIMILARITY, claimed=-1, **_COSINE)  # fmt: skip
_add("effective_rank", "effective rank", unit="dimensions", digits=1, bounds=(1.0, None))
_add("participation_ratio", "participation ratio", unit="dimensions", digits=1, bounds=(1.0, None))
# attention
_add(
    "attention_distance",
    "attention distance, share of the image side",
    "mean distance / image side",
    bounds=(0, None),
)
_add("attention_distance_px", "attention distance", "mean distance", unit="px", digits=1, **_UP)
_add("attention_entropy", "attention entropy", "entropy", **_NATS)
_add("class_mass", "attention of patches to the class token", **_SHARE)
_add("prefix_mass", "attention of patches to prefix tokens", **_SHARE)
_add("sink_mass", "attention that the most attended key gets", **_SHARE)
_add("sink_on_prefix", "images whose most attended key is a prefix token", **_SHARE)
_add(
    "rollout_between_images",
    "correlation of rollouts of different images",
    "correlation over patches",
    **_COSINE,
)
_add("rollout_entropy", "entropy of a rollout", "entropy", **_NATS)
_add("token_cosine", "cosine of tokens of one image", "mean cosine", **_COSINE)
_add(
    "token_mean_share", "share of the tokens' mean in their size", "|mean|² / mean of |x|²", bounds=(0.0, 1.0)
)
_add("token_dirichlet_energy", "Dirichlet energy over that of unrelated tokens", "energy / unrelated", **_UP)
_add("attention_cosine", "cosine of the heads' maps in one layer", "cosine of flattened maps", **_COSINE)
for _circuit, _words in (("qk", "W_Q' W_K"), ("vo", "W_V W_O")):
    _add(f"stable_rank_{_circuit}", f"stable rank of {_words}", "share of head width", bounds=(0.0, 1.0))
    _add(
        f"effective_rank_{_circuit}", f"effective rank of {_words}", "share of head width", bounds=(0.0, 1.0)
    )
# channels
_CHANNEL: dict[str, Any] = _SHARE | {"smallest": CHANNELS, "claimed": -1}
for _kind, _words in (("zero", "zero"), ("flat", "flat"), ("dead", "dead"), ("too_large", "too large"),
                      ("invalid", "zero or too large")):  # fmt: skip
    _add(_kind, f"{_words} channels", **_CHANNEL)
    _add(f"{_kind}_area", f"{_words} channels, mean over thresholds", f"{_words} channels", **_CHANNEL)
_add("exact_zero", "values that are exactly 0", **_SHARE)
_add("map_correlation", "correlation of the short cut's maps with the real ones", "correlation", **_COSINE)
_add("kurtosis", "kurtosis over channels", "kurtosis", digits=1, **_UP)
_add("peak_to_median", "largest channel over the median one", "RMS over the median's", digits=1, **_UP)
_add("outlier_tokens", "tokens of three times the median norm", **_SHARE)
_add("massive_activations", "massive activations of an image", "count per image", digits=1, **_UP)
for _kind, _words in (("outline", "follow the outline of their image"), ("edge", "mark its edges, beyond brightness"),
                      ("brightness", "follow its brightness")):  # fmt: skip
    _add(f"{_kind}_channels", f"channels that {_words}", f"{_kind} channels", **_SHARE | {
        "smallest": CHANNELS, "claimed": None if _kind == "brightness" else 1})  # fmt: skip
    _add(
        f"{_kind}_correlation",
        f"correlation of a channel with the {_kind}",
        f"{_kind}: mean correlation",
        **_COSINE,
    )
    _add(
        f"{_kind}_best",
        f"correlation of the best channel with the {_kind}",
        f"{_kind}: best correlation",
        **_COSINE,
    )
_add(
    "position_correlation",
    "correlation of a channel's maps of two images",
    "correlation of two images",
    **_COSINE,
)
# local structure
_CELLS = {"own": "own cell", "boundary": "border of the cell", "neighbour": "neighbouring cells",
          "before": "left and upper cell", "after": "right and lower cell"}  # fmt: skip
for _cell, _words in _CELLS.items():
    for _aspect, _of in (
        ("", "edges"),
        ("_strength", "strength of edges"),
        ("_orientation", "orientation of edges"),
    ):
        _add(f"edge_r2_{_cell}{_aspect}", f"R² of {_of}, {_words}", f"R², {_words}", smallest=EDGES, claimed=1,
             bounds=(None, 1.0))  # fmt: skip
_add("boundary_precision", "average precision of drawn boundaries", "average precision", smallest=EDGES, claimed=1,
     bounds=(0.0, 1.0))  # fmt: skip
_add("behaviour_accuracy", "accuracy on distorted images", "accuracy", **_SHARE)
_add(
    "behaviour_accuracy_change",
    "change of accuracy by distortion",
    "change of accuracy",
    smallest=ACCURACY,
    **_POINTS,
)
_add("behaviour_kl", "KL divergence from the intact prediction", "KL from the intact prediction", **_NATS)
_add("gradient_outside", "share of the tokeniser's gradient outside the own cell", "gradient outside the cell",
     **_SHARE | {"smallest": GRADIENT, "claimed": 1})  # fmt: skip
for _share in (50, 95):
    _add(f"erf_radius_{_share}", f"radius that holds {_share} % of the gradient", unit="px", digits=1, **_UP)
    _add(
        f"erf_radius_{_share}_fraction",
        f"radius that holds {_share} % of the gradient",
        "radius / image side",
        **_UP,
    )
_add("erf_energy_within", "squared gradient within a radius", **_SHARE)
_add("log_amplitude", "log amplitude over that of the mean", "Δ log amplitude")
_add("log_amplitude_tail", "log amplitude over that of the mean, highest frequencies", "Δ log amplitude")
_add("radial_power", "power in a band of frequencies", **_SHARE)
_add("high_frequency_share", "power at high frequencies", **_SHARE)
_add("shift_correlation", "correlation after a shift", "correlation", **_COSINE)
_add("shift_dip", "dip between whole steps of a shift", "correlation lost between steps")
# attribution, probes
_add("deletion", "score while cells are deleted", "score", bounds=(0.0, 1.0))
_add("insertion", "score while cells are inserted", "score", bounds=(0.0, 1.0))
_add("deletion_area", "mean score while cells are deleted", "area under deletion")
_add("insertion_area", "mean score while cells are inserted", "area under insertion")
_add("completeness_error", "share of the logit that the path misses", **_SHARE)
for _name, _words in (("spearman", "rank correlation of two maps"), ("other_class", "rank correlation across classes"),
                      ("agreement", "rank correlation of two models' maps"), ("ssim", "SSIM of two maps"),
                      ("hog", "correlation of the maps' oriented gradients")):  # fmt: skip
    _add(_name, _words, **_COSINE)
_add("explained_variance", "variance of the tokens along a component", **_SHARE)
_add("linear_accuracy", "accuracy of a linear probe", **_SHARE)
_add("knn_accuracy", "accuracy of nearest neighbours", **_SHARE)
# costs
_add("parameters", "parameters", unit="million", digits=2, scale=1e-6, **_UP)
_add("trainable", "trainable parameters", unit="million", digits=2, scale=1e-6, **_UP)
_add("macs_all", "multiply-accumulates", unit="billion", digits=2, scale=1e-9, **_UP)
_add("macs_linear", "multiply-accumulates of linear layers", unit="billion", digits=2, scale=1e-9, **_UP)
for _name, _words in (("peak_training", "peak memory of a training step"), ("peak_inference", "peak memory"),
                      ("tokeniser_saved", "memory kept by the tokeniser for training"),
                      ("tokeniser_saved_unfolded", "the same with unfolded soft splits")):  # fmt: skip
    _add(_name, _words, unit="MiB", digits=0, scale=2.0**-20, **_UP)
_add("latency", "time of a batch", unit="ms", digits=1, **_UP)
_add("throughput", "images per second", digits=0, **_UP)
_add("latency_ratio", "time over that of the baseline", digits=2, **_UP)
for _name, _words in (("parameters_over_half", "parameters over the paper's ViT, less one half"),
                      ("macs_all_over_half", "multiply-accumulates over the paper's ViT, less one half"),
                      ("printed_parameters", "largest deviation from printed parameters"),
                      ("printed_macs", "largest deviation from printed multiply-accumulates")):  # fmt: skip
    _add(f"cost:{_name}", _words, smallest=COST, claimed=0 if "printed" in _name else -1)
# the study
_add("accuracy", "test accuracy", **_SHARE | {"smallest": ACCURACY, "claimed": 1})
_add("test_accuracy", "test accuracy", **_SHARE | {"smallest": ACCURACY, "claimed": 1})
_add("held_out_loss", "cross-entropy on held-out training images", unit="nats", digits=3)
_add("best_learning_rate", "learning rate chosen on held-out training images", digits=5)
for _name, _words, _smallest, _claimed in (
    ("tokeniser_effect", "soft split minus hard split", ACCURACY, 1),
    ("backbone_effect", "deep backbone minus wide backbone", BACKBONE, 1),
    ("interaction", "extra gain of the soft split on the deep backbone", ACCURACY, 0),
    ("t2t_minus_vit", "T2T-ViT minus ViT", ACCURACY, 1),
    ("performer_minus_convolution", "soft split minus convolutions", CONVOLUTION, 1),
    ("transformer_minus_convolution", "transformer tokens minus convolutions", CONVOLUTION, 1),
    ("transformer_minus_performer", "transformer minus performer tokens", ACCURACY, 1),
    ("convolution_minus_hard", "convolutions minus hard split", ACCURACY, 1),
    ("norm_minus_hard", "hard split with the layer norm of T2T minus hard split, wide", ACCURACY, None),
    ("overlap_minus_hard", "linear convolutions minus hard split, wide", ACCURACY, None),
    (
        "nonlinear_overlap_minus_hard",
        "convolutions with norm and GELU minus hard split, wide",
        ACCURACY,
        None,
    ),
    ("mlp_minus_hard", "T2T without attention minus hard split, wide", ACCURACY, None),
    ("attention_effect", "T2T minus T2T without attention, wide", ACCURACY, None),
    ("gap_growth_per_halving", "growth of the gap per halving of the training images", ACCURACY, 1),
    ("se_effect", "squeeze-and-excitation minus plain", ACCURACY, 1),
    ("dense_effect", "dense connections minus plain", ACCURACY, -1),
    ("ghost_effect", "ghost blocks minus plain", ACCURACY, -1),
    ("resnext_effect", "more heads minus plain", ACCURACY, 0),
):
    _add(_name, _words, smallest=_smallest, claimed=_claimed, **_POINTS)

#: what an endpoint of the ledger is called -> what it measures
ENDPOINTS = {
    "head_cosine_change": "cosine_centred_last_minus_first",
    "head_cka_change": "head_output_cka_last_minus_first",
    "edge_own": "edge_r2_own",
    "edge_neighbour": "edge_r2_neighbour",
    "edge_own_rectified": "edge_r2_own",
    "flat_by_shortcut": "flat_area_made_by_shortcut",
    "rank_pooled": "effective_rank_over_null",
    "rank_tokens": "effective_rank_over_null",
    "similar_is_redundant": "similarity_effect_spearman_within_layers",
    "late_cosine": "cosine_centred",
    "late_cka": "head_output_cka",
    "edges_over_pixels": "edge_r2_own_over_reference",
}

# ------------------------------------------------------------------------------------------ what follows by a rule


def _said(template: str, **about: Any) -> Callable[[Quantity], Quantity]:
    """The same quantity under other words, with what changes in it."""

    def derived(base: Quantity) -> Quantity:
        axis = base.axis and template.format(base.axis)
        return replace(base, words=template.format(base.words), axis=axis, **about)

    return derived


def _changed(template: str) -> Callable[[Quantity], Quantity]:
    """A difference of two values: percent become points, and there are no ends."""

    def derived(base: Quantity) -> Quantity:
        unit = "points" if base.unit == "%" else base.unit
        return replace(_said(template)(base), unit=unit, bounds=(None, None))

    return derived


_PLAIN: dict[str, Any] = {"unit": "", "digits": 3, "scale": 1.0, "smallest": None, "claimed": None}
_UNCLAIMED: dict[str, Any] = {"smallest": None, "claimed": None}
#: ending of a name -> what it makes of the quantity before it; the longest that fits
_ENDINGS: dict[str, Callable[[Quantity], Quantity]] = {
    "_difference": _changed("{}, difference"),
    "_last_minus_first": _changed("{}, change from first to last third of layers"),
    "_trained": _changed("{}, more than in the untrained control"),
    "_over_reference": _changed("{}, more than in the reference"),
    "_made_by_shortcut": _changed("{}, made by the short cut"),
    "_made_with_normalise": _changed("{}, made by the short cut with mean and deviation"),
    "_made_with_class_token": _changed("{}, made by the short cut with the class token"),
    "_made_with_position": _changed("{}, made by the short cut with the position table"),
    "_made_with_own_size": _changed("{}, made by the short cut at the model's own size"),
    "_shortcut": _said("{}, by the short cut", **_UNCLAIMED),
    "_real": _said("{}, by the real pass", **_UNCLAIMED),
    "_share": _said("{}, share that the short cut makes", **_UNCLAIMED),
    "_in_every_image": _said("{}, in every image", **_UNCLAIMED),
    "_over_null": _said("{} over that of Gaussian noise", **_PLAIN | {"smallest": SIMILARITY, "claimed": 1},
                        bounds=(0.0, None)),
    "_neighbours": _said("{}, neighbouring layers"),
    "_mean": _said("{}, mean over the map"),
    "_centred": _said("{}, centred"),
    "_abs": _said("{}, sizes only"),
    "_within_layers": _said("{}, within layers"),
    "_partial": _said("{}, at equal importance"),
    "_split_half": _said("{}, agreement of two halves of the images", **_PLAIN, bounds=(-1.0, 1.0)),
    "_p_holm": _said("{}, corrected p", **_PLAIN, bounds=(0.0, 1.0)),
    "_deep": _said("{}, deep backbone"),
    "_wide": _said("{}, wide backbone"),
    "_hard": _said("{}, hard split"),
    "_performer": _said("{}, soft split"),
    "_adamw": _said("{}, under AdamW"),
    "_log_odds": _said("{}, log-odds", **_PLAIN),
    "_growth_per_doubling": _said("{}, growth per doubling of the training"),
    "_at_epochs": _said("{}, at equal epochs"),
    "_at_macs": _said("{}, at equal multiply-accumulates"),
    "_at_time": _said("{}, at equal time"),
    "_published": _said("{}, as published"),
    "_at_fraction": _said("{}, at a share of the training images"),
}  # fmt: skip
#: words before a colon that say of which runs or sides a number is
_STARTS = {
    "mean": "all cells", "hard": "hard split", "performer": "soft split",
    "transfer_probe": "linear probe on another data set", "transfer_finetune": "fine-tuned on another data set",
}  # fmt: skip


def _resolved(name: str) -> Quantity | None:
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name in ENDPOINTS:
        return _resolved(ENDPOINTS[name])
    start, colon, rest = name.partition(":")
    if colon:
        if rest in ("model", "baseline"):
            return _resolved(start)
        before, base = _STARTS.get(start) or getattr(_resolved(start), "words", None), _resolved(rest)
        if before is None or base is None:
            return None
        return _said(f"{{}}, {before}")(base) if start in _STARTS else _changed(f"{{}}, {before}")(base)
    for ending in sorted(_ENDINGS, key=len, reverse=True):
        base = _resolved(name.removesuffix(ending)) if name.endswith(ending) else None
        if base is not None:
            return _ENDINGS[ending](base)
    return None


@cache
def quantity(name: str) -> Quantity:
    """What is known of a quantity, by its name or by the rule that its name follows.

    Raises
    ------
    UnknownNameError : neither registered nor derived from one that is.

    >>> quantity("attention_distance_last_minus_first_difference").label
    'mean distance / image side, change from first to last third of layers, difference'
    >>> quantity("tokeniser_effect:edge_own").smallest, quantity("zero_area_difference").unit
    (0.02, 'points')
    """
    found = _resolved(name)
    if found is None:
        raise UnknownNameError("quantity", name, list(QUANTITIES))
    return replace(found, name=name)
