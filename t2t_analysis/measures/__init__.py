"""One file a question; `base` says what a measure is, `engine` feeds all of them in one pass."""

from ..differences import difference, paired, twin_differences
from .ablation import HeadMeans, ablated
from .attention import AttentionGeometry
from .attribution import Explained, attribute, explain
from .attribution_checks import check_attribution
from .base import Measure, MeasureBatch
from .behaviour import behaviour, distorted, read_categories
from .boundaries import boundaries
from .channels import ChannelOutliers, FeatureMapView, InvalidChannels
from .collapse import LayerCollapse
from .cost import costs, count, token_geometry, token_stages
from .edge_channels import EdgeChannels, example_image, image_for
from .engine import accumulate, collect, measure
from .feature_maps import ChannelMaps, channel_maps
from .head_ablation import HeadAblation
from .head_outputs import HeadOutputCKA
from .head_pairs import HeadPairs, similar_pairs_stand_in, skips_beside_cka
from .heads import HeadDivergence, HeadSimilarity
from .latency import latencies
from .layer_cka import CrossLayerCKA, LayerCKA
from .locality import EdgeDecodability, RectifiedEdgeDecodability
from .notebook_path import ShortcutShare, chainable, path_maps, shortcut_features
from .paper_costs import printed_costs
from .probes import probe
from .pruning import PruningCurves, pruning_orders, similarity_is_redundancy
from .rank import EffectiveRank
from .receptive import BoundaryBlindness, EffectiveReceptiveField
from .redundancy import Redundancy
from .rollout import AttentionRollout, example_rollouts
from .shift import ShiftConsistency
from .sinks import Sinks
from .spectrum import Spectrum
from .token_components import pca_result, token_pca
from .untrained import random_twin, random_twins
