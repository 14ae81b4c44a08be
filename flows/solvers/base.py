"""What every way of inverting an autoregressive convolution promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, final

import torch
from torch import Tensor

from flows.errors import InputError
from flows.solvers.checks import check_finite, check_latent, check_weight, warn_once


class IllConditionedWarning(UserWarning):
    """The inverse of a filter amplifies rounding errors so much that few correct digits are left."""


class AutoregressiveConvSolver(ABC):
    """The inverse of one zero-padded, autoregressively masked convolution, prepared for one image size.

    ``solver(z)`` returns the ``x`` with ``conv2d(x, weight, padding=dilation * (k // 2), dilation=dilation) == z``.
    All work that depends on the weights alone is done at construction. A solver keeps what it computed from the
    weights, not the weights: after these change, it inverts the old ones. Keep it for longer than one call in a
    :class:`flows.layers.weight_cache.WeightCache`. It records no gradients; :func:`flows.solvers.
    solve_autoregressive_conv` does.

    A subclass promises

    - the exact inverse, up to rounding in the type of ``weight``, for every mask and shape that the checks let pass;
    - that image i of ``x`` depends on image i of ``z`` alone, and that ``z`` is not written to;
    - never to return NaN or infinity in ``z`` as if it had been inverted;
    - to be safe to call from several threads at once.

    Args:
        weight: (C, C, k, k), the full masked filter in torch's layout (out, in, height, width), k odd, float32 or
            float64.
        direction: ``"lower"`` reads the pixel and what follows in raster order (right and below), with a lower
            triangular centre tap. ``"upper"`` is such a filter flipped in all four axes.
        image_size: height and width of the images.
        dilation: spacing of the taps, in pixels.

    Raises:
        InputError: the filter is not autoregressive in this direction; a shape or type is wrong; the backend cannot be
            used here.
        NonFiniteError: the filter has a zero on its diagonal, or is not finite; (call) ``z`` holds NaN or infinity.

    Reference: Hoogeboom et al., *Emerging Convolutions for Generative Normalizing Flows*, ICML 2019, section 3.1.
    """

    name: ClassVar[str]

    def __init__(self, weight: Tensor, *, direction: str, image_size: tuple[int, int], dilation: int = 1) -> None:
        check_weight(weight, direction, dilation, image_size)
        reason = self.unavailable(weight.device)
        if reason is not None:
            raise InputError(f"the {self.name} backend cannot be used: {reason}")
        self.num_channels, self.kernel_size = weight.shape[0], weight.shape[2]
        self.direction, self.dilation = direction, dilation
        self.image_size = (image_size[0], image_size[1])
        self.dtype, self.device = weight.dtype, weight.device
        middle = self.kernel_size // 2
        self._reaches_both_ways = bool(weight[..., :middle].any()) and bool(weight[..., middle + 1 :].any())
        # What is kept must serve later calls in any autograd mode, so it must not consist of inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            self._prepare(weight)
            self._diagonal = weight[:, :, middle, middle].diagonal().clone()

    @classmethod
    @abstractmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """Why this backend cannot be used for tensors on ``device``; None if it can."""

    @abstractmethod
    def _prepare(self, weight: Tensor) -> None:
        """Do what depends on the weights alone."""

    @abstractmethod
    def _solve(self, z: Tensor) -> Tensor:
        """Invert a batch of at least one image whose shape, type and device have been checked."""

    @final
    def __call__(self, z: Tensor) -> Tensor:
        """Return the ``x``, (B, C, H, W), that the convolution maps to ``z``, (B, C, H, W)."""
        check_latent(z, self.num_channels, self.image_size, self.dtype, self.device)
        if z.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "a prepared solver records no gradient: call solve_autoregressive_conv, or use torch.no_grad()"
            )
        if z.shape[0] == 0:
            return torch.empty_like(z)
        return self._solve(z)

    def _check_finite(self, z: Tensor) -> None:
        check_finite(z)

    @cached_property
    @torch.no_grad()
    def inverse_gain(self) -> float:
        """How much the inverse amplifies, at least 1: its largest magnitude, relative to its diagonal.

        It is measured with impulses in the corner of the image where substitution starts, each scaled so that the
        diagonal alone answers 1. Relative rounding errors grow by about this factor.
        """
        channels = torch.arange(self.num_channels)
        height, width = self.image_size
        # The inverse is again a causal convolution, so its first impulse response is the longest. Only a raster mask
        # sees the other border as well: its filter also reaches back across the columns.
        row, column = (height - 1, width - 1) if self.direction == "lower" else (0, 0)
        columns = {column, width - 1 - column} if self._reaches_both_ways else {column}
        impulses = self._diagonal.new_zeros(len(columns), self.num_channels, self.num_channels, height, width)
        for batch, where in zip(impulses, columns, strict=True):
            batch[channels, channels, row, where] = self._diagonal
        inverse_gain = float(self._solve(impulses.flatten(0, 1)).abs().max())
        return inverse_gain if math.isfinite(inverse_gain) else math.inf

    def warn_if_ill_conditioned(self) -> None:
        """Warn, once for each shape, if fewer than about four digits of the inverse can be right."""
        if self.inverse_gain * torch.finfo(self.dtype).eps > 1e-4:
            warn_once(
                (IllConditionedWarning, self.num_channels, self.kernel_size, self.image_size, self.dtype),
                f"a {self.kernel_size} x {self.kernel_size} autoregressive filter of {self.num_channels} channels is "
                f"badly conditioned: on {self.image_size[0]} x {self.image_size[1]} images its inverse amplifies "
                f"rounding errors {self.inverse_gain:.3g} times, too much for {self.dtype}",
                IllConditionedWarning,
                stacklevel=3,
            )
