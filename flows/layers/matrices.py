"""Parametrisations of an invertible C x C matrix, for 1x1 convolutions.

Each offers the matrix, the logarithm of its absolute determinant, and its inverse. Factorisations run in float64 (see
:mod:`flows.numerics`); results are in the parameters' own precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flows.errors import InputError, NonFiniteError
from flows.solvers import IllConditionedWarning
from flows.solvers.checks import warn_once


def checked_inverse(matrix: Tensor, inverse: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """``inverse`` in the type that it is used in, after a look at how far it can be trusted.

    Args:
        matrix: one or several square matrices, ``(..., C, C)``, in float64 or complex128.
        inverse: theirs, of the same shape and type.
        what: what the matrices are, for messages.
        dtype: type of the result, float32 or better, or a complex one.

    Raises:
        NonFiniteError: an inverse is not finite, because its matrix is singular or not finite itself.

    Warns:
        IllConditionedWarning: once for each ``what``, if fewer than about four digits of an answer can be right.
    """
    if not torch.isfinite(inverse).all():
        raise NonFiniteError(f"{what} is singular, so that it has no inverse")
    with torch.no_grad():
        # A root mean square stands for what the matrices do to an activation, the largest norm for what inverses do.
        typical = (matrix.abs().square().sum(dim=-1).mean()).sqrt()
        condition = float(typical * torch.linalg.matrix_norm(inverse).max())
    if condition * torch.finfo(dtype).eps > 1e-4:
        warn_once(
            (IllConditionedWarning, what, dtype),
            f"{what} is badly conditioned: its inverse amplifies rounding errors up to {condition:.3g} times, too much "
            f"for {dtype}",
            IllConditionedWarning,
            stacklevel=4,
        )
    return inverse.to(dtype)


class InvertibleMatrix(nn.Module, ABC):
    """A learned matrix ``W`` (C, C) that stays invertible."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """``W``, shape (C, C)."""

    @abstractmethod
    def log_abs_det(self) -> Tensor:
        """``log |det W|``, a scalar."""

    @abstractmethod
    def inverse_matrix(self) -> Tensor:
        """``W^-1``, shape (C, C).

        Raises:
            NonFiniteError: there is none.
        """

    def tensors(self) -> list[Tensor]:
        """All that the matrix depends on."""
        return [*self.parameters(), *self.buffers()]

    def _checked(self, matrix: Tensor, inverse: Tensor) -> Tensor:
        what = f"the {len(matrix)} x {len(matrix)} matrix of a 1x1 convolution"
        return checked_inverse(matrix, inverse, what, next(self.parameters()).dtype)


class PlainMatrix(InvertibleMatrix):
    """``W`` itself; starts as a random orthogonal matrix. Log-det by an LU factorisation, ``O(C^3)``.

    Nothing keeps ``W`` from becoming singular in training, but the log-det in the loss, which goes to minus infinity
    on the way there, does so in practice.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(num_channels, num_channels)))

    def matrix(self) -> Tensor:
        return self.weight

    def log_abs_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight.double()).logabsdet.to(self.weight.dtype)

    def inverse_matrix(self) -> Tensor:
        weight = self.weight.double()
        return self._checked(weight, torch.linalg.inv_ex(weight).inverse)


class PLUMatrix(InvertibleMatrix):
    """``W = P L (U + diag s)``: ``P`` a fixed permutation, ``L`` unit lower and ``U`` strictly upper triangular.

    Starts as a random orthogonal matrix. ``P`` and ``sign(s)`` stay as they are at the start, ``log |s|`` is learned.
    Log-det: ``sum log |s|``, ``O(C)``. Reference: Kingma & Dhariwal, *Glow*, equation 10.
    """

    permutation: Tensor
    sign: Tensor
    lower_mask: Tensor
    upper_mask: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        start = nn.init.orthogonal_(torch.empty(num_channels, num_channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(start)
        scale = upper.diagonal()
        dtype = torch.get_default_dtype()
        ones = torch.ones(num_channels, num_channels, dtype=dtype)
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(scale.abs().log().to(dtype))
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", scale.sign().to(dtype))
        self.register_buffer("lower_mask", ones.tril(-1))
        self.register_buffer("upper_mask", ones.triu(1))

    def _lower_and_upper(self) -> tuple[Tensor, Tensor]:
        lower = self.lower * self.lower_mask + torch.diag(torch.ones_like(self.sign))
        upper = self.upper * self.upper_mask + torch.diag(self.sign * torch.exp(self.log_scale))
        return lower, upper

    def matrix(self) -> Tensor:
        lower, upper = self._lower_and_upper()
        return self.permutation @ lower @ upper

    def log_abs_det(self) -> Tensor:
        return self.log_scale.sum()

    def inverse_matrix(self) -> Tensor:
        lower, upper = (factor.double() for factor in self._lower_and_upper())
        permutation = self.permutation.double()
        half = torch.linalg.solve_triangular(lower, permutation.T, upper=False, unitriangular=True)
        return self._checked(permutation @ lower @ upper, torch.linalg.solve_triangular(upper, half, upper=True))


class QRMatrix(InvertibleMatrix):
    """``W = Q (R + diag s)``: ``Q`` a product of Householder reflections, ``R`` strictly upper triangular, ``s > 0``.

    Starts as a random orthogonal matrix (``R = 0``, ``s = 1``). All C reflections reach any invertible matrix whose
    determinant has the sign of the start, except for a set of measure zero. Log-det: ``sum log s``.

    Args:
        num_channels: C.
        num_reflections: 1 to C; fewer trade flexibility for cost. ``None`` means C.

    Reference: section 4.3 of the paper; ``I - 2 v v^T / v^T v`` is one reflection.

    Note:
        The ``i``-th reflection vector is scaled to ``v_i = 1`` and starts with ``i`` zeros, LAPACK's form, where the
        paper leaves all C entries free. Both describe the same orthogonal matrices with the same number of degrees of
        freedom; this one has no redundant direction, cannot degenerate to ``v = 0``, and
        ``torch.linalg.householder_product`` evaluates it at once.
    """

    reflections_mask: Tensor
    upper_mask: Tensor

    def __init__(self, num_channels: int, num_reflections: int | None = None) -> None:
        super().__init__()
        if num_reflections is None:
            num_reflections = num_channels
        if not 1 <= num_reflections <= num_channels:
            raise InputError(
                f"num_reflections must be between 1 and the number of channels ({num_channels}), not {num_reflections}"
            )
        reflections, _ = torch.geqrf(torch.randn(num_channels, num_channels, dtype=torch.float64))
        dtype = torch.get_default_dtype()
        ones = torch.ones(num_channels, num_channels, dtype=dtype)
        self.reflections = nn.Parameter(reflections.tril(-1)[:, :num_reflections].to(dtype))
        self.upper = nn.Parameter(torch.zeros(num_channels, num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("reflections_mask", ones.tril(-1)[:, :num_reflections].clone())
        self.register_buffer("upper_mask", ones.triu(1))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """``Q`` and ``R + diag s`` in float64."""
        below = (self.reflections * self.reflections_mask).double()
        num_channels, num_reflections = below.shape
        tau = 2.0 / (1.0 + below.square().sum(dim=0))
        padded = nn.functional.pad(below, (0, num_channels - num_reflections))
        orthogonal = torch.linalg.householder_product(padded, tau)
        upper = (self.upper * self.upper_mask).double() + torch.diag(torch.exp(self.log_scale.double()))
        return orthogonal, upper

    def matrix(self) -> Tensor:
        orthogonal, upper = self._factors()
        return (orthogonal @ upper).to(self.upper.dtype)

    def log_abs_det(self) -> Tensor:
        return self.log_scale.sum()

    def inverse_matrix(self) -> Tensor:
        orthogonal, upper = self._factors()
        inverse = torch.linalg.solve_triangular(upper, orthogonal.T, upper=True)
        return self._checked(orthogonal @ upper, inverse)
