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

__all__ = [
    "DIVERGING",
    "PALETTE",
    "ROLES",
    "SEQUENTIAL",
    "Figure",
    "finish",
    "new_axes",
    "role",
    "title_block",
    "use_style",
]
