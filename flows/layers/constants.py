"""Tensors that depend on shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar

import torch

T = TypeVar("T")


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """A function that is computed once for each of its arguments; nobody writes to the tensors that it returns.

    They serve calls in every autograd mode. ``torch.compile`` finds them here, too, which it does not in a
    ``functools.cache``.
    """
    known: dict[tuple[Hashable, ...], T] = {}

    @wraps(function)
    def look_up(*arguments: Hashable) -> T:
        if arguments not in known:
            with torch.inference_mode(False):
                known[arguments] = function(*arguments)
        return known[arguments]

    return look_up
