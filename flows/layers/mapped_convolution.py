"""A convolution that takes the map of the channels in front of it into its filter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flows.kernels import extension, num_threads
from flows.kernels.convolution import Reading, as_shape, channels_last, convolve, dense, empty_result, has_kernel
from flows.layers.pixelwise import PixelMap, added_by_taps
from flows.numerics import same_for_every_image


class TriangularFilter(NamedTuple):
    """A masked filter whose convolution has a triangular matrix, the diagonal of one tap at every pixel.

    Attributes:
        weight, mask: ``(C, C, k, k')``.
        centre: row and column of that tap.
        is_exponential: of its diagonal ``weight`` holds the logarithms.
    """

    weight: Tensor
    mask: Tensor
    centre: tuple[int, int]
    is_exponential: bool = False

    def taps(self) -> tuple[Tensor, Tensor]:
        """The filter itself, and the log-det of one pixel, a scalar."""
        taps = self.weight * self.mask
        learned = taps[:, :, *self.centre].diagonal()
        if not self.is_exponential:
            return taps, learned.abs().log().sum()
        difference = torch.diag_embed(learned.exp() - learned)[:, :, None, None]
        is_centre = torch.zeros_like(self.mask[0, 0])
        is_centre[self.centre] = 1.0
        return taps + difference * is_centre, learned.sum()


def convolve_mapped(
    x: Tensor, before: PixelMap | None, filters: Tensor | TriangularFilter, bias: Tensor | None, reading: Reading
) -> tuple[Tensor, Tensor | None]:
    """``z = weight * before(x) + bias``, without a pass over the images for the map; and its log-det.

    Map: with ``before(x) = M x + s``, the filter is ``weight M``. A tap that reads the image adds ``weight s``; one
    that reads zero padding adds nothing.

    Args:
        x: ``(B, C, H, W)``.
        before: a map from C channels to C, with its log-det if one is asked for; ``None`` for the identity.
        filters: the weight, ``(O, C, k, k')``.
        bias: ``(O,)``.
        reading: what each pixel of ``z`` reads.

    Returns:
        ``z``, ``(B, O, H', W')``, channels-last; and with a triangular filter the log-det of both, ``(B,)``. There are
        first derivatives, no second ones.

    Cost: ``O C k k'`` multiplications per pixel, and ``O C^2 k k'`` for the filter.
    """
    triangular, weight = (filters, filters.weight) if isinstance(filters, TriangularFilter) else (None, filters)
    matrix, shift, of_pixel = (None, None, None) if before is None else before
    assert triangular is None or before is None or of_pixel is not None
    if has_kernel(x, weight, reading, bias, matrix, shift):
        of_pixel = None if triangular is None else of_pixel
        return _MappedConvolution.apply(x, weight, bias, matrix, shift, of_pixel, triangular, reading)
    log_det = None
    if triangular is not None:
        weight, of_tap = triangular.taps()
        of_both = of_tap if of_pixel is None else of_tap + of_pixel
        log_det = same_for_every_image(x.shape[2] * x.shape[3] * of_both, x)
    added = bias
    if before is not None:
        weight, of_shift = before.folded_into(weight)
        if of_shift is not None:
            added = added_by_taps(of_shift, bias, x.shape[2:], weight.shape[2:], reading, on="image")
    return convolve(x, weight, reading, added=added), log_det


class _MappedConvolution(torch.autograd.Function):
    """All in one call of the compiled kernel, which at small sizes takes less time than autograd's operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        matrix: Tensor | None,
        shift: Tensor | None,
        of_pixel: Tensor | None,
        triangular: TriangularFilter | None,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None]:
        x, mask, log_det, diagonal = channels_last(x), None, None, (-1, False)
        if triangular is not None:
            row, column = triangular.centre
            mask, log_det = triangular.mask, x.new_empty(len(x))
            diagonal = row * weight.shape[3] + column, triangular.is_exponential
        numbers = as_shape(x.shape[1:], weight.shape, reading), (0 if matrix is None else matrix.ndim, *diagonal)
        kept = x.new_empty((1 if matrix is None else 2) * weight.numel())
        z = empty_result(x, weight, reading)
        inputs = [None if tensor is None else dense(tensor) for tensor in (weight, mask, bias, matrix, shift, of_pixel)]
        extension.convolve_mapped(*numbers, x, *inputs, kept, z, log_det, num_threads())
        ctx.save_for_backward(x, *inputs, kept)
        ctx.numbers = numbers
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask, bias, matrix, shift, of_pixel, kept = ctx.saved_tensors
        of_z, of_log_det = channels_last(gradients[0]), gradients[1]
        of_log_det = None if of_log_det is None else dense(of_log_det)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        others = [
            None if tensor is None else torch.empty_like(tensor) for tensor in (weight, bias, matrix, shift, of_pixel)
        ]
        extension.convolve_mapped_backward(
            *ctx.numbers, x, mask, matrix, shift, kept, of_z, of_log_det, of_x, *others, num_threads()
        )
        return of_x, *others, None, None
