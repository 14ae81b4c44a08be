"""Fast invertible convolutions: each quarter of the channels is convolved from a corner of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flows.errors import InputError
from flows.layers.autoregressive import AutoregressiveConv2d, Diagonal
from flows.layers.base import Layer, require_channels
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization

CORNERS = ((), (3,), (2,), (2, 3))
"""What is flipped of each quarter, so that its corner comes to lie where the others' lie."""


class FlipQuarters(Layer):
    """Flips the second quarter of the channels left to right, the third top to bottom, and the fourth both ways.

    Log-det: 0. It is its own inverse. Shapes: ``(B, C, H, W) -> (B, C, H, W)``, C divisible by 4.
    """

    is_affine = True
    inverse_is_capturable = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse(x), x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))

    def inverse(self, z: Tensor) -> Tensor:
        quarters = z.chunk(4, dim=1)
        return torch.cat([quarter.flip(sides) for quarter, sides in zip(quarters, CORNERS, strict=True)], dim=1)


class FIncConv2d(Composite):
    """A 1x1 convolution, then four convolutions side by side, of a quarter of the channels and from a corner each.

    Map: ``z = F w * (F (W x)) + bias``, where ``F`` flips the quarters, and ``w`` is an autoregressive filter in four
    groups that reads k x k pixels to the right and below. Together the quarters read in all four directions. Log-det:
    ``H W (log |det W| + sum_c log |w_cc|)``. Inverse: one substitution for all quarters.

    Args:
        num_channels: C, a multiple of 4.
        kernel_size: k, at least 1: the number of pixels that a quarter reads in each direction, itself included.
        diagonal: of the taps over the pixel itself, see :class:`AutoregressiveConv2d`.
        parametrization: of the 1x1, see :class:`Conv1x1`.
        solver: name of the backend for the inverse; ``None`` chooses by device and shape.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: another number of channels, a kernel below 1.
        NonFiniteError: from ``inverse``, if an entry of the diagonal is zero.

    Cost: ``C^2 (1 + k^2)`` multiplications per pixel; about as much for the inverse.

    Reference: Kallappa, Nagar & Varma, *FInC Flow: Fast and Invertible k x k Convolutions for Normalizing Flows*,
    VISAPP 2023.

    Note:
        The authors fix the diagonal at 1 (``diagonal="unit"``), and their step has the 1x1 behind the actnorm that
        follows. Here the 1x1 comes first, as in the emerging convolution, so that the two can be compared.

    Example:
        >>> import torch
        >>> from flows.layers import FIncConv2d
        >>> layer, x = FIncConv2d(8, kernel_size=3), torch.randn(2, 8, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        *,
        diagonal: Diagonal = "free",
        parametrization: Parametrization = "plain",
        solver: str | None = None,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        if num_channels % 4:
            raise InputError(f"finc needs a number of channels that is divisible by 4, not {num_channels}")
        if kernel_size < 1:
            raise InputError(f"kernel_size must be at least 1, not {kernel_size}")
        self.conv1x1 = Conv1x1(num_channels, parametrization)
        self.flip = FlipQuarters()
        self.convolution = AutoregressiveConv2d(
            num_channels, 2 * kernel_size - 1, diagonal=diagonal, groups=4, solver=solver
        )

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, self.flip, self.convolution, self.flip
