"""The backend for GPUs: row-block substitution, replayed as one CUDA graph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.row_blocks import RowBlocks

MAX_GRAPHS = 4  # batch sizes for which a solver keeps a graph, with buffers of two batches each


class CapturedSolve:
    """A function of one tensor, captured as a CUDA graph for inputs like ``example``: one launch for all kernels."""

    def __init__(self, solve: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self._z = example.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._x = solve(self._z)

    def __call__(self, z: Tensor) -> Tensor:
        self._z.copy_(z)
        self._graph.replay()
        return self._x.clone()


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
        # By batch size and stream: two streams must not share a graph's buffers. None stands for "seen once".
        self._graphs: OrderedDict[tuple[int, int], CapturedSolve | None] = OrderedDict()
        self._lock = threading.Lock()

    @torch.no_grad()
    def _solve(self, z: Tensor) -> Tensor:
        if self._rows.dense is not None or torch.cuda.is_current_stream_capturing():
            return self._solve_or_poison(z)
        # A graph's buffers must not be inference tensors, or they could not be written to in later calls.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            key = (z.shape[0], torch.cuda.current_stream(z.device).cuda_stream)
            seen = key in self._graphs
            graph = self._graphs.pop(key, None)
            if seen and graph is None:
                graph = CapturedSolve(self._solve_or_poison, z)
            self._graphs[key] = graph
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
            return self._solve_or_poison(z) if graph is None else graph(z)

    def _solve_or_poison(self, z: Tensor) -> Tensor:
        """Solve, and make every image NaN that holds NaN or infinity."""
        return self._rows.solve(z) + (z * 0).sum(dim=(1, 2, 3), keepdim=True)
