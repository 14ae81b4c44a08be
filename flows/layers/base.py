"""What every layer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from flows.errors import InputError
from flows.layers.pixel_map import PixelMap


class Layer(nn.Module, ABC):
    """An invertible map between images of features, data side to latent side.

    A subclass promises, for every ``x`` of shape ``(B, C, H, W)``:

    * ``z, log_det = layer(x)`` is a bijection; ``log_det`` has shape ``(B,)`` and is ``log |det dz/dx|`` in nats,
      never less precise than float32;
    * ``layer.inverse(z)`` returns that ``x``, and accepts any ``z``, also one that is no image's;
    * sample ``i`` of the output depends on sample ``i`` of the input only, and the input is never written to;
    * fixed tensors are buffers; train and eval mode compute the same.

    The table in ``tests/layer_table.py`` holds each layer to this promise.

    The rest is optional: by :meth:`inverse_parts`, :meth:`prepare_inverse` and :attr:`inverse_is_capturable` a layer
    may say what :mod:`flows.models.prepared_inverse` can use to invert a whole model faster.

    Attributes:
        is_affine: the layer is an affine map, so that encoding and decoding run it in float64 (:mod:`flows.numerics`).
    """

    is_affine: ClassVar[bool] = False

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent: ``(B, C, H, W) -> (B, C', H', W'), (B,)``."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Map latent to data: ``(B, C', H', W') -> (B, C, H, W)``."""

    def inverse_parts(self) -> Sequence[Layer]:
        """The layers whose inverses, one after the other in this order, are this layer's; none if it has no parts."""
        return ()

    def prepare_inverse(self, image_size: tuple[int, int]) -> PixelMap | Callable[[Tensor], Tensor] | None:
        """The inverse with everything computed that depends on the weights alone, for latents of this size.

        It may depend on the layer's parameters and buffers only, and is used while these keep their contents, without
        autograd. A :class:`~flows.layers.pixel_map.PixelMap` is merged with those of neighbouring layers. ``None``:
        there is nothing worth preparing, and :meth:`inverse` itself is called.
        """
        return None

    @property
    def inverse_is_capturable(self) -> bool:
        """Whether the (prepared) inverse may become part of a CUDA graph.

        Then it never waits for the device, does the same whatever the numbers are, and launches no more than some
        hundreds of kernels.
        """
        return False


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
