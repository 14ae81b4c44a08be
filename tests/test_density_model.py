"""A model that is not a Flow, a dequantiser with a density of its own, a network of one's own."""

import math
import sys
from functools import partial

import pytest
import torch
from support.contract import random_pixels
from torch import nn

from flows import Flow, NonFiniteError, load_flow
from flows.layers import AffineCoupling, Conv1x1
from flows.layers.networks import Network
from flows.measures.bits_per_dim import bits_per_dim
from flows.measures.diagnostics import inverse_gain, mixing_gains, round_trip_error, sample_health, unusual_images
from flows.models.base import DensityModel
from flows.models.dequantizers import Dequantizer, UniformDequantizer
from flows.numerics import per_image_sum
from flows.runs.checkpoint import FORMAT


class PixelModel(DensityModel):
    """Every pixel is a Gaussian of its own."""

    def __init__(self, image_shape, std=0.3):
        super().__init__(image_shape, UniformDequantizer())
        self.latent_shapes = [self.image_shape]
        self.mean = nn.Parameter(torch.zeros(self.image_shape))
        self.log_std = nn.Parameter(torch.full(self.image_shape, math.log(std)))

    def forward(self, v):
        z = (v - self.mean) * torch.exp(-self.log_std)
        return [z], -self.log_std.sum().expand(len(v))

    def inverse(self, latents):
        return latents[0] * torch.exp(self.log_std) + self.mean


@pytest.fixture
def model():
    return PixelModel((3, 4, 8))


def test_encoding_and_samples_come_with_it(model):
    x = random_pixels(5, (3, 4, 8))
    assert torch.equal(model.decode(model.encode(x)), x)
    assert model.sample(2).shape == (2, 3, 4, 8)


def test_an_overflow_is_named_and_the_other_images_survive(model):
    latents = model.encode(random_pixels(3, (3, 4, 8)))
    latents[0][1] = math.inf
    with pytest.raises(NonFiniteError, match="1 of 3 images overflow"):
        model.decode(latents)
    _, finite = model.decode_finite(latents)
    assert finite.tolist() == [True, False, True]


def test_measures_work_with_any_model(model):
    batch = (random_pixels(5, (3, 4, 8)), torch.arange(5))
    assert torch.isfinite(bits_per_dim(model, [batch], num_samples=2)).all()
    assert round_trip_error(model, unusual_images(model.image_shape)) < 0.5
    assert inverse_gain(model, model.sample_latents(4)) == pytest.approx(0.3, rel=1e-3)
    assert sample_health(model, 8).not_finite == 0
    assert mixing_gains(model) == {}


def test_its_checkpoints_load(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    monkeypatch.setattr(PixelModel, "__module__", "mine")
    config = {"model": {"_target_": "mine.PixelModel", "image_shape": [3, 4, 8]}}
    state = {f"flow.{name}": value for name, value in model.state_dict().items()}
    torch.save({"format": FORMAT, "config": config, "overrides": [], "state_dict": state}, tmp_path / "some.ckpt")
    assert isinstance(load_flow(tmp_path / "some.ckpt", packages=("flows", "mine")), PixelModel)


class SigmoidDequantizer(Dequantizer):
    """The place in the bin is the sigmoid of normal noise; ``q`` follows by the change of variables."""

    noise = "normal"

    def forward(self, images, noise):
        u = torch.sigmoid(noise)
        log_normal = -0.5 * (noise.square() + math.log(2 * math.pi))
        return self.place(images, u), per_image_sum(log_normal - torch.log(u * (1 - u)))


def test_a_dequantizer_brings_its_noise_and_its_density():
    flow = Flow((1, 4, 4), Conv1x1, AffineCoupling, 1, 1, 4, dequantizer=SigmoidDequantizer)
    x = torch.full((20_000, 1, 1, 1), 7, dtype=torch.uint8)
    v, log_q = flow.dequantizer(x, torch.randn(x.shape))
    assert torch.equal(flow.dequantizer.quantize(v), x)
    # Under q the mean of 1 / q is the size of the bin.
    assert float(torch.exp(-log_q).mean()) == pytest.approx(1.0, abs=0.03)
    few = random_pixels(6, (1, 4, 4))
    flow.initialize(few)
    noise = torch.randn(few.shape)
    v, log_q = flow.dequantizer(few, noise)
    expected = 8 + (log_q - flow.log_prob(v)) / (16 * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(few, noise), expected)
    assert torch.equal(flow.decode(flow.encode(few)), few)


class PositionNetwork(Network):
    """Says something else at every pixel, so it has to know how many there are."""

    def __init__(self, in_channels, hidden_channels, out_channels, image_size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.randn(out_channels, *image_size))

    def forward(self, x):
        return torch.einsum("oi,bihw->bohw", self.weight, x) + self.bias


def test_a_network_that_asks_for_the_image_size_gets_it():
    coupling = partial(AffineCoupling, network=PositionNetwork)
    flow = Flow((3, 8, 4), Conv1x1, coupling, num_levels=2, num_steps=1)
    assert [tuple(step.coupling.network.bias.shape[1:]) for _, step, _ in flow.steps()] == [(4, 2), (2, 1)]
