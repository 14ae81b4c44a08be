"""Convolutions of few channels, with what is added to them and a ReLU in the same pass.

Mixing layers and the ends of coupling networks have a dozen channels. Libraries' convolutions are made for many: on a
CPU they take up to three times as long. So a kernel in C computes these, forward and backward. PyTorch does so on other
devices, in half precision, and with many channels on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad
from torch.nn.grad import conv2d_input, conv2d_weight

from flows.kernels import extension, num_threads, why_not_compiled

FEW_CHANNELS = 64
"""With more than these on both sides PyTorch's convolutions are as fast."""

_only_torch = False


@contextmanager
def only_torch() -> Iterator[None]:
    """Without the kernel, for what looks at PyTorch's own operations."""
    global _only_torch
    before, _only_torch = _only_torch, True
    try:
        yield
    finally:
        _only_torch = before


class Reading(NamedTuple):
    """Which pixels of ``x`` each pixel of a convolution reads.

    Attributes:
        padding: left, right, top, bottom: rows and columns around ``x``.
        dilation: distance between taps in pixels.
        wraps: what stands there: the image goes on from its other side, or there are zeros.
    """

    padding: tuple[int, int, int, int]
    dilation: int = 1
    wraps: bool = False

    def result_size(self, image_size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result."""
        left, right, top, bottom = self.padding
        rows, columns = (self.dilation * (size - 1) for size in kernel_size)
        return top + image_size[0] + bottom - rows, left + image_size[1] + right - columns


def same_size(kernel_size: int, dilation: int = 1, *, wraps: bool = False) -> Reading:
    """Around the pixel, with an odd ``kernel_size``: the result is as large as the image."""
    reach = kernel_size // 2 * dilation
    return Reading((reach, reach, reach, reach), dilation, wraps)


def convolve(x: Tensor, weight: Tensor, reading: Reading, *, added: Tensor | None = None, relu: bool = False) -> Tensor:
    """``z = f(weight * x + added)``: a cross-correlation of the padded ``x``, and ``f`` a ReLU or the identity.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(O, C, k, k')``.
        reading: what each pixel of ``z`` reads.
        added: ``(O,)``, or ``(1, O, H', W')`` for every pixel.
        relu: whether negative numbers become zero.

    Returns:
        ``(B, O, H', W')``, channels-last. There are first derivatives, no second ones.

    Cost: ``O C k k'`` multiplications per pixel; backward twice that.
    """
    if has_kernel(x, weight, reading, added):
        return _Convolution.apply(x, weight, added, reading, relu)
    (left, right, top, bottom), dilation, wraps = reading
    everywhere, map_of_added = (added, None) if added is None or added.ndim == 1 else (None, added)
    if wraps:
        z = conv2d(_wrapped(x, reading), weight, everywhere, dilation=dilation)
    elif left == right and top == bottom:
        z = conv2d(x, weight, everywhere, padding=(top, left), dilation=dilation)
    else:
        z = conv2d(pad(x, reading.padding), weight, everywhere, dilation=dilation)
    if map_of_added is not None:
        z = z.add_(map_of_added)
    return z.relu_() if relu else z


def is_served(tensor: Tensor) -> bool:
    """Whether compiled kernels may compute with it now."""
    return (
        not _only_torch
        and not torch.compiler.is_compiling()
        and tensor.dtype in (torch.float32, torch.float64)
        and why_not_compiled(tensor.device) is None
        and tensor.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def has_kernel(x: Tensor, weight: Tensor, reading: Reading, *others: Tensor | None) -> bool:
    """Whether the compiled kernel convolves these; ``others`` take part."""
    return (
        is_served(x)
        and x.device == weight.device
        and x.dtype == weight.dtype
        and all(other is None or other.dtype == x.dtype for other in others)
        and _fits(x.shape[2:], weight.shape, reading)
    )


@lru_cache
def _fits(image_size: torch.Size, weight_shape: torch.Size, reading: Reading) -> bool:
    """Whether the kernel is for such a filter: of few channels, with no padding that it does not reach."""
    (left, right, top, bottom), dilation, wraps = reading
    rows, columns = (dilation * (size - 1) for size in weight_shape[2:])
    height, width = reading.result_size(image_size, weight_shape[2:])
    return (
        min(weight_shape[:2]) <= FEW_CHANNELS
        and max(left, right) <= columns
        and max(top, bottom) <= rows
        and min(height, width) > 0
        and (not wraps or (left + right, top + bottom) == (columns, rows))
    )


def gradients_of_convolution(x: Tensor, weight: Tensor, of_z: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """The gradients of ``x``, ``(B, C, H, W)``, and ``weight``, ``(O, C, k, k')``, of one convolution.

    ``of_z``, ``(B, O, H', W')``, is the gradient of ``z = convolve(x, weight, reading)``, with as many zeros on the
    right as on the left, and below as above.
    """
    if has_kernel(x, weight, reading):
        x, weight = channels_last(x), channels_last(weight)
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        shape = as_shape(x.shape[1:], weight.shape, reading)
        extension.convolve_backward(shape, x, weight, None, channels_last(of_z), of_x, of_weight, None, num_threads())
        return of_x, of_weight
    options = {"padding": (reading.padding[2], reading.padding[0]), "dilation": reading.dilation}
    return conv2d_input(x.shape, weight, of_z, **options), conv2d_weight(x, weight.shape, of_z, **options)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, added: Tensor | None, reading: Reading, relu: bool) -> Tensor:
        x, weight = channels_last(x), channels_last(weight)
        is_everywhere = added is None or added.ndim == 1
        added = None if added is None else dense(added) if is_everywhere else channels_last(added)
        z = empty_result(x, weight, reading)
        ctx.shape = as_shape(x.shape[1:], weight.shape, reading, added_everywhere=is_everywhere, relu=relu)
        extension.convolve(ctx.shape, x, weight, added, z, num_threads())
        ctx.save_for_backward(x, weight, added, z if relu else None)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, z = ctx.saved_tensors
        results = [
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        of_z = channels_last(gradients[0])
        extension.convolve_backward(ctx.shape, *inputs[:2], z, of_z, *results, num_threads())
        return *results, None, None


@lru_cache
def as_shape(
    x_shape: torch.Size,
    weight_shape: torch.Size,
    reading: Reading,
    *,
    added_everywhere: bool = True,
    relu: bool = False,
) -> tuple[int, ...]:
    """The numbers of ``csrc/convolution.h``'s shape, from (C, H, W) and (O, C, k, k')."""
    numbers = x_shape[0], weight_shape[0], *x_shape[1:], *weight_shape[2:], reading.dilation, *reading.padding
    return *numbers, reading.wraps, added_everywhere, relu


def empty_result(x: Tensor, weight: Tensor, reading: Reading) -> Tensor:
    """Room for a convolution, channels-last."""
    size = len(x), len(weight), *reading.result_size(x.shape[2:], weight.shape[2:])
    return torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)


def dense(tensor: Tensor) -> Tensor:
    """As the kernels read it."""
    return tensor.resolve_neg().contiguous()


def channels_last(images: Tensor) -> Tensor:
    """Dense, with the channels innermost."""
    return images.resolve_neg().contiguous(memory_format=torch.channels_last)


def _wrapped(x: Tensor, reading: Reading) -> Tensor:
    """The image with what lies beyond its border, also where that is more than its own size."""
    left, right, top, bottom = reading.padding
    rows = torch.arange(-top, x.shape[2] + bottom, device=x.device) % x.shape[2]
    columns = torch.arange(-left, x.shape[3] + right, device=x.device) % x.shape[3]
    return x.index_select(2, rows).index_select(3, columns)
