"""Glow as a textbook writes it, for comparison: one module for each box of the figure, nothing merged, no option.

It stands in for public implementations in eager PyTorch, which do the same work: at L 3, D 4, width 128, batch 16 on
one thread of a CPU its step takes about as long as that of y0ast/Glow-PyTorch, commit 13c7b01.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pixel_unshuffle


class ChannelScale(nn.Module):
    """Shifts and scales each channel."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, num_channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + self.bias) * self.log_scale.exp(), x.shape[2] * x.shape[3] * self.log_scale.sum()


class Rotation(nn.Module):
    """Multiplies the channels by a matrix."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(num_channels, num_channels)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.shape[2] * x.shape[3] * torch.linalg.slogdet(self.weight).logabsdet
        return conv2d(x, self.weight[:, :, None, None]), log_det


class ConvScale(nn.Module):
    """A convolution, and a scale for each channel of what comes out."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, std: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding="same", bias=False)
        nn.init.normal_(self.convolution.weight, std=std)
        self.scale = ChannelScale(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.convolution(x))[0]


class Step(nn.Module):
    """One step of flow."""

    def __init__(self, num_channels: int, width: int) -> None:
        super().__init__()
        self.actnorm = ChannelScale(num_channels)
        self.mixing = Rotation(num_channels)
        self.network = nn.Sequential(
            ConvScale(num_channels // 2, width, 3, 0.05),
            nn.ReLU(),
            ConvScale(width, width, 1, 0.05),
            nn.ReLU(),
            ConvScale(width, num_channels, 3, 0.0),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.actnorm(x)
        x, of_mixing = self.mixing(x)
        kept, moved = x.chunk(2, dim=1)
        outputs = self.network(kept)
        scale = torch.sigmoid(outputs[:, 1::2] + 2.0)
        z = torch.cat([kept, (moved + outputs[:, 0::2]) * scale], dim=1)
        return z, log_det + of_mixing + scale.log().sum(dim=(1, 2, 3))


class TextbookGlow(nn.Module):
    """Glow with learned Gaussians; ``bits_per_dim(images)`` is what it is for."""

    def __init__(self, image_shape: tuple[int, int, int], num_levels: int, num_steps: int, width: int) -> None:
        super().__init__()
        num_channels, height, width_of_image = image_shape
        self.levels, self.gaussians = nn.ModuleList(), nn.ModuleList()
        for level in range(num_levels):
            num_channels *= 4
            self.levels.append(nn.ModuleList(Step(num_channels, width) for _ in range(num_steps)))
            if level < num_levels - 1:
                num_channels //= 2
                self.gaussians.append(ConvScale(num_channels, 2 * num_channels, 3, 0.0))
        side = 2**num_levels
        self.top = nn.Parameter(torch.zeros(1, 2 * num_channels, height // side, width_of_image // side))

    def bits_per_dim(self, images: Tensor) -> Tensor:
        x = (images + torch.rand(images.shape, device=images.device)) / 256.0 - 0.5
        num_dims = x[0].numel()
        total = x.new_zeros(len(x))
        for level, steps in enumerate(self.levels):
            x = pixel_unshuffle(x, 2)
            for step in steps:  # type: ignore[union-attr]
                x, log_det = step(x)
                total = total + log_det
            if level < len(self.gaussians):
                x, z = x.chunk(2, dim=1)
                outputs = self.gaussians[level](x)
                total = total + _log_normal(z, outputs[:, 0::2], outputs[:, 1::2])
        mean, log_std = self.top.chunk(2, dim=1)
        return 8.0 - (total + _log_normal(x, mean, log_std)) / (num_dims * math.log(2.0))


def _log_normal(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    squares = ((z - mean) / log_std.exp()).square()
    return -(0.5 * (squares + math.log(2.0 * math.pi)) + log_std).sum(dim=(1, 2, 3))
