"""Data-initialised normalisation of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flows.layers.base import require_channels
from flows.layers.pixelwise import PixelMap, PixelwiseLayer
from flows.numerics import at_least_float32

LOG_SCALE_FACTOR = 3.0
"""Log-scales are stored divided by this, which multiplies their learning rate by it (Glow's released code)."""

EPSILON = 1e-6
"""Added to the standard deviation at initialisation, so that a constant channel gets a finite scale."""


class ActNorm(PixelwiseLayer):
    """Shifts and scales each channel; starts so that a first batch comes out with mean 0 and variance 1.

    Map: ``z = (x + bias) * exp(3 log_scale)``, per channel. Log-det: ``H W sum_c 3 log_scale_c``.

    The layer starts as the identity. :func:`flows.models.initialization.initialize_from_data` sets ``bias`` and
    ``log_scale`` from a batch, once; that it was done is a saved buffer, so that neither an evaluation nor a loaded
    checkpoint ever does it again.

    Args:
        num_channels: C, at least 1.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Raises ``InputError`` for C < 1.

    Reference: Kingma & Dhariwal, *Glow*, section 3.1; the factor 3 and the epsilon are those of the released code.

    Example:
        >>> import torch
        >>> from flows.layers import ActNorm
        >>> layer, x = ActNorm(3), 5.0 + 2.0 * torch.randn(16, 3, 8, 8)
        >>> layer.initialize(x)
        >>> z, log_det = layer(x)
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1.0).abs() < 1e-3)
        (True, True)
    """

    is_affine = is_pixelwise = True
    inverse_is_capturable = True
    initialized: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        require_channels(num_channels)
        self.bias = nn.Parameter(torch.zeros(num_channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(num_channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set the parameters so that ``x`` comes out with mean 0 and variance 1 per channel; only the first time."""
        if self.initialized:
            return
        x = at_least_float32(x)
        mean = x.mean(dim=(0, 2, 3)).view_as(self.bias)
        std = x.std(dim=(0, 2, 3), correction=0).view_as(self.bias)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std + EPSILON) / LOG_SCALE_FACTOR)
        self.initialized.fill_(True)

    def pixel_map(self) -> PixelMap:
        scale = torch.exp(LOG_SCALE_FACTOR * self.log_scale).flatten()
        return PixelMap(scale, self.bias.flatten() * scale)

    def log_abs_det(self) -> Tensor:
        return LOG_SCALE_FACTOR * self.log_scale.sum()

    def inverse(self, z: Tensor) -> Tensor:
        return z * torch.exp(-LOG_SCALE_FACTOR * self.log_scale) - self.bias
