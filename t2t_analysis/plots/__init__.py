"""Draws results; computes nothing. Every function returns a :class:`Figure` with its caption and alt text.

Names are resolved on first use: figures of attributions and token maps know types that need torch, the others do not,
and a notebook that draws one line should not wait for all of them.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DIVERGING": "base",
    "Figure": "base",
    "PALETTE": "base",
    "ROLES": "base",
    "SEQUENTIAL": "base",
    "accuracy_by_cell": "study",
    "agreement_bars": "attribution",
    "areas_by_place": "invalid",
    "attribution_panels": "attribution",
    "blindness_profile": "locality",
    "by_depth": "attention",
    "cascade_curves": "attribution",
    "channel_curves": "channels",
    "cka_map": "similarity",
    "contrast_plot": "heads",
    "cost_bars": "cost",
    "depth_curve": "heads",
    "difference_plot": "differences",
    "divergence_against_entropy": "heads",
    "edge_channel_curves": "edge_channels",
    "edge_curve": "locality",
    "edge_differences": "locality",
    "effect_plot": "study",
    "faithfulness_curves": "attribution",
    "effects_by_kind": "ablation",
    "feature_map_grid": "channels",
    "finish": "base",
    "footprint_panels": "attribution",
    "sink_curves": "sinks",
    "fraction_curves": "study",
    "head_effects": "ablation",
    "head_map": "similarity",
    "heads_by_depth": "attention",
    "latency_curve": "cost",
    "layer_effects": "ablation",
    "layer_map": "similarity",
    "learning_curves": "study",
    "maps_against_outputs": "heads",
    "new_axes": "base",
    "pca_maps": "probes",
    "printed_against_counted": "cost",
    "probe_curves": "probes",
    "pruning_curves": "ablation",
    "outliers_by_layer": "invalid",
    "receptive_field_map": "locality",
    "receptive_field_radius": "locality",
    "role": "base",
    "rollout_examples": "attention",
    "shift_curve": "locality",
    "shortcut_by_layer": "invalid",
    "shortcut_steps": "invalid",
    "similar_tokens_curve": "attention",
    "similarity_against_effect": "ablation",
    "spectrum_curves": "locality",
    "title_block": "base",
    "use_style": "base",
    "verdict_plot": "ledger",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; known: {', '.join(_HOME)}")
