"""Convolutions of few channels: the compiled kernel computes what PyTorch computes, forward and backward."""

import pytest
import torch
from support.concurrency import assert_a_fork_may, assert_threads_may_share
from support.filters import NEEDS_COMPILED

from flows import kernels
from flows.kernels.convolution import Reading, convolve, gradients_of_convolution, only_torch, same_size
from flows.layers.boundaries import BOUNDARIES
from flows.layers.mapped_convolution import TriangularFilter, convolve_mapped
from flows.layers.pixelwise import PixelMap

pytestmark = NEEDS_COMPILED

# Channels in and out, filter, padding (left, right, top, bottom), dilation, image size.
SHAPES = {
    "autoregressive": (12, 12, (2, 2), (0, 1, 0, 1), 1, (5, 4)),
    "upper and dilated": (3, 5, (2, 3), (2, 2, 2, 0), 2, (6, 7)),
    "into many channels": (6, 70, (3, 3), (1, 1, 1, 1), 1, (4, 3)),
    "out of many channels": (70, 6, (3, 3), (1, 1, 1, 1), 1, (3, 5)),
    "without padding": (4, 9, (3, 3), (0, 0, 0, 0), 1, (5, 6)),
    "one channel, one pixel": (1, 1, (3, 3), (1, 1, 1, 1), 1, (1, 1)),
    "wrapping": (5, 7, (3, 3), (1, 1, 1, 1), 1, (4, 3)),
    "wrapping onto itself": (2, 3, (5, 3), (1, 1, 3, 1), 1, (2, 1)),
}


def inputs(name, dtype=torch.float64, batch=3):
    channels, outputs, kernel_size, padding, dilation, image_size = SHAPES[name]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    weight = random(outputs, channels, *kernel_size) / channels
    return (
        random(batch, channels, *image_size),
        weight,
        random(outputs),
        Reading(padding, dilation, name.startswith("wrapping")),
    )


def results(x, weight, added, reading, relu, of_z):
    """``z`` and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, added)]
    z = convolve(*leaves[:2], reading, added=leaves[2], relu=relu)
    return z, *torch.autograd.grad(z, leaves, of_z)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_computes_what_pytorch_computes(name, everywhere, relu):
    x, weight, added, reading = inputs(name)
    with only_torch():
        size = convolve(x, weight, reading).shape
    if not everywhere:
        added = torch.randn(1, *size[1:], generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    of_z = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    ours = results(x, weight, added, reading, relu, of_z)
    with only_torch():
        expected = results(x, weight, added, reading, relu, of_z)
    assert "_Convolution" in type(ours[0].grad_fn).__name__ and "_Convolution" not in type(expected[0].grad_fn).__name__
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_shift", [True, False])
@pytest.mark.parametrize("matrix_dims", [0, 1, 2])
@pytest.mark.parametrize("kind", ["triangular", "exponential", "wrapping", "upper and dilated"])
def test_a_mapped_convolution_computes_what_autograd_does(kind, matrix_dims, has_shift):
    x, weight, bias, reading = inputs(kind if kind in SHAPES else "autoregressive")
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=x.dtype)

    channels = x.shape[1]
    matrix = random(channels, channels) if matrix_dims == 2 else random(channels)
    mask = (random(*weight.shape) > -0.5).to(x.dtype)
    mask[:, :, 0, 1].fill_diagonal_(1.0)
    leaves = [x, weight, bias, matrix, random(channels), random()]

    def run():
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        before = PixelMap(given[3], given[4] if has_shift else None, given[5]) if matrix_dims else None
        is_triangular = kind in ("triangular", "exponential")
        filters = TriangularFilter(given[1], mask, (0, 1), kind == "exponential") if is_triangular else given[1]
        z, log_det = convolve_mapped(given[0], before, filters, given[2], reading)
        assert (log_det is None) != is_triangular
        total = (z * random_like(z)).sum() + (0 if log_det is None else (log_det * random_like(log_det)).sum())
        return z, *torch.autograd.grad(total, given, allow_unused=True)

    def random_like(tensor):
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2), dtype=tensor.dtype)

    ours = run()
    with only_torch():
        expected = run()
    assert "_MappedConvolution" in type(ours[0].grad_fn).__name__ or matrix_dims == 0
    for one, other in zip(ours, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("image_size", [(6, 5), (1, 1)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_log_det_of_a_spectrum_is_that_of_lapack(image_size, threads):
    torch.set_num_threads(threads)
    filters = torch.randn(9, 9, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    filters[:, :, 1, 1].fill_diagonal_(0.0)
    leaf = filters.clone().requires_grad_()
    with only_torch():
        expected = BOUNDARIES["wrap"].log_abs_det(leaf, image_size)
        gradient = torch.autograd.grad(expected, leaf)[0]
    for dtype, precision in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        leaf = filters.to(dtype).requires_grad_()
        log_det = BOUNDARIES["wrap"].log_abs_det(leaf, image_size)
        assert log_det.dtype == torch.float64 and torch.allclose(log_det, expected, rtol=1e-6, atol=precision)
        assert torch.allclose(torch.autograd.grad(log_det, leaf)[0].double(), gradient, rtol=1e-3, atol=precision)
    without_gradient = BOUNDARIES["wrap"].log_abs_det(filters, image_size)
    assert torch.allclose(without_gradient, expected, rtol=1e-12)


def test_a_singular_matrix_of_a_spectrum_has_the_log_det_minus_infinity():
    assert BOUNDARIES["wrap"].log_abs_det(torch.zeros(3, 3, 3, 3), (4, 4)) == -torch.inf


@pytest.mark.parametrize("kernels_serve", [True, False])
def test_both_gradients_at_once_are_those_of_autograd(kernels_serve, monkeypatch):
    x, weight, _, _ = inputs("into many channels")
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    of_z = torch.ones(3, 70, 4, 3, dtype=x.dtype).expand(3, 70, 4, 3)
    with only_torch():
        expected = torch.autograd.grad(convolve(*leaves, same_size(3)), leaves, of_z)
    if not kernels_serve:
        monkeypatch.setattr(kernels, "_why_missing", "it is not there")
    for one, other in zip(gradients_of_convolution(x, weight, of_z, same_size(3)), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_is_convolved_alike_in_any_batch_and_layout(threads):
    torch.set_num_threads(threads)
    x, weight, added, reading = inputs("autoregressive", torch.float32, batch=64)
    z = convolve(x, weight, reading, added=added)
    assert torch.equal(z[17:18], convolve(x[17:18], weight, reading, added=added))
    strided = x.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(z, convolve(strided, weight, reading, added=added))
    assert torch.equal(z, convolve(x.contiguous(memory_format=torch.channels_last), weight, reading, added=added))


def test_gradients_are_the_same_to_the_bit_each_time():
    torch.set_num_threads(3)
    x, weight, added, reading = inputs("autoregressive", torch.float32, batch=64)
    first, second = (results(x, weight, added, reading, False, torch.ones_like(x)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_relu_does_not_hide_nan():
    x, weight, added, reading = inputs("autoregressive")
    x[1, 3, 2, 2] = torch.nan
    z = convolve(x, weight, reading, added=added, relu=True)
    assert z[1, :, 1:3, 1:3].isnan().all() and z[[0, 2]].isfinite().all()


def test_what_is_added_may_have_a_type_of_its_own():
    x, weight, _, reading = inputs("autoregressive", torch.float32)
    added = torch.randn(1, 12, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = convolve(x, weight, reading, added=added)
    assert torch.allclose(z, convolve(x, weight, reading, added=added.float()), atol=1e-6)


def test_threads_share_it_and_a_forked_process_may_use_it():
    torch.set_num_threads(2)
    _, weight, added, reading = inputs("autoregressive", torch.float32)
    batches = [torch.randn(8, 12, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    assert_threads_may_share(lambda x: convolve(x, weight, reading, added=added), batches)
    assert_a_fork_may(lambda x: convolve(x, weight, reading, added=added), batches[0], threads=2)
