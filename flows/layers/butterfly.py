"""Butterfly layers: pairs of numbers at a distance, each multiplied by a 2 x 2 matrix of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flows.errors import InputError
from flows.layers.base import NOISE_STD, Layer, require_channels
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization
from flows.layers.matrices import checked_inverse
from flows.layers.weight_cache import WeightCache
from flows.numerics import same_for_every_image


class ButterflyTransform(Layer):
    """A product of butterfly matrices over all numbers of an image, ``n = C H W`` of them.

    Map: level i pairs the numbers at distance ``n / 2^(i + 1)`` of the flattened image, and multiplies each of the
    ``n / 2`` pairs by its own matrix ``[[a, b], [c, d]]``. Log-det: ``sum log |a d - b c|`` over levels and pairs.
    Inverse: the levels in reverse, each with its inverse matrices.

    Level 0 pairs the two halves of the channels at the same pixel; further levels reach pixels once the channels are
    halved to the end. Every pair is tied to its place, so the layer fits one image size and shares nothing between
    pixels. It starts as the identity plus noise of standard deviation 0.02.

    Args:
        num_channels: C, at least 1.
        image_size: (H, W) of the images; a flow gives it.
        num_levels: the number of levels, from level 0 on; ``2^num_levels`` must divide ``C H W``.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, of the one size.

    Raises:
        InputError: levels that do not fit, or images of another size.
        NonFiniteError: from ``inverse``, if a pair's matrix is singular.

    Warns:
        IllConditionedWarning: from ``inverse``, if fewer than about four digits can be right.

    Cost: ``2 n`` multiplications and ``2 n`` parameters per level.

    Reference: Meng et al., *ButterflyFlow: Building Invertible Layers with Butterfly Matrices*, ICML 2022, section 3.

    Example:
        >>> import torch
        >>> from flows.layers import ButterflyTransform
        >>> layer, x = ButterflyTransform(4, (6, 5), num_levels=2), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    is_affine = True
    inverse_is_capturable = True

    def __init__(self, num_channels: int, image_size: tuple[int, int], num_levels: int = 1) -> None:
        super().__init__()
        require_channels(num_channels)
        size = num_channels * image_size[0] * image_size[1]
        if num_levels < 1 or size % 2**num_levels:
            raise InputError(
                f"num_levels must be at least 1, and 2^num_levels must divide C H W = {size}, unlike {num_levels}"
            )
        self.image_size = (image_size[0], image_size[1])
        start = torch.eye(2).expand(num_levels, size // 2, 2, 2)
        self.weight = nn.Parameter(start + NOISE_STD * torch.randn(start.shape))
        self._inverse_matrices: WeightCache[Tensor] = WeightCache()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.require_image_size(x)
        z = x
        for level, matrices in enumerate(self.weight):
            z = _multiply(matrices, z, level)
        (a, b), (c, d) = self.weight.permute(2, 3, 0, 1).double()
        log_det = (a * d - b * c).abs().log().sum()
        return z, same_for_every_image(log_det.to(self.weight.dtype), x)

    def inverse(self, z: Tensor) -> Tensor:
        self.require_image_size(z)
        inverse_matrices = self._inverse_matrices.get(self._inverted, self.weight)
        for level in reversed(range(len(inverse_matrices))):
            z = _multiply(inverse_matrices[level], z, level)
        return z

    def _inverted(self) -> Tensor:
        matrices = self.weight.double()
        what = f"a butterfly matrix of {2 * self.weight.shape[1]} numbers"
        return checked_inverse(matrices, torch.linalg.inv_ex(matrices).inverse, what, self.weight.dtype)


class Butterfly(Composite):
    """A 1x1 convolution, then butterfly matrices.

    Map: ``z = B W x`` with ``W`` on the channels of every pixel, and ``B`` the :class:`ButterflyTransform`. Log-det:
    ``H W log |det W|`` and that of ``B``. Inverse: ``W^-1 B^-1 z``.

    Args:
        num_channels: C, at least 1.
        image_size: (H, W) of the images; a flow gives it.
        num_levels: see :class:`ButterflyTransform`.
        parametrization: of the 1x1, see :class:`Conv1x1`.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, of the one size.

    Raises:
        InputError, NonFiniteError: as its parts.

    Cost: that of its parts.

    Reference: Meng et al., *ButterflyFlow: Building Invertible Layers with Butterfly Matrices*, ICML 2022, whose flows
    have a 1x1 before each butterfly layer.

    Example:
        >>> import torch
        >>> from flows.layers import Butterfly
        >>> layer, x = Butterfly(4, (6, 5), num_levels=2), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        num_channels: int,
        image_size: tuple[int, int],
        num_levels: int = 1,
        *,
        parametrization: Parametrization = "plain",
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(num_channels, parametrization)
        self.butterfly = ButterflyTransform(num_channels, image_size, num_levels)
        self.image_size = self.butterfly.image_size

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, self.butterfly


def _multiply(matrices: Tensor, x: Tensor, level: int) -> Tensor:
    """``(n / 2, 2, 2)`` matrices times the pairs at distance ``n / 2^(level + 1)``."""
    blocks, distance = 2**level, len(matrices) // 2**level
    first, second = x.reshape(len(x), blocks, 2, distance).unbind(2)
    (a, b), (c, d) = matrices.view(blocks, distance, 2, 2).permute(2, 3, 0, 1)
    return torch.stack([a * first + b * second, c * first + d * second], dim=2).view(x.shape)
