"""Draws results; computes nothing. Every function returns a :class:`Figure` with its caption and alt text.

Names are resolved on first use: figures of attributions and token maps know types that need torch, the others do not,
and a notebook that draws one line should not wait for all of them.
"""

from importlib import import_module
from typing import Any

#: module -> what it draws
_MODULES = {
    "base": ["DIVERGING", "Figure", "PALETTE", "SEQUENTIAL", "finish", "new_axes", "role", "title_block",
             "use_style"],
    "lines": ["along", "by_depth", "heads_by_depth"],
    "forests": ["forest"],
    "maps": ["cka_map", "head_map"],
    "ablation": ["head_effects", "maps_against_outputs", "similarity_against_effect"],
    "pictures": ["attribution_panels", "pca_maps", "receptive_field_map", "rollout_examples"],
    "channels": ["feature_map_grid"],
    "cost": ["cost_bars"],
    "study": ["accuracy_by_cell", "effect_plot", "effects_by_length", "learning_curves"],
    "ledger": ["verdict_plot"],
    "scene": ["scene_figure"],
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; known: {', '.join(_HOME)}")
