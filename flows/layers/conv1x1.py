"""Glow's invertible 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from flows.errors import InputError
from flows.layers.base import require_channels
from flows.layers.matrices import InvertibleMatrix, PlainMatrix, PLUMatrix, QRMatrix
from flows.layers.pixelwise import PixelMap, PixelwiseLayer
from flows.layers.weight_cache import WeightCache

Parametrization = Literal["plain", "plu", "qr"] | Callable[[int], InvertibleMatrix]
"""A name, or what makes the matrix from the number of channels, such as ``OrthogonalMatrix``."""


class Conv1x1(PixelwiseLayer):
    """Multiplies the channels of every pixel by one invertible matrix.

    Map: ``z[:, :, i, j] = W x[:, :, i, j]``. Log-det: ``H W log |det W|``. Inverse: the same with ``W^-1``, which is
    computed in float64 once per set of weights.

    Args:
        num_channels: C, at least 1.
        parametrization: how ``W`` is written; each starts as a random orthogonal matrix.

            * ``plain``: ``W`` itself (:class:`~flows.layers.matrices.PlainMatrix`);
            * ``plu``: ``P L (U + diag s)`` (:class:`~flows.layers.matrices.PLUMatrix`);
            * ``qr``: ``Q (R + diag s)`` (:class:`~flows.layers.matrices.QRMatrix`);
            * any other of :mod:`flows.layers.matrices`, as a factory: ``Conv1x1(12, ExpMatrix)``.
        num_reflections: for ``qr``, how many Householder reflections make ``Q``: 1 to C, default C.

    Shapes: ``(B, C, H, W) -> (B, C, H, W)``.

    Raises:
        InputError: an unknown parametrisation, ``num_reflections`` out of range or without ``qr``.
        NonFiniteError: from ``inverse``, if ``W`` is singular.

    Warns:
        IllConditionedWarning: once for each C, from ``inverse``, if fewer than about four digits can be right.

    Cost: ``C^2`` multiplications per pixel; log-det ``O(C^3)`` for ``plain``, ``O(C)`` for ``plu`` and ``qr``.

    Reference: Kingma & Dhariwal, *Glow*, section 3.2; section 4.3 of the paper for QR.

    Example:
        >>> import torch
        >>> from flows.layers import Conv1x1
        >>> layer, x = Conv1x1(12, "qr", num_reflections=4), torch.randn(2, 12, 8, 8)
        >>> z, log_det = layer(x)
        >>> bool(log_det.abs().max() < 1e-3)  # it starts as a rotation
        True
    """

    is_affine = is_pixelwise = True
    inverse_is_capturable = True

    def __init__(
        self, num_channels: int, parametrization: Parametrization = "plain", num_reflections: int | None = None
    ) -> None:
        super().__init__()
        require_channels(num_channels)
        self.weight = _matrix(num_channels, parametrization, num_reflections)
        self._inverse_matrix: WeightCache[Tensor] = WeightCache()
        self._log_abs_det: WeightCache[Tensor] = WeightCache()

    def pixel_map(self) -> PixelMap:
        return PixelMap(self.weight.matrix())

    def log_abs_det(self) -> Tensor:
        return self._log_abs_det.get(self.weight.log_abs_det, *self.weight.tensors())

    def inverse(self, z: Tensor) -> Tensor:
        inverse_matrix = self._inverse_matrix.get(self.weight.inverse_matrix, *self.weight.tensors())
        return PixelMap(inverse_matrix)(z)


def _matrix(num_channels: int, parametrization: Parametrization, num_reflections: int | None) -> InvertibleMatrix:
    if parametrization == "qr":
        return QRMatrix(num_channels, num_reflections)
    if num_reflections is not None:
        raise InputError(f"num_reflections belongs to parametrization 'qr', not to '{parametrization}'")
    if callable(parametrization):
        return parametrization(num_channels)
    matrices: dict[str, type[PlainMatrix] | type[PLUMatrix]] = {"plain": PlainMatrix, "plu": PLUMatrix}
    if parametrization not in matrices:
        raise InputError(f"parametrization must be 'plain', 'plu', 'qr' or a factory, not '{parametrization}'")
    return matrices[parametrization](num_channels)
