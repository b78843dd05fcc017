"""One file a question; `base` says what a measure is, `engine` feeds all of them in one pass."""

from .ablation import HeadMeans, ablated
from .attention import AttentionGeometry, geometry_difference
from .attribution import Explained, attribute, explain
from .attribution_checks import check_attribution
from .base import Measure, MeasureBatch
from .boundaries import boundaries
from .channels import FeatureMapView, InvalidChannels, feature_map_curves, invalid_difference
from .collapse import LayerCollapse, collapse_difference
from .cost import costs, count, token_geometry, token_stages
from .edge_channels import EdgeChannels, edge_difference, example_image, image_for
from .engine import accumulate, collect, measure
from .feature_maps import ChannelMaps, channel_maps
from .footprint import footprints
from .head_ablation import HeadAblation
from .head_outputs import HeadOutputCKA
from .head_summary import contrast_difference
from .heads import HeadDivergence, HeadSimilarity
from .latency import latencies
from .layer_cka import CrossLayerCKA, LayerCKA, cka_difference
from .locality import (
    EdgeDecodability,
    RectifiedEdgeDecodability,
    blindness_difference,
    first_third_difference,
)
from .notebook_path import ShortcutShare, chainable, path_maps, shortcut_features, shortcut_share
from .outliers import ChannelOutliers
from .paper_costs import paper_table, printed_costs
from .probes import probe
from .pruning import PruningCurves, pruning_orders, similarity_is_redundancy
from .rank import EffectiveRank, rank_difference
from .receptive import BoundaryBlindness, EffectiveReceptiveField
from .redundancy import Redundancy
from .reference import paired, random_twin, random_twins, twin_differences
from .rollout import AttentionRollout, example_rollouts
from .shift import ShiftConsistency
from .sinks import Sinks
from .spectrum import Spectrum
from .token_components import pca_result, token_pca

__all__ = [
    "AttentionGeometry",
    "AttentionRollout",
    "BoundaryBlindness",
    "ChannelMaps",
    "ChannelOutliers",
    "CrossLayerCKA",
    "EdgeChannels",
    "EdgeDecodability",
    "EffectiveRank",
    "EffectiveReceptiveField",
    "Explained",
    "FeatureMapView",
    "HeadAblation",
    "HeadDivergence",
    "HeadMeans",
    "HeadOutputCKA",
    "HeadSimilarity",
    "InvalidChannels",
    "LayerCKA",
    "LayerCollapse",
    "Measure",
    "MeasureBatch",
    "PruningCurves",
    "RectifiedEdgeDecodability",
    "Redundancy",
    "ShiftConsistency",
    "ShortcutShare",
    "Sinks",
    "Spectrum",
    "ablated",
    "accumulate",
    "attribute",
    "blindness_difference",
    "boundaries",
    "chainable",
    "channel_maps",
    "check_attribution",
    "cka_difference",
    "collapse_difference",
    "collect",
    "contrast_difference",
    "costs",
    "count",
    "edge_difference",
    "example_image",
    "example_rollouts",
    "explain",
    "feature_map_curves",
    "first_third_difference",
    "footprints",
    "geometry_difference",
    "image_for",
    "invalid_difference",
    "latencies",
    "measure",
    "paired",
    "paper_table",
    "path_maps",
    "pca_result",
    "printed_costs",
    "probe",
    "pruning_orders",
    "random_twin",
    "random_twins",
    "rank_difference",
    "shortcut_features",
    "shortcut_share",
    "similarity_is_redundancy",
    "token_geometry",
    "token_pca",
    "token_stages",
    "twin_differences",
]
