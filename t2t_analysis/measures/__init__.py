"""One file a question; `base` holds `Measure` and the one pass over the images that feeds all of them."""

from .base import Measure, MeasureBatch, accumulate, collect, measure
from .layer_cka import CrossLayerCKA, LayerCKA

__all__ = ["CrossLayerCKA", "LayerCKA", "Measure", "MeasureBatch", "accumulate", "collect", "measure"]
