"""Every layer of the project, as ``name: (how to make it, shape of its input)``.

A layer that is not in this table fails the tests. Heights and widths differ on purpose.
"""

import pkgutil
from functools import partial

from flows.layers import ActNorm, AffineCoupling, Conv1x1, EmergingConv2d, FlowStep, Sequential, Squeeze
from flows.layers.networks import GlowNetwork
from flows.models.priors import LearnedGaussian, StandardGaussian, Standardize


def layer(name, *args, **options):
    """How to make a layer, by its name below ``flows.layers``: one line is all that a new one needs here."""
    return partial(pkgutil.resolve_name(f"flows.layers.{name}"), *args, **options)


LAYERS = {
    "actnorm": (layer("ActNorm", 3), (3, 4, 5)),
    "additive coupling": (layer("AdditiveCoupling", 4, 6), (4, 4, 5)),
    "affine coupling": (layer("AffineCoupling", 4, 6), (4, 4, 5)),
    "affine coupling without actnorm": (layer("AffineCoupling", 4, 6, partial(GlowNetwork, actnorm=False)), (4, 3, 5)),
    "sigmoid coupling": (layer("SigmoidCoupling", 4, 6), (4, 4, 5)),
    "autoregressive lower": (layer("AutoregressiveConv2d", 3), (3, 4, 5)),
    "autoregressive upper": (layer("AutoregressiveConv2d", 3, direction="upper"), (3, 4, 5)),
    "autoregressive raster lower": (layer("AutoregressiveConv2d", 3, mask="raster"), (3, 4, 5)),
    "autoregressive raster upper": (layer("AutoregressiveConv2d", 2, mask="raster", direction="upper"), (2, 5, 4)),
    "autoregressive 5x5": (layer("AutoregressiveConv2d", 2, 5), (2, 6, 4)),
    "autoregressive dilated": (layer("AutoregressiveConv2d", 2, 3, dilation=2), (2, 6, 5)),
    "autoregressive larger than the image": (layer("AutoregressiveConv2d", 2, 7), (2, 2, 3)),
    "butterfly": (layer("Butterfly", 4, (3, 2), 3), (4, 3, 2)),
    "butterfly, without a 1x1": (layer("ButterflyTransform", 4, (3, 2), 3), (4, 3, 2)),
    "conv1x1": (layer("Conv1x1", 4), (4, 3, 2)),
    "conv1x1 of one channel": (layer("Conv1x1", 1), (1, 3, 2)),
    "conv1x1 plu": (layer("Conv1x1", 4, "plu"), (4, 3, 2)),
    "conv1x1 qr": (layer("Conv1x1", 4, "qr"), (4, 3, 2)),
    "conv1x1 qr with two reflections": (layer("Conv1x1", 4, "qr", num_reflections=2), (4, 3, 2)),
    "conv1x1 cd": (layer("Conv1x1", 4, layer("CirculantMatrix")), (4, 3, 2)),
    "conv1x1 cd, odd": (layer("Conv1x1", 3, layer("CirculantMatrix")), (3, 3, 2)),
    "conv1x1 cd, near the identity": (layer("Conv1x1", 4, layer("CirculantMatrix", start="identity")), (4, 3, 2)),
    "conv1x1 expm": (layer("Conv1x1", 4, layer("ExpMatrix")), (4, 3, 2)),
    "conv1x1 orthogonal": (layer("Conv1x1", 4, layer("OrthogonalMatrix")), (4, 3, 2)),
    "conv1x1 orthogonal by expm": (layer("Conv1x1", 4, layer("OrthogonalMatrix", orthogonal_map="expm")), (4, 3, 2)),
    "conv1x1 orthogonal by householder": (
        layer("Conv1x1", 4, layer("OrthogonalMatrix", orthogonal_map="householder")),
        (4, 3, 2),
    ),
    "conv1x1 svd": (layer("Conv1x1", 4, layer("SVDMatrix")), (4, 3, 2)),
    "convexp": (layer("ConvExpConv2d", 3), (3, 4, 5)),
    "convexp, skew": (layer("ConvExp", 2, symmetry="skew"), (2, 5, 4)),
    "convexp larger than the image": (layer("ConvExp", 2, 5, max_norm=2.0), (2, 1, 3)),
    "emerging": (layer("EmergingConv2d", 3), (3, 4, 5)),
    "emerging 1x1": (layer("EmergingConv2d", 3, 1), (3, 4, 2)),
    "emerging dilated": (layer("EmergingConv2d", 2, dilation=2), (2, 5, 6)),
    "emerging raster": (layer("EmergingConv2d", 2, mask="raster"), (2, 5, 4)),
    "emerging qr": (layer("EmergingConv2d", 3, parametrization="qr"), (3, 4, 3)),
    "logit": (layer("Logit", 3.0), (2, 3, 4)),
    "macow": (layer("MaCow", 3, 7), (3, 4, 5)),
    "macow without bounds": (
        layer("MaCow", 2, 4, 1, 5, max_log_scale=None, max_shift=None, max_input=None),
        (2, 2, 3),
    ),
    "masked convolution, unit": (layer("MaskedConvTransform", 3, 6, 3, 1, side="right", diagonal="unit"), (3, 5, 4)),
    "maf": (layer("MaskedAutoregressiveFlow", 3, 7), (3, 3, 4)),
    "maf qr": (layer("MaskedAutoregressiveFlow", 2, 4, parametrization="qr"), (2, 4, 3)),
    "maf without bounds": (
        layer("MaskedAutoregressiveFlow", 3, 7, max_log_scale=None, max_shift=None, max_input=None),
        (3, 3, 4),
    ),
    "maf, unit": (
        layer("MaskedAutoregressiveFlow", 3, 7, diagonal="unit", max_log_scale=None),
        (3, 3, 4),
    ),
    "masked autoregressive": (layer("MaskedAutoregressiveTransform", 3, 8), (3, 4, 3)),
    "masked autoregressive in reverse": (layer("MaskedAutoregressiveTransform", 3, 8, reverse=True), (3, 4, 3)),
    "masked autoregressive with few units": (layer("MaskedAutoregressiveTransform", 4, 3), (4, 3, 2)),
    "masked autoregressive of one channel": (layer("MaskedAutoregressiveTransform", 1, 2), (1, 3, 5)),
    "periodic": (layer("PeriodicConv2d", 3), (3, 4, 5)),
    "periodic 5x5": (layer("PeriodicConv2d", 2, 5), (2, 6, 5)),
    "periodic larger than the image": (layer("PeriodicConv2d", 2, 7), (2, 2, 3)),
    "periodic, reflecting": (layer("PeriodicConv2d", 3, boundary="reflect"), (3, 4, 5)),
    "periodic, reflecting, larger than the image": (layer("PeriodicConv2d", 2, 7, boundary="reflect"), (2, 1, 3)),
    "periodic, orthogonal": (layer("PeriodicConv2d", 3, orthogonal=True), (3, 4, 5)),
    "periodic, reflecting, orthogonal": (layer("PeriodicConv2d", 2, boundary="reflect", orthogonal=True), (2, 4, 3)),
    "reverse": (layer("Reverse", 5), (5, 2, 3)),
    "shuffle": (layer("Shuffle", 5), (5, 2, 3)),
    "woodbury": (layer("WoodburyConv2d", 3, (4, 5), 2, 3), (3, 4, 5)),
    "woodbury, memory-efficient": (layer("WoodburyConv2d", 3, (4, 5), 2, 3, memory_efficient=True), (3, 4, 5)),
    "low-rank update of rows": (layer("LowRankUpdate", (3, 4, 5), "rows", 9), (3, 4, 5)),
    "squeeze": (layer("Squeeze"), (2, 4, 6)),
    "sequential": (lambda: Sequential(Squeeze(), ActNorm(8), Conv1x1(8)), (2, 4, 2)),
    "finc": (layer("FIncConv2d", 4, 2), (4, 4, 5)),
    "flip": (layer("FlipQuarters"), (4, 3, 2)),
    "autoregressive, positive": (layer("AutoregressiveConv2d", 3, diagonal="positive"), (3, 4, 5)),
    "autoregressive, unit, in groups": (layer("AutoregressiveConv2d", 4, diagonal="unit", groups=2), (4, 3, 5)),
    "emerging, inverted": (layer("Inverted", 3, layer("EmergingConv2d")), (3, 4, 5)),
    "butterfly, inverted": (layer("Inverted", 2, layer("Butterfly"), (3, 4)), (2, 3, 4)),
    "flow step": (lambda: FlowStep(4, EmergingConv2d(4), AffineCoupling(4, 6)), (4, 3, 4)),
    "standardize, learned": (lambda: Standardize(LearnedGaussian(3)), (3, 3, 4)),
    "standardize, N(0, 1)": (lambda: Standardize(StandardGaussian()), (3, 3, 4)),
}
