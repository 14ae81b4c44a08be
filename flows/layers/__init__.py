"""Invertible layers: ``z, log_det = layer(x)`` and ``x = layer.inverse(z)``, a file each."""

from flows.layers.actnorm import ActNorm
from flows.layers.autoregressive import AutoregressiveConv2d
from flows.layers.base import Layer
from flows.layers.butterfly import Butterfly, ButterflyTransform
from flows.layers.conv1x1 import Conv1x1
from flows.layers.convexp import ConvExp, ConvExpConv2d
from flows.layers.coupling import AdditiveCoupling, AffineCoupling, Coupling, SigmoidCoupling
from flows.layers.emerging import EmergingConv2d
from flows.layers.finc import FIncConv2d, FlipQuarters
from flows.layers.inverted import Inverted
from flows.layers.logit import Logit
from flows.layers.macow import MaCow, MaskedConvTransform
from flows.layers.maf import MaskedAutoregressiveFlow, MaskedAutoregressiveTransform
from flows.layers.matrices import CirculantMatrix, ExpMatrix, InvertibleMatrix, OrthogonalMatrix, SVDMatrix
from flows.layers.periodic import PeriodicConv2d
from flows.layers.permutation import Reverse, Shuffle
from flows.layers.sequential import Sequential
from flows.layers.squeeze import Squeeze
from flows.layers.step import FlowStep
from flows.layers.woodbury import LowRankUpdate, WoodburyConv2d

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AutoregressiveConv2d",
    "Butterfly",
    "ButterflyTransform",
    "CirculantMatrix",
    "Conv1x1",
    "ConvExp",
    "ConvExpConv2d",
    "Coupling",
    "EmergingConv2d",
    "ExpMatrix",
    "FIncConv2d",
    "FlipQuarters",
    "FlowStep",
    "Inverted",
    "InvertibleMatrix",
    "Layer",
    "Logit",
    "LowRankUpdate",
    "MaCow",
    "MaskedAutoregressiveFlow",
    "MaskedAutoregressiveTransform",
    "MaskedConvTransform",
    "OrthogonalMatrix",
    "PeriodicConv2d",
    "Reverse",
    "SVDMatrix",
    "Sequential",
    "Shuffle",
    "SigmoidCoupling",
    "Squeeze",
    "WoodburyConv2d",
]
