"""Layers one after the other, as one layer; maps of the channels are folded into what follows them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from flows.layers.base import Layer
from flows.layers.pixelwise import PixelMap, PixelwiseLayer, is_watched


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
        total = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
        for part in self.parts():
            if isinstance(part, PixelwiseLayer) and part.is_pixelwise and not is_watched(part):
                own = part.pixel_map()
                before = own if before is None else before.then(own)
                total = total + x.shape[2] * x.shape[3] * part.log_abs_det()
                continue
            if before is None:
                x, log_det = part(x)
            else:
                x, log_det = part(x, before) if part.absorbs_pixel_maps else part(before(x))
                before = None
            total = total + log_det
        return x if before is None else before(x), total

    def inverse(self, z: Tensor) -> Tensor:
        for part in reversed(list(self.parts())):
            z = part.inverse(z)
        return z
