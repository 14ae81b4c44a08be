"""Inverses of autoregressive convolutions: one function, several backends."""

from flows.solvers.backends import (
    BACKENDS,
    choose_backend,
    find_backend,
    prepare_autoregressive_conv,
    solve_autoregressive_conv,
)
from flows.solvers.base import AutoregressiveConvSolver, IllConditionedWarning

__all__ = [
    "BACKENDS",
    "AutoregressiveConvSolver",
    "IllConditionedWarning",
    "choose_backend",
    "find_backend",
    "prepare_autoregressive_conv",
    "solve_autoregressive_conv",
]
