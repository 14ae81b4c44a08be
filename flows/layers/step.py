"""One step of flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flows.layers.actnorm import ActNorm
from flows.layers.base import Layer


class FlowStep(Layer):
    """One step of flow: actnorm, then the mixing layer, then the coupling.

    Map and log-det: those of the three in turn.

    Args:
        mixing: the layer that mixes channels (and, in this project's subject, pixels).
        coupling: the layer that does the non-linear work.
        num_channels: C.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Reference: figure 7 of the paper.
    """

    def __init__(self, num_channels: int, mixing: Layer, coupling: Layer) -> None:
        super().__init__()
        self.actnorm = ActNorm(num_channels)
        self.mixing = mixing
        self.coupling = coupling

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, log_det_actnorm = self.actnorm(x)
        h, log_det_mixing = self.mixing(h)
        z, log_det_coupling = self.coupling(h)
        return z, log_det_actnorm + log_det_mixing + log_det_coupling

    def inverse(self, z: Tensor) -> Tensor:
        return self.actnorm.inverse(self.mixing.inverse(self.coupling.inverse(z)))

    def inverse_parts(self) -> Sequence[Layer]:
        return self.coupling, self.mixing, self.actnorm
