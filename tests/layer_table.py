"""Every layer of the project, as ``name: (how to make it, shape of its input)``.

A layer that is not in this table fails the tests. Heights and widths differ on purpose.
"""

from functools import partial

from flows.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveConv2d,
    Conv1x1,
    EmergingConv2d,
    MaskedAutoregressiveFlow,
    MaskedAutoregressiveTransform,
    PeriodicConv2d,
    Reverse,
    Sequential,
    Shuffle,
    Squeeze,
)
from flows.model import FlowStep
from flows.priors import LearnedGaussian, StandardGaussian, Standardize

LAYERS = {
    "actnorm": (partial(ActNorm, 3), (3, 4, 5)),
    "additive coupling": (partial(AdditiveCoupling, 4, 6), (4, 4, 5)),
    "affine coupling": (partial(AffineCoupling, 4, 6), (4, 4, 5)),
    "affine coupling without edge bias": (partial(AffineCoupling, 4, 6, edge_bias=False), (4, 3, 5)),
    "affine coupling without actnorm": (partial(AffineCoupling, 4, 6, actnorm=False), (4, 3, 5)),
    "autoregressive lower": (partial(AutoregressiveConv2d, 3), (3, 4, 5)),
    "autoregressive upper": (partial(AutoregressiveConv2d, 3, direction="upper"), (3, 4, 5)),
    "autoregressive raster lower": (partial(AutoregressiveConv2d, 3, mask="raster"), (3, 4, 5)),
    "autoregressive raster upper": (partial(AutoregressiveConv2d, 2, mask="raster", direction="upper"), (2, 5, 4)),
    "autoregressive 5x5": (partial(AutoregressiveConv2d, 2, 5), (2, 6, 4)),
    "autoregressive dilated": (partial(AutoregressiveConv2d, 2, 3, dilation=2), (2, 6, 5)),
    "autoregressive dilated raster": (partial(AutoregressiveConv2d, 2, 3, dilation=2, mask="raster"), (2, 5, 6)),
    "autoregressive larger than the image": (partial(AutoregressiveConv2d, 2, 7), (2, 2, 3)),
    "autoregressive without bias": (partial(AutoregressiveConv2d, 3, bias=False), (3, 4, 5)),
    "conv1x1": (partial(Conv1x1, 4), (4, 3, 2)),
    "conv1x1 of one channel": (partial(Conv1x1, 1), (1, 3, 2)),
    "conv1x1 plu": (partial(Conv1x1, 4, "plu"), (4, 3, 2)),
    "conv1x1 qr": (partial(Conv1x1, 4, "qr"), (4, 3, 2)),
    "conv1x1 qr with two reflections": (partial(Conv1x1, 4, "qr", num_reflections=2), (4, 3, 2)),
    "emerging": (partial(EmergingConv2d, 3), (3, 4, 5)),
    "emerging 1x1": (partial(EmergingConv2d, 3, 1), (3, 4, 2)),
    "emerging 5x5": (partial(EmergingConv2d, 2, 5), (2, 5, 6)),
    "emerging dilated": (partial(EmergingConv2d, 2, dilation=2), (2, 5, 6)),
    "emerging raster": (partial(EmergingConv2d, 2, mask="raster"), (2, 5, 4)),
    "emerging qr": (partial(EmergingConv2d, 3, parametrization="qr"), (3, 4, 3)),
    "maf": (partial(MaskedAutoregressiveFlow, 3, 7), (3, 3, 4)),
    "maf qr": (partial(MaskedAutoregressiveFlow, 2, 4, parametrization="qr"), (2, 4, 3)),
    "masked autoregressive": (partial(MaskedAutoregressiveTransform, 3, 8), (3, 4, 3)),
    "masked autoregressive in reverse": (partial(MaskedAutoregressiveTransform, 3, 8, reverse=True), (3, 4, 3)),
    "masked autoregressive with few units": (partial(MaskedAutoregressiveTransform, 4, 3), (4, 3, 2)),
    "masked autoregressive of one channel": (partial(MaskedAutoregressiveTransform, 1, 2), (1, 3, 5)),
    "periodic": (partial(PeriodicConv2d, 3), (3, 4, 5)),
    "periodic with even width": (partial(PeriodicConv2d, 2), (2, 5, 6)),
    "periodic 5x5": (partial(PeriodicConv2d, 2, 5), (2, 6, 5)),
    "periodic larger than the image": (partial(PeriodicConv2d, 2, 7), (2, 2, 3)),
    "reverse": (partial(Reverse, 5), (5, 2, 3)),
    "shuffle": (partial(Shuffle, 5), (5, 2, 3)),
    "squeeze": (Squeeze, (2, 4, 6)),
    "sequential": (lambda: Sequential(Squeeze(), ActNorm(8), Conv1x1(8)), (2, 4, 2)),
    "flow step": (lambda: FlowStep(4, EmergingConv2d(4), AffineCoupling(4, 6)), (4, 3, 4)),
    "standardize, learned": (lambda: Standardize(LearnedGaussian(3)), (3, 3, 4)),
    "standardize, N(0, 1)": (lambda: Standardize(StandardGaussian()), (3, 3, 4)),
}
