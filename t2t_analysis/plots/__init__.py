"""Draws results; computes nothing. Every function returns a :class:`Figure` with its caption and alt text."""

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
from .heads import contrast_plot, depth_curve, divergence_against_entropy, maps_against_outputs
from .similarity import cka_map, head_map, layer_map

__all__ = [
    "DIVERGING",
    "PALETTE",
    "ROLES",
    "SEQUENTIAL",
    "Figure",
    "area_by_layer",
    "channel_curves",
    "cka_map",
    "contrast_plot",
    "depth_curve",
    "divergence_against_entropy",
    "feature_map_grid",
    "finish",
    "head_map",
    "layer_map",
    "maps_against_outputs",
    "new_axes",
    "role",
    "title_block",
    "use_style",
]
