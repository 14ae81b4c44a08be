"""What a layer's output sees of its input, asked of the layer itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flows.layers import Layer


def visible(make: Callable[[], Layer], seed: int = 0) -> Layer:
    """A layer whose weights are all of about the same size, so that none of what it can see is too faint to draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.0)
    return layer


def receptive_field(layer: Layer, num_channels: int, size: int, pixel: tuple[int, int] | None = None) -> Tensor:
    """How strongly one output pixel depends on every input pixel, by autograd: ``(size, size)``, exact zeros included.

    Args:
        layer: any.
        num_channels: that it takes.
        size: side of the image.
        pixel: row and column of the output pixel; the centre if not given.
    """
    row, column = pixel or (size // 2, size // 2)
    x = torch.zeros(1, num_channels, size, size, requires_grad=True)
    z, _ = layer(x)
    gradients = [
        torch.autograd.grad(z[0, channel, row, column], x, retain_graph=True)[0].abs() for channel in range(len(z[0]))
    ]
    return torch.stack(gradients).sum(dim=(0, 1, 2))


@torch.no_grad()
def equivalent_matrix(layer: Layer, num_channels: int, size: int) -> Tensor:
    """The matrix that an affine layer is, from its answers to impulses; ``(N, N)`` with ``N = size^2 num_channels``.

    Rows and columns go pixel by pixel in reading order, the channels of a pixel beside each other.
    """
    num_dims = num_channels * size * size
    impulses = torch.eye(num_dims).reshape(num_dims, size, size, num_channels).permute(0, 3, 1, 2)
    answers, _ = layer(impulses)
    at_zero, _ = layer(torch.zeros(1, num_channels, size, size))
    return (answers - at_zero).permute(0, 2, 3, 1).reshape(num_dims, num_dims).T


def tap_mask(mask: Tensor) -> Tensor:
    """A ``(C, C, k, k)`` filter mask as one picture ``(k C, k C)``: at each tap its C x C block, output by input."""
    num_channels, _, kernel_size, _ = mask.shape
    return mask.permute(2, 0, 3, 1).reshape(kernel_size * num_channels, kernel_size * num_channels)
