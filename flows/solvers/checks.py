"""What the solvers refuse, in one place: every message is one line that says what is wrong."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from flows.errors import InputError, NonFiniteError

DIRECTIONS = ("lower", "upper")
DTYPES = (torch.float32, torch.float64)

_already_said: set[object] = set()


def warn_once(key: object, message: str, category: type[Warning], *, stacklevel: int) -> None:
    """Warn the first time that ``key`` comes up in this process, however often it comes up later."""
    if key not in _already_said:
        _already_said.add(key)
        warnings.warn(message, category, stacklevel=stacklevel + 1)


@functools.lru_cache(maxsize=32)
def raster_mask(num_channels: int, kernel_size: int, direction: str) -> Tensor:
    """True where an autoregressive filter of this direction may be non-zero, (C, C, k, k).

    ``"lower"`` allows the lower triangle of the centre tap and every tap after it in raster order; square masks are
    a subset of this. ``"upper"`` is the same mask flipped in all four axes.
    """
    taps = torch.arange(kernel_size**2).reshape(kernel_size, kernel_size)
    centre = kernel_size**2 // 2
    mask = (taps > centre).repeat(num_channels, num_channels, 1, 1)
    middle = kernel_size // 2
    mask[:, :, middle, middle] = torch.ones(num_channels, num_channels).tril().bool()
    return mask if direction == "lower" else mask.flip(0, 1, 2, 3)


def check_weight(weight: Tensor, direction: str, dilation: int, image_size: tuple[int, int]) -> None:
    """Refuse a filter that no substitution in the stated direction inverts.

    Raises:
        InputError: the filter's shape or type, or one of the settings, cannot be used; it is not autoregressive.
        NonFiniteError: the filter has no inverse, because of a zero on its diagonal, or is not finite.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction must be one of {', '.join(DIRECTIONS)}; got {direction!r}")
    if not isinstance(dilation, int) or dilation < 1:
        raise InputError(f"dilation must be a positive integer; got {dilation!r}")
    if len(image_size) != 2 or any(not isinstance(side, int) or side < 1 for side in image_size):
        raise InputError(f"image_size must be a positive height and width; got {image_size!r}")
    if weight.dim() != 4 or weight.shape[0] != weight.shape[1] or weight.shape[2] != weight.shape[3]:
        raise InputError(f"the filter must have the shape (C, C, k, k); got {tuple(weight.shape)}")
    num_channels, kernel_size = weight.shape[0], weight.shape[2]
    if num_channels == 0 or kernel_size % 2 == 0:
        raise InputError(f"the filter needs at least one channel and an odd kernel size; got {tuple(weight.shape)}")
    check_type(weight)

    weight = weight.detach()
    middle = kernel_size // 2
    diagonal = weight[:, :, middle, middle].diagonal()
    useless = (diagonal == 0) | ~torch.isfinite(diagonal)
    if useless.any():
        channel = int(useless.nonzero()[0])
        raise NonFiniteError(
            f"the filter has no inverse: channel {channel} has {diagonal[channel].item()} on the centre tap's diagonal"
        )
    if not torch.isfinite(weight).all():
        raise NonFiniteError(f"the filter holds NaN or infinity at {_first(~torch.isfinite(weight))}")
    outside = (weight != 0) & ~raster_mask(num_channels, kernel_size, direction).to(weight.device)
    if outside.any():
        raise InputError(f"the filter is not autoregressive in direction {direction!r}: non-zero at {_first(outside)}")


def check_type(weight: Tensor) -> None:
    """Refuse weights in half precision, which no solver computes in.

    Raises:
        InputError: another type than float32 and float64.
    """
    if weight.dtype not in DTYPES:
        raise InputError(f"the weights must be float32 or float64; got {weight.dtype}")


def check_latent(z: Tensor, num_channels: int, image_size: tuple[int, int], dtype: torch.dtype, device: object) -> None:
    """Refuse a latent that does not fit the filter and the image size that a solver was prepared for.

    Raises:
        InputError: ``z`` has another shape, type or device.
    """
    expected = (num_channels, *image_size)
    if z.dim() != 4 or z.shape[1:] != expected:
        raise InputError(f"z must have the shape (B, {', '.join(map(str, expected))}); got {tuple(z.shape)}")
    if z.dtype != dtype:
        raise InputError(f"z and the filter must have the same type; got {z.dtype} and {dtype}")
    if z.device != device:
        raise InputError(f"z and the filter must be on the same device; got {z.device} and {device}")


def check_finite(z: Tensor) -> None:
    """Refuse NaN and infinity in ``z``; the usual, finite case costs one sum.

    Raises:
        NonFiniteError: names the first image that holds one.
    """
    # A sum is NaN or infinite if one of its terms is. Finite terms can overflow it too, hence the second look.
    if not torch.isfinite(z.detach().sum()):
        finite = torch.isfinite(z.detach()).flatten(1).all(dim=1)
        if not finite.all():
            raise non_finite_image(int((~finite).nonzero()[0]))


def non_finite_image(index: int) -> NonFiniteError:
    """The error that names the image."""
    return NonFiniteError(f"z holds NaN or infinity in image {index} of the batch, so it has no inverse")


def _first(where: Tensor) -> str:
    return str(tuple(where.nonzero()[0].tolist()))
