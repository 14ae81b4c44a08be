"""The backend that needs nothing but torch."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.row_blocks import RowBlocks


@final
class TorchSolver(AutoregressiveConvSolver):
    """Row-block substitution in plain torch: any device, any mask.

    Cost: ``H`` products of (B, C W) with (C W, C W) matrices; see :class:`flows.solvers.row_blocks.RowBlocks`.
    """

    name = "torch"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return None

    def _prepare(self, weight: Tensor) -> None:
        self._rows = RowBlocks(weight, self.direction, self.image_size, self.dilation)

    def _solve(self, z: Tensor) -> Tensor:
        self._check_finite(z)
        return self._rows.solve(z)
