"""A layer the other way round: data to latent solves, so that sampling convolves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flows.errors import InputError
from flows.layers.base import Layer
from flows.layers.composite import Composite
from flows.layers.factories import make


class Inverted(Layer):
    """The inverse of an affine layer.

    Map: ``z = f^-1(x)``. Log-det: that of ``f``, negative; it is the same for every image. Inverse: ``x = f(z)``. So
    training solves, and sampling is as fast as a convolution. Gradients of the solve are solves with the transpose.

    Args:
        num_channels: C.
        layer: makes ``f`` from the number of channels, such as ``EmergingConv2d``; an affine layer.
        image_size: (H, W), for layers that are tied to it; a flow gives it.

    Shapes: those of ``f``, which keeps the number of channels.

    Raises:
        InputError: a layer that is not affine.

    Cost: that of ``f``, with the directions exchanged.

    Reference: Nagar & Varma, *Inverse-Flow*, AISTATS 2025.

    Example:
        >>> import torch
        >>> from flows.layers import EmergingConv2d, Inverted
        >>> layer, x = Inverted(4, EmergingConv2d), torch.randn(2, 4, 6, 5)
        >>> z, log_det = layer(x)
        >>> torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    is_affine = True

    def __init__(
        self, num_channels: int, layer: Callable[..., Layer], image_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.layer = make(layer, num_channels, image_size=image_size)
        if not _is_affine(self.layer):
            raise InputError(f"only an affine layer can be inverted, not {type(self.layer).__name__}")
        self.image_size = self.layer.image_size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layer.inverse(x)
        _, log_det = self.layer(z.new_zeros(1, *z.shape[1:]))
        return z, -log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        x, _ = self.layer(z)
        return x


def _is_affine(layer: Layer) -> bool:
    return all(map(_is_affine, layer.parts())) if isinstance(layer, Composite) else layer.is_affine
