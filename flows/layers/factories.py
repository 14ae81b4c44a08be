"""How layers are made of layers: by factories, which get what they ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def make(factory: Callable[..., T], *arguments: int, **offers: Any) -> T:
    """Call the factory with the arguments, and with each offer for which it has a parameter without a value yet."""
    unset = inspect.signature(factory).parameters.keys() - getattr(factory, "keywords", {}).keys()
    return factory(*arguments, **{name: offers[name] for name in offers.keys() & unset})
