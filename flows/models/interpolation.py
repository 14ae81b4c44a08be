"""Ways between latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flows.models.base import Latents


def spherical(pair: Sequence[tuple[Tensor, Tensor]], steps: Tensor) -> Latents:
    """Points on the great circle between two latents, which keeps the length that Gaussian latents have.

    With ``omega`` the angle between the two whole latents ``a`` and ``b`` (all levels together)::

        z(t) = (sin((1 - t) omega) a + sin(t omega) b) / sin(omega),

    and the straight line where they are parallel. ``z(0) = a`` and ``z(1) = b`` exactly.

    Args:
        pair: for every level, the two ends, ``(1, C, H, W)`` each.
        steps: values of ``t`` in [0, 1], ``(T,)``.

    Returns:
        For every level ``(T, C, H, W)``.

    Reference: Shoemake, *Animating rotation with quaternion curves*, 1985; White, *Sampling generative networks*, 2016.
    """
    a = torch.cat([first.flatten() for first, _ in pair]).double()
    b = torch.cat([second.flatten() for _, second in pair]).double()
    omega = torch.arccos((a @ b / (a.norm() * b.norm()).clamp_min(1e-300)).clamp(-1.0, 1.0))
    t = steps.to(omega)
    if torch.sin(omega) < 1e-6:
        weights_a, weights_b = 1.0 - t, t
    else:
        weights_a, weights_b = torch.sin((1.0 - t) * omega) / torch.sin(omega), torch.sin(t * omega) / torch.sin(omega)
    weights_a = torch.where(t == 0, 1.0, torch.where(t == 1, 0.0, weights_a))
    weights_b = torch.where(t == 0, 0.0, torch.where(t == 1, 1.0, weights_b))
    shape = (-1, 1, 1, 1)
    return [
        weights_a.view(shape).to(first) * first + weights_b.view(shape).to(second) * second for first, second in pair
    ]
