"""Training on Lightning with timm's recipe parts, evaluation, and export of weights with a card."""

from .recipe import Recipe

__all__ = ["Recipe"]
