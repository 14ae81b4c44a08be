"""Affine maps of the channels, the same at every pixel: what neighbouring layers can be merged into."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from flows.layers import Layer


@dataclass(frozen=True)
class PixelMap:
    """``h[:, :, i, j] -> matrix h[:, :, i, j] + shift``.

    Attributes:
        matrix: (C', C), in float64, so that merging maps adds no error that matters.
        shift: (C',), in float64.
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def inverting(cls, layer: Layer, num_channels: int) -> PixelMap:
        """The inverse of a pixelwise layer in float64, from what it makes of the unit vectors."""
        like = next(chain(layer.parameters(), layer.buffers()))
        unit = torch.eye(num_channels, dtype=torch.float64, device=like.device)
        answers = layer.inverse(torch.cat([torch.zeros_like(unit[:1]), unit])[:, :, None, None])[:, :, 0, 0]
        return cls((answers[1:] - answers[0]).T.contiguous(), answers[0])

    def then(self, other: PixelMap) -> PixelMap:
        """The one map that does what this one and then ``other`` do."""
        return PixelMap(other.matrix @ self.matrix, other.matrix @ self.shift + other.shift)

    def __call__(self, h: Tensor) -> Tensor:
        return conv2d(h, self.matrix[:, :, None, None], self.shift)
