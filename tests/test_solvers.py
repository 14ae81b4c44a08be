"""Every backend inverts every autoregressive convolution, alone, in threads, in forked processes and in a cache."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.concurrency import assert_a_fork_may, assert_threads_may_share
from support.filters import (
    COMPILED,
    EVERY_BACKEND,
    FAST_BACKENDS,
    MASKS,
    NEEDS_COMPILED,
    random_filter,
    random_latents,
)
from torch import Tensor

from flows.errors import InputError
from flows.solvers import (
    AutoregressiveConvSolver,
    jacobi,
    prepare_autoregressive_conv,
    solve_autoregressive_conv,
)
from flows.solvers import cuda as cuda_backend
from flows.solvers.checks import raster_mask

CPU = torch.device("cpu")
DIRECTIONS = ("lower", "upper")


def convolve(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    return F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)


def assert_inverts(solver: AutoregressiveConvSolver, weight: Tensor, z: Tensor) -> None:
    """Compare with the reference, to a few roundings of this type times what the filter amplifies them."""
    before = z.clone()
    x = solver(z)
    assert torch.equal(z, before), "the input was written to"
    assert x.shape == z.shape and x.dtype == z.dtype
    expected = solve_autoregressive_conv(
        z.double(), weight.double(), direction=solver.direction, dilation=solver.dilation, backend="reference"
    )
    error = (x.double() - expected).abs().max() / expected.abs().max()
    assert error <= 50 * torch.finfo(z.dtype).eps * solver.inverse_gain, f"relative error {error:.3g}"


# ------------------------------------------------------------------------------------------------ the exact inverse


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dilation", (1, 2))
def test_reference_is_the_dense_solve(direction, mask, dilation):
    weight = random_filter(2, 5, direction, mask, scale=0.3)
    z = random_latents(5, 2, 3, 4)
    matrix = torch.autograd.functional.jacobian(lambda x: convolve(x, weight, dilation), z[:1]).view(24, 24)
    expected = torch.linalg.solve(matrix, z.view(5, 24).T).T.view_as(z)
    x = solve_autoregressive_conv(z, weight, direction=direction, dilation=dilation, backend="reference")
    assert torch.allclose(x, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(convolve(x, weight, dilation), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", COMPILED])
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel_size", (1, 3, 5))
@pytest.mark.parametrize("dilation", (1, 2, 3, 2**40))
def test_backend_agrees_with_the_reference(backend, dtype, direction, mask, kernel_size, dilation):
    shapes = [(3, 1, 5, 4), (1, 3, 4, 6), (2, 5, 1, 7), (9, 4, 6, 1), (17, 13, 2, 3), (1, 2, 1, 1), (5, 100, 2, 3)]
    for seed, (batch, num_channels, height, width) in enumerate(shapes):
        scale = (0.02, 0.1, 0.2)[seed % 3]
        weight = random_filter(num_channels, kernel_size, direction, mask, scale, dtype, seed)
        solver = prepare_autoregressive_conv(
            weight, direction=direction, image_size=(height, width), dilation=dilation, backend=backend
        )
        assert_inverts(solver, weight, random_latents(batch, num_channels, height, width, dtype=dtype))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("batch", (1, 7, 8, 9, 33))
def test_backend_agrees_with_the_reference_at_every_batch_size_and_thread_count(backend, threads, batch):
    torch.set_num_threads(threads)
    for dtype, direction in itertools.product((torch.float32, torch.float64), DIRECTIONS):
        weight = random_filter(12, 3, direction, dtype=dtype, scale=0.05)
        solver = prepare_autoregressive_conv(weight, direction=direction, image_size=(5, 6), backend=backend)
        assert_inverts(solver, weight, random_latents(batch, 12, 5, 6, dtype=dtype))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_any_memory_layout_of_the_input_is_accepted(backend):
    weight = random_filter(6, 3, "upper")
    solver = prepare_autoregressive_conv(weight, direction="upper", image_size=(4, 5), backend=backend)
    z = random_latents(9, 6, 4, 5)
    layouts = {
        "channels last": z.to(memory_format=torch.channels_last),
        "every second": z.repeat_interleave(2, dim=0)[::2],
        "transposed": z.transpose(2, 3).contiguous().transpose(2, 3),
        "offset": torch.cat([z, z], dim=1)[:, 6:],
        "broadcast": z[:1].expand(9, -1, -1, -1),
    }
    for name, view in layouts.items():
        assert torch.allclose(solver(view), solver(view.contiguous()), rtol=1e-12, atol=1e-12), name
    filters_last = weight.to(memory_format=torch.channels_last)
    again = solve_autoregressive_conv(z, filters_last, direction="upper", backend=backend)
    assert torch.allclose(again, solver(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_an_empty_batch_is_empty(backend):
    weight = random_filter(3, 3, "lower")
    x = solve_autoregressive_conv(torch.empty(0, 3, 4, 5).double(), weight, direction="lower", backend=backend)
    assert x.shape == (0, 3, 4, 5)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_autocast_does_not_make_the_inverse_coarser(backend):
    weight = random_filter(6, 3, "lower", dtype=torch.float32)
    z = random_latents(3, 6, 16, 16, dtype=torch.float32)
    expected = solve_autoregressive_conv(z, weight, direction="lower", backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = solve_autoregressive_conv(z, weight, direction="lower", backend=backend)
    assert torch.equal(x, expected)


# ----------------------------------------------------------------------------------------------------------- jacobi


@pytest.fixture
def sweeps(monkeypatch):
    """The number of sweeps of each call, and how many there may be."""
    found, fixed_point = [], jacobi.fixed_point

    def counted(step, x, depth):
        found.append([0, depth])

        def count(x):
            found[-1][0] += 1
            return step(x)

        return fixed_point(count, x, depth)

    monkeypatch.setattr(jacobi, "fixed_point", counted)
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel_size", (1, 3, 5))
@pytest.mark.parametrize("dilation", (1, 2, 2**40))
def test_jacobi_sweeps_reach_every_pixel_and_no_sweep_is_one_too_many(sweeps, direction, mask, kernel_size, dilation):
    weight = random_filter(2, kernel_size, direction, mask, scale=1.0)  # nothing decays: every pixel must be reached
    solver = prepare_autoregressive_conv(
        weight, direction=direction, image_size=(4, 7), dilation=dilation, backend="jacobi"
    )
    assert_inverts(solver, weight, random_latents(3, 2, 4, 7))
    if kernel_size > 1 and dilation < 4:
        height, width = (4, 7) if dilation == 1 else (2, 4)
        depth = width + (height - 1) * (1 if mask == "square" else (kernel_size + 1) // 2)
        assert sweeps[-1] == [depth, depth]
    else:
        assert not sweeps


def test_jacobi_sweeps_stop_early_where_taps_are_weak_and_nothing_is_left_to_change(sweeps):
    weight = random_filter(6, 3, "lower", scale=0.02, dtype=torch.float32)
    solver = prepare_autoregressive_conv(weight, direction="lower", image_size=(32, 32), backend="jacobi")
    z = random_latents(4, 6, 32, 32, dtype=torch.float32)
    x = solver(z)
    number, depth = sweeps[-1]
    assert number < depth / 3
    residual = (convolve(x, weight) - z).abs().max() / z.abs().max()
    assert residual < 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(solver(z[:1]), x[:1], rtol=1e-6, atol=1e-6)


def test_what_overflows_in_a_sweep_spoils_no_other_number_and_what_overflows_in_the_end_is_not_hidden():
    def step(x):  # the first number reads the second with a weight of zero, as products of masked matrices do
        return torch.stack([2 + 0 * x[1], 1e30 * (x[0] - 2), 1e38 * 10 * x[0]])

    assert jacobi.fixed_point(step, torch.full((3,), 1e20), 3).tolist() == [2, 0, float("inf")]


# ------------------------------------------------------------------------------------------------------------- cuda


@pytest.fixture(params=["this CPU", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A GPU with TF32 turned on, or this CPU in its place."""
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
        return "cuda"
    request.getfixturevalue("graphs_on_cpu")
    monkeypatch.setattr(cuda_backend.CudaSolver, "unavailable", classmethod(lambda cls, device: None))
    return "cpu"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("image_size", ((4, 5), (12, 8)), ids=("dense", "rows"))
def test_cuda_backend_agrees_with_the_reference_and_keeps_few_graphs(device, direction, image_size):
    weight = random_filter(12, 3, direction, scale=0.05, dtype=torch.float32).to(device)
    solver = prepare_autoregressive_conv(weight, direction=direction, image_size=image_size, backend="cuda")
    with torch.inference_mode():
        for batch in (*range(4, 12), 3, 3):
            solver(random_latents(batch, 12, *image_size, dtype=torch.float32).to(device))
    for batch in (1, 2, 3, 1, 2, 3, 1, 2, 3):
        assert_inverts(solver, weight, random_latents(batch, 12, *image_size, dtype=torch.float32).to(device))
    assert len(solver._graphs) == (0 if image_size == (4, 5) else cuda_backend.MAX_GRAPHS)


@pytest.mark.parametrize("image_size", ((4, 5), (12, 8)), ids=("dense", "rows"))
def test_cuda_backend_returns_nan_for_the_image_that_holds_nan_or_infinity(device, image_size):
    weight = random_filter(12, 3, "lower", scale=0.05, dtype=torch.float32).to(device)
    solver = prepare_autoregressive_conv(weight, direction="lower", image_size=image_size, backend="cuda")
    z = random_latents(3, 12, *image_size, dtype=torch.float32).to(device)
    expected = solver(z)
    for value in (float("nan"), float("inf")):
        z[1, 0, 0, 0] = value
        for _ in range(3):
            x = solver(z)
            assert x[1].isnan().all()
            assert torch.allclose(x[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dilation", (1, 2))
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_solving_is_differentiable_in_latent_and_filter(backend, direction, dilation):
    mask = raster_mask(2, 3, direction)
    weight = random_filter(2, 3, direction, "raster", scale=0.05).requires_grad_()
    z = random_latents(2, 2, 5, 3).requires_grad_()

    def solve(z: Tensor, weight: Tensor) -> Tensor:
        return solve_autoregressive_conv(z, weight * mask, direction=direction, dilation=dilation, backend=backend)

    assert torch.autograd.gradcheck(solve, (z, weight))


def test_a_prepared_solver_records_no_gradient_and_says_so():
    solver = prepare_autoregressive_conv(random_filter(3, 3, "lower"), direction="lower", image_size=(4, 4))
    z = random_latents(1, 3, 4, 4).requires_grad_()
    with pytest.raises(InputError, match="records no gradient"):
        solver(z)
    with torch.no_grad():
        solver(z)


# ------------------------------------------------------------------------------------------------ threads, processes


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_several_threads_may_share_a_solver(backend):
    weight = random_filter(12, 3, "lower", dtype=torch.float32)
    solver = prepare_autoregressive_conv(weight, direction="lower", image_size=(8, 8), backend=backend)
    assert_threads_may_share(solver, [random_latents(1 + 5 * n, 12, 8, 8, dtype=torch.float32) for n in range(6)])


@NEEDS_COMPILED
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", (1, 2))
def test_a_forked_process_can_solve_although_it_lacks_the_threads_of_its_parent(threads):
    weight = random_filter(12, 3, "lower", dtype=torch.float32)
    solver = prepare_autoregressive_conv(weight, direction="lower", image_size=(16, 16), backend="compiled")
    assert_a_fork_may(solver, random_latents(64, 12, 16, 16, dtype=torch.float32), threads)
