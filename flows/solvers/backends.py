"""The named backends, the choice among them, and the function that everything else calls."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flows.errors import InputError
from flows.kernels.convolution import gradients_of_convolution, same_size
from flows.solvers.base import AutoregressiveConvSolver
from flows.solvers.checks import warn_once
from flows.solvers.compiled import CompiledSolver
from flows.solvers.cuda import CudaSolver
from flows.solvers.jacobi import JacobiSolver
from flows.solvers.reference import ReferenceSolver
from flows.solvers.torch_rows import TorchSolver

BACKENDS: dict[str, type[AutoregressiveConvSolver]] = {
    solver.name: solver for solver in (ReferenceSolver, JacobiSolver, TorchSolver, CompiledSolver, CudaSolver)
}
"""Every backend, by its name."""


def solve_autoregressive_conv(
    z: Tensor, weight: Tensor, *, direction: str, dilation: int = 1, backend: str | None = None
) -> Tensor:
    """Invert a zero-padded, autoregressively masked convolution.

    Map: returns the ``x`` with ``conv2d(x, weight, padding=dilation * (k // 2), dilation=dilation) == z``.

    Gradients: with ``A`` the matrix of the convolution and ``g`` the gradient of ``x``, that of ``z`` is ``A^-T g``, a
    solve with the flipped and transposed filter, by the same backend. That of the filter is minus the filter gradient
    of the convolution at ``x`` for ``A^-T g``. There are no second derivatives.

    With the same weights more than once, prepare the solver once (:func:`prepare_autoregressive_conv`).

    Args:
        z: (B, C, H, W), float32 or float64, of any memory layout; B may be 0.
        weight: (C, C, k, k), the full masked filter in torch's layout (out, in, height, width), k odd; the type and
            device of ``z``. Square masks and raster masks are allowed.
        direction: ``"lower"`` or ``"upper"``: the side that the filter reads; see :class:`AutoregressiveConvSolver`.
        dilation: spacing of the taps, in pixels.
        backend: a name in :data:`BACKENDS`; None chooses, as :func:`choose_backend` does.

    Returns:
        x, (B, C, H, W).

    Raises:
        InputError: wrong shapes, types, devices, direction or backend; taps outside the mask of the direction; a zero
            or non-finite diagonal.
        NonFiniteError: ``z`` holds NaN or infinity (on CUDA, where that would take a host round trip, the image comes
            back as NaN instead).

    Warns:
        IllConditionedWarning: once for each shape, if the inverse amplifies rounding errors too much; not while
            autograd records, where measuring that would cost as much as solving.

    Cost: that of one convolution with the same filter, ``O(B H W C^2 t)`` for ``t`` taps in the mask, with the
    ``compiled`` backend; see each backend's class.

    Reference: Hoogeboom et al., *Emerging Convolutions for Generative Normalizing Flows*, ICML 2019, section 3.1.

    Example:
        >>> import torch
        >>> from flows.solvers import solve_autoregressive_conv
        >>> weight = torch.zeros(1, 1, 3, 3)
        >>> weight[0, 0, 1, 1], weight[0, 0, 1, 2] = 2.0, 1.0  # z_ij = 2 x_ij + x_i(j+1)
        >>> solve_autoregressive_conv(torch.tensor([[[[4.0, 6.0]]]]), weight, direction="lower").tolist()
        [[[[0.5, 3.0]]]]
    """
    if z.dim() != 4:
        raise InputError(f"z must have the shape (B, C, H, W); got {tuple(z.shape)}")
    if z.device != weight.device:
        raise InputError(f"z and the filter must be on the same device; got {z.device} and {weight.device}")
    if torch.is_grad_enabled() and (z.requires_grad or weight.requires_grad):
        return _Solve.apply(z, weight, direction, dilation, backend or choose_backend(weight))
    image_size = (z.shape[2], z.shape[3])
    solver = prepare_autoregressive_conv(
        weight, direction=direction, image_size=image_size, dilation=dilation, backend=backend
    )
    return solver(z)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, direction: str, dilation: int, backend: str) -> Tensor:
        image_size = (z.shape[2], z.shape[3])
        x = find_backend(backend)(weight, direction=direction, image_size=image_size, dilation=dilation)(z)
        ctx.save_for_backward(x, weight)
        ctx.direction, ctx.dilation, ctx.backend = direction, dilation, backend
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        direction = "upper" if ctx.direction == "lower" else "lower"
        transposed = weight.transpose(0, 1).flip(2, 3)
        solve = find_backend(ctx.backend)(
            transposed, direction=direction, image_size=(x.shape[2], x.shape[3]), dilation=ctx.dilation
        )
        of_z = solve(gradients[0])
        _, of_weight = gradients_of_convolution(x, weight, of_z, same_size(weight.shape[-1], ctx.dilation))
        return of_z, -of_weight, None, None, None


def prepare_autoregressive_conv(
    weight: Tensor, *, direction: str, image_size: tuple[int, int], dilation: int = 1, backend: str | None = None
) -> AutoregressiveConvSolver:
    """Do once what depends on the weights alone; the result maps ``z`` to ``x`` for images of ``image_size``.

    Arguments, errors and warnings are those of :func:`solve_autoregressive_conv`; the solver's promises are those of
    :class:`AutoregressiveConvSolver`. Keep it in a :class:`flows.layers.weight_cache.WeightCache`, since it does not
    notice when the weights change::

        name = choose_backend(weight)
        prepare = partial(prepare_autoregressive_conv, weight, direction="lower", image_size=(H, W), backend=name)
        x = cache.get(prepare, weight, key=(H, W, name))(z)
    """
    name = choose_backend(weight) if backend is None else backend
    solver = find_backend(name)(weight, direction=direction, image_size=image_size, dilation=dilation)
    solver.warn_if_ill_conditioned()
    return solver


def choose_backend(weight: Tensor) -> str:
    """The name of the backend that serves this filter best.

    ``"compiled"`` on a CPU, ``"cuda"`` on a CUDA device, and ``"torch"`` anywhere else.

    Warns:
        RuntimeWarning: once, if ``"torch"`` takes over because the compiled extension is missing.
    """
    device = weight.device
    if device.type == "cuda":
        return CudaSolver.name
    if device.type != "cpu":
        return TorchSolver.name
    reason = CompiledSolver.unavailable(device)
    if reason is None:
        return CompiledSolver.name
    warn_once(
        CompiledSolver,
        f"the compiled solver cannot be used: {reason}. The torch solver takes over, which is slower",
        RuntimeWarning,
        stacklevel=3,
    )
    return TorchSolver.name


def find_backend(name: str) -> type[AutoregressiveConvSolver]:
    """The class of the backend of this name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(str(name), BACKENDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BACKENDS)}"
        raise InputError(f"unknown solver backend {name!r}: {hint}")
    return BACKENDS[name]
