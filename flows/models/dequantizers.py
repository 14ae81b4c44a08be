"""Pixels <-> reals <-> bits, in this file and nowhere else.

An 8-bit image ``x`` is first reduced to ``n = num_bits`` bits by dropping the low ones. A pixel at level ``l`` of the
``2^n`` levels becomes the real number ``v = l / 2^n - 1/2 + u / 2^n`` with ``u`` in [0, 1): its bin, of width
``2^-n``, inside [-1/2, 1/2). For ``u ~ U[0, 1)`` a density of ``v`` bounds the probability of ``x`` from below,
``log p(x) >= E_u log p(v) - D log 2^n``, with D the number of pixels times channels. In bits per dimension::

    bits/dim = -log p(v) / (D log 2) + n

so that the uniform density on the cube, ``log p(v) = 0``, costs exactly ``n``.

Reference: Theis et al., *A note on the evaluation of generative models*, section 3.1; appendix of the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flows.errors import InputError, NonFiniteError

PIXEL_BITS = 8

LARGEST_NOISE = 1.0 - 2.0**-16
"""Noise is cut off here: in float32, 255 plus anything larger would round up into the next bin."""


class UniformDequantizer:
    """Turns uint8 images into reals and back, and a log-density of the reals into bits/dim of the images.

    Args:
        num_bits: n, 1 to 8; fewer than 8 floors the pixels to ``2^n`` levels first.

    Raises:
        InputError: ``num_bits`` out of range, images that are not uint8.
        NonFiniteError: from :meth:`quantize`, rather than turning a NaN into some pixel.
    """

    def __init__(self, num_bits: int = PIXEL_BITS) -> None:
        if not 1 <= num_bits <= PIXEL_BITS:
            raise InputError(f"num_bits must be between 1 and {PIXEL_BITS}, not {num_bits}")
        self.num_bits = num_bits
        self.num_levels = 2**num_bits

    def levels(self, images: Tensor) -> Tensor:
        """Which of the ``2^n`` levels each pixel is on, uint8."""
        if images.dtype != torch.uint8:
            raise InputError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
        return images >> (PIXEL_BITS - self.num_bits)

    def reduce(self, images: Tensor) -> Tensor:
        """``images`` as they look with ``num_bits`` bits: the lower edge of each bin, uint8 on the 0..255 scale."""
        return self.levels(images) << (PIXEL_BITS - self.num_bits)

    def dequantize(self, images: Tensor, noise: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
        """``v`` in [-1/2, 1/2) for uint8 images and noise in [0, 1), which broadcasts; 1/2 is the centre of a bin."""
        noise = torch.as_tensor(noise, dtype=dtype, device=images.device).clamp(max=LARGEST_NOISE)
        return (self.levels(images).to(dtype) + noise) / self.num_levels - 0.5

    def quantize(self, v: Tensor) -> Tensor:
        """The uint8 images whose bins hold ``v``; values outside of [-1/2, 1/2) go to the nearest level."""
        if not torch.isfinite(v).all():
            raise NonFiniteError(
                "decoding gave NaN or infinite pixels; a lower temperature keeps latents closer to data"
            )
        levels = torch.floor((v + 0.5) * self.num_levels).clamp(0, self.num_levels - 1)
        return levels.to(torch.uint8) << (PIXEL_BITS - self.num_bits)

    def bits_per_dim(self, log_density: Tensor, num_dims: int) -> Tensor:
        """Bits/dim of images whose reals have ``log_density`` (nats, one number per image)."""
        return self.num_bits - log_density / (num_dims * math.log(2.0))
