"""Affine maps of the channels that are the same at every pixel. They compose with each other and with what follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, unfold

from flows.kernels.convolution import Reading
from flows.layers.base import Layer
from flows.layers.constants import constant
from flows.numerics import same_for_every_image


class PixelMap(NamedTuple):
    """``h[:, :, i, j] -> matrix h[:, :, i, j] + shift``.

    Attributes:
        matrix: (C, C), or (C,), the diagonal of one.
        shift: (C,), or ``None`` for none.
        log_abs_det: ``log |det matrix|`` in nats, a scalar; ``None`` where the map alone is needed.
    """

    matrix: Tensor
    shift: Tensor | None = None
    log_abs_det: Tensor | None = None

    def then(self, other: PixelMap) -> PixelMap:
        """The one map that does what this one and then ``other`` do; neither is applied to any pixel for it."""
        if self.matrix.ndim == 1:
            matrix = other.matrix * self.matrix
        else:
            matrix = other.matrix @ self.matrix if other.matrix.ndim == 2 else other.matrix[:, None] * self.matrix
        own, its = self.log_abs_det, other.log_abs_det
        return PixelMap(matrix, other.of_shift(self.shift), None if own is None or its is None else own + its)

    def of_shift(self, shift: Tensor | None) -> Tensor | None:
        """What a shift in front of the map comes to behind it, its own one added."""
        if shift is None:
            return self.shift
        shift = self.matrix @ shift if self.matrix.ndim == 2 else self.matrix * shift
        return shift if self.shift is None else shift + self.shift

    def folded_into(self, taps: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filter of a convolution that does what this map does and then the one with ``taps``.

        Args:
            taps: ``(O, C, k, k)``.

        Returns:
            The filter, ``(O, C, k, k)``; and what each tap adds where it reads a pixel, ``(O, k k)``, if the map has a
            shift. A tap that reads zero padding adds nothing (:func:`added_by_taps`).
        """
        taps = taps.permute(0, 2, 3, 1)
        columns = taps.flatten(0, 2)
        folded = columns * self.matrix if self.matrix.ndim == 1 else columns @ self.matrix
        of_shift = None if self.shift is None else (columns @ self.shift).view(len(taps), -1)
        return folded.unflatten(0, taps.shape[:3]).permute(0, 3, 1, 2), of_shift

    def log_det(self, h: Tensor) -> Tensor:
        """``H W log_abs_det`` of images ``h``, ``(B,)``."""
        assert self.log_abs_det is not None
        return same_for_every_image(h.shape[2] * h.shape[3] * self.log_abs_det, h)

    def __call__(self, h: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; a matrix leaves the channels innermost in memory (channels-last)."""
        if self.matrix.ndim == 2:
            # As a matrix, here and above: tensors of more dimensions torch multiplies otherwise where autograd is off,
            # and a backward pass that runs a layer again (flows.models.memory) would see numbers rounded otherwise.
            pixels = linear(h.permute(0, 2, 3, 1).flatten(0, 2), self.matrix, self.shift)
            return pixels.unflatten(0, (len(h), *h.shape[2:])).permute(0, 3, 1, 2)
        h = h * self.matrix[:, None, None]
        return h if self.shift is None else h + self.shift[:, None, None]


def added_by_taps(
    taps: Tensor,
    bias: Tensor | None,
    image_size: Sequence[int],
    kernel_size: Sequence[int],
    reading: Reading,
    *,
    on: Literal["image", "padding"],
) -> Tensor:
    """``bias + sum_t taps_t 1[tap t reads there]`` at each pixel of a padded convolution.

    Args:
        taps: ``(O, k k')``, row by row.
        bias: ``(O,)``.
        image_size: (height, width).
        kernel_size: height and width of the filter.
        reading: of the convolution.
        on: what is read there: the image, or the padding around it.

    Returns:
        ``(1, O, H', W')``, channels-last. It is the same for every image, and costs one product of small matrices.
    """
    seen = _reads(tuple(image_size), tuple(kernel_size), *reading, on, taps.dtype, taps.device)
    added = seen @ taps.T if bias is None else torch.addmm(bias, seen, taps.T)
    return added.view(1, *reading.result_size(image_size, kernel_size), -1).permute(0, 3, 1, 2)


@constant
def _reads(
    image_size: tuple[int, int],
    kernel_size: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: int,
    wraps: bool,
    on: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """1 where a tap reads there, 0 where it does not: ``(H' W', k k')``."""
    on_image = 1.0 if on == "image" else 0.0
    image = torch.full((1, 1, *image_size), on_image, dtype=dtype, device=device)
    around = on_image if wraps else 1.0 - on_image
    return unfold(pad(image, padding, value=around), kernel_size, dilation=dilation)[0].T.contiguous()


class PixelwiseLayer(Layer):
    """One affine map of the channels, the same at every pixel.

    Map: ``z[:, :, i, j] = W x[:, :, i, j] + b``. Log-det: ``H W log |det W|``. A subclass gives ``W`` and ``b`` by
    :meth:`pixel_map` and the log-det of one pixel by :meth:`log_abs_det`, both differentiable, and its inverse.

    A :class:`~flows.layers.base.Composite` does not run such a layer by itself: it composes the map with those that
    follow, and with the filter of a convolution behind them. That saves passes over the images.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Cost: ``C^2`` multiplications per pixel, C for a diagonal map.
    """

    is_affine = is_pixelwise = True
    inverse_is_capturable = True

    @abstractmethod
    def pixel_map(self) -> PixelMap:
        """``W`` and ``b``."""

    @abstractmethod
    def log_abs_det(self) -> Tensor:
        """``log |det W|`` in nats, a scalar."""

    def counted_map(self) -> PixelMap:
        """``W`` and ``b`` with ``log |det W|``."""
        return self.pixel_map()._replace(log_abs_det=self.log_abs_det())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        own = self.counted_map()
        return own(x), own.log_det(x)


def is_watched(module: nn.Module) -> bool:
    """Whether a hook looks at what the module does, so that it has to run by itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
