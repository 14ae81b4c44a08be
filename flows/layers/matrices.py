"""Parametrisations of an invertible C x C matrix, for 1x1 convolutions.

Each offers the matrix, the logarithm of its absolute determinant, and its inverse. Factorisations run in float64 (see
:mod:`flows.numerics`); results are in the parameters' own precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flows.errors import InputError, NonFiniteError
from flows.layers.base import NOISE_STD
from flows.numerics import MAX_LOG_SCALE, bounded, require_bound
from flows.solvers import IllConditionedWarning
from flows.solvers.checks import warn_once

OrthogonalMap = Literal["cayley", "expm", "householder"]


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


def reflected(below: Tensor) -> Tensor:
    """The product of the Householder reflections of the columns of ``(C, k)``, which hold what is below their ones.

    ``H_1 ... H_k = I - V S^-1 V^T`` with ``S = striu(V^T V) + diag(V^T V) / 2``: a few matrix products, whatever k is.

    Reference: Joffrain et al., *Accumulating Householder Transformations, Revisited*, ACM TOMS 2006, section 3.
    """
    num_channels, num_reflections = below.shape
    identity = torch.eye(num_channels, dtype=below.dtype, device=below.device)
    vectors = below + identity[:, :num_reflections]
    gram = vectors.T @ vectors
    upper = gram.triu(1) + torch.diag(gram.diagonal() / 2)
    return identity - vectors @ torch.linalg.solve_triangular(upper, vectors.T, upper=True)


def log_abs_det(matrices: Tensor, gradient_type: torch.dtype) -> Tensor:
    """``log |det M|`` in nats, of real or complex matrices ``(..., C, C) -> (...)``; minus infinity if singular.

    One factorisation gives the value, in the matrices' own type, and the gradient ``M^-H``, in ``gradient_type``: that
    of the parameters, which gain nothing from more.
    """
    least = torch.complex64 if matrices.is_complex() else torch.float32
    return _LogAbsDet.apply(matrices, torch.promote_types(gradient_type, least))


class _LogAbsDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrices: Tensor, gradient_type: torch.dtype) -> Tensor:
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        if ctx.needs_input_grad[0]:
            small = factors.to(gradient_type)
            identity = torch.eye(matrices.shape[-1], dtype=small.dtype, device=small.device)
            ctx.save_for_backward(torch.linalg.lu_solve(small, pivots, identity.expand_as(small)).mH.resolve_conj())
        return factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inverse_transposed,) = ctx.saved_tensors
        return gradients[0][..., None, None] * inverse_transposed, None


def random_reflections(num_channels: int) -> Tensor:
    """What :func:`reflected` makes a random orthogonal matrix of, exactly orthogonal also in float32: ``(C, C)``."""
    reflections, _ = torch.geqrf(torch.randn(num_channels, num_channels, dtype=torch.float64))
    return reflections.tril(-1).to(torch.get_default_dtype())


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
        return log_abs_det(self.weight.double(), self.weight.dtype).to(self.weight.dtype)

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
        freedom; this one has no redundant direction and cannot degenerate to ``v = 0``.
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
        ones = torch.ones(num_channels, num_channels)
        self.reflections = nn.Parameter(random_reflections(num_channels)[:, :num_reflections].clone())
        self.upper = nn.Parameter(torch.zeros(num_channels, num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("reflections_mask", ones.tril(-1)[:, :num_reflections].clone())
        self.register_buffer("upper_mask", ones.triu(1))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """``Q`` and ``R + diag s`` in float64."""
        orthogonal = reflected((self.reflections * self.reflections_mask).double())
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


class OrthogonalMatrix(InvertibleMatrix):
    """``W = Q0 Q(L)``: an orthogonal matrix, always; ``Q0`` a fixed random one, ``L`` strictly lower triangular.

    Starts with ``L = 0``. Log-det: 0. Inverse: ``W^T``. A layer with it neither stretches nor shrinks anything.

    Args:
        num_channels: C.
        orthogonal_map: how ``Q`` comes from ``L``, with ``A = L - L^T``.

            * ``cayley``: ``(I - A) (I + A)^-1``, which reaches all rotations without the eigenvalue -1;
            * ``expm``: the matrix exponential ``exp(A)``, which reaches all rotations;
            * ``householder``: the product of C reflections, whose vectors are the columns of ``L`` below their ones.

    Raises:
        InputError: another map.

    Cost: ``O(C^3)`` per step, in float64.

    Reference: Lezcano-Casado & Martinez-Rubio, *Cheap Orthogonal Constraints in Neural Networks*, ICML 2019;
    Golinski et al., *Improving Normalizing Flows via Better Orthogonal Parameterizations*, INNF 2019.

    Note:
        ``torch.nn.utils.parametrizations.orthogonal`` has the same maps. It keeps all C^2 numbers of ``A``, of which
        half have no effect, and would count as parameters; and it factorises in the parameters' own type.
    """

    lower_mask: Tensor
    start: Tensor

    def __init__(self, num_channels: int, orthogonal_map: OrthogonalMap = "cayley") -> None:
        super().__init__()
        if orthogonal_map not in get_args(OrthogonalMap):
            raise InputError(f"orthogonal_map must be {', '.join(get_args(OrthogonalMap))}, not '{orthogonal_map}'")
        self.orthogonal_map = orthogonal_map
        self.lower = nn.Parameter(torch.zeros(num_channels, num_channels))
        self.register_buffer("lower_mask", torch.ones(num_channels, num_channels).tril(-1))
        self.register_buffer("start", random_reflections(num_channels))

    def _product(self) -> Tensor:
        """``Q0 Q(L)`` in float64."""
        lower = (self.lower * self.lower_mask).double()
        skew = lower - lower.T
        if self.orthogonal_map == "householder":
            rotation = reflected(lower)
        elif self.orthogonal_map == "expm":
            rotation = torch.linalg.matrix_exp(skew)
        else:
            identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
            rotation = torch.linalg.solve(identity + skew, identity - skew)  # the two commute
        return reflected(self.start.double()) @ rotation

    def matrix(self) -> Tensor:
        return self._product().to(self.lower.dtype)

    def log_abs_det(self) -> Tensor:
        return self.lower.new_zeros(())

    def inverse_matrix(self) -> Tensor:
        return self._product().T.to(self.lower.dtype)


class ExpMatrix(InvertibleMatrix):
    """``W = W0 exp(A)``: never singular; ``W0`` a fixed random orthogonal matrix, ``A`` any matrix, zero at the start.

    Log-det: ``trace A``. Inverse: ``exp(-A) W0^T``. It reaches the matrices ``W0 M`` where ``M`` has a real logarithm.

    Cost: ``O(C^3)`` per step, in float64.

    Reference: Xiao & Liu, *Generative Flows with Matrix Exponential*, ICML 2020.

    Note:
        Their ``W`` is ``exp(A)`` alone, which starts as the identity and does not mix channels there.
    """

    start: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(num_channels, num_channels))
        self.register_buffer("start", random_reflections(num_channels))

    def matrix(self) -> Tensor:
        return (reflected(self.start.double()) @ torch.linalg.matrix_exp(self.logarithm.double())).to(
            self.logarithm.dtype
        )

    def log_abs_det(self) -> Tensor:
        return self.logarithm.trace()

    def inverse_matrix(self) -> Tensor:
        inverse = torch.linalg.matrix_exp(-self.logarithm.double()) @ reflected(self.start.double()).T
        return self._checked(self.matrix().double(), inverse)


class SVDMatrix(InvertibleMatrix):
    """``W = Q1 diag(e^s) Q2`` with two orthogonal matrices and log singular values bounded to ``[-b, b]``.

    So the condition number is at most ``e^(2 b)``. Starts as a random orthogonal matrix (``s = 0``). With ``h`` what is
    learned, ``s = b tanh(h / b)``. Log-det: ``sum s``. Inverse: ``Q2^T diag(e^-s) Q1^T``.

    Args:
        num_channels: C.
        max_log_scale: b, positive; ``None`` for no bound.
        orthogonal_map: of both, see :class:`OrthogonalMatrix`.

    Raises:
        InputError: another map, or a bound that is not positive.

    Cost: ``O(C^3)`` per step, in float64.

    Reference: Zhang, Lei & Dhillon, *Stabilizing Gradients for Deep Neural Networks via Efficient SVD
    Parameterization*, ICML 2018.
    """

    def __init__(
        self,
        num_channels: int,
        max_log_scale: float | None = MAX_LOG_SCALE,
        orthogonal_map: OrthogonalMap = "cayley",
    ) -> None:
        super().__init__()
        require_bound("max_log_scale", max_log_scale)
        self.max_log_scale = max_log_scale
        self.left, self.right = (OrthogonalMatrix(num_channels, orthogonal_map) for _ in range(2))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))

    def _log_scale(self) -> Tensor:
        return bounded(self.log_scale, self.max_log_scale)

    def matrix(self) -> Tensor:
        return (self.left.matrix() * self._log_scale().exp()) @ self.right.matrix()

    def log_abs_det(self) -> Tensor:
        return self._log_scale().sum()

    def inverse_matrix(self) -> Tensor:
        left, right = self.left.inverse_matrix().double(), self.right.inverse_matrix().double()
        return self._checked(self.matrix().double(), (right * (-self._log_scale().double()).exp()) @ left)


class CirculantMatrix(InvertibleMatrix):
    """``W = diag(a) circ(c) diag(b)`` over the channels: 3 C numbers, a small part of all matrices.

    ``circ(c)_ij = c_(i - j mod C)``, which the Fourier transform over the channels turns into products with
    ``c^ = FFT(c)``. Log-det: ``sum log |a_i| + sum log |b_i| + sum_k log |c^_k|``. Inverse: ``diag(1 / b)
    circ(IFFT(1 / c^)) diag(1 / a)``.

    Args:
        num_channels: C, at least 1.
        start: ``a`` and ``b`` start as random signs. With ``"random"``, ``c^`` starts as random phases, and ``W`` as a
            random orthogonal matrix; with ``"identity"``, ``c`` starts as the identity's, with a little noise.

    Raises:
        InputError: another start.

    Cost: the product with the matrix is as for any other; log-det and inverse ``O(C log C)``.

    Reference: *CDFlow*, NeurIPS 2025, section 3 (two diagonal and one circulant factor).

    Note:
        Near the identity nothing is mixed at first; docs/RESULTS.md has what that costs. The authors apply the factors
        one by one, by Fourier transforms. Up to some hundred channels the product with
        the whole matrix, as one convolution, is faster.
    """

    def __init__(self, num_channels: int, start: Literal["random", "identity"] = "random") -> None:
        super().__init__()
        if start not in ("random", "identity"):
            raise InputError(f"start must be random or identity, not '{start}'")
        signs = 2.0 * torch.randint(2, (2, num_channels)) - 1.0
        self.left, self.right = (nn.Parameter(sign.clone()) for sign in signs)
        noise = torch.randn(num_channels) / num_channels**0.5
        if start == "random":
            spectrum = torch.fft.rfft(noise.double())
            column = torch.fft.irfft(spectrum / spectrum.abs(), num_channels).to(noise.dtype)
        else:
            column = NOISE_STD * noise
            column[0] += 1.0
        self.circulant = nn.Parameter(column)

    def _spectrum(self) -> Tensor:
        return torch.fft.fft(self.circulant.double())

    def _circulant(self, column: Tensor) -> Tensor:
        index = torch.arange(len(column), device=column.device)
        return column[(index[:, None] - index) % len(column)]

    def matrix(self) -> Tensor:
        return self.left[:, None] * self._circulant(self.circulant) * self.right

    def log_abs_det(self) -> Tensor:
        diagonals = self.left.abs().log().sum() + self.right.abs().log().sum()
        return diagonals + self._spectrum().abs().log().sum().to(diagonals.dtype)

    def inverse_matrix(self) -> Tensor:
        column = torch.fft.ifft(1.0 / self._spectrum()).real
        inverse = (1.0 / self.right.double())[:, None] * self._circulant(column) / self.left.double()
        return self._checked(self.matrix().double(), inverse)
