"""One step of flow."""

from __future__ import annotations

from collections.abc import Iterable

from flows.layers.actnorm import ActNorm
from flows.layers.base import Composite, Layer


class FlowStep(Composite):
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

    def parts(self) -> Iterable[Layer]:
        return self.actnorm, self.mixing, self.coupling
