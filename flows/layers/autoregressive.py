"""A convolution whose matrix is triangular."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flows.errors import InputError
from flows.kernels.convolution import convolve
from flows.layers.base import NOISE_STD, Layer, require_channels
from flows.layers.masks import Direction, MaskShape, autoregressive_mask
from flows.layers.pixelwise import PixelMap, added_by_taps
from flows.layers.weight_cache import WeightCache
from flows.numerics import same_for_every_image
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
        group = torch.arange(num_channels) * groups // num_channels
        seen = (group[:, None] == group)[:, :, None, None]
        self.register_buffer("weight_mask", autoregressive_mask(num_channels, kernel_size, direction, mask) * seen)
        self.weight = nn.Parameter(NOISE_STD * torch.randn_like(self.weight_mask) * self.weight_mask)
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None
        self.direction, self.dilation, self.diagonal, self.solver = direction, dilation, diagonal, solver
        self._prepared: WeightCache[AutoregressiveConvSolver] = WeightCache()

        centre = self.centre = kernel_size // 2
        with torch.no_grad():
            if diagonal == "free":
                self.weight[:, :, centre, centre] += torch.eye(num_channels)
            if diagonal == "unit":  # nothing to learn there
                self.weight_mask[:, :, centre, centre].fill_diagonal_(0.0)
                self.weight.mul_(self.weight_mask)
        # Taps that the mask leaves no entry of are cut away together with the padding that they would read.
        after, before = slice(centre, None), slice(None, centre + 1)
        one_sided, whole, reach = (after if direction == "lower" else before), slice(None), centre * dilation
        self._rows, self._columns = one_sided, (one_sided if mask == "square" else whole)
        top_and_bottom = (0, reach) if direction == "lower" else (reach, 0)
        self._padding = [*(top_and_bottom if mask == "square" else (reach, reach)), *top_and_bottom]

    def filter(self) -> Tensor:
        """The masked filter, ``(C, C, k, k)``."""
        weight = self.weight * self.weight_mask
        if self.diagonal == "free":
            return weight
        difference = torch.diag_embed(self.scale() - weight[:, :, self.centre, self.centre].diagonal())
        return weight + pad(difference[:, :, None, None], [self.centre] * 4)

    def scale(self) -> Tensor:
        """The diagonal of the centre tap, ``(C,)``."""
        learned = self.weight[:, :, self.centre, self.centre].diagonal()
        if self.diagonal == "unit":
            return torch.ones_like(learned)
        return learned.exp() if self.diagonal == "positive" else learned

    def forward(self, x: Tensor, before: PixelMap | None = None) -> tuple[Tensor, Tensor]:
        taps = self.filter()[:, :, self._rows, self._columns]
        added: Tensor | None = self.bias
        if before is not None:
            taps, of_shift = before.folded_into(taps)
            if of_shift is not None:
                image_size, kernel_size = (x.shape[2], x.shape[3]), (taps.shape[2], taps.shape[3])
                added = added_by_taps(
                    of_shift, added, kernel_size, image_size, self._padding, self.dilation, reading="image"
                )
        z = convolve(x, taps, self._padding, self.dilation, added=added)
        log_det = x.shape[2] * x.shape[3] * self.scale().abs().log().sum()
        return z, same_for_every_image(log_det, x)

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
