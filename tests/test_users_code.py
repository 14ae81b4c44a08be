"""What users' own programs do with layers and models: compile them, feed them arrays or nothing, change their type."""

import pytest
import torch

from flows import Flow, InputError
from flows.layers import AffineCoupling, AutoregressiveConv2d, EmergingConv2d, MaskedAutoregressiveTransform, Squeeze
from flows.models.priors import LearnedPrior


@pytest.fixture
def flow():
    torch.manual_seed(0)
    flow = Flow((3, 8, 8), EmergingConv2d, AffineCoupling, num_levels=2, num_steps=1, hidden_channels=4)
    flow.initialize(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    return flow


@pytest.mark.parametrize("make", [AutoregressiveConv2d, MaskedAutoregressiveTransform])
def test_a_compiled_inverse_is_the_inverse_and_spoils_no_later_one(make):
    """No address of a tensor may outlive it where torch.compile splits the code."""
    torch.manual_seed(0)
    layer, z = make(4), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        expected = make(4)
        expected.load_state_dict(layer.state_dict())
        expected = expected.inverse(z)
        assert torch.equal(torch.compile(layer.inverse, backend="eager")(z), expected)
        assert torch.equal(layer.inverse(z), expected)


def test_no_images_are_a_batch(flow):
    nothing = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert flow.bits_per_dim(nothing).shape == (0,)
    assert flow.decode(flow.encode(nothing)).shape == nothing.shape
    z, log_det = Squeeze()(torch.zeros(0, 3, 8, 6))
    assert (z.shape, log_det.shape, Squeeze().inverse(z).shape) == ((0, 12, 4, 3), (0,), (0, 3, 8, 6))
    with pytest.raises(InputError, match="at least one image"):
        flow.initialize(nothing)


def test_arrays_are_images(flow):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for ours, theirs in zip(flow.encode(images.numpy()), flow.encode(images), strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_is_refused_with_what_to_do_instead(flow):
    flow.bfloat16()
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for use in (lambda: flow.bits_per_dim(images), lambda: flow.encode(images), lambda: flow.sample(1)):
        with pytest.raises(InputError, match=r"float32 or float64, not in torch\.bfloat16.*in_precision"):
            use()
    layer = MaskedAutoregressiveTransform(3).bfloat16()
    with torch.no_grad(), pytest.raises(InputError, match="float32 or float64"):
        layer.inverse(torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16))


def test_a_prior_without_an_edge_bias_is_the_same_everywhere():
    gaussian = LearnedPrior(edge_bias=False).top(3)
    with torch.no_grad():
        gaussian.bias.copy_(torch.arange(6.0)[:, None, None])
    mean, log_std = gaussian.mean_and_log_std(torch.zeros(2, 3, 4, 5))
    assert (mean.flatten().tolist(), log_std.flatten().tolist()) == ([0.0, 2.0, 4.0], [1.0, 3.0, 5.0])
