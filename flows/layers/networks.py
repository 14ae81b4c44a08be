"""The convolutional networks inside coupling layers and priors: ordinary networks, not invertible ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flows.kernels.convolution import convolve, same_size
from flows.layers.actnorm import LOG_SCALE_FACTOR, ActNorm
from flows.layers.pixelwise import PixelMap, added_by_taps, is_watched

WEIGHT_STD = 0.05
"""Standard deviation of the convolutions' initial weights (Glow's released code)."""


class EdgeBias(nn.Module):
    """What a convolution adds when it sees one extra input channel that is 1 on the zero padding and 0 on the image.

    The channel is the same for every image. So what it adds is computed once per forward pass, together with the
    convolution's bias, and not as one more channel of the whole batch.

    Args:
        num_channels: output channels.
        kernel_size: odd.
        std: standard deviation of the initial weights; 0 starts at zero.

    Shapes: ``forward((height, width)) -> (1, num_channels, height, width)``.

    Reference: ``add_edge_padding`` in Glow's released code; the paper does not mention it.
    """

    def __init__(self, num_channels: int, kernel_size: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(num_channels, 1, kernel_size, kernel_size))

    def forward(self, image_size: tuple[int, int], bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """What is added to each pixel, and ``bias``; the former times ``scale``, both ``(num_channels,)``."""
        taps, kernel_size = self.weight.flatten(1), self.weight.shape[2:]
        taps = taps if scale is None else taps * scale[:, None]
        return added_by_taps(taps, bias, image_size, kernel_size, same_size(kernel_size[0]), on="padding")


class PaddedConv2d(nn.Module):
    """A zero-padded convolution, optionally with a bias and an edge bias.

    ``z = weight * x + bias + edge_bias``, the output as large as the input.

    Args:
        in_channels, out_channels: at least 1.
        kernel_size: odd.
        bias: learn an additive constant per output channel.
        edge_bias: see :class:`EdgeBias`; without effect for ``kernel_size`` 1, which needs no padding.
        std: standard deviation of the initial weights; 0 starts at zero.

    Shapes: ``(B, in_channels, H, W) -> (B, out_channels, H, W)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool,
        edge_bias: bool,
        std: float = WEIGHT_STD,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        has_edge = edge_bias and kernel_size > 1
        self.edge_bias = EdgeBias(out_channels, kernel_size, std) if has_edge else None

    def forward(self, x: Tensor, after: PixelMap | None = None, *, relu: bool = False) -> Tensor:
        """The convolution; then a diagonal map of its channels, which scales its weights and no output; then a ReLU."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if after is not None:
            weight, bias = weight * after.matrix[:, None, None, None], after.of_shift(bias)
        if weight.shape[-1] == 1:
            pixels = linear(x.permute(0, 2, 3, 1).flatten(0, 2), weight[:, :, 0, 0], bias)
            pixels = pixels.relu_() if relu else pixels
            return pixels.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
        added = bias
        if self.edge_bias is not None:
            added = self.edge_bias((x.shape[2], x.shape[3]), bias, None if after is None else after.matrix)
        return convolve(x, weight, same_size(weight.shape[-1]), added=added, relu=relu)


class ZeroConv2d(nn.Module):
    """A 3x3 convolution whose output starts at zero and learns its scale per channel.

    ``z = (weight * x + bias + edge_bias) exp(3 log_scale)``, all starting at zero.

    Shapes: ``(B, in_channels, H, W) -> (B, out_channels, H, W)``.

    Reference: Kingma & Dhariwal, *Glow*, section 3.3; ``conv2d_zeros`` in the released code.
    """

    def __init__(self, in_channels: int, out_channels: int, *, edge_bias: bool = True) -> None:
        super().__init__()
        self.convolution = PaddedConv2d(in_channels, out_channels, 3, bias=True, edge_bias=edge_bias, std=0.0)
        self.log_scale = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x, PixelMap(torch.exp(LOG_SCALE_FACTOR * self.log_scale).flatten()))


class Network(nn.Module, ABC):
    """A network inside a coupling: any map between images of features of one size, no bijection.

    A subclass is made from ``in_channels, hidden_channels, out_channels`` and its own options. Its outputs should start
    at zero, so that the coupling starts as the identity. A parameter ``image_size`` gets (height, width).

    Shapes: ``(B, in_channels, H, W) -> (B, out_channels, H, W)``.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The outputs; ``x`` is not written to."""


class GlowNetwork(Network):
    """Glow's network: 3x3 -> 1x1 -> 3x3 convolutions with ReLU between.

    A data-initialised :class:`ActNorm` stands in for the bias of the first two; the last starts at zero, so that a
    coupling layer starts as (nearly) the identity.

    Args:
        in_channels: channels of the half that conditions.
        hidden_channels: the paper's *width*.
        out_channels: channels of what is predicted.
        edge_bias: give the 3x3 convolutions an input channel that marks the padding.
        actnorm: normalise the hidden activations; otherwise the convolutions have a bias.

    Shapes: ``(B, in_channels, H, W) -> (B, out_channels, H, W)``.

    Cost: ``9 in hidden + hidden^2 + 9 hidden out`` multiplications per pixel.

    Reference: Kingma & Dhariwal, *Glow*, section 3.3 and released code.

    Example:
        >>> import torch
        >>> from flows.layers.networks import GlowNetwork
        >>> network = GlowNetwork(in_channels=6, hidden_channels=16, out_channels=12)
        >>> bool((network(torch.randn(2, 6, 8, 8)) == 0).all())  # so that a coupling starts as the identity
        True
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, *, edge_bias: bool = True, actnorm: bool = True
    ) -> None:
        super().__init__()
        self.first = PaddedConv2d(in_channels, hidden_channels, 3, bias=not actnorm, edge_bias=edge_bias)
        self.first_norm = ActNorm(hidden_channels) if actnorm else None
        self.second = PaddedConv2d(hidden_channels, hidden_channels, 1, bias=not actnorm, edge_bias=edge_bias)
        self.second_norm = ActNorm(hidden_channels) if actnorm else None
        self.last = ZeroConv2d(hidden_channels, out_channels, edge_bias=edge_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # the layout in which convolutions are fastest
        for convolution, norm in ((self.first, self.first_norm), (self.second, self.second_norm)):
            if norm is not None and is_watched(norm):
                x = torch.relu(norm(convolution(x))[0])
            else:
                x = convolution(x, None if norm is None else norm.pixel_map(), relu=True)
        return self.last(x)
