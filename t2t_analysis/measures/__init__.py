"""One file a question; `base` says what a measure is, `engine` feeds all of them in one pass."""

from .base import Measure, MeasureBatch
from .engine import accumulate, collect, measure
from .layer_cka import CrossLayerCKA, LayerCKA

__all__ = ["CrossLayerCKA", "LayerCKA", "Measure", "MeasureBatch", "accumulate", "collect", "measure"]
