"""A convolution whose matrix is triangular."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flows.errors import InputError
from flows.kernels.convolution import Reading
from flows.layers.base import NOISE_STD, Layer, require_channels
from flows.layers.mapped_convolution import TriangularFilter, convolve_mapped
from flows.layers.masks import Direction, MaskShape, autoregressive_mask
from flows.layers.pixelwise import PixelMap
from flows.layers.weight_cache import WeightCache
from flows.solvers import (
    AutoregressiveConvSolver,
    choose_backend,
    find_backend,
    prepare_autoregressive_conv,
    solve_autoregressive_conv,
)

Diagonal = Literal["free", "positive", "unit"]


class AutoregressiveConv2d(Layer):
    """A zero-padded convolution with a masked filter, so that its matrix is triangular in some order of the pixels.

    Map: ``z = w * x + bias`` (cross-correlation, zero padding), ``w`` masked as :func:`~flows.layers.masks.
    autoregressive_mask` draws it. For ``direction="lower"``, substitution solves pixels from the last to the first in
    reading order, and channels ascending; for ``"upper"``, the exact reverse. In that order the matrix is lower
    triangular, with the diagonal of the centre tap repeated at every pixel. Log-det: ``H W sum_c log |w_cc|`` with
    ``w_cc`` the diagonal of the centre tap. Inverse: substitution (:mod:`flows.solvers`).

    Starts as the identity plus noise of standard deviation 0.02.

    Attributes:
        weight: the taps that the mask leaves entries of, (k + 1) / 2 rows of them, and as many columns with a square
            mask; :meth:`filter` gives all. ``weight_mask`` has the same shape.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.
        dilation: distance between taps in pixels, at least 1.
        direction: ``"lower"`` reads the pixel and those right and below, ``"upper"`` left and above.
        mask: ``"square"`` reads ``((k+1)/2)^2`` taps, ``"raster"`` all that come later (earlier) in reading order.
        diagonal: of the centre tap: ``"free"``, which may change its sign only through zero; ``"positive"``, the
            exponential of what is learned, which cannot; or ``"unit"``, ones, so that the log-det is 0.
        groups: the channels are in this number of groups, which do not see each other.
        bias: learn an additive constant per channel.
        solver: name of the backend for the inverse (see :mod:`flows.solvers`); ``None`` chooses by device and shape.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: an even kernel, a dilation below 1, groups that do not divide C, an unknown direction, mask,
            diagonal or solver.
        NonFiniteError: from ``inverse``, if an entry of the diagonal is zero.

    Cost: forward, ``C^2`` multiplications per pixel and tap that exists; inverse, see the solver.

    Reference: sections 2.3 and 3.1 of the paper, figure 4.

    Example:
        >>> import torch
        >>> from flows.layers import AutoregressiveConv2d
        >>> layer, x = AutoregressiveConv2d(4, kernel_size=3, direction="lower"), torch.randn(2, 4, 6, 5)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)
        ...     torch.allclose(layer.inverse(z), x, atol=1e-5)
        True
    """

    is_affine = absorbs_pixel_maps = True
    weight_mask: Tensor

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        *,
        direction: Direction = "lower",
        mask: MaskShape = "square",
        diagonal: Diagonal = "free",
        groups: int = 1,
        bias: bool = True,
        solver: str | None = None,
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        if dilation < 1:
            raise InputError(f"dilation must be at least 1, not {dilation}")
        if solver is not None:
            find_backend(solver)
        if diagonal not in get_args(Diagonal):
            raise InputError(f"diagonal must be {', '.join(get_args(Diagonal))}, not '{diagonal}'")
        if groups < 1 or num_channels % groups:
            raise InputError(f"groups must divide the number of channels ({num_channels}), unlike {groups}")
        mask_of_filter = autoregressive_mask(num_channels, kernel_size, direction, mask)
        group = torch.arange(num_channels) * groups // num_channels
        mask_of_filter *= (group[:, None] == group)[:, :, None, None]
        weight = NOISE_STD * torch.randn_like(mask_of_filter) * mask_of_filter

        # The filter keeps the rows and columns of taps from the centre on (up to it): the mask zeroes all others.
        is_lower, is_square = direction == "lower", mask == "square"
        centre, reach = kernel_size // 2, kernel_size // 2 * dilation
        one_sided = slice(centre, None) if is_lower else slice(centre + 1)
        taps = slice(None), slice(None), one_sided, one_sided if is_square else slice(None)
        first = 0 if is_lower else centre
        self._centre = first, first if is_square else centre
        missing, read = ((centre, 0), (0, reach)) if is_lower else ((0, centre), (reach, 0))
        self._missing = *(missing if is_square else (0, 0)), *missing
        self._reading = Reading((*(read if is_square else (reach, reach)), *read), dilation)
        self.register_buffer("weight_mask", mask_of_filter[taps].contiguous())
        self.weight = nn.Parameter(weight[taps].contiguous())
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None
        self.direction, self.dilation, self.diagonal, self.solver = direction, dilation, diagonal, solver
        self._prepared: WeightCache[AutoregressiveConvSolver] = WeightCache()
        with torch.no_grad():
            if diagonal == "free":
                self.weight[:, :, *self._centre] += torch.eye(num_channels)
            if diagonal == "unit":  # nothing to learn there
                self.weight_mask[:, :, *self._centre].fill_diagonal_(0.0)
                self.weight.mul_(self.weight_mask)

    def filter(self) -> Tensor:
        """The masked filter, ``(C, C, k, k)``."""
        taps, _ = self._filter().taps()
        return pad(taps, self._missing)

    def _filter(self) -> TriangularFilter:
        return TriangularFilter(self.weight, self.weight_mask, self._centre, self.diagonal != "free")

    def forward(self, x: Tensor, before: PixelMap | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = convolve_mapped(x, before, self._filter(), self.bias, self._reading)
        assert log_det is not None
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        if self.bias is not None:
            z = z - self.bias[:, None, None]
        backend = self.solver or choose_backend(self.weight)
        if torch.is_grad_enabled() and (z.requires_grad or self.weight.requires_grad):
            return solve_autoregressive_conv(
                z, self.filter(), direction=self.direction, dilation=self.dilation, backend=backend
            )
        image_size = (z.shape[2], z.shape[3])
        prepare = partial(
            prepare_autoregressive_conv, direction=self.direction, image_size=image_size, dilation=self.dilation
        )
        solver = self._prepared.get(
            lambda: prepare(self.filter(), backend=backend), self.weight, key=(image_size, backend)
        )
        return solver(z)

    @property
    def inverse_is_capturable(self) -> bool:  # type: ignore[override]
        return (self.solver or choose_backend(self.weight)) == "cuda"
