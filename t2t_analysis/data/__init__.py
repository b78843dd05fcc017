"""Images: embedded photographs and crops of them, folders, class trees, tars, and timm's data sets."""

from .augmenting import train_data
from .crops import EpochCrops, FixedCrops
from .info import DataInfo
from .loading import Batch, load_images
from .photos import PHOTOS, load_photo
from .sources import EMBEDDED

__all__ = [
    "EMBEDDED", "PHOTOS", "Batch", "DataInfo", "EpochCrops", "FixedCrops", "load_images", "load_photo",
    "train_data",
]  # fmt: skip
