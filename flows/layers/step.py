"""One step of flow."""

from __future__ import annotations

from collections.abc import Iterable

from flows.layers.actnorm import ActNorm
from flows.layers.base import Layer
from flows.layers.composite import Composite


class FlowStep(Composite):
    """One step of flow: actnorm, then the mixing layer, then the coupling.

    Map and log-det: those of the three in turn.

    Args:
        mixing: the layer that mixes channels (and, in this project's subject, pixels).
        coupling: the layer that does the non-linear work.
        num_channels: C.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``. Reference: figure 7 of the paper.

    Example:
        >>> import torch
        >>> from flows.layers import AffineCoupling, EmergingConv2d, FlowStep
        >>> step = FlowStep(12, EmergingConv2d(12), AffineCoupling(12, hidden_channels=16))
        >>> z, log_det = step(torch.randn(2, 12, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 12, 8, 8]), torch.Size([2]))
    """

    def __init__(self, num_channels: int, mixing: Layer, coupling: Layer) -> None:
        super().__init__()
        self.actnorm = ActNorm(num_channels)
        self.mixing = mixing
        self.coupling = coupling

    def parts(self) -> Iterable[Layer]:
        return self.actnorm, self.mixing, self.coupling
