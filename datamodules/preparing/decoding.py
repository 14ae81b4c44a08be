"""Pictures from outside as arrays of one size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")


def decode(content: bytes) -> Image.Image:
    """A picture of any mode and size as a Pillow image in mode RGB.

    Every mode becomes 8-bit colour; what is transparent is laid over white; pictures that a camera marked as turned are
    turned upright; of an animated one the first frame is taken.

    Raises:
        Exception: nearly any, for a damaged file; Pillow's error for one that claims far too many pixels.
    """
    try:
        Image.open(io.BytesIO(content), formats=FORMATS).verify()  # the checksums of a PNG's pixels: loading skips them
    except UnidentifiedImageError as error:
        raise ValueError("it is not a PNG, JPEG or WebP picture") from error
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits, of which the upper eight are kept
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def fit(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square of a picture, scaled to ``size`` pixels (bicubic, with antialiasing): ``(3, size, size)``."""
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1)


def unscaled(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """A picture that has the size already, ``(3, size, size)``. Raises ``ValueError`` if it has another one."""
    if picture.size != (size, size):
        raise ValueError(f"it has {picture.width} x {picture.height} pixels instead of {size} x {size}")
    return np.asarray(picture).transpose(2, 0, 1)
