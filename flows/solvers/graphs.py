"""CUDA graphs of one function, kept by what they were captured for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], Tensor]


class CapturedFunction:
    """A function of a list of tensors, captured as a CUDA graph for inputs like ``inputs``: one launch in all."""

    def __init__(self, function: Function, inputs: list[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(self._inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for kept, tensor in zip(self._inputs, inputs, strict=True):
            kept.copy_(tensor)
        self._graph.replay()
        return self._output.clone()


class GraphStore:
    """Replays a function of tensors as a CUDA graph, from the second batch of a size on.

    The first batch runs outside of a graph, so that all is prepared and the libraries have chosen their kernels. Each
    graph is for one batch size, type and stream: two streams must not share its buffers. Safe for several threads.

    Args:
        max_graphs: number of graphs that are kept, the last ones used; each holds the memory of one call.
    """

    def __init__(self, max_graphs: int) -> None:
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, CapturedFunction | None] = OrderedDict()  # None: called once
        self._places: object = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, function: Function, inputs: list[Tensor], places: object = None) -> Tensor:
        """``function(inputs)``.

        Args:
            function: always the same one; waits for no device.
            inputs: the first dimension of the first one is the batch size.
            places: where the function reads what is not among its inputs; new places drop all graphs.
        """
        like = inputs[0]
        key = (len(like), like.dtype, torch.cuda.current_stream(like.device).cuda_stream)
        # A graph's buffers must not be inference tensors, or they could not be written to in later calls.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if places != self._places:
                self._graphs.clear()
                self._places = places
            was_called = key in self._graphs
            graph = self._graphs.pop(key, None)
            if was_called and graph is None:
                graph = CapturedFunction(function, inputs)
            self._graphs[key] = graph
            while len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
            return function(inputs) if graph is None else graph(inputs)


def may_capture(device: torch.device) -> bool:
    """Whether a graph may be captured on this device now, and is not being captured already."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
