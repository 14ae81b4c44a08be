"""Convolutions of few channels, with what is added to them and a ReLU in the same pass.

Mixing layers and the ends of coupling networks have a dozen channels. Libraries' convolutions are made for many: on a
CPU they take up to three times as long. So a kernel in C computes these, forward and backward. PyTorch does so on other
devices, in half precision, and with many channels on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def convolve(
    x: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    dilation: int = 1,
    *,
    added: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``z = f(weight * x + added)``: a cross-correlation of the zero-padded ``x``, and ``f`` a ReLU or the identity.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(O, C, k, k')``.
        padding: left, right, top, bottom: rows and columns of zeros around ``x``.
        dilation: distance between taps in pixels.
        added: ``(O,)``, or ``(1, O, H', W')`` for every pixel.
        relu: whether negative numbers become zero.

    Returns:
        ``(B, O, H', W')``, channels-last. There are first derivatives, no second ones.

    Cost: ``O C k k'`` multiplications per pixel; backward twice that.
    """
    if _kernel_serves(x, weight, padding, dilation) and (added is None or added.dtype == x.dtype):
        return _Convolution.apply(x, weight, added, padding, dilation, relu)
    left, right, top, bottom = padding
    everywhere, map_of_added = (added, None) if added is None or added.ndim == 1 else (None, added)
    if left == right and top == bottom:
        z = conv2d(x, weight, everywhere, padding=(top, left), dilation=dilation)
    else:
        z = conv2d(pad(x, list(padding)), weight, everywhere, dilation=dilation)
    if map_of_added is not None:
        z = z.add_(map_of_added)
    return z.relu_() if relu else z


def _kernel_serves(x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int) -> bool:
    reach = [dilation * (size - 1) for size in weight.shape[2:]]
    return (
        not _only_torch
        and not torch.compiler.is_compiling()
        and why_not_compiled(x.device) is None
        and x.device == weight.device
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) <= FEW_CHANNELS
        and x.numel() > 0
        and max(padding[:2]) <= reach[1] < x.shape[3] + padding[0] + padding[1]
        and max(padding[2:]) <= reach[0] < x.shape[2] + padding[2] + padding[3]
    )


def gradients_of_convolution(
    x: Tensor, weight: Tensor, of_z: Tensor, padding: int, dilation: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradients of ``x``, ``(B, C, H, W)``, and ``weight``, ``(O, C, k, k')``, of one convolution.

    ``of_z``, ``(B, O, H', W')``, is the gradient of ``z = convolve(x, weight, [padding] * 4, dilation)``.
    """
    if _kernel_serves(x, weight, [padding] * 4, dilation):
        x, weight = _channels_last(x), _channels_last(weight)
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        shape = (*_numbers(x, weight, [padding] * 4, dilation), True, False)
        extension.convolve_backward(shape, x, weight, None, _channels_last(of_z), of_x, of_weight, None, num_threads())
        return of_x, of_weight
    of_x = conv2d_input(x.shape, weight, of_z, padding=padding, dilation=dilation)
    return of_x, conv2d_weight(x, weight.shape, of_z, padding=padding, dilation=dilation)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, added: Tensor | None, padding: Sequence[int], dilation: int, relu: bool
    ) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        is_everywhere = added is None or added.ndim == 1
        added = None if added is None else _channels_last(added)
        left, right, top, bottom = padding
        height = top + x.shape[2] + bottom - dilation * (weight.shape[2] - 1)
        width = left + x.shape[3] + right - dilation * (weight.shape[3] - 1)
        z = _empty(x, (len(x), len(weight), height, width))
        ctx.numbers = (*_numbers(x, weight, padding, dilation), is_everywhere, relu)
        extension.convolve(ctx.numbers, x, weight, added, z, num_threads())
        ctx.save_for_backward(x, weight, z if relu else None)
        ctx.added_size = (len(weight),) if is_everywhere else (1, *z.shape[1:])
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, z = ctx.saved_tensors
        needs_x, needs_weight, needs_added = ctx.needs_input_grad[:3]
        of_x = torch.empty_like(x) if needs_x else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        of_added = _empty(x, ctx.added_size) if needs_added else None
        of_z = _channels_last(gradients[0])
        extension.convolve_backward(ctx.numbers, x, weight, z, of_z, of_x, of_weight, of_added, num_threads())
        return of_x, of_weight, of_added, None, None, None


def _numbers(x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int) -> tuple[int, ...]:
    """A shape as ``csrc/convolution.h`` has it, up to the padding."""
    return (x.shape[1], len(weight), *x.shape[2:], *weight.shape[2:], dilation, *padding)


def _empty(like: Tensor, size: tuple[int, ...]) -> Tensor:
    order = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, memory_format=order)


def _channels_last(images: Tensor) -> Tensor:
    """Dense, with the channels innermost."""
    images = images.resolve_neg()
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images.contiguous()
