"""One file a question; `base` says what a measure is, `engine` feeds all of them in one pass."""

from .base import Measure, MeasureBatch
from .engine import accumulate, collect, measure
from .head_outputs import HeadOutputCKA
from .head_summary import contrast_difference
from .heads import HeadDivergence, HeadSimilarity
from .layer_cka import CrossLayerCKA, LayerCKA
from .reference import random_twin

__all__ = [
    "CrossLayerCKA",
    "HeadDivergence",
    "HeadOutputCKA",
    "HeadSimilarity",
    "LayerCKA",
    "Measure",
    "MeasureBatch",
    "accumulate",
    "collect",
    "contrast_difference",
    "measure",
    "random_twin",
]
