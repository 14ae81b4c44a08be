"""Optimisers, as factories: ``factory(parameters) -> optimizer``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Adamax, Optimizer

from flows.errors import InputError


def adamax(
    parameters: Iterable[nn.Parameter],
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adamax: Adam with the infinity norm for its second moment.

    Raises:
        InputError: ``lr`` not positive, a beta outside of [0, 1), ``eps`` not positive, or a negative weight decay.

    Reference: Kingma & Ba, *Adam*, section 7.1; section 5 of the paper.

    Note:
        The released code has ``beta2 = 1 - 1 / (iterations per epoch)`` and Adam's bias correction; PyTorch's Adamax
        corrects the first moment only and has 0.999. Set ``beta2`` for the former.
    """
    if not lr > 0:
        raise InputError(f"the learning rate must be positive, not {lr}")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise InputError(f"beta1 and beta2 must be in [0, 1), not {beta1} and {beta2}")
    if not (eps > 0 and weight_decay >= 0):
        raise InputError(f"eps must be positive and weight_decay at least 0, not {eps} and {weight_decay}")
    return Adamax(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
