"""The masks that make a convolution autoregressive."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from flows.errors import InputError
from flows.layers.base import require_odd_kernel

Direction = Literal["lower", "upper"]
MaskShape = Literal["square", "raster"]


def autoregressive_mask(
    num_channels: int, kernel_size: int, direction: Direction = "lower", shape: MaskShape = "square"
) -> Tensor:
    """The entries of a ``(C, C, k, k)`` filter that an autoregressive convolution may use: 1 there, 0 elsewhere.

    At the centre tap the C x C matrix is triangular, diagonal included: lower for ``direction="lower"``, upper for
    ``"upper"``. The other taps are whole matrices, at these places for ``k = 3`` and ``"lower"`` (``o`` the centre)::

        square   . . .     raster   . . .
                 . o x              . o x
                 . x x              x x x

    ``square`` reads the pixels to the right and below; ``raster`` every pixel that comes later in reading order. The
    ``"upper"`` mask is the ``"lower"`` one flipped in all four axes, channels included.

    Raises:
        InputError: an even kernel, an unknown direction or shape.

    Reference: figures 4 and 5 of the paper; the released code has the square masks.
    """
    require_odd_kernel(kernel_size)
    if direction not in get_args(Direction):
        raise InputError(f"direction must be 'lower' or 'upper', not '{direction}'")
    if shape not in get_args(MaskShape):
        raise InputError(f"mask must be 'square' or 'raster', not '{shape}'")
    mask = torch.zeros(num_channels, num_channels, kernel_size, kernel_size)
    centre = kernel_size // 2
    mask[:, :, centre, centre:] = 1.0
    mask[:, :, centre + 1 :, (centre if shape == "square" else 0) :] = 1.0
    mask[:, :, centre, centre] = torch.ones(num_channels, num_channels).tril()
    return mask if direction == "lower" else mask.flip(0, 1, 2, 3)
