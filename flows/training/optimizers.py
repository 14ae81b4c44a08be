"""Optimisers: any of torch's, by its name in the configuration, with settings of their own for groups of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flows.config.building import did_you_mean
from flows.errors import InputError

OptimizerFactory = Callable[[Any], Optimizer]
"""Takes what torch's optimisers take first: parameters, or groups of them."""

Groups = Mapping[str, Mapping[str, Any]]


def make_optimizer(module: nn.Module, factory: OptimizerFactory, groups: Groups | None = None) -> Optimizer:
    """The optimiser of a module's parameters.

    Args:
        module: whose parameters are trained.
        factory: makes an optimiser, such as ``functools.partial(torch.optim.Adamax, lr=1e-3)``.
        groups: settings by patterns of parameters' names, as in ``{"*.bias": {"weight_decay": 0.0}}``. Each parameter
            belongs to the first pattern that matches; the others have the factory's settings.

    Raises:
        InputError: a pattern matches nothing, or the optimiser has no such setting or refuses a value.
    """
    members: dict[str | None, list[nn.Parameter]] = {None: [], **{pattern: [] for pattern in groups or {}}}
    for name, parameter in module.named_parameters():
        members[next((pattern for pattern in groups or {} if fnmatchcase(name, pattern)), None)].append(parameter)
    for pattern, parameters in members.items():
        if pattern is not None and not parameters:
            raise InputError(f"parameter_groups: {pattern!r} matches no parameter, or only those of earlier patterns")
    parts = [{"params": parameters, **(groups or {}).get(pattern or "", {})} for pattern, parameters in members.items()]
    try:
        optimizer = factory([part for part in parts if part["params"]])
    except ValueError as error:
        raise InputError(f"optimizer: {error}") from error
    for pattern, settings in (groups or {}).items():
        for key in settings:
            if key not in optimizer.defaults:
                near = did_you_mean(key, optimizer.defaults)
                raise InputError(f"parameter_groups.{pattern}: {type(optimizer).__name__} has no setting {key!r}{near}")
    return optimizer
