"""What every layer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from flows.errors import InputError

NOISE_STD = 0.02
"""Standard deviation of the noise with which filters and matrices start beside the identity (the released code)."""

CLAIMS = {
    "forward": ("is_affine", "is_pixelwise", "absorbs_pixel_maps"),
    "inverse": ("is_affine", "is_pixelwise", "inverse_is_capturable"),
}
"""What a class says of each of its methods."""


Recorded = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]
"""An input, in parts along the channels that require gradients, and what ``forward`` makes of it under autograd."""


class Layer(nn.Module, ABC):
    """An invertible map between images of features, data side to latent side.

    A subclass promises, for every ``x`` of shape ``(B, C, H, W)``:

    * ``z, log_det = layer(x)`` is a bijection; ``log_det`` has shape ``(B,)`` and is ``log |det dz/dx|`` in nats,
      never less precise than float32;
    * ``layer.inverse(z)`` returns that ``x``, and accepts any ``z``, also one that is no image's;
    * sample ``i`` of the output depends on sample ``i`` of the input only, and the input is never written to;
    * fixed tensors are buffers; train and eval mode compute the same.

    The table in ``tests/layer_table.py`` holds each layer to this promise.

    What a class says of itself lets :class:`flows.layers.composite.Composite` run it faster, and
    :mod:`flows.models.prepared_inverse` invert it faster and more exactly. A subclass that replaces ``forward`` or
    ``inverse`` starts again with False.

    Attributes:
        is_affine: the layer is an affine map, so that encoding and decoding run it in float64 (:mod:`flows.numerics`).
        is_pixelwise: it is one affine map of the channels, the same at every pixel, and is merged with its neighbours
            (:class:`flows.layers.pixelwise.PixelwiseLayer`).
        absorbs_pixel_maps: ``forward`` takes one more argument, a :class:`flows.layers.pixelwise.PixelMap` or ``None``,
            and does what that map and then the layer do, with the log-det of both.
        inverse_is_capturable: the inverse may become part of a CUDA graph. It never waits for the device once its
            weights are prepared, does the same whatever the numbers are, and launches at most some hundreds of kernels.
        image_size: the (H, W) of the images that the parameters are tied to; ``None`` for any.
    """

    is_affine: ClassVar[bool] = False
    is_pixelwise: ClassVar[bool] = False
    absorbs_pixel_maps: ClassVar[bool] = False
    inverse_is_capturable: bool = False
    image_size: tuple[int, int] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method, claims in CLAIMS.items():
            for claim in claims if method in vars(cls) else ():
                if claim not in vars(cls):
                    setattr(cls, claim, False)

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent: ``(B, C, H, W) -> (B, C', H', W'), (B,)``."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Map latent to data: ``(B, C', H', W') -> (B, C, H, W)``."""

    def rebuild(self, z: Tensor) -> Recorded:
        """The input that belongs to ``z``, and ``forward`` of it; a subclass may do both at the price of one."""
        with torch.no_grad():
            x = self.inverse(z)
        x = x.detach().requires_grad_()
        return (x,), self(x)

    def require_image_size(self, x: Tensor) -> None:
        """Refuse images of another size than ``image_size``."""
        height, width = x.shape[-2:]
        if self.image_size is not None and (height, width) != self.image_size:
            size = f"{self.image_size[0]} x {self.image_size[1]}"
            raise InputError(f"this {type(self).__name__} is for images of {size} pixels, not {height} x {width}")


def require_channels(num_channels: int) -> None:
    """Refuse a number of channels below one."""
    if num_channels < 1:
        raise InputError(f"num_channels must be at least 1, not {num_channels}")


def require_odd_kernel(kernel_size: int) -> None:
    """Refuse a kernel without a centre."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(
            f"kernel_size must be odd (1, 3, 5, ...) so that the filter has a centre tap, not {kernel_size}"
        )
