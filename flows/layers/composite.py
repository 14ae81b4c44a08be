"""Layers one after the other, as one layer; maps of the channels are folded into what follows them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from torch import Tensor

from flows.layers.base import Layer
from flows.layers.pixelwise import PixelMap, PixelwiseLayer, is_watched
from flows.numerics import same_for_every_image


class Composite(Layer):
    """Layers one after the other, as one layer: ``z = f_n(... f_1(x))`` and ``log_det = sum_i log |det df_i|``.

    Pixelwise layers (actnorm, 1x1 convolutions, permutations) are composed to one map of the channels, which a
    convolution behind them takes into its filter. The result is the same up to rounding. A layer with a hook of its
    own runs by itself, so that the hook sees what it did.
    """

    absorbs_pixel_maps = True

    @abstractmethod
    def parts(self) -> Iterable[Layer]:
        """The layers in data order; none at all is the identity."""

    def forward(self, x: Tensor, before: PixelMap | None = None) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for part in self.parts():
            if isinstance(part, PixelwiseLayer) and part.is_pixelwise and not is_watched(part):
                before = part.counted_map() if before is None else before.then(part.counted_map())
                continue
            if before is not None and not part.absorbs_pixel_maps:
                x, total, before = before(x), _sum(total, before.log_det(x)), None
            x, log_det = part(x) if before is None else part(x, before)
            total, before = _sum(total, log_det), None
        if before is not None:
            x, total = before(x), _sum(total, before.log_det(x))
        return x, same_for_every_image(x.new_zeros(()), x) if total is None else total

    def inverse(self, z: Tensor) -> Tensor:
        for part in reversed(list(self.parts())):
            z = part.inverse(z)
        return z


def _sum(total: Tensor | None, log_det: Tensor) -> Tensor:
    return log_det if total is None else total + log_det
