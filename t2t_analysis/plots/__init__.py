"""Draws results; computes nothing. Every function returns a :class:`Figure` with its caption and alt text."""

from .attention import by_depth, heads_by_depth, rollout_examples, similar_tokens_curve
from .base import (
    DIVERGING,
    PALETTE,
    ROLES,
    SEQUENTIAL,
    Figure,
    finish,
    new_axes,
    role,
    title_block,
    use_style,
)
from .channels import area_by_layer, channel_curves, feature_map_grid
from .cost import cost_bars, latency_curve, printed_against_counted
from .heads import contrast_plot, depth_curve, divergence_against_entropy, maps_against_outputs
from .similarity import cka_map, head_map, layer_map

__all__ = [
    "DIVERGING",
    "PALETTE",
    "ROLES",
    "SEQUENTIAL",
    "Figure",
    "area_by_layer",
    "by_depth",
    "channel_curves",
    "cka_map",
    "contrast_plot",
    "cost_bars",
    "depth_curve",
    "divergence_against_entropy",
    "feature_map_grid",
    "finish",
    "head_map",
    "heads_by_depth",
    "latency_curve",
    "layer_map",
    "maps_against_outputs",
    "new_axes",
    "printed_against_counted",
    "role",
    "rollout_examples",
    "similar_tokens_curve",
    "title_block",
    "use_style",
]
