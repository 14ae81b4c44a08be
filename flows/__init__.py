"""Generative flows with invertible convolutions."""

from flows.layers import Layer
from flows.model import Flow

__all__ = ["Flow", "Layer"]
