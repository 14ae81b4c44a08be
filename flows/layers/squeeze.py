"""Space to channels."""

from __future__ import annotations

from torch import Tensor

from flows.errors import InputError
from flows.layers.base import Layer
from flows.numerics import same_for_every_image


class Squeeze(Layer):
    """Turns each 2x2 patch of pixels into one pixel with four times the channels.

    A 4x4 image of one channel becomes a 2x2 image of four::

        1  2 | 5  6
        3  4 | 7  8        channel 0   channel 1   channel 2   channel 3
        -----+------  ->     1  5        2  6        3  7        4  8
        9 10 |13 14          9 13       10 14       11 15       12 16
        11 12|15 16

    Map: ``z[b, 4 c + 2 i + j, y, x] = x[b, c, 2 y + i, 2 x + j]``. Log-det: 0, a permutation of the dimensions.

    Shapes: ``(B, C, H, W) -> (B, 4 C, H/2, W/2)``; H and W even.

    Raises:
        InputError: H or W is odd.

    Reference: Dinh et al., *Density estimation using Real NVP*, section 3.6.

    Example:
        >>> import torch
        >>> from flows.layers import Squeeze
        >>> z, log_det = Squeeze()(torch.arange(1.0, 5.0).view(1, 1, 2, 2))
        >>> z.shape, z.flatten().tolist()
        (torch.Size([1, 4, 1, 1]), [1.0, 2.0, 3.0, 4.0])
    """

    inverse_is_capturable = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            raise InputError(f"squeeze needs an even height and width, not {height} x {width}")
        patches = x.unflatten(3, (width // 2, 2)).unflatten(2, (height // 2, 2))
        pixels = patches.permute(0, 2, 4, 1, 3, 5).flatten(3, 5)  # channels innermost in memory: what follows is faster
        return pixels.permute(0, 3, 1, 2), same_for_every_image(x.new_zeros(()), x)

    def inverse(self, z: Tensor) -> Tensor:
        patches = z.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3)
        return patches.flatten(4, 5).flatten(2, 3)
