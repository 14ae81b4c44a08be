"""Filters of autoregressive convolutions, and what they are applied to."""

import pytest
import torch
from torch import Tensor

from flows.solvers import find_backend
from flows.solvers.checks import raster_mask

WHY_NOT_COMPILED = find_backend("compiled").unavailable(torch.device("cpu"))
NEEDS_COMPILED = pytest.mark.skipif(WHY_NOT_COMPILED is not None, reason=f"{WHY_NOT_COMPILED}")
COMPILED = pytest.param("compiled", marks=NEEDS_COMPILED)
FAST_BACKENDS = ["torch", "jacobi", COMPILED]
EVERY_BACKEND = ["reference", *FAST_BACKENDS]
"""All that run on a CPU."""


def square_mask(num_channels: int, kernel_size: int, direction: str) -> Tensor:
    """Taps to the right and below only (or to the left and above only)."""
    middle = kernel_size // 2
    quadrant = torch.zeros(kernel_size, kernel_size, dtype=torch.bool)
    quadrant[middle:, middle:] = True
    quadrant = quadrant if direction == "lower" else quadrant.flip(0, 1)
    return raster_mask(num_channels, kernel_size, direction) & quadrant


MASKS = {"square": square_mask, "raster": raster_mask}


def random_filter(num_channels, kernel_size, direction, mask="square", scale=0.1, dtype=torch.float64, seed=0):
    """Identity plus noise, as at initialisation, with a diagonal of both signs."""
    noise = torch.Generator().manual_seed(seed)
    shape = (num_channels, num_channels, kernel_size, kernel_size)
    weight = scale * torch.randn(shape, generator=noise, dtype=torch.float64)
    weight *= MASKS[mask](num_channels, kernel_size, direction)
    diagonal = weight[:, :, kernel_size // 2, kernel_size // 2].diagonal()
    diagonal.copy_(1 + 0.2 * torch.rand(num_channels, generator=noise, dtype=torch.float64))
    weight[0] *= -1
    return weight.to(dtype)


def random_latents(*shape, dtype=torch.float64, seed=1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
