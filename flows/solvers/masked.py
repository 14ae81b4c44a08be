"""Inverses of masked autoregressive networks: substitution over pixels and channels, or sweeps over all of them.

A number ``x_c`` of a pixel follows from ``z_c`` once all before it are known::

    x_c = (z_c - t_c) exp(-s_c)

with the shift ``t_c`` and log-scale ``s_c`` that the network's outputs ``mu_c`` and ``h_c`` stand for.
Each hidden unit is computed once, by passing on what becomes known. At a new pixel the sums of all units and outputs
start from the biases and from the finished pixels before. Then, channel by channel, the first layer's units of this
degree are complete and are passed on to the second layer. Its units of this degree are then complete and are passed on
to the outputs. Now ``mu_c`` and ``h_c`` are complete, and ``x_c`` is passed on to the units of higher degree.

A pixel reads its left neighbour and the three above, each with its hidden units, so the pixels with the same
``2 i + j`` are independent of one another and solved together.

Shapes in this file: B batch, C channels, U hidden units, K = 4 neighbours read, S pixels solved together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flows.errors import InputError
from flows.kernels import extension, num_threads, why_not_compiled
from flows.numerics import SCALE_OFFSET, bounded, full_precision
from flows.solvers.backends import choose_backend
from flows.solvers.checks import check_finite, check_latent, check_type, non_finite_image
from flows.solvers.jacobi import around, fixed_point

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
"""(row, column) of the pixels that are read besides the own one, in the order of substitution."""


def shift_and_log_scale(
    mu: Tensor, h: Tensor, max_log_scale: float | None, max_shift: float | None
) -> tuple[Tensor, Tensor]:
    """``bounded(mu, max_shift)``, and ``bounded(h, max_log_scale)`` or, without that bound, ``log sigmoid(h + 2)``."""
    log_scale = logsigmoid(h + SCALE_OFFSET) if max_log_scale is None else bounded(h, max_log_scale)
    return bounded(mu, max_shift), log_scale


@dataclass(frozen=True)
class MaskedNetwork:
    """The weights of a masked 3x3 -> 1x1 -> 3x3 network in the order of substitution, each matrix (in, out).

    In this order pixels run in reading order and channels ascend; for a network of the reverse order
    (``reverse=True``) everything is turned round, and so must be the images. Outputs are ``mu_0, h_0, mu_1, ...``.

    Attributes:
        first_before, first_own, first_bias: (K C, U), (C, U), (U,).
        second, second_bias: (U, U), (U,).
        last_before, last_own, last_bias: (K U, 2 C), (U, 2 C), (2 C,).
        first_units: for each channel the first hidden unit of its degree, then U; ascending, C + 1 numbers.
        max_log_scale, max_shift: bounds of ``s`` and ``t``, see :func:`shift_and_log_scale`.
        max_input: bound B of what the network sees, ``B tanh(x / B)``.
    """

    first_before: Tensor
    first_own: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    last_before: Tensor
    last_own: Tensor
    last_bias: Tensor
    first_units: tuple[int, ...]
    max_log_scale: float | None
    max_shift: float | None
    max_input: float | None
    reverse: bool

    @classmethod
    def from_filters(
        cls,
        layers: Sequence[tuple[Tensor, Tensor]],
        degrees: Sequence[int],
        max_log_scale: float | None,
        max_shift: float | None,
        max_input: float | None,
        *,
        reverse: bool,
    ) -> MaskedNetwork:
        """Sort masked filters and biases in torch's layout; ``degrees`` of the hidden units must ascend."""
        (first, first_bias), (second, second_bias), (last, last_bias) = layers
        num_channels = first.shape[1]
        if reverse:
            first, last = first.flip(1, 2, 3), last.flip(2, 3)
            # The channels turn round, but mu and h of one channel keep their places.
            last = last.unflatten(0, (num_channels, 2)).flip(0).flatten(0, 1)
            last_bias = last_bias.view(num_channels, 2).flip(0).flatten()

        def before(weight_OI33: Tensor) -> Tensor:
            return torch.cat([weight_OI33[:, :, 1 + i, 1 + j] for i, j in NEIGHBOURS], dim=1).T.contiguous()

        return cls(
            first_before=before(first),
            first_own=first[:, :, 1, 1].T.contiguous(),
            first_bias=first_bias,
            second=second[:, :, 0, 0].T.contiguous(),
            second_bias=second_bias,
            last_before=before(last),
            last_own=last[:, :, 1, 1].T.contiguous(),
            last_bias=last_bias,
            first_units=tuple(sum(degree < c for degree in degrees) for c in range(num_channels + 1)),
            max_log_scale=max_log_scale,
            max_shift=max_shift,
            max_input=max_input,
            reverse=reverse,
        )

    @property
    def num_channels(self) -> int:
        return len(self.first_own)


class MaskedSolver(ABC):
    """The inverse of ``z = x exp(s(x)) + t(x)``, prepared for one masked network and image size.

    ``solver(z)`` maps (B, C, H, W) to the (B, C, H, W) that the layer maps to ``z``. It keeps the weights that it was
    made from; keep it for longer than one call in a :class:`flows.layers.weight_cache.WeightCache`.

    Raises:
        InputError: the backend cannot be used on this device; weights in half precision; (call) ``z`` has another
            shape, type or device.
        NonFiniteError: (call) ``z`` holds NaN or infinity.
    """

    name: ClassVar[str]
    records_gradients: ClassVar[bool] = False

    def __init__(self, network: MaskedNetwork, image_size: tuple[int, int]) -> None:
        check_type(network.first_bias)
        self.network, self.image_size = network, image_size

    @final
    def __call__(self, z: Tensor) -> Tensor:
        like = self.network.first_bias
        check_latent(z, self.network.num_channels, self.image_size, like.dtype, like.device)
        if z.requires_grad and torch.is_grad_enabled() and not self.records_gradients:
            raise InputError(f"the {self.name} backend records no gradient: use backend torch, or torch.no_grad()")
        return self._solve(z) if len(z) else torch.empty_like(z)

    @abstractmethod
    def _solve(self, z: Tensor) -> Tensor:
        """Invert a batch of at least one image whose shape, type and device have been checked."""


@final
class TorchMaskedSolver(MaskedSolver):
    """Substitution in plain torch: any device, differentiable in ``z`` and in the weights.

    Cost: ``(W + 2 H - 2) C`` steps one after the other, of some ten small operations each.
    """

    name = "torch"
    records_gradients = True

    def _solve(self, z: Tensor) -> Tensor:
        check_finite(z)
        with full_precision(z.device):
            if self.network.reverse:
                return self._substitute(z.flip(1, 2, 3)).flip(1, 2, 3)
            return self._substitute(z)

    def _substitute(self, z: Tensor) -> Tensor:
        height, width = self.image_size
        no_x, no_hidden = z.new_zeros(len(z), z.shape[1]), z.new_zeros(len(z), len(self.network.second))
        x: dict[tuple[int, int], Tensor] = {}
        hidden: dict[tuple[int, int], Tensor] = {}
        for pixels in independent_pixels(height, width):
            around = [[(i + rows, j + columns) for rows, columns in NEIGHBOURS] for i, j in pixels]
            x_before = torch.cat([torch.cat([x.get(pixel, no_x) for pixel in four], dim=1) for four in around])
            hidden_before = torch.cat(
                [torch.cat([hidden.get(pixel, no_hidden) for pixel in four], dim=1) for four in around]
            )
            x_own, hidden_own = self._solve_pixels(
                torch.cat([z[:, :, i, j] for i, j in pixels]), x_before, hidden_before
            )
            x.update(zip(pixels, x_own.split(len(z)), strict=True))
            hidden.update(zip(pixels, hidden_own.split(len(z)), strict=True))
        return torch.stack([x[divmod(pixel, width)] for pixel in range(height * width)], dim=2).view(z.shape)

    def _solve_pixels(self, z_SC: Tensor, x_before: Tensor, hidden_before: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and the second layer's hidden units of independent pixels, (S B, C) and (S B, U)."""
        net = self.network
        first = net.first_bias + bounded(x_before, net.max_input) @ net.first_before
        second: Tensor = net.second_bias.expand_as(first)
        out = net.last_bias + hidden_before @ net.last_before
        x, hidden = [], []
        for c in range(net.num_channels):
            units = slice(net.first_units[c], net.first_units[c + 1])
            second = second + torch.relu(first[:, units]) @ net.second[units]
            hidden.append(torch.relu(second[:, units]))
            out = out + hidden[c] @ net.last_own[units]
            shift, log_scale = shift_and_log_scale(out[:, 2 * c], out[:, 2 * c + 1], net.max_log_scale, net.max_shift)
            x.append((z_SC[:, c] - shift) * torch.exp(-log_scale))
            first = first + bounded(x[c], net.max_input)[:, None] * net.first_own[c]
        return torch.stack(x, dim=1), torch.cat(hidden, dim=1)


def independent_pixels(height: int, width: int) -> Iterator[list[tuple[int, int]]]:
    """The pixels in an order of substitution, those together that have the same ``2 i + j``."""
    for front in range(width + 2 * height - 2):
        pixels = [(i, front - 2 * i) for i in range(height) if 0 <= front - 2 * i < width]
        if pixels:
            yield pixels


@final
class JacobiMaskedSolver(MaskedSolver):
    """Sweeps of the whole network over the whole image, ``x <- (z - t(x)) exp(-s(x))``, until ``x`` stays as it is.

    A number is right one sweep after those before it are, so there are at most ``(W + 2 H - 2) C`` sweeps, the number
    of steps of ``torch``. With bounded scales a few dozen are usual. See :func:`flows.solvers.jacobi.fixed_point` for
    the rule that stops them. Any device; records no gradients.

    Note:
        When to stop depends on the numbers, for which a GPU must wait at each sweep, so that no CUDA graph can capture
        this backend. It is never chosen by itself: on a CPU the ``compiled`` backend is faster, and on GPUs it has not
        been measured. An image of a network without bounds may overflow in a sweep and not in the end. Where the
        answer is not finite, ``torch`` substitutes instead.

    Cost: ``B H W (15 C U + U^2)`` multiplications a sweep, in some twenty operations.
    """

    name = "jacobi"

    @torch.no_grad()
    def _solve(self, z: Tensor) -> Tensor:
        check_finite(z)
        net, (height, width) = self.network, self.image_size
        offsets = [*NEIGHBOURS, (0, 0)]
        first, last = torch.cat([net.first_before, net.first_own]).T, torch.cat([net.last_before, net.last_own]).T
        first_bias, second_bias, last_bias = (
            bias[:, None] for bias in (net.first_bias, net.second_bias, net.last_bias)
        )
        z_CHWB = (z.flip(1, 2, 3) if net.reverse else z).permute(1, 2, 3, 0).contiguous()

        def sweep(x_CHWB: Tensor) -> Tensor:
            hidden = torch.relu(torch.addmm(first_bias, first, around(bounded(x_CHWB, net.max_input), offsets)))
            hidden = torch.relu(torch.addmm(second_bias, net.second.T, hidden))
            out = torch.addmm(last_bias, last, around(hidden.view(-1, height, width, len(z)), offsets)).view(
                -1, 2, height, width, len(z)
            )
            shift, log_scale = shift_and_log_scale(out[:, 0], out[:, 1], net.max_log_scale, net.max_shift)
            return (z_CHWB - shift) * torch.exp(-log_scale)

        with full_precision(z.device):
            x = fixed_point(sweep, z_CHWB, (width + 2 * height - 2) * net.num_channels).permute(3, 0, 1, 2)
        if not torch.isfinite(x).all():
            return TorchMaskedSolver(net, self.image_size)(z)
        return x.flip(1, 2, 3) if net.reverse else x.contiguous()


@final
class CompiledMaskedSolver(MaskedSolver):
    """Substitution in a C kernel, vectorised over hidden units, up to four pixels or images at a time.

    Uses as many threads as ``torch.get_num_threads()`` says, each with images of its own (one in a forked process), and
    releases the GIL. Records no gradients.

    Cost: about ``2 B H W (13.5 C U + U^2 / 2)`` operations. Memory: a map of hidden units for each image in work.
    """

    name = "compiled"

    def __init__(self, network: MaskedNetwork, image_size: tuple[int, int]) -> None:
        super().__init__(network, image_size)
        reason = why_not_compiled(network.first_bias.device)
        if reason is not None:
            raise InputError(f"the compiled backend cannot be used: {reason}")
        first, second, last = (
            torch.cat([bias[None], *weights]).detach().contiguous()
            for bias, weights in (
                (network.first_bias, [network.first_before, network.first_own]),
                (network.second_bias, [network.second]),
                (network.last_bias, [network.last_before, network.last_own]),
            )
        )
        self._plan = extension.MaskedPlan(
            first,
            second,
            last,
            network.first_units,
            network.max_log_scale or 0.0,
            network.max_shift or 0.0,
            network.max_input or 0.0,
            SCALE_OFFSET,
            network.reverse,
            *image_size,
            extension.instruction_sets()[-1],
        )

    def _solve(self, z: Tensor) -> Tensor:
        z = z.resolve_neg().contiguous()
        x = torch.empty_like(z)
        bad = self._plan.solve(z, x, num_threads())
        if bad >= 0:
            raise non_finite_image(bad)
        return x


BACKENDS: dict[str, type[MaskedSolver]] = {
    solver.name: solver for solver in (JacobiMaskedSolver, TorchMaskedSolver, CompiledMaskedSolver)
}


def choose_masked_backend(*tensors: Tensor) -> str:
    """``"torch"`` if autograd records one of these; else what serves convolutions best, if there is such a one here."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return TorchMaskedSolver.name
    name = choose_backend(tensors[0])
    return name if name in BACKENDS else TorchMaskedSolver.name


def find_masked_backend(name: str) -> type[MaskedSolver]:
    """The class of the backend of this name.

    Raises:
        InputError: there is none.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown solver backend {name!r} for masked networks: there are {', '.join(BACKENDS)}")
    return BACKENDS[name]
