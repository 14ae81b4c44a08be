"""Coupling layers: half of the channels, left as they are, decide what happens to the other half."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flows.errors import InputError
from flows.layers.base import Layer
from flows.layers.networks import CouplingNetwork
from flows.numerics import per_image_sum, same_for_every_image

SCALE_OFFSET = 2.0
"""Added before the sigmoid, so that a layer starts with the scale sigmoid(2) = 0.88."""


class _Coupling(Layer):
    """``z1 = x1``, ``z2 = x2`` moved as a network of ``x1`` says."""

    outputs_per_channel: int

    def __init__(
        self, num_channels: int, hidden_channels: int = 512, *, edge_bias: bool = True, actnorm: bool = True
    ) -> None:
        super().__init__()
        if num_channels < 2 or num_channels % 2:
            raise InputError(f"a coupling layer halves the channels: num_channels must be even, not {num_channels}")
        if hidden_channels < 1:
            raise InputError(f"hidden_channels must be at least 1, not {hidden_channels}")
        half = num_channels // 2
        self.network = CouplingNetwork(
            half, hidden_channels, half * self.outputs_per_channel, edge_bias=edge_bias, actnorm=actnorm
        )

    def _predict(self, z1: Tensor) -> Tensor:
        """The network's outputs, for the inverse."""
        # Not for the forward pass: there, hooks look at what every module passes on, without autograd too.
        return self.network(z1) if torch.is_grad_enabled() else self.network.infer(z1)


class AffineCoupling(_Coupling):
    """Scales and shifts the second half of the channels by amounts that a network reads off the first half.

    Map: ``z1 = x1``, ``z2 = (x2 + t) * sigmoid(h + 2)``, where ``t`` and ``h`` are the even and odd output channels of
    :class:`flows.layers.networks.CouplingNetwork` applied to ``x1``. Log-det: ``sum log sigmoid(h + 2)``.

    Args:
        num_channels: C, even.
        hidden_channels: width of the network.
        edge_bias: see :class:`flows.layers.networks.CouplingNetwork`.
        actnorm: see :class:`flows.layers.networks.CouplingNetwork`.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``.

    Raises:
        InputError: C is odd, or ``hidden_channels`` below 1.

    Cost: the network, in both directions.

    Reference: Dinh et al., *Real NVP*, equations 7 and 8; Kingma & Dhariwal, *Glow*, table 1 and released code, which
    has the sigmoid.
    """

    outputs_per_channel = 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, dim=1)
        shift, log_scale = _shift_and_log_scale(self.network(x1))
        z = torch.cat([x1, (x2 + shift) * torch.exp(log_scale)], dim=1)
        return z, per_image_sum(log_scale)

    def inverse(self, z: Tensor) -> Tensor:
        z1, z2 = z.chunk(2, dim=1)
        shift, log_scale = _shift_and_log_scale(self._predict(z1))
        return torch.cat([z1, z2 * torch.exp(-log_scale) - shift], dim=1)

    @property
    def inverse_is_capturable(self) -> bool:
        return True


class AdditiveCoupling(_Coupling):
    """Shifts the second half of the channels by an amount that a network reads off the first half.

    Map: ``z1 = x1``, ``z2 = x2 + t(x1)``. Log-det: 0, volume is preserved.

    Args:
        num_channels: C, even.
        hidden_channels: width of the network.
        edge_bias: see :class:`flows.layers.networks.CouplingNetwork`.
        actnorm: see :class:`flows.layers.networks.CouplingNetwork`.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``.

    Raises:
        InputError: C is odd, or ``hidden_channels`` below 1.

    Cost: the network, in both directions.

    Reference: Dinh et al., *NICE*, section 3.2.
    """

    outputs_per_channel = 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, dim=1)
        return torch.cat([x1, x2 + self.network(x1)], dim=1), same_for_every_image(x.new_zeros(()), x)

    def inverse(self, z: Tensor) -> Tensor:
        z1, z2 = z.chunk(2, dim=1)
        return torch.cat([z1, z2 - self._predict(z1)], dim=1)

    @property
    def inverse_is_capturable(self) -> bool:
        return True


def _shift_and_log_scale(outputs: Tensor) -> tuple[Tensor, Tensor]:
    return outputs[:, 0::2], logsigmoid(outputs[:, 1::2] + SCALE_OFFSET)
