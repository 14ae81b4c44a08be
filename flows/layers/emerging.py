"""The paper's first layer: an invertible convolution that emerges from two triangular ones."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor
from torch.nn.functional import conv2d

from flows.layers.autoregressive import AutoregressiveConv2d, Diagonal
from flows.layers.base import Layer
from flows.layers.composite import Composite
from flows.layers.conv1x1 import Conv1x1, Parametrization
from flows.layers.masks import MaskShape


class EmergingConv2d(Composite):
    """An invertible k x k convolution: a 1x1, then two autoregressive convolutions of opposite order.

    Map: ``z = w2 * (w1 * (W x)) + bias``, where ``w1`` reads the pixel and its right and lower neighbours with a lower
    triangular centre tap, ``w2`` left and above with an upper triangular one. With square masks the composed
    receptive field is exactly k x k. Log-det: ``H W (log |det W| + sum_c log |w1_cc| + sum_c log |w2_cc|)``.
    Inverse: ``w2`` first, then ``w1``, by substitution, then ``W^-1``.

    Args:
        num_channels: C, at least 1.
        kernel_size: k, odd.
        dilation: distance between taps in pixels, at least 1.
        mask: ``"square"``, or ``"raster"`` for the wider receptive field of figure 5's top row.
        diagonal: of both centre taps, see :class:`AutoregressiveConv2d`.
        parametrization: of the 1x1, see :class:`Conv1x1`.
        num_reflections: of the 1x1 in ``qr`` form, see :class:`Conv1x1`.
        solver: name of the backend for the inverse (see :mod:`flows.solvers`); ``None`` chooses by device and shape.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``, any H and W.

    Raises:
        InputError: an even kernel, a dilation below 1, an unknown mask, parametrisation or solver.

    Cost: ``C^2 (1 + 2 ((k+1)/2)^2)`` multiplications per pixel with square masks; about as much for the inverse.

    Reference: section 3.1 of the paper, figures 1 and 5.

    Note:
        The released code can also run the layer as one convolution with the composed filter (:meth:`composed_filter`).
        Near the zero-padded border that is a different map, whose inverse is not this substitution. Here the two
        convolutions are the definition.

    Example:
        >>> import torch
        >>> from flows.layers import EmergingConv2d
        >>> layer, x = EmergingConv2d(12, kernel_size=3), torch.randn(8, 12, 16, 16)
        >>> with torch.no_grad():
        ...     z, log_det = layer(x)  # log_det in nats, one number per image
        ...     torch.allclose(layer.inverse(z), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        *,
        mask: MaskShape = "square",
        diagonal: Diagonal = "free",
        parametrization: Parametrization = "plain",
        num_reflections: int | None = None,
        solver: str | None = None,
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv1x1(num_channels, parametrization, num_reflections)
        one = partial(
            AutoregressiveConv2d, num_channels, kernel_size, dilation, mask=mask, diagonal=diagonal, solver=solver
        )
        self.lower, self.upper = one(direction="lower", bias=False), one(direction="upper")

    def parts(self) -> Iterable[Layer]:
        return self.conv1x1, self.lower, self.upper

    def composed_filter(self) -> Tensor:
        """The one filter that does what the layer does away from the border, ``(C, C, 2k-1, 2k-1)``.

        ``conv2d(x, composed_filter(), bias, dilation=dilation)`` equals the layer at every pixel whose receptive
        field lies inside the image. With square masks only the middle k x k taps differ from zero.
        """
        lower, upper = self.lower.filter(), self.upper.filter()
        reach = lower.shape[-1] - 1
        composed = conv2d(lower.transpose(0, 1), upper.flip(2, 3), padding=reach).transpose(0, 1)
        return (composed.permute(0, 2, 3, 1) @ self.conv1x1.weight.matrix()).permute(0, 3, 1, 2)
