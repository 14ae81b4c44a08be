"""Mixing by networks that see whole rows at once: the masked convolutional flow of MaCow."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear, pad

from flows.errors import InputError
from flows.kernels.convolution import Reading, convolve
from flows.layers.base import Layer, require_channels, require_odd_kernel
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization
from flows.layers.maf import Scaling, require_scaling
from flows.layers.networks import WEIGHT_STD
from flows.numerics import (
    MAX_MASKED_INPUT,
    MAX_MASKED_LOG_SCALE,
    MAX_SHIFT,
    bounded,
    full_precision,
    per_image_sum,
    require_bound,
    run_network,
    shared_bound,
)
from flows.solvers.masked import shift_and_log_scale

Side = Literal["above", "below", "left", "right"]


class MaskedConvTransform(Layer):
    """Scales and shifts every row by amounts that a network reads off the rows before it.

    Map: ``z = x exp(s) + t`` with ``s = m tanh(h / m)``, ``m = max_log_scale min(1, 8 / num_steps)`` and
    ``t = M tanh(mu / M)``. Here ``mu`` and ``h`` are the outputs of a convolution, ELU and a 1x1 convolution, applied
    to ``B tanh(x / B)``. The first convolution reads ``kernel_height`` rows above its own row and ``kernel_width``
    columns around its own column, so that ``mu`` and ``h`` depend on earlier rows only. Log-det: ``sum s``. Inverse:
    row by row, all columns and channels of a row at once, ``x = (z - t) exp(-s)``.

    ``side`` says where the rows before lie. From ``"left"`` and ``"right"``, columns take the place of rows.

    Bounds: at fixed earlier rows, map and inverse both have the Lipschitz constant ``exp(m)`` at most, and
    ``|x| <= (|z| + M) exp(m)`` at every number of every latent's image, whatever the network answers.

    The 1x1 convolution starts at zero, so the layer starts as the identity, or without m as a scaling by 0.88.

    Args:
        num_channels: C, at least 1.
        hidden_channels: U, at least 1.
        kernel_height: number of rows that are read, at least 1.
        kernel_width: number of columns that are read, odd.
        side: ``"above"``, ``"below"``, ``"left"`` or ``"right"``.
        diagonal: of the Jacobian: ``"positive"``, or ``"unit"`` for ``s = 0``, so that the log-det is 0.
        max_log_scale: m in a level of at most 8 steps, positive, in nats; ``None`` takes the authors' scale,
            ``s = log sigmoid(h + 2)``, which has no lower bound.
        num_steps: D, the number of steps in the layer's level, which :class:`flows.Flow` fills in.
        max_shift: M, positive; ``None`` for no bound.
        max_input: B, positive; ``None`` for a network that sees ``x`` itself.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: C, ``hidden_channels`` or ``kernel_height`` below 1, an even ``kernel_width``, an unknown side or
            diagonal, a bound that is not positive.

    Cost: ``C U kernel_height kernel_width + 2 C U`` multiplications per pixel, forward and inverse. The inverse takes H
    steps one after the other (W from the left and right), of some ten operations each.

    Reference: Ma et al., *MaCow: Masked Convolutional Generative Flow*, NeurIPS 2019, section 3.1.

    Note:
        With networks in half precision (:mod:`flows.numerics`) the map is rounded and its inverse is not.
    """

    inverse_is_capturable = True

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 96,
        kernel_height: int = 2,
        kernel_width: int = 3,
        *,
        side: Side = "above",
        diagonal: Scaling = "positive",
        max_log_scale: float | None = MAX_MASKED_LOG_SCALE,
        num_steps: int = 1,
        max_shift: float | None = MAX_SHIFT,
        max_input: float | None = MAX_MASKED_INPUT,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        require_odd_kernel(kernel_width)
        require_scaling(diagonal)
        require_bound("max_log_scale", max_log_scale)
        require_bound("max_shift", max_shift)
        require_bound("max_input", max_input)
        if hidden_channels < 1 or kernel_height < 1:
            raise InputError(
                f"hidden_channels ({hidden_channels}) and kernel_height ({kernel_height}) must be at least 1"
            )
        if side not in get_args(Side):
            raise InputError(f"side must be {', '.join(get_args(Side))}, not '{side}'")
        self.side, self.diagonal, self.kernel_height = side, diagonal, kernel_height
        self.max_log_scale = shared_bound(max_log_scale, num_steps)
        self.max_shift, self.max_input = max_shift, max_input
        self._margin = kernel_width // 2
        self.first = nn.Conv2d(num_channels, hidden_channels, (kernel_height, kernel_width))
        self.last = nn.Conv2d(hidden_channels, num_channels * (2 if diagonal == "positive" else 1), 1)
        nn.init.normal_(self.first.weight, std=WEIGHT_STD)
        for start_at_zero in (self.first.bias, self.last.weight, self.last.bias):
            nn.init.zeros_(start_at_zero)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._turn(x)
        outputs = run_network(self._network, pad(bounded(x[:, :, :-1], self.max_input), [0, 0, 1, 0]))
        shift, log_scale = self._shift_and_log_scale(outputs, dim=1)
        return self._turn_back(x * torch.exp(log_scale) + shift), per_image_sum(log_scale)

    def _network(self, before: Tensor) -> Tensor:
        """The outputs at each row, from the row before it."""
        reading = Reading((self._margin, self._margin, self.kernel_height - 1, 0))
        hidden = elu(convolve(before, self.first.weight, reading, added=self.first.bias))
        pixels = linear(hidden.permute(0, 2, 3, 1).flatten(0, 2), self.last.weight[:, :, 0, 0], self.last.bias)
        return pixels.unflatten(0, (len(hidden), *hidden.shape[2:])).permute(0, 3, 1, 2)

    def inverse(self, z: Tensor) -> Tensor:
        # Channels last, so that a row of all images takes one product, and no convolution that is set up anew.
        z_HBWC = self._turn(z).permute(2, 0, 3, 1)
        first, last = self.first.weight.permute(0, 2, 3, 1).flatten(1), self.last.weight[:, :, 0, 0]
        x, seen = [], self._columns(torch.zeros_like(z_HBWC[0])) * self.kernel_height
        with full_precision(z.device):
            for z_BWC in z_HBWC:
                hidden = elu(linear(torch.cat(seen, dim=2), first, self.first.bias))
                shift, log_scale = self._shift_and_log_scale(linear(hidden, last, self.last.bias), dim=2)
                x.append((z_BWC - shift) * torch.exp(-log_scale))
                newest = self._columns(bounded(x[-1], self.max_input))
                seen = seen[len(newest) :] + newest
        return self._turn_back(torch.stack(x).permute(1, 3, 0, 2))

    def _columns(self, row_BWC: Tensor) -> list[Tensor]:
        """What each column sees of a row, tap by tap."""
        width, padded = row_BWC.shape[1], pad(row_BWC, [0, 0, self._margin, self._margin])
        return [padded[:, tap : tap + width] for tap in range(self.first.kernel_size[1])]

    def _shift_and_log_scale(self, outputs: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Of the network's outputs, whose channels are in dimension ``dim``."""
        if self.diagonal == "unit":
            return bounded(outputs, self.max_shift), torch.zeros_like(outputs)
        mu, h = outputs.chunk(2, dim=dim)
        return shift_and_log_scale(mu, h, self.max_log_scale, self.max_shift)

    def _turn(self, x: Tensor) -> Tensor:
        """The image with what is read first on top."""
        x = x.transpose(2, 3) if self.side in ("left", "right") else x
        return x.flip(2) if self.side in ("below", "right") else x

    def _turn_back(self, x: Tensor) -> Tensor:
        x = x.flip(2) if self.side in ("below", "right") else x
        return x.transpose(2, 3) if self.side in ("left", "right") else x


class MaCow(Composite):
    """A 1x1 convolution, then masked convolutional flows from above, below, left and right: a MaCow unit.

    Map: ``z = a4(a3(a2(a1(W x))))`` with four :class:`MaskedConvTransform`. Log-det: the sum of the five,
    ``H W log |det W| + sum_i sum s_i``. Inverse: from the last to the first, each row by row.

    Args:
        num_channels: C, at least 1.
        hidden_channels: of each network, at least 1.
        kernel_height: number of rows (columns) that a network reads, at least 1.
        kernel_width: number of columns (rows) across, odd.
        parametrization: of the 1x1, see :class:`Conv1x1`.
        diagonal, max_log_scale, num_steps, max_shift, max_input: see :class:`MaskedConvTransform`.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: as :class:`MaskedConvTransform` and :class:`Conv1x1` do.

    Cost: four times that of :class:`MaskedConvTransform`; the inverse takes ``2 (H + W)`` steps one after the other,
    where :class:`MaskedAutoregressiveFlow` takes ``2 C (2 H + W - 2)``.

    Reference: Ma et al., *MaCow: Masked Convolutional Generative Flow*, NeurIPS 2019, sections 3.1 and 3.2.

    Note:
        The authors normalise weights, and activations before the first and the third flow. One of their steps has two
        units, then a 1x1 and a coupling. Their number of hidden units grows with the number of channels, and their
        scale is ``sigmoid(h + 2)``. Here the step's actnorm stands in front, the 1x1 comes first as in the emerging
        convolution, and scales are bounded, so that the layers can be compared.

    Example:
        >>> import torch
        >>> from flows.layers import MaCow
        >>> layer, x = MaCow(4, hidden_channels=8), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        num_channels: int,
        hidden_channels: int = 96,
        kernel_height: int = 2,
        kernel_width: int = 3,
        *,
        parametrization: Parametrization = "plain",
        diagonal: Scaling = "positive",
        max_log_scale: float | None = MAX_MASKED_LOG_SCALE,
        num_steps: int = 1,
        max_shift: float | None = MAX_SHIFT,
        max_input: float | None = MAX_MASKED_INPUT,
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(num_channels, parametrization)
        make = partial(
            MaskedConvTransform,
            num_channels,
            hidden_channels,
            kernel_height,
            kernel_width,
            diagonal=diagonal,
            max_log_scale=max_log_scale,
            num_steps=num_steps,
            max_shift=max_shift,
            max_input=max_input,
        )
        self.transforms = nn.ModuleList(make(side=side) for side in get_args(Side))

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, *self.transforms
