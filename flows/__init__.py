"""Generative flows with invertible convolutions.

>>> import flows
>>> flow = flows.load_flow("runs/my-run/checkpoints/best.ckpt")    # doctest: +SKIP
>>> flow.bits_per_dim(images), flow.sample(64, temperature=0.7)    # doctest: +SKIP
"""

from flows.checkpoint import load_flow
from flows.errors import InputError, NonFiniteError, StorageError
from flows.layers import Layer
from flows.model import Flow

__all__ = ["Flow", "InputError", "Layer", "NonFiniteError", "StorageError", "load_flow"]
