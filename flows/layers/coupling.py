"""Coupling layers: half of the channels, left as they are, decide what happens to the other half."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flows.errors import InputError
from flows.layers.base import Layer, Recorded
from flows.layers.factories import make
from flows.layers.networks import GlowNetwork, Network
from flows.numerics import (
    MAX_INPUT,
    MAX_LOG_SCALE,
    MAX_SHIFT,
    SCALE_OFFSET,
    bounded,
    per_image_sum,
    require_bound,
    run_network,
    same_for_every_image,
    shared_bound,
)


class Coupling(Layer):
    """``z1 = x1``; ``z2`` is a bijection of ``x2`` whose parameters a network reads off ``x1``.

    A subclass gives the bijection of each number, by :meth:`transform` and :meth:`inverse_transform`, and the number of
    parameters that it needs, ``outputs_per_channel``.

    Args:
        num_channels: C, even.
        hidden_channels: width of the network, at least 1.
        network: makes the network from ``in_channels, hidden_channels, out_channels``.
        image_size: (height, width) for networks that ask for it; :class:`flows.Flow` fills it in.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``.

    Raises:
        InputError: C is odd, or ``hidden_channels`` below 1.

    Cost: the network, in both directions.
    """

    outputs_per_channel: ClassVar[int]
    inverse_is_capturable = True
    max_input: float | None = None

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 512,
        network: Callable[..., Network] = GlowNetwork,
        *,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 2 or num_channels % 2:
            raise InputError(f"a coupling layer halves the channels: num_channels must be even, not {num_channels}")
        if hidden_channels < 1:
            raise InputError(f"hidden_channels must be at least 1, not {hidden_channels}")
        half = num_channels // 2
        self.network = make(network, half, hidden_channels, half * self.outputs_per_channel, image_size=image_size)

    @abstractmethod
    def transform(self, x2: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``z2`` and the log-det, from ``x2`` and the network's outputs."""

    @abstractmethod
    def inverse_transform(self, z2: Tensor, outputs: Tensor) -> Tensor:
        """``x2`` from ``z2`` and the network's outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, dim=1)
        z2, log_det = self.transform(x2, run_network(self.network, bounded(x1, self.max_input)))
        return torch.cat([x1, z2], dim=1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        z1, z2 = z.chunk(2, dim=1)
        outputs = run_network(self.network, bounded(z1, self.max_input))
        return torch.cat([z1, self.inverse_transform(z2, outputs)], dim=1)

    def rebuild(self, z: Tensor) -> Recorded:
        """One run of the network serves both directions."""
        x1, z2 = (half.detach() for half in z.chunk(2, dim=1))
        outputs = run_network(self.network, bounded(x1.requires_grad_(), self.max_input))
        with torch.no_grad():
            x2 = self.inverse_transform(z2, outputs)
        x2 = x2.detach().requires_grad_()
        z2, log_det = self.transform(x2, outputs)
        return (x1, x2), (torch.cat([x1, z2], dim=1), log_det)


class AffineCoupling(Coupling):
    """Scales and shifts the second half of the channels by bounded amounts that a network reads off the first half.

    Map: ``z1 = x1``, ``z2 = x2 exp(s) + t`` with ``s = m tanh(h / m)`` and ``t = M tanh(a / M)``. Here ``a`` and ``h``
    are the even and odd output channels of the network applied to ``B tanh(x1 / B)``; ``M`` is ``max_shift``, ``B`` is
    ``max_input`` and ``m = max_log_scale min(1, 8 / num_steps)``. Log-det: ``sum s``. Inverse:
    ``x2 = (z2 - t) exp(-s)``.

    Bounds: with respect to the second half, map and inverse both have the Lipschitz constant ``exp(m)`` at most. With
    a finite M the inverse of any latent is bounded too, ``|x2| <= (|z2| + M) exp(m)``, whatever the network answers.
    So a composition of such layers grows at most geometrically, and the scales of a level multiply to ``exp(8
    max_log_scale)`` at most. B keeps the inverse exact in float32 where activations are large: beyond it the network's
    answer is constant.

    Args:
        num_channels, hidden_channels, network, image_size: as in :class:`Coupling`.
        max_log_scale: m of a step in a level of at most 8, positive, in nats.
        num_steps: D, the number of steps in the coupling's level, which :class:`flows.Flow` fills in.
        max_shift: M, positive, or ``None`` for a shift without a bound.
        max_input: B, positive, or ``None`` for a network that sees ``x1`` itself.

    Raises:
        InputError: a bound that is not positive, besides.

    Reference: Dinh et al., *Real NVP*, equations 7 and 8; Behrmann et al., *Understanding and Mitigating Exploding
    Inverses in Invertible Neural Networks*, AISTATS 2021, for why the scale is bounded.

    Note:
        The paper's coupling is :class:`SigmoidCoupling`. docs/STABILITY.md compares the two.

    Example:
        >>> import math, torch
        >>> from flows.layers import AffineCoupling
        >>> layer, x = AffineCoupling(4, hidden_channels=8, max_log_scale=1.0), torch.randn(2, 4, 6, 6)
        >>> z, log_det = layer(x)
        >>> torch.equal(z[:, :2], x[:, :2]), bool(log_det.abs().max() <= 2 * 6 * 6 * 1.0)
        (True, True)
    """

    outputs_per_channel = 2

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 512,
        network: Callable[..., Network] = GlowNetwork,
        *,
        image_size: tuple[int, int] | None = None,
        max_log_scale: float = MAX_LOG_SCALE,
        num_steps: int = 1,
        max_shift: float | None = MAX_SHIFT,
        max_input: float | None = MAX_INPUT,
    ) -> None:
        super().__init__(num_channels, hidden_channels, network, image_size=image_size)
        for name, bound in {"max_log_scale": max_log_scale, "max_shift": max_shift, "max_input": max_input}.items():
            require_bound(name, bound)
        self.max_log_scale = shared_bound(max_log_scale, num_steps)
        self.max_shift, self.max_input = max_shift, max_input

    def transform(self, x2: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(outputs)
        return x2 * torch.exp(log_scale) + shift, per_image_sum(log_scale)

    def inverse_transform(self, z2: Tensor, outputs: Tensor) -> Tensor:
        shift, log_scale = self._shift_and_log_scale(outputs)
        return (z2 - shift) * torch.exp(-log_scale)

    def _shift_and_log_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return bounded(outputs[:, 0::2], self.max_shift), bounded(outputs[:, 1::2], self.max_log_scale)


class SigmoidCoupling(Coupling):
    """The paper's affine coupling: its scale is a sigmoid, which has an upper bound and no lower one.

    Map: ``z1 = x1``, ``z2 = (x2 + t) * sigmoid(h + 2)``, where ``t`` and ``h`` are the even and odd output channels of
    the network applied to ``x1``. Log-det: ``sum log sigmoid(h + 2)``. Inverse:
    ``x2 = z2 / sigmoid(h + 2) - t``.

    Bounds: with respect to the second half the map has the Lipschitz constant 1. The inverse has none: it divides by a
    number that a network can bring as close to zero as it likes. Samples of a trained flow may overflow, and images
    unlike the training data may not be returned. :class:`AffineCoupling` cannot do that.

    Args: those of :class:`Coupling`.

    Reference: Kingma & Dhariwal, *Glow*, table 1 and released code, which has the sigmoid.

    Example:
        >>> import torch
        >>> from flows.layers import SigmoidCoupling
        >>> layer, x = SigmoidCoupling(2, hidden_channels=8), torch.randn(1, 2, 1, 1)
        >>> z, log_det = layer(x)
        >>> round(log_det.exp().item(), 2)  # the scale sigmoid(2), where it starts
        0.88
    """

    outputs_per_channel = 2

    def transform(self, x2: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = logsigmoid(outputs[:, 1::2] + SCALE_OFFSET)
        return (x2 + outputs[:, 0::2]) * torch.exp(log_scale), per_image_sum(log_scale)

    def inverse_transform(self, z2: Tensor, outputs: Tensor) -> Tensor:
        return z2 * torch.exp(-logsigmoid(outputs[:, 1::2] + SCALE_OFFSET)) - outputs[:, 0::2]


class AdditiveCoupling(Coupling):
    """Shifts the second half of the channels by an amount that a network reads off the first half.

    Map: ``z1 = x1``, ``z2 = x2 + t(x1)``. Log-det: 0, volume is preserved. With respect to the second half, map and
    inverse have the Lipschitz constant 1.

    Args: those of :class:`Coupling`.

    Reference: Dinh et al., *NICE*, section 3.2.

    Example:
        >>> import torch
        >>> from flows.layers import AdditiveCoupling
        >>> z, log_det = AdditiveCoupling(4, hidden_channels=8)(torch.randn(2, 4, 6, 6))
        >>> log_det
        tensor([0., 0.])
    """

    outputs_per_channel = 1

    def transform(self, x2: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return x2 + outputs, same_for_every_image(x2.new_zeros(()), x2)

    def inverse_transform(self, z2: Tensor, outputs: Tensor) -> Tensor:
        return z2 - outputs
