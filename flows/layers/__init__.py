"""Invertible layers: ``z, log_det = layer(x)`` and ``x = layer.inverse(z)``, a file each."""

from flows.layers.actnorm import ActNorm
from flows.layers.autoregressive import AutoregressiveConv2d
from flows.layers.base import Layer
from flows.layers.conv1x1 import Conv1x1
from flows.layers.coupling import AdditiveCoupling, AffineCoupling, Coupling, SigmoidCoupling
from flows.layers.emerging import EmergingConv2d
from flows.layers.logit import Logit
from flows.layers.maf import MaskedAutoregressiveFlow, MaskedAutoregressiveTransform
from flows.layers.matrices import CirculantMatrix, ExpMatrix, InvertibleMatrix, OrthogonalMatrix, SVDMatrix
from flows.layers.periodic import PeriodicConv2d
from flows.layers.permutation import Reverse, Shuffle
from flows.layers.sequential import Sequential
from flows.layers.squeeze import Squeeze
from flows.layers.step import FlowStep

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AutoregressiveConv2d",
    "CirculantMatrix",
    "Conv1x1",
    "Coupling",
    "EmergingConv2d",
    "ExpMatrix",
    "FlowStep",
    "InvertibleMatrix",
    "Layer",
    "Logit",
    "MaskedAutoregressiveFlow",
    "MaskedAutoregressiveTransform",
    "OrthogonalMatrix",
    "PeriodicConv2d",
    "Reverse",
    "SVDMatrix",
    "Sequential",
    "Shuffle",
    "SigmoidCoupling",
    "Squeeze",
]
