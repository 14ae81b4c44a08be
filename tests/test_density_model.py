"""A model that is not a Flow, a dequantiser with a density of its own, a coupling and a network of one's own."""

import math
import sys

import pytest
import torch
from support.contract import check_log_det_against_autodiff, check_round_trips, images, make, random_pixels
from torch import nn

from flows import Flow, InputError, NonFiniteError, load_flow
from flows.layers import AffineCoupling, Conv1x1, Coupling
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


def test_bits_per_dim_encoding_and_samples_come_with_it(model):
    x = random_pixels(5, (3, 4, 8))
    noise = torch.rand(x.shape)
    gaussian = torch.distributions.Normal(0.0, 0.3)
    expected = 8 - gaussian.log_prob((x + noise) / 256 - 0.5).flatten(1).mean(dim=1) / math.log(2)
    torch.testing.assert_close(model.bits_per_dim(x, noise), expected)
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
    assert torch.isfinite(bits_per_dim(flow, [(few, torch.arange(6))])).all()
    assert torch.equal(flow.decode(flow.encode(few)), few)


class Cubic(Coupling):
    """``z2 = x2 + a^2 x2^3`` has no closed inverse here; Newton's method finds it."""

    outputs_per_channel = 1

    def transform(self, x2, outputs):
        return x2 + outputs.square() * x2**3, per_image_sum(torch.log1p(3 * outputs.square() * x2.square()))

    def inverse_transform(self, z2, outputs):
        x2 = z2
        for _ in range(60):
            x2 = x2 - (x2 + outputs.square() * x2**3 - z2) / (1 + 3 * outputs.square() * x2.square())
        return x2


class PositionNetwork(Network):
    """Says something else at every pixel, so it has to know how many there are."""

    def __init__(self, in_channels, hidden_channels, out_channels, image_size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.randn(out_channels, *image_size))

    def forward(self, x):
        return torch.einsum("oi,bihw->bohw", self.weight, x) + self.bias


def test_a_coupling_is_its_transform_and_a_network_that_asks_for_the_image_size_gets_it():
    layer, x = make(lambda: Cubic(4, 6, PositionNetwork, image_size=(3, 2))), images((4, 3, 2))
    check_round_trips(layer, x)
    check_log_det_against_autodiff(layer, x)
    flow = Flow((3, 8, 4), Conv1x1, lambda c, h, image_size: Cubic(c, h, PositionNetwork, image_size=image_size), 2, 1)
    assert [tuple(step.coupling.network.bias.shape[1:]) for _, step, _ in flow.steps()] == [(4, 2), (2, 1)]


def test_a_model_without_a_valid_shape_is_refused():
    with pytest.raises(InputError, match="image_shape must be"):
        PixelModel((3, 0, 8))
