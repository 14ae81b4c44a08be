"""The paper's baseline that mixes by a network: masked autoregressive flow over pixels and channels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flows.errors import InputError
from flows.kernels.convolution import Reading, convolve
from flows.layers.base import Layer, require_channels
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization
from flows.layers.networks import WEIGHT_STD
from flows.layers.weight_cache import WeightCache
from flows.numerics import (
    MAX_LOG_SCALE,
    MAX_MASKED_INPUT,
    MAX_MASKED_LOG_SCALE,
    MAX_SHIFT,
    bounded,
    per_image_sum,
    require_bound,
    run_network,
    shared_bound,
)
from flows.solvers.masked import (
    MaskedNetwork,
    MaskedSolver,
    choose_masked_backend,
    find_masked_backend,
    shift_and_log_scale,
)

Scaling = Literal["positive", "unit"]
"""Diagonals of a Jacobian that a network's scales make up. One that is free would pass through zero."""


def require_scaling(diagonal: str) -> None:
    """Refuse another diagonal.

    Raises:
        InputError: naming those that there are.
    """
    if diagonal not in get_args(Scaling):
        raise InputError(f"diagonal must be {' or '.join(get_args(Scaling))} where a network scales, not '{diagonal}'")


class MaskedConv2d(nn.Module):
    """A zero-padded k x k convolution whose outputs see earlier pixels, and of their own pixel what degrees allow.

    In the order of ``reverse=False`` earlier means before in reading order (left and above), otherwise after. At the
    pixel itself an output of degree ``d`` reads the inputs of degree at most ``d``.

    Args:
        in_degrees: degree of each input channel, ``(in,)``.
        out_degrees: degree of each output channel, ``(out,)``.
        kernel_size: 1 or 3.
        reverse: the pixels' order.
        std: standard deviation of the initial weights; the bias starts at zero.

    Shapes: ``(B, in, H, W) -> (B, out, H, W)``.

    Reference: Germain et al., *MADE*, equations 10 and 11, for the degrees.
    """

    weight_mask: Tensor

    def __init__(self, in_degrees: Tensor, out_degrees: Tensor, kernel_size: int, *, reverse: bool, std: float) -> None:
        super().__init__()
        centre = kernel_size // 2
        mask = torch.zeros(len(out_degrees), len(in_degrees), kernel_size, kernel_size)
        mask[:, :, :centre] = 1.0
        mask[:, :, centre, :centre] = 1.0
        if reverse:
            mask = mask.flip(2, 3)
        mask[:, :, centre, centre] = (out_degrees[:, None] >= in_degrees).to(mask.dtype)
        self.register_buffer("weight_mask", mask)
        self.weight = nn.Parameter(std * torch.randn_like(mask) * mask)
        self.bias = nn.Parameter(torch.zeros(len(out_degrees)))
        # The rows of taps that the mask leaves nothing of are cut away together with the padding they would read.
        self._rows = slice(centre, None) if reverse else slice(None, centre + 1)
        self._reading = Reading((centre, centre, *((0, centre) if reverse else (centre, 0))))

    def filter(self) -> Tensor:
        """The masked filter, ``(out, in, k, k)``."""
        return self.weight * self.weight_mask

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.filter()[:, :, self._rows], self._reading, added=self.bias)


class MaskedAutoregressiveTransform(Layer):
    """Scales and shifts every number by amounts that a masked network reads off all the numbers before it.

    The order: pixels in reading order and, within a pixel, channels ascending; ``reverse=True`` takes exactly the
    reverse of it. Map: ``z = x exp(s) + t`` with ``s = m tanh(h / m)``, ``m = max_log_scale min(1, 8 / num_steps)``
    and ``t = M tanh(mu / M)``. Here ``mu`` and ``h`` are the even and odd outputs of a masked 3x3 -> 1x1 -> 3x3
    convolutional network with ReLU between, applied to ``B tanh(x / B)``. At any number they depend on earlier ones
    only, so that the Jacobian is triangular. Log-det: ``sum s``. Inverse: substitution, number by number
    (:mod:`flows.solvers.masked`).

    Bounds: at fixed earlier numbers, map and inverse both have the Lipschitz constant ``exp(m)`` at most. The inverse
    of any latent is bounded too: ``|x| <= (|z| + M) exp(m)`` at every number, whatever the network answers.

    All taps at earlier pixels are whole matrices. For the pixel's own channels each hidden unit has a degree ``d``, as
    in MADE: it sees the first ``d`` channels in the order, and serves channel ``d`` and later ones. The degrees are
    spread evenly and ascend: unit ``u`` of ``U`` has ``d = floor(u C / U)``, from 0 (earlier pixels only) to C - 1.

    The last convolution starts at zero, so the layer starts as the identity, or without m as a scaling by 0.88.

    Args:
        num_channels: C, at least 1.
        hidden_channels: U, at least 1; below C some channels share what the network says of their own pixel.
        reverse: take the reverse order.
        diagonal: of the Jacobian: ``"positive"``, or ``"unit"`` for ``s = 0``, so that the log-det is 0.
        solver: ``"compiled"``, ``"torch"`` or ``"jacobi"`` for the inverse; ``None`` chooses by device.
        max_log_scale: m in a level of at most 8 steps, positive, in nats; ``None`` takes the paper's scale,
            ``s = log sigmoid(h + 2)``, which has no lower bound.
        num_steps: D, the number of steps in the layer's level, which :class:`flows.Flow` fills in.
        max_shift: M, positive; ``None`` for a shift without a bound, as in the paper.
        max_input: B, positive; ``None`` for a network that sees ``x`` itself, as in the paper.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: C or ``hidden_channels`` below 1, an unknown diagonal or solver, or a bound that is not positive.

    Cost: ``18 C U + U^2`` multiplications per pixel forward; about ``13.5 C U + U^2 / 2`` in the inverse, which leaves
    out what is masked but takes ``(W + 2 H - 2) C`` steps one after the other.

    Reference: Papamakarios et al., *Masked Autoregressive Flow*, section 3.1; Kingma et al., *Inverse Autoregressive
    Flow*, for convolutional masks and the sigmoid; section 5 of the paper. Behrmann et al., *Understanding and
    Mitigating Exploding Inverses in Invertible Neural Networks*, AISTATS 2021, for why scales are bounded.

    Note:
        The paper's form has neither bound: ``z = x sigmoid(h + 2) + mu``. Its inverse divides by a number that may be
        as close to zero as the network likes. Each number that is solved feeds those after it, so a large one makes
        the next larger still. A recursion over all numbers of an image may thus overflow.

        With networks in half precision (:mod:`flows.numerics`) the map is rounded and its inverse is not: substitution
        always computes in the parameters' own type.

    Example:
        >>> import torch
        >>> from flows.layers import MaskedAutoregressiveTransform
        >>> layer, x = MaskedAutoregressiveTransform(3, hidden_channels=6), torch.randn(2, 3, 4, 4)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.equal(z, x), torch.equal(layer.inverse(z), x)  # it starts as the identity
        (True, True)
    """

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 96,
        *,
        reverse: bool = False,
        diagonal: Scaling = "positive",
        solver: str | None = None,
        max_log_scale: float | None = MAX_MASKED_LOG_SCALE,
        num_steps: int = 1,
        max_shift: float | None = MAX_SHIFT,
        max_input: float | None = MAX_MASKED_INPUT,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        require_scaling(diagonal)
        require_bound("max_log_scale", max_log_scale)
        require_bound("max_shift", max_shift)
        require_bound("max_input", max_input)
        if hidden_channels < 1:
            raise InputError(f"hidden_channels must be at least 1, not {hidden_channels}")
        if solver is not None:
            find_masked_backend(solver)
        self.reverse, self.diagonal, self.solver = reverse, diagonal, solver
        self.max_log_scale = shared_bound(max_log_scale, num_steps)
        self.max_shift, self.max_input = max_shift, max_input
        position = torch.arange(num_channels)
        if reverse:
            position = position.flip(0)
        # A number is no part of what predicts it, hence the 1 between a channel as an input and as an output.
        into, within = position + 1, torch.arange(hidden_channels) * num_channels // hidden_channels
        out = position.repeat_interleave(2) if diagonal == "positive" else position
        self.first = MaskedConv2d(into, within, 3, reverse=reverse, std=WEIGHT_STD)
        self.second = MaskedConv2d(within, within, 1, reverse=reverse, std=WEIGHT_STD)
        self.last = MaskedConv2d(within, out, 3, reverse=reverse, std=0.0)
        self._degrees = within
        self._solver: WeightCache[MaskedSolver] = WeightCache()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = run_network(self._network, bounded(x, self.max_input))
        if self.diagonal == "unit":
            return x + bounded(outputs, self.max_shift), x.new_zeros(
                len(x), dtype=torch.promote_types(x.dtype, torch.float32)
            )
        shift, log_scale = shift_and_log_scale(outputs[:, 0::2], outputs[:, 1::2], self.max_log_scale, self.max_shift)
        return x * torch.exp(log_scale) + shift, per_image_sum(log_scale)

    def _network(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    def inverse(self, z: Tensor) -> Tensor:
        parameters, image_size = list(self.parameters()), (z.shape[2], z.shape[3])
        backend = self.solver or choose_masked_backend(z, *parameters)
        solver = self._solver.get(
            lambda: self._make_solver(backend, image_size), *parameters, key=(image_size, backend)
        )
        return solver(z)

    def _make_solver(self, backend: str, image_size: tuple[int, int]) -> MaskedSolver:
        layers: list[tuple[Tensor, Tensor]] = [
            (layer.filter(), layer.bias) for layer in (self.first, self.second, self.last)
        ]
        max_log_scale = self.max_log_scale
        if self.diagonal == "unit":  # h = 0 between the outputs, and a bound to go with it, so that exp(s) is 1
            weight, bias = (torch.stack([part, 0 * part], dim=1).flatten(0, 1) for part in layers[2])
            layers[2], max_log_scale = (weight, bias), MAX_LOG_SCALE
        network = MaskedNetwork.from_filters(
            layers,
            self._degrees.tolist(),
            max_log_scale,
            self.max_shift,
            self.max_input,
            reverse=self.reverse,
        )
        return find_masked_backend(backend)(network, image_size)


class MaskedAutoregressiveFlow(Composite):
    """A 1x1 convolution, then two masked autoregressive layers of opposite order: the paper's MAF baseline.

    Map: ``z = a2(a1(W x))`` with two :class:`MaskedAutoregressiveTransform`, the second in the reverse order of the
    first, so that together every number may depend on every other. Log-det: the sum of the three,
    ``H W log |det W| + sum s1 + sum s2``. Inverse: ``a2``, ``a1``, then ``W^-1``.

    Args:
        num_channels: C, at least 1.
        hidden_channels: of each masked network, at least 1.
        parametrization: of the 1x1, see :class:`Conv1x1`.
        diagonal: see :class:`MaskedAutoregressiveTransform`.
        solver: ``"compiled"``, ``"torch"`` or ``"jacobi"`` for the inverse; ``None`` chooses by device.
        max_log_scale, num_steps, max_shift, max_input: see :class:`MaskedAutoregressiveTransform`; bounds of ``None``
            give the paper's layer.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: C or ``hidden_channels`` below 1, an unknown parametrisation, diagonal or solver, a bound that is
            not positive.

    Cost: twice that of :class:`MaskedAutoregressiveTransform`; its inverse is sequential over pixels and channels.

    Reference: section 5 of the paper, tables 3 and 5; Papamakarios et al., *Masked Autoregressive Flow*.

    Note:
        The paper does not say how it masks within a pixel; :class:`MaskedAutoregressiveTransform` describes the choice.
        In the released code hidden unit j of the second layer sees the units up to j. The outputs of channel c see the
        first half of that channel's group of units. Its order of pixels is mirrored. The paper's scales and shifts have
        no bounds, so that its samples may overflow.

    Example:
        >>> import torch
        >>> from flows.layers import MaskedAutoregressiveFlow
        >>> layer, x = MaskedAutoregressiveFlow(3, hidden_channels=6), torch.randn(2, 3, 4, 4)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 96,
        *,
        parametrization: Parametrization = "plain",
        diagonal: Scaling = "positive",
        solver: str | None = None,
        max_log_scale: float | None = MAX_MASKED_LOG_SCALE,
        num_steps: int = 1,
        max_shift: float | None = MAX_SHIFT,
        max_input: float | None = MAX_MASKED_INPUT,
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(num_channels, parametrization)
        make = partial(
            MaskedAutoregressiveTransform,
            num_channels,
            hidden_channels,
            diagonal=diagonal,
            solver=solver,
            max_log_scale=max_log_scale,
            num_steps=num_steps,
            max_shift=max_shift,
            max_input=max_input,
        )
        self.forward_order, self.reverse_order = make(), make(reverse=True)

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, self.forward_order, self.reverse_order
