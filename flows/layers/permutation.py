"""Mixing without parameters: permutations of the channels."""

from __future__ import annotations

import torch
from torch import Tensor

from flows.layers.base import Layer, require_channels
from flows.numerics import same_for_every_image


class _Permutation(Layer):
    """Reorders the channels: ``z[:, i] = x[:, permutation[i]]``; log-det 0."""

    is_affine = is_pixelwise = True
    inverse_is_capturable = True
    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Tensor) -> None:
        super().__init__()
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", torch.argsort(permutation))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.permutation], same_for_every_image(x.new_zeros(()), x)

    def inverse(self, z: Tensor) -> Tensor:
        return z[:, self.inverse_permutation]


class Reverse(_Permutation):
    """Reverses the order of the channels.

    Map: ``z[:, i] = x[:, C - 1 - i]``. Log-det: 0.

    Args:
        num_channels: C, at least 1.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Raises ``InputError`` for C < 1.

    Reference: Dinh et al., *Density estimation using Real NVP*, section 3.5; Kingma & Dhariwal, *Glow*, section 5.1.

    Example:
        >>> import torch
        >>> from flows.layers import Reverse
        >>> z, log_det = Reverse(3)(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
        >>> z.flatten().tolist()
        [3.0, 2.0, 1.0]
    """

    def __init__(self, num_channels: int) -> None:
        require_channels(num_channels)
        super().__init__(torch.arange(num_channels - 1, -1, -1))


class Shuffle(_Permutation):
    """Puts the channels into a fixed random order, drawn from torch's generator at construction.

    Map: ``z[:, i] = x[:, p(i)]`` with a permutation ``p`` kept in the checkpoint. Log-det: 0.

    Args:
        num_channels: C, at least 1.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Raises ``InputError`` for C < 1.

    Reference: Kingma & Dhariwal, *Glow*, section 5.1.

    Note:
        The released code seeds the order with Python's per-process string hash, so that two processes disagree. Here
        it follows ``torch.manual_seed`` and is a saved buffer.

    Example:
        >>> import torch
        >>> from flows.layers import Shuffle
        >>> layer, x = Shuffle(12), torch.randn(2, 12, 8, 8)
        >>> torch.equal(layer.inverse(layer(x)[0]), x)
        True
    """

    def __init__(self, num_channels: int) -> None:
        require_channels(num_channels)
        super().__init__(torch.randperm(num_channels))
