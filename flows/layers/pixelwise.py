"""Affine maps of the channels that are the same at every pixel. They compose with each other and with what follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, unfold

from flows.layers.base import Layer
from flows.layers.constants import constant
from flows.numerics import same_for_every_image


@dataclass(frozen=True)
class PixelMap:
    """``h[:, :, i, j] -> matrix h[:, :, i, j] + shift``.

    Attributes:
        matrix: (C', C), or (C,), the diagonal of one.
        shift: (C',), or ``None`` for none.
    """

    matrix: Tensor
    shift: Tensor | None = None

    def then(self, other: PixelMap) -> PixelMap:
        """The one map that does what this one and then ``other`` do; neither is applied to any pixel for it."""
        if self.matrix.ndim == 1:
            matrix = other.matrix * self.matrix
        else:
            matrix = other.matrix @ self.matrix if other.matrix.ndim == 2 else other.matrix[:, None] * self.matrix
        return PixelMap(matrix, other.of_shift(self.shift))

    def of_shift(self, shift: Tensor | None) -> Tensor | None:
        """What a shift in front of the map comes to behind it, its own one added."""
        if shift is None:
            return self.shift
        shift = self.matrix @ shift if self.matrix.ndim == 2 else self.matrix * shift
        return shift if self.shift is None else shift + self.shift

    def folded_into(self, taps: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filter of a convolution that does what this map does and then the one with ``taps``.

        Args:
            taps: ``(O, C', k, k)``.

        Returns:
            The filter, ``(O, C, k, k)``; and what each tap adds where it reads a pixel, ``(O, k k)``, if the map has a
            shift. A tap that reads zero padding adds nothing (:func:`added_by_taps`).
        """
        taps = taps.permute(0, 2, 3, 1)
        columns = taps.flatten(0, 2)
        folded = columns * self.matrix if self.matrix.ndim == 1 else columns @ self.matrix
        of_shift = None if self.shift is None else (columns @ self.shift).view(len(taps), -1)
        return folded.unflatten(0, taps.shape[:3]).permute(0, 3, 1, 2), of_shift

    def __call__(self, h: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', H, W)``; a matrix leaves the channels innermost in memory (channels-last)."""
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
    kernel_size: tuple[int, int],
    image_size: tuple[int, int],
    padding: Sequence[int],
    dilation: int = 1,
    *,
    reading: Literal["image", "padding"],
) -> Tensor:
    """``bias + sum_t taps_t 1[tap t reads there]`` at each pixel of a zero-padded convolution.

    Args:
        taps: ``(O, k k)``, row by row.
        bias: ``(O,)``.
        kernel_size: height and width of the filter.
        image_size: (height, width).
        padding: left, right, top, bottom.
        dilation: distance between taps.
        reading: the image, or the padding around it.

    Returns:
        ``(1, O, H, W)``, channels-last. It is the same for every image, and costs one product of small matrices.
    """
    reads = _reads(image_size, kernel_size, tuple(padding), dilation, reading, taps.dtype, taps.device)
    added = reads @ taps.T if bias is None else torch.addmm(bias, reads, taps.T)
    return added.view(1, *image_size, -1).permute(0, 3, 1, 2)


@constant
def _reads(
    image_size: tuple[int, int],
    kernel_size: tuple[int, int],
    padding: tuple[int, ...],
    dilation: int,
    reading: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """1 where a tap reads there, 0 where it does not: ``(H W, k k)``."""
    on_image = 1.0 if reading == "image" else 0.0
    image = torch.full((1, 1, *image_size), on_image, dtype=dtype, device=device)
    return unfold(pad(image, padding, value=1.0 - on_image), kernel_size, dilation=dilation)[0].T.contiguous()


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.shape[2] * x.shape[3] * self.log_abs_det()
        return self.pixel_map()(x), same_for_every_image(log_det, x)


def is_watched(module: nn.Module) -> bool:
    """Whether a hook looks at what the module does, so that it has to run by itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
