"""What every layer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flows.errors import InputError


class Layer(nn.Module, ABC):
    """An invertible map between images of features, data side to latent side.

    A subclass promises, for every ``x`` of shape ``(B, C, H, W)``:

    * ``z, log_det = layer(x)`` is a bijection; ``log_det`` has shape ``(B,)`` and is ``log |det dz/dx|`` in nats,
      never less precise than float32;
    * ``layer.inverse(z)`` returns that ``x``, and accepts any ``z``, also one that is no image's;
    * sample ``i`` of the output depends on sample ``i`` of the input only, and the input is never written to;
    * fixed tensors are buffers; train and eval mode compute the same.

    The table in ``tests/layer_table.py`` holds each layer to this promise.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent: ``(B, C, H, W) -> (B, C', H', W'), (B,)``."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Map latent to data: ``(B, C', H', W') -> (B, C, H, W)``."""


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
