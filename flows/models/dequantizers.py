"""Pixels <-> reals, in this file and nowhere else.

An 8-bit image ``x`` is first reduced to ``n = num_bits`` bits by dropping the low ones. A pixel in bin ``l`` of the
``2^n`` bins becomes the real number ``v = (l + u) / 2^n - 1/2``, with ``u`` in [0, 1) its place inside the bin. If
``u`` is drawn from ``q(u | x)``, a density of ``v`` bounds the probability of ``x`` from below, ``log p(x) >=
E_u [log p(v) - log q(u | x)] - D log 2^n``, with D the number of pixels times channels. In bits per dimension::

    bits/dim = n + (log q(u | x) - log p(v)) / (D log 2)

so that for uniform noise, ``log q = 0``, the uniform density on the cube, ``log p(v) = 0``, costs exactly ``n``.

Reference: Theis et al., *A note on the evaluation of generative models*, section 3.1; Ho et al., *Flow++*, section 3.1,
for a learned ``q``; appendix of the paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.randomness import Noise

PIXEL_BITS = 8

LARGEST_PLACE = 1.0 - 2.0**-16
"""Places in a bin are cut off here: in float32, 255 plus anything larger would round up into the next bin."""


class Dequantizer(nn.Module, ABC):
    """Turns uint8 images into reals and back.

    A subclass says how noise becomes a place in each pixel's bin. A parameter ``image_shape`` of its constructor gets
    (channels, height, width).

    Args:
        num_bits: n, 1 to 8; fewer than 8 floors the pixels to ``2^n`` bins first.

    Attributes:
        noise: the distribution of the noise that ``forward`` takes.

    Raises:
        InputError: ``num_bits`` out of range, images that are not uint8.
        NonFiniteError: from :meth:`quantize`, rather than turning a NaN into some pixel.
    """

    noise: ClassVar[Noise] = "uniform"

    def __init__(self, num_bits: int = PIXEL_BITS) -> None:
        super().__init__()
        if not 1 <= num_bits <= PIXEL_BITS:
            raise InputError(f"num_bits must be between 1 and {PIXEL_BITS}, not {num_bits}")
        self.num_bits = num_bits
        self.num_bins = 2**num_bits

    @abstractmethod
    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` in [-1/2, 1/2), in the noise's type, and ``log q(u | x)`` in nats: ``(B, C, H, W), (B,)``."""

    def bins(self, images: Tensor) -> Tensor:
        """Which of the ``2^n`` bins each pixel is in, uint8."""
        if images.dtype != torch.uint8:
            raise InputError(f"images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
        return images >> (PIXEL_BITS - self.num_bits)

    def reduce(self, images: Tensor) -> Tensor:
        """``images`` as they look with ``num_bits`` bits: the lower edge of each bin, uint8 on the 0..255 scale."""
        return self.bins(images) << (PIXEL_BITS - self.num_bits)

    def place(self, images: Tensor, u: Tensor) -> Tensor:
        """``v`` at the places ``u`` in [0, 1) of the pixels' bins; ``u`` broadcasts and gives the type."""
        return (self.bins(images).to(u.dtype) + u.clamp(max=LARGEST_PLACE)) / self.num_bins - 0.5

    def centre(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``v`` at the centres of the pixels' bins."""
        return self.place(images, torch.tensor(0.5, dtype=dtype, device=images.device))

    def quantize(self, v: Tensor) -> Tensor:
        """The uint8 images whose bins hold ``v``; values outside of [-1/2, 1/2) go to the nearest bin."""
        if not torch.isfinite(v).all():
            raise NonFiniteError(
                "decoding gave NaN or infinite pixels; a lower temperature keeps latents closer to data"
            )
        bins = torch.floor((v + 0.5) * self.num_bins).clamp(0, self.num_bins - 1)
        return bins.to(torch.uint8) << (PIXEL_BITS - self.num_bits)


class UniformDequantizer(Dequantizer):
    """The noise is the place in the bin: ``u ~ U[0, 1)``, ``log q = 0``.

    Args: those of :class:`Dequantizer`.

    Example:
        >>> import torch
        >>> from flows.models.dequantizers import UniformDequantizer
        >>> dequantizer, images = UniformDequantizer(), torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> v, log_q = dequantizer(images, torch.full((1, 3, 1, 1), 0.5))
        >>> v.flatten().tolist()
        [-0.498046875, 0.001953125, 0.498046875]
        >>> torch.equal(dequantizer.quantize(v), images)
        True
    """

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.place(images, noise), noise.new_zeros(len(images))
