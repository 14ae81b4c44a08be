"""CUDA graphs without a GPU: the same buffers, but the function runs when the graph would be replayed."""

import pytest
import torch

from flows.models import prepared_inverse
from flows.solvers import cuda, graphs


class OnThisCPU(graphs.CapturedFunction):
    """Stands for a captured function; ``captured`` counts them."""

    captured = 0

    def __init__(self, function, inputs):
        type(self).captured += 1
        self._inputs, self._function = [tensor.clone() for tensor in inputs], function
        function(self._inputs)

    def __call__(self, inputs):
        for kept, tensor in zip(self._inputs, inputs, strict=True):
            kept.copy_(tensor)
        return self._function(self._inputs).clone()


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    for module in (cuda, prepared_inverse):
        monkeypatch.setattr(module, "may_capture", lambda device: True)
    monkeypatch.setattr(graphs, "CapturedFunction", OnThisCPU)
    monkeypatch.setattr(OnThisCPU, "captured", 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))
    return OnThisCPU
