"""What the common lossless codecs need for the same images."""

from __future__ import annotations

import io
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from flows.pictures import to_array

Codec = Literal["png", "webp"]

CODEC_OPTIONS: dict[Codec, list[dict[str, Any]]] = {
    "png": [{"optimize": True}],
    "webp": [{"lossless": True, "quality": 100, "method": method} for method in range(5)],
}
"""Settings of Pillow's encoders; of the files that they give the smallest counts.

WebP's slower methods 5 and 6 give larger files than the others for images as small as these.
"""


def codec_bits_per_dim(images: Tensor, codec: Codec) -> Tensor:
    """Bits/dim of the files that a lossless codec makes of uint8 images, headers included: ``(B, C, H, W) -> (B,)``."""
    sizes = []
    for image in images:
        picture = Image.fromarray(to_array(image))
        files = [_encoded(picture, codec, options) for options in CODEC_OPTIONS[codec]]
        sizes.append(8 * min(map(len, files)) / image.numel())
    return torch.tensor(sizes, dtype=torch.float64)


def _encoded(picture: Image.Image, codec: Codec, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=codec, **options)
    return file.getvalue()
