"""What the installed layers must do where nothing else is: with ``compiled``, by the compiled kernels."""

import sys

import torch

from flows.layers import EmergingConv2d
from flows.solvers import compiled

why_not = compiled.why_not_compiled(torch.device("cpu"))
assert why_not is None or sys.argv[1:] != ["compiled"], why_not
layer, x = EmergingConv2d(4, kernel_size=3), torch.randn(2, 4, 8, 8)
z, _ = layer(x)
assert torch.allclose(layer.inverse(z), x, atol=1e-4)
print(f"inverted by {'torch' if why_not else 'compiled code'}")
