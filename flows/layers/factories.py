"""How layers are made of layers: by factories, which get what they ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def made(factory: Callable[..., T], *arguments: int, **offers: Any) -> T:
    """What the factory makes of the arguments and of those offers for which it has a parameter without a value."""
    unset = inspect.signature(factory).parameters.keys() - getattr(factory, "keywords", {}).keys()
    return factory(*arguments, **{name: offers[name] for name in offers.keys() & unset})
