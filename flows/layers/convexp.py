"""The convolution exponential: a k x k convolution whose inverse is the same series with another sign."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flows.errors import InputError
from flows.kernels.convolution import convolve, gradients_of_convolution, same_size
from flows.layers.base import NOISE_STD, Layer, require_channels, require_odd_kernel
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization
from flows.layers.masks import autoregressive_mask
from flows.layers.weight_cache import WeightCache
from flows.numerics import require_bound, same_for_every_image

Symmetry = Literal["none", "skew"]

GRAM_ITERATIONS = 3
"""Squarings in the bound of the norm, which is then at most C^(1/16) times too large: 1.27 for 48 channels."""


class ConvExp(Layer):
    """The exponential of a convolution, ``exp(K) x = x + K x + K^2 x / 2 + K^3 x / 6 + ...``.

    Map: ``z = exp(K) x + bias`` with ``K`` the zero-padded cross-correlation with any filter ``w``: ``exp(K)`` is never
    singular. Log-det: ``trace K = H W sum_c w_cc`` with the centre tap, also at the border. Inverse: ``exp(-K) (z -
    bias)``, the same series.

    The norm of ``K`` is kept at ``max_norm`` or below: ``w`` is divided by how far an upper bound of its norm exceeds
    that. Then ``terms`` products suffice for full precision, in training as in evaluation. The bound has no state: it
    is the largest norm over the frequencies of a torus of (H + r) x (W + r) pixels, ``r = (k - 1) / 2``, on which the
    zero-padded convolution is a part of a circular one. Each norm is bounded by Gram iteration,
    ``|M| <= |(M^H M)^4|_F^(1/8)``. So where the bound is active, the map depends on the image's size a little.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.
        symmetry: ``"skew"`` makes ``K`` skew-symmetric, ``w_oi(y, x) = -w_io(-y, -x)``. Then ``exp(K)`` is an
            orthogonal k x k convolution, also at the border, with log-det 0.
        max_norm: largest norm of ``K``, positive. More needs more terms.
        bias: learn an additive constant per channel.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: an even kernel, another symmetry, a norm that is not positive.

    Cost: ``terms`` convolutions with ``C^2 k^2`` multiplications per pixel, forward and inverse alike: 10 in float32
    with norm 1. The backward pass computes the powers again instead of keeping them, by twice as many.

    Reference: Hoogeboom et al., *The Convolution Exponential and Generalized Sylvester Flows*, NeurIPS 2020; the bound:
    Delattre et al., *Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration*, ICML 2023.

    Note:
        The authors use 6 terms in training and more in evaluation, and bound the norm by power iteration, with buffers
        that change in each forward pass. Here both modes are one map.

    Example:
        >>> import torch
        >>> from flows.layers import ConvExp
        >>> layer, x = ConvExp(4, symmetry="skew"), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(z.square().sum(), x.square().sum()), log_det.tolist()  # a rotation
        (True, [0.0, 0.0])
    """

    is_affine = True
    inverse_is_capturable = True
    weight_mask: Tensor

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        *,
        symmetry: Symmetry = "none",
        max_norm: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        require_odd_kernel(kernel_size)
        require_bound("max_norm", max_norm)
        if symmetry not in get_args(Symmetry):
            raise InputError(f"symmetry must be {' or '.join(get_args(Symmetry))}, not '{symmetry}'")
        self.symmetry, self.max_norm, self.reach = symmetry, max_norm, kernel_size // 2
        mask = torch.ones(num_channels, num_channels, kernel_size, kernel_size)
        if symmetry == "skew":  # half of the entries determine the others
            mask = autoregressive_mask(num_channels, kernel_size, "lower", "raster")
            mask[:, :, self.reach, self.reach].fill_diagonal_(0)
        self.register_buffer("weight_mask", mask)
        self.weight = nn.Parameter(NOISE_STD * torch.randn_like(mask) * mask)
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None
        self._filter: WeightCache[Tensor] = WeightCache()

    @property
    def terms(self) -> int:
        """The number of powers of ``K``: the remainder is then below the rounding of the weights' type."""
        precision, term, number = torch.finfo(self.weight.dtype).eps, self.max_norm, 1
        while term * math.exp(self.max_norm) > precision:  # max_norm^(n + 1) / (n + 1)! e^max_norm, n = number - 1
            number += 1
            term *= self.max_norm / number
        return number - 1

    def filter(self, image_size: tuple[int, int]) -> Tensor:
        """The filter of ``K``, with the norm that is allowed, ``(C, C, k, k)``."""
        weight = self.weight * self.weight_mask
        if self.symmetry == "skew":
            weight = weight - weight.transpose(0, 1).flip(2, 3)
        return weight * (self.max_norm / _norm_bound(weight, image_size)).clamp(max=1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.filter((x.shape[2], x.shape[3]))
        z = _Exponential.apply(x, weight, self.terms)
        if self.bias is not None:
            z = z + self.bias[:, None, None]
        log_det = x.shape[2] * x.shape[3] * weight[:, :, self.reach, self.reach].trace()
        return z, same_for_every_image(log_det, x)

    def inverse(self, z: Tensor) -> Tensor:
        image_size = (z.shape[2], z.shape[3])
        weight = self._filter.get(lambda: self.filter(image_size), self.weight, key=image_size)
        if self.bias is not None:
            z = z - self.bias[:, None, None]
        return _Exponential.apply(z, -weight, self.terms)


class ConvExpConv2d(Composite):
    """A 1x1 convolution, then a convolution exponential: ``z = exp(K) W x + bias``.

    Log-det: ``H W (log |det W| + sum_c w_cc)``. Inverse: ``W^-1 exp(-K) (z - bias)``.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.
        symmetry: see :class:`ConvExp`.
        max_norm: see :class:`ConvExp`.
        parametrization: of the 1x1, see :class:`Conv1x1`. With an orthogonal one and ``symmetry="skew"`` the whole
            layer is an orthogonal k x k convolution.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: as its parts.

    Cost: that of its parts.

    Reference: Hoogeboom et al., *The Convolution Exponential and Generalized Sylvester Flows*, NeurIPS 2020, section 4.
    """

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        *,
        symmetry: Symmetry = "none",
        max_norm: float = 1.0,
        parametrization: Parametrization = "plain",
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(num_channels, parametrization)
        self.exponential = ConvExp(num_channels, kernel_size, symmetry=symmetry, max_norm=max_norm)

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, self.exponential


class _Exponential(torch.autograd.Function):
    """``exp(K) x`` by its series; the backward pass keeps ``x`` and the filter alone.

    With ``g`` the gradient, ``p_b = K^b x`` and ``q_b = g / (b + 1)! + K^T q_(b + 1)``, the gradient of ``x`` is
    ``g + K^T q_0 = exp(K^T) g``, and that of the filter the sum over b of the correlations of ``p_b`` with ``q_b``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, terms: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.terms = terms
        power = total = x
        own, reading = weight.to(x.dtype), same_size(weight.shape[-1])
        for number in range(1, terms + 1):
            power = convolve(power, own / number, reading)
            total = total + power
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        reading = same_size(weight.shape[-1])
        own, gradient = weight.to(x.dtype), gradients[0].to(x.dtype)
        powers = [x]
        for _ in range(ctx.terms - 1):
            powers.append(convolve(powers[-1], own, reading))
        of_weight, propagated = torch.zeros_like(own), torch.zeros_like(gradient)
        for number, power in reversed(list(enumerate(powers, start=1))):
            tail = gradient / float(math.factorial(number)) + propagated
            propagated, correlation = gradients_of_convolution(power, own, tail, reading)
            of_weight = of_weight + correlation
        return gradient + propagated, of_weight.to(weight.dtype), None


def _norm_bound(weight: Tensor, image_size: tuple[int, int]) -> Tensor:
    """An upper bound of the norm of the zero-padded convolution of images, a scalar that is positive."""
    reach = weight.shape[-1] // 2
    torus = [max(size + reach, weight.shape[-1]) for size in image_size]
    matrices = torch.fft.rfft2(weight.double(), s=torus).permute(2, 3, 0, 1)
    log_norm = matrices.new_zeros((), dtype=torch.float64)
    for iteration in range(GRAM_ITERATIONS):  # scaled, so that nothing overflows
        scale = torch.linalg.matrix_norm(matrices)[..., None, None] + torch.finfo(torch.float64).tiny
        log_norm = log_norm + scale.log() / 2**iteration
        matrices = matrices / scale
        matrices = matrices.mH @ matrices
    log_norm = log_norm + torch.linalg.matrix_norm(matrices)[..., None, None].log() / 2**GRAM_ITERATIONS
    return log_norm.max().exp().to(weight.dtype)
