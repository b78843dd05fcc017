"""One file a question; `base` says what a measure is, `engine` feeds all of them in one pass."""

from .base import Measure, MeasureBatch
from .channel_maps import ChannelMaps, channel_maps
from .channels import FeatureMapView, InvalidChannels, feature_map_curves, invalid_difference
from .engine import accumulate, collect, measure
from .head_outputs import HeadOutputCKA
from .head_summary import contrast_difference
from .heads import HeadDivergence, HeadSimilarity
from .layer_cka import CrossLayerCKA, LayerCKA
from .reference import random_twin

__all__ = [
    "ChannelMaps",
    "CrossLayerCKA",
    "FeatureMapView",
    "HeadDivergence",
    "HeadOutputCKA",
    "HeadSimilarity",
    "InvalidChannels",
    "LayerCKA",
    "Measure",
    "MeasureBatch",
    "accumulate",
    "channel_maps",
    "collect",
    "contrast_difference",
    "feature_map_curves",
    "invalid_difference",
    "measure",
    "random_twin",
]
