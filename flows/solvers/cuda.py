"""The backend for GPUs: row-block substitution, replayed as one CUDA graph."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.graphs import GraphStore, may_capture
from flows.solvers.row_blocks import RowBlocks

MAX_GRAPHS = 4  # batch sizes for which a solver keeps a graph, with buffers of two batches each


@final
class CudaSolver(AutoregressiveConvSolver):
    """Row-block substitution on a GPU, without a host round trip and without a Python loop over rows or pixels.

    The arithmetic is that of the ``torch`` backend (:class:`flows.solvers.row_blocks.RowBlocks`). What differs is how
    it is launched: from the second batch of a size on, as one captured graph. An image of at most 1,024 numbers is one
    matrix product, and needs no graph. While the caller itself captures a graph, the products become part of that; the
    solver must have been prepared before, because the checks of the weights wait for the GPU.

    Note:
        NaN or infinity in ``z`` raises no error here, because to look at ``z`` would stop the host until the GPU is
        done. The image that holds it comes back as NaN throughout.

    Cost: ``H`` products of (B, C W) with (C W, C W) matrices in one launch. Memory: four graphs with their buffers.
    """

    name = "cuda"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"it runs on CUDA devices, and the filter is on {device}"

    def _prepare(self, weight: Tensor) -> None:
        self._rows = RowBlocks(weight, self.direction, self.image_size, self.dilation)
        self._graphs = GraphStore(MAX_GRAPHS)

    def _solve(self, z: Tensor) -> Tensor:
        if self._rows.dense is not None or not may_capture(z.device):
            return self._solve_or_poison(z)
        return self._graphs.run(lambda inputs: self._solve_or_poison(inputs[0]), [z])

    def _solve_or_poison(self, z: Tensor) -> Tensor:
        """Solve, and make every image NaN that holds NaN or infinity."""
        return self._rows.solve(z) + (z * 0).sum(dim=(1, 2, 3), keepdim=True)
