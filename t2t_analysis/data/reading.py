"""One image file to one upright 8-bit RGB image, or an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

#: A strip is cut to this ratio round its middle: a transform that scales the short side would need gigabytes,
#: and its centre crop sees no more than the middle.
MAX_ASPECT = 8


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale by the range that the values use, 255, 65535 or 1, where Pillow's own conversion would clip.

    Types of 16 and 32 bits often hold values of 8; as parts of their own range those would be black.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()  # of a NaN both are NaN, and nothing below is true
    if image.mode == "F" and low >= 0 and high <= 1:
        full = 1
    elif image.mode.startswith("I") and low >= 0 and high <= 65535:
        full = 255 if high <= 255 else 65535
    else:
        raise DataError(
            f"{name}: mode {image.mode} with values from {low} to {high}; expected 8 or 16 bits, or floats "
            "from 0 to 1"
        )
    return Image.fromarray(np.rint(values.astype(np.float64) * (255 / full)).astype(np.uint8))


def _cut_strip(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    new_width, new_height = min(width, longest), min(height, longest)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return image.crop((left, top, left + new_width, top + new_height))


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Turn any Pillow image into RGB.

    EXIF orientation is applied; transparency is laid over white; 16-bit greys are scaled, not clipped;
    grey, palette and CMYK images are converted by Pillow; strips over 8:1 are cut to their middle.

    >>> to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    image = _cut_strip(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bit(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_rgb(file: str | IO[bytes] | Any, name: str) -> Image.Image:
    """Read a file or stream; ``name`` is what an error calls it.

    Raises ``DataError`` if it is no image, is damaged or truncated, or has more pixels than Pillow will
    decode.
    """
    try:
        if isinstance(file, str | Path) and not Path(file).is_file():
            # Opened, a pipe would be waited for without end.
            what = "a link to nothing" if Path(file).is_symlink() else "no file"
            raise DataError(f"cannot read the image {name}: it is {what}")
        with Image.open(file) as image:
            return to_rgb(image, name)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(f"{name}: too many pixels to decode (limit {limit:,}); reduce it first") from error
    except Exception as error:  # a damaged or foreign file fails in any way, and so do Pillow's plug-ins
        raise DataError(f"cannot read the image {name}: {type(error).__name__}: {error}") from error
