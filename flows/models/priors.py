"""Gaussians over the latents, and the factoring out that hands parts of an image to them early.

Every prior is used in its standardising form: a latent is ``(h - mean) / std``, standard normal under the model. The
whole flow is thus one bijection between an image and a list of standard normal latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flows.errors import InputError
from flows.layers.actnorm import LOG_SCALE_FACTOR
from flows.layers.base import Layer
from flows.layers.networks import EdgeBias, ZeroConv2d
from flows.numerics import MAX_LOG_SCALE, MAX_SHIFT, bounded, per_image_sum, require_bound


class Gaussian(nn.Module, ABC):
    """A diagonal Gaussian over features ``h`` (B, C, H, W), possibly conditional on other features."""

    @abstractmethod
    def mean_and_log_std(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and log standard deviation of ``h`` given ``context``, each broadcastable to ``h``."""


class StandardGaussian(Gaussian):
    """N(0, 1) everywhere; nothing to learn. The galaxy experiments' prior."""

    def mean_and_log_std(self, context: Tensor) -> tuple[Tensor, Tensor]:
        zero = context.new_zeros(1, 1, 1, 1)
        return zero, zero


class ConditionalGaussian(Gaussian):
    """Mean and log standard deviation predicted from the context by a 3x3 convolution that starts at zero.

    ``mean = M tanh(a / M)`` and ``log std = m tanh(h / m)``, where ``a`` and ``h`` are the even and odd output channels
    of a :class:`~flows.layers.networks.ZeroConv2d`. The inverse multiplies a latent by ``std`` and adds ``mean``; with
    both bounds its answer is at most ``exp(m) |z| + M``.

    Args:
        context_channels: channels of what is conditioned on.
        num_channels: channels of ``h``.
        max_log_scale: m, positive, in nats; ``None`` leaves ``log std`` without a bound, as in the released code. Then
            the inverse of a latent may overflow.
        max_shift: M, positive; ``None`` leaves the mean without a bound.
        edge_bias: give the convolution an input channel that marks the padding.

    Raises:
        InputError: a bound that is not positive.
    """

    def __init__(
        self,
        context_channels: int,
        num_channels: int,
        max_log_scale: float | None = MAX_LOG_SCALE,
        max_shift: float | None = MAX_SHIFT,
        *,
        edge_bias: bool = True,
    ) -> None:
        super().__init__()
        require_bound("max_log_scale", max_log_scale)
        require_bound("max_shift", max_shift)
        self.convolution = ZeroConv2d(context_channels, 2 * num_channels, edge_bias=edge_bias)
        self.max_log_scale, self.max_shift = max_log_scale, max_shift

    def mean_and_log_std(self, context: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.convolution(context)
        return bounded(outputs[:, 0::2], self.max_shift), bounded(outputs[:, 1::2], self.max_log_scale)


class LearnedGaussian(Gaussian):
    """Mean and log standard deviation learned per channel; looks only at the size of the context.

    They depend on no image, so they need no bound.

    Args:
        num_channels: channels of ``h``.
        edge_bias: learn besides what depends on the distance to the border.

    Note:
        The released code obtains them from a 3x3 convolution applied to an image of zeros. All of that convolution's
        ordinary weights (82,944 for CIFAR10) multiply zeros: they are counted in the paper's parameter counts but can
        never matter. What remains, and is here, is its bias, its edge bias and its scale.
    """

    def __init__(self, num_channels: int, *, edge_bias: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2 * num_channels, 1, 1))
        self.edge_bias = EdgeBias(2 * num_channels, kernel_size=3, std=0.0) if edge_bias else None
        self.log_scale = nn.Parameter(torch.zeros(2 * num_channels, 1, 1))

    def mean_and_log_std(self, context: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.bias[None]
        if self.edge_bias is not None:
            outputs = self.edge_bias((context.shape[2], context.shape[3]), self.bias.flatten())
        outputs = outputs * torch.exp(LOG_SCALE_FACTOR * self.log_scale)
        return outputs[:, 0::2], outputs[:, 1::2]


class Prior(ABC):
    """Makes the Gaussians of a model's latents."""

    @abstractmethod
    def conditional(self, context_channels: int, num_channels: int) -> Gaussian:
        """Of a latent that is factored out, given what is kept."""

    @abstractmethod
    def top(self, num_channels: int) -> Gaussian:
        """Of the last latent; reads of its context the size alone."""


class LearnedPrior(Prior):
    """Learns every Gaussian: :class:`ConditionalGaussian` at factoring out, :class:`LearnedGaussian` at the top.

    Args:
        max_log_scale, max_shift, edge_bias: see :class:`ConditionalGaussian`; both bounds ``None`` for the paper's.

    Raises:
        InputError: a bound that is not positive.

    Example:
        >>> import torch
        >>> from flows.models.priors import FactorOut, LearnedPrior
        >>> kept, z, log_det = FactorOut(12, LearnedPrior(max_log_scale=1.0))(torch.randn(2, 12, 8, 8))
        >>> kept.shape, z.shape
        (torch.Size([2, 6, 8, 8]), torch.Size([2, 6, 8, 8]))
    """

    def __init__(
        self,
        max_log_scale: float | None = MAX_LOG_SCALE,
        max_shift: float | None = MAX_SHIFT,
        *,
        edge_bias: bool = True,
    ) -> None:
        self.max_log_scale, self.max_shift, self.edge_bias = max_log_scale, max_shift, edge_bias

    def conditional(self, context_channels: int, num_channels: int) -> Gaussian:
        return ConditionalGaussian(
            context_channels, num_channels, self.max_log_scale, self.max_shift, edge_bias=self.edge_bias
        )

    def top(self, num_channels: int) -> Gaussian:
        return LearnedGaussian(num_channels, edge_bias=self.edge_bias)


class StandardPrior(Prior):
    """N(0, 1) for every latent, as in the paper's galaxy experiments.

    Example:
        >>> import torch
        >>> from flows.models.priors import StandardPrior, Standardize
        >>> h = torch.randn(2, 12, 8, 8)
        >>> torch.equal(Standardize(StandardPrior().top(12))(h)[0], h)
        True
    """

    def conditional(self, context_channels: int, num_channels: int) -> Gaussian:
        return StandardGaussian()

    def top(self, num_channels: int) -> Gaussian:
        return StandardGaussian()


LEARNED = LearnedPrior()
"""The prior that a model has unless it is told another."""


class Standardize(Layer):
    """Standardises features by an unconditional Gaussian.

    Map: ``z = (x - mean) / std``. Log-det: ``-sum log std``.

    Args:
        gaussian: whose mean and standard deviation; its context is ``x``, of which it may read the size only.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``.
    """

    inverse_is_capturable = True

    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__()
        self.gaussian = gaussian

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _standardize(x, *self.gaussian.mean_and_log_std(x))

    def inverse(self, z: Tensor) -> Tensor:
        return _unstandardize(z, *self.gaussian.mean_and_log_std(z))


class FactorOut(nn.Module):
    """Splits off the second half of the channels as a latent, standardised given the first half.

    Map: ``h -> (kept, z)`` with ``kept = h1`` and ``z = (h2 - mean(h1)) / std(h1)``. Log-det: ``-sum log std(h1)``.

    Args:
        num_channels: C, even.
        prior: makes the Gaussian of what is split off.

    Shapes: ``(B, C, H, W) -> (B, C/2, H, W), (B, C/2, H, W), (B,)``.

    Raises:
        InputError: C is odd, or a bound that is not positive.

    Reference: Dinh et al., *Real NVP*, section 3.6; Kingma & Dhariwal, *Glow*, released code for the learned prior.
    """

    def __init__(self, num_channels: int, prior: Prior = LEARNED) -> None:
        super().__init__()
        if num_channels % 2:
            raise InputError(f"factoring out halves the channels: num_channels must be even, not {num_channels}")
        self.gaussian = prior.conditional(num_channels // 2, num_channels // 2)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, moved = h.chunk(2, dim=1)
        z, log_det = _standardize(moved, *self.gaussian.mean_and_log_std(kept))
        return kept, z, log_det

    def inverse(self, kept: Tensor, z: Tensor) -> Tensor:
        return torch.cat([kept, _unstandardize(z, *self.gaussian.mean_and_log_std(kept))], dim=1)


def _standardize(h: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    return (h - mean) * torch.exp(-log_std), -per_image_sum(log_std.expand_as(h))


def _unstandardize(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return z * torch.exp(log_std) + mean
