"""The inverse as one dense triangular system: short, obvious and slow. What the other backends are tested against."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from flows.errors import InputError
from flows.solvers.base import AutoregressiveConvSolver

MAX_UNKNOWNS = 16_384  # their matrix takes 2 GB


@final
class ReferenceSolver(AutoregressiveConvSolver):
    """Solve the convolution's dense (H W C) x (H W C) matrix by triangular substitution, in float64.

    The unknowns are sorted by pixel in raster order, then by channel, the last channel first. So the system of an
    ``"upper"`` filter (left and above, upper triangular centre tap) is lower triangular, that of a ``"lower"`` filter
    upper triangular.

    Raises:
        InputError: more than 16,384 unknowns; and as in :class:`AutoregressiveConvSolver`.

    Cost: ``O((H W C)^2)`` memory and ``O((H W C)^2 B)`` time, after building the matrix with one convolution of
    ``H W C`` images.
    """

    name = "reference"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return "this device has no float64" if device.type == "mps" else None

    def _prepare(self, weight: Tensor) -> None:
        size = self.num_channels * self.image_size[0] * self.image_size[1]
        if size > MAX_UNKNOWNS:
            raise InputError(f"the reference backend solves at most {MAX_UNKNOWNS} unknowns; C H W is {size}")
        units = torch.eye(size, dtype=torch.float64, device=weight.device)
        # Image n is the n-th unit vector, so its convolution is the n-th column of the matrix.
        images = units.view(size, self.num_channels, *self.image_size)
        dilation = min(self.dilation, max(self.image_size))  # beyond that, no tap but the centre meets the image
        padding = dilation * (self.kernel_size // 2)
        columns = F.conv2d(images, weight.double(), padding=padding, dilation=dilation)
        order = torch.arange(size, device=weight.device).view(self.num_channels, -1).flip(0).T.flatten()
        self._order, self._matrix = order, columns.flatten(1).T[order][:, order]

    def _solve(self, z: Tensor) -> Tensor:
        self._check_finite(z)
        rhs = z.double().flatten(1).T[self._order]
        solution = torch.linalg.solve_triangular(self._matrix, rhs, upper=self.direction == "lower")
        x = torch.empty_like(solution)
        x[self._order] = solution
        return x.T.reshape(z.shape).to(z.dtype)
