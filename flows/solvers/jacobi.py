"""Sweeps over the whole image at once: a fixed point that is exact, reached in few steps or in finitely many.

What a number is solved from lies before it. So the numbers that depend on nothing are right after the first sweep,
those that depend on these alone after the second, and all of them after as many sweeps as the longest chain of
dependences has members. With weak taps each sweep also shrinks the error everywhere, and far fewer are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from flows.numerics import full_precision
from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.row_blocks import centre_inverse


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, depth: int) -> Tensor:
    """Repeat ``x <- step(x)`` until not a bit of it changes, or ``depth`` times.

    The change of a sweep is the residual of what the sweep started from. No tolerance is needed: the residual of the
    answer, as computed, is zero, and how long the other images of a batch take does not change an image's answer.

    Args:
        step: maps each number from those before it alone, with the same rounding whatever the others are.
        x: where to start.
        depth: number of sweeps after which the step has reached its fixed point from anywhere.

    Note:
        A sweep may overflow where the answer does not. So infinity is replaced by the largest number, and NaN by zero,
        before each sweep, but never in what is returned.
    """
    for _ in range(depth):
        before = x.nan_to_num()
        x = step(before)
        if torch.equal(x, before):
            break
    return x


def around(x: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """What each pixel sees at some offsets, zero beyond the border.

    Args:
        x: (C, H, W, B): channels first and images last, so that one product serves the pixels of all images.
        offsets: rows and columns, K of them.

    Returns:
        (K C, H W B).
    """
    _, height, width, _ = x.shape
    top, left = (max(0, *(-offset[axis] for offset in offsets)) for axis in (0, 1))
    bottom, right = (max(0, *(offset[axis] for offset in offsets)) for axis in (0, 1))
    x = pad(x, [0, 0, left, right, top, bottom])
    return torch.cat([x[:, top + i :, left + j :][:, :height, :width] for i, j in offsets]).flatten(1)


@final
class JacobiSolver(AutoregressiveConvSolver):
    """Block Jacobi sweeps, ``x <- x + D^-1 (z - w * x)`` with the centre tap ``D``, until ``x`` stays as it is.

    The centre tap is inverted exactly, so that a chain of dependences is one of pixels. Its longest has
    ``H + W - 1`` members for a square mask and ``W + (H - 1) (k + 1) / 2`` for a raster mask, fewer with dilation, and
    that is the largest number of sweeps. See :func:`fixed_point` for the rule that stops them earlier.

    Note:
        When to stop depends on the numbers, for which a GPU must wait at each sweep. So no CUDA graph can capture this
        backend. It is never chosen by itself: on a CPU the ``compiled`` backend is faster, and on GPUs it has not
        been measured.

    Cost: ``B H W C^2 t`` multiplications a sweep for ``t`` taps. At initial weights of the paper's levels there are 22
    sweeps of at most 31 (16 x 16 pixels, 12 channels), and 7 of at most 7 (4 x 4, 48 channels).
    """

    name = "jacobi"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return "this device has no float64" if device.type == "mps" else None

    def _prepare(self, weight: Tensor) -> None:
        middle = self.kernel_size // 2
        height, width = (-(-side // self.dilation) for side in self.image_size)
        steps_per_row = middle + 1 if self._reaches_both_ways else 1
        self._depth = (height - 1) * steps_per_row + width
        weight64 = weight.double()
        inverse = centre_inverse(weight64, self.direction)
        taps = (weight != 0).flatten(0, 1).any(dim=0).nonzero().tolist()
        taps.remove([middle, middle])
        self._offsets, matrices = [], [inverse[:, :0]]
        for i, j in taps:
            rows, columns = (i - middle) * self.dilation, (j - middle) * self.dilation
            if abs(rows) < self.image_size[0] and abs(columns) < self.image_size[1]:
                self._offsets.append((rows, columns))
                matrices.append(-inverse @ weight64[:, :, i, j])
        self._inverse, self._matrices = inverse.to(weight), torch.cat(matrices, dim=1).to(weight)

    @torch.no_grad()
    def _solve(self, z: Tensor) -> Tensor:
        self._check_finite(z)
        with full_precision(z.device):
            z_CHWB = z.permute(1, 2, 3, 0)
            start = self._inverse @ z_CHWB.flatten(1)
            x = start
            if self._offsets:
                x = fixed_point(
                    lambda x: torch.addmm(start, self._matrices, around(x.view(z_CHWB.shape), self._offsets)),
                    start,
                    self._depth,
                )
        return x.view(z_CHWB.shape).permute(3, 0, 1, 2).contiguous()
