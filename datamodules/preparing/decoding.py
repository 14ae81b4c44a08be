"""The one reader of pictures: files from outside as uint8 images of a given shape."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flows.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")

FORMATS_IN_WORDS = "PNG, JPEG, WebP, GIF, BMP or AVIF"

DARK = 4096
"""A picture of 16 bits whose values all lie below this was not meant for the whole range: it would be nearly black."""

Scale = Callable[[Image.Image, tuple[int, int]], NDArray[np.uint8]]
"""From a picture in mode RGB, a width and a height to uint8 ``(3, height, width)``."""


def fit(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The central part of a picture, as large as the proportions allow, scaled (bicubic, with antialiasing)."""
    return np.asarray(ImageOps.fit(picture, size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def unscaled(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture that has the size already. Raises ``ValueError`` if it has another one."""
    if picture.size != size:
        found, wanted = (" x ".join(map(str, sides)) for sides in (picture.size, size))
        raise ValueError(f"it has {found} pixels instead of {wanted}")
    return np.asarray(picture).transpose(2, 0, 1)


@dataclass(frozen=True)
class PictureReader:
    """From the content of a picture file to an image: what a data set does to all of its pictures.

    Every mode becomes 8-bit colour or grey. What is transparent is laid over white; pictures that a camera marked as
    turned are turned upright. The name of a file plays no part.

    Args:
        image_shape: ``(C, H, W)`` of the images; 1 channel is the luminance, 3 are colour.
        scale: what brings a picture to that size.
        value_range: the lowest and the highest value of grey pictures with 16 bits, which become 0 and 255. ``None`` is
            the whole range, 0 to 65535, and refuses pictures that lie below 4096 altogether.

    Raises:
        InputError: another number of channels; the range is empty.
    """

    image_shape: tuple[int, int, int]
    scale: Scale = fit
    value_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image_shape[0] not in (1, 3):
            raise InputError(f"no picture file holds the model's images of {self.image_shape[0]} channels")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range must rise, such as [0,4095], not {[*self.value_range]}")

    def __call__(self, content: bytes) -> tuple[NDArray[np.uint8], list[str]]:
        """The image and, in words, what had to be changed.

        Raises:
            Exception: nearly any, for a damaged file; Pillow's error for one that claims far too many pixels;
                ``ValueError`` for an animation, a dark picture of 16 bits, and what is not a picture.
        """
        try:
            Image.open(io.BytesIO(content), formats=FORMATS).verify()  # a PNG's checksums: loading skips them
        except UnidentifiedImageError as error:
            raise ValueError(f"it is not a {FORMATS_IN_WORDS} picture") from error
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            num_frames = getattr(opened, "n_frames", 1)
            if num_frames > 1 and opened.format != "MPO":  # a photograph with a preview or depths: the first is meant
                raise ValueError(f"it is an animation of {num_frames} frames: save those that you want as pictures")
            is_turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            picture = ImageOps.exif_transpose(opened)
        is_deep = picture.mode.startswith("I") or (content.startswith(b"\x89PNG") and content[24] == 16)
        if picture.mode.startswith("I"):
            picture = Image.fromarray(self._to_8_bits(np.asarray(picture, np.int64)))
        mode, is_grey = picture.mode, picture.mode in ("1", "L", "LA")
        is_transparent = False
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            is_transparent = picture.getchannel("A").getextrema() != (255, 255)
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        num_channels, height, width = self.image_shape
        image = self.scale(picture, (width, height))
        if num_channels == 1:
            image = luminance(image[None])[0]
        changes = {
            "turned upright": is_turned,
            "16 bits reduced to 8": is_deep,
            "laid over white": is_transparent,
            f"converted from {mode}": mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"),
            "grey repeated as colour": is_grey and num_channels == 3,
            "colour turned to grey": not is_grey and num_channels == 1,
            "cropped or scaled": picture.size != (width, height),
        }
        return image, [change for change, applies in changes.items() if applies]

    def _to_8_bits(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.value_range is None and 0 < values.max() < DARK:
            raise ValueError(
                f"its values of 16 bits lie below {DARK}, so that it would be nearly black: give their range, such as "
                "value_range=[0,4095], or [0,65535] if it is meant to be dark"
            )
        lowest, highest = self.value_range or (0, 65535)
        return ((values - lowest) * 256 // (highest - lowest + 1)).clip(0, 255).astype(np.uint8)


def luminance(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of colour images ``(n, 3, H, W)``: ``(n, 1, H, W)`` by ITU-R 601, rounded as Pillow does."""
    red, green, blue = (images[:, channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[:, None]
