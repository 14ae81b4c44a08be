"""Data-dependent initialisation, as an explicit act.

Nothing initialises itself on the way: a forward pass is a pure function in every mode. The caller of a training calls
:func:`initialize_from_data` once, with a batch that all workers share.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flows.layers.actnorm import ActNorm


@torch.no_grad()
def initialize_from_data(model: nn.Module, x: Tensor) -> None:
    """Initialise every :class:`ActNorm` inside ``model`` from the activations that ``x`` causes there.

    One forward pass: each actnorm is set from what arrives at it, before it passes that on, so that the next one sees
    normalised activations. Those that are initialised already (a loaded checkpoint) keep their values.

    Args:
        model: any module whose ``forward`` takes ``x``.
        x: a batch, the same one on every worker of a parallel training.
    """
    hooks = [
        module.register_forward_pre_hook(lambda actnorm, args: actnorm.initialize(args[0]))
        for module in model.modules()
        if isinstance(module, ActNorm)
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
