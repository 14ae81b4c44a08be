"""Convolutions of few channels: the compiled kernel computes what PyTorch computes, forward and backward."""

import pytest
import torch
from support.concurrency import assert_a_fork_may, assert_threads_may_share
from support.filters import NEEDS_COMPILED

from flows import kernels
from flows.kernels.convolution import convolve, gradients_of_convolution, only_torch

pytestmark = NEEDS_COMPILED

# Channels in and out, filter, padding (left, right, top, bottom), dilation, image size.
SHAPES = {
    "autoregressive": (12, 12, (2, 2), (0, 1, 0, 1), 1, (5, 4)),
    "upper and dilated": (3, 5, (2, 3), (2, 2, 2, 0), 2, (6, 7)),
    "into many channels": (6, 70, (3, 3), (1, 1, 1, 1), 1, (4, 3)),
    "out of many channels": (70, 6, (3, 3), (1, 1, 1, 1), 1, (3, 5)),
    "without padding": (4, 9, (3, 3), (0, 0, 0, 0), 1, (5, 6)),
    "one channel, one pixel": (1, 1, (3, 3), (1, 1, 1, 1), 1, (1, 1)),
}


def inputs(name, dtype=torch.float64, batch=3):
    channels, outputs, kernel_size, padding, dilation, image_size = SHAPES[name]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    weight = random(outputs, channels, *kernel_size) / channels
    return random(batch, channels, *image_size), weight, random(outputs), padding, dilation


def results(x, weight, added, padding, dilation, relu, of_z):
    """``z`` and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, added)]
    z = convolve(*leaves[:2], padding, dilation, added=leaves[2], relu=relu)
    return z, *torch.autograd.grad(z, leaves, of_z)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_computes_what_pytorch_computes(name, everywhere, relu):
    x, weight, added, padding, dilation = inputs(name)
    with only_torch():
        size = convolve(x, weight, padding, dilation).shape
    if not everywhere:
        added = torch.randn(1, *size[1:], generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    of_z = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    ours = results(x, weight, added, padding, dilation, relu, of_z)
    with only_torch():
        expected = results(x, weight, added, padding, dilation, relu, of_z)
    assert "_Convolution" in type(ours[0].grad_fn).__name__ and "_Convolution" not in type(expected[0].grad_fn).__name__
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernels_serve", [True, False])
def test_both_gradients_at_once_are_those_of_autograd(kernels_serve, monkeypatch):
    x, weight, _, _, _ = inputs("into many channels")
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    of_z = torch.ones(3, 70, 4, 3, dtype=x.dtype).expand(3, 70, 4, 3)
    with only_torch():
        expected = torch.autograd.grad(convolve(*leaves, [1] * 4), leaves, of_z)
    if not kernels_serve:
        monkeypatch.setattr(kernels, "_why_missing", "it is not there")
    for one, other in zip(gradients_of_convolution(x, weight, of_z, 1), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_is_convolved_alike_in_any_batch_and_layout(threads):
    torch.set_num_threads(threads)
    x, weight, added, padding, dilation = inputs("autoregressive", torch.float32, batch=64)
    z = convolve(x, weight, padding, dilation, added=added)
    assert torch.equal(z[17:18], convolve(x[17:18], weight, padding, dilation, added=added))
    strided = x.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(z, convolve(strided, weight, padding, dilation, added=added))
    assert torch.equal(z, convolve(x.contiguous(memory_format=torch.channels_last), weight, padding, added=added))


def test_gradients_are_the_same_to_the_bit_each_time():
    torch.set_num_threads(3)
    x, weight, added, padding, dilation = inputs("autoregressive", torch.float32, batch=64)
    first, second = (results(x, weight, added, padding, dilation, False, torch.ones_like(x)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_relu_does_not_hide_nan():
    x, weight, added, padding, dilation = inputs("autoregressive")
    x[1, 3, 2, 2] = torch.nan
    z = convolve(x, weight, padding, dilation, added=added, relu=True)
    assert z[1, :, 1:3, 1:3].isnan().all() and z[[0, 2]].isfinite().all()


def test_what_is_added_may_have_a_type_of_its_own():
    x, weight, _, padding, dilation = inputs("autoregressive", torch.float32)
    added = torch.randn(1, 12, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = convolve(x, weight, padding, dilation, added=added)
    assert torch.allclose(z, convolve(x, weight, padding, dilation, added=added.float()), atol=1e-6)


def test_threads_share_it_and_a_forked_process_may_use_it():
    torch.set_num_threads(2)
    _, weight, added, padding, dilation = inputs("autoregressive", torch.float32)
    batches = [torch.randn(8, 12, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    assert_threads_may_share(lambda x: convolve(x, weight, padding, dilation, added=added), batches)
    assert_a_fork_may(lambda x: convolve(x, weight, padding, dilation, added=added), batches[0], threads=2)
