"""Affine maps of the channels, the same at every pixel: what neighbouring layers can be merged into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d


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
    def linear(cls, matrix: Tensor) -> PixelMap:
        """The map without a shift."""
        return cls(matrix.double(), matrix.new_zeros(len(matrix), dtype=torch.float64))

    def then(self, other: PixelMap) -> PixelMap:
        """The one map that does what this one and then ``other`` do."""
        return PixelMap(other.matrix @ self.matrix, other.matrix @ self.shift + other.shift)

    def to(self, like: Tensor) -> PixelMap:
        """The map in the type and on the device of a tensor."""
        return PixelMap(self.matrix.to(like), self.shift.to(like))

    def __call__(self, h: Tensor) -> Tensor:
        return conv2d(h, self.matrix[:, :, None, None], self.shift)
