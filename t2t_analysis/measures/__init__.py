"""One file a question; `base` holds `Measure` and the one pass over the images that feeds all of them."""

from .base import Measure, MeasureBatch, accumulate, collect, measure

__all__ = ["Measure", "MeasureBatch", "accumulate", "collect", "measure"]
