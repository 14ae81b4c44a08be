"""Generative flows with invertible convolutions.

>>> import flows
>>> flow = flows.load_flow("runs/my-run/checkpoints/best.ckpt")    # doctest: +SKIP
>>> flow.bits_per_dim(images), flow.sample(64, temperature=0.7)    # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from flows.home import remedy_without

if TYPE_CHECKING:
    from flows.errors import InputError, NonFiniteError, StorageError
    from flows.layers import Layer
    from flows.models.glow import Flow
    from flows.runs.checkpoint import load_flow

__all__ = ["Flow", "InputError", "Layer", "NonFiniteError", "StorageError", "load_flow"]

_HOMES = {
    "Flow": "flows.models.glow",
    "InputError": "flows.errors",
    "Layer": "flows.layers",
    "NonFiniteError": "flows.errors",
    "StorageError": "flows.errors",
    "load_flow": "flows.runs.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a program must handle signals before torch takes its seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flows' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or (remedy := remedy_without(error.name)) is None:
            raise
        raise ImportError(f"flows.{name} needs {error.name}: {remedy}") from error
