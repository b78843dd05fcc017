"""Training on Lightning with timm's recipe parts, evaluation."""

from .recipe import Recipe

__all__ = ["Recipe"]
