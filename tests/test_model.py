"""The whole flow: exact likelihoods, bits/dim in closed form, priors, and images in and out."""

import math
from functools import partial

import pytest
import torch
from support import configs
from support.contract import random_pixels
from support.weights import move_parameters
from torch.distributions import MultivariateNormal

from flows import Flow, InputError, NonFiniteError
from flows.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Conv1x1,
    EmergingConv2d,
    Layer,
    MaskedAutoregressiveFlow,
    PeriodicConv2d,
    Reverse,
)
from flows.measures.bits_per_dim import bits_per_dim
from flows.measures.diagnostics import first_non_finite, layer_gain, mixing_gains, round_trip_error
from flows.models.dequantizers import UniformDequantizer
from flows.models.interpolation import spherical
from flows.models.priors import FactorOut, LearnedPrior, StandardPrior
from flows.randomness import Stream, evaluation_noise, generator_for
from flows.solvers import IllConditionedWarning


class Identity(Layer):
    """No coupling: leaves a flow of affine layers."""

    def __init__(self, num_channels, hidden_channels):
        super().__init__()

    def forward(self, x):
        return x, x.new_zeros(len(x))

    def inverse(self, z):
        return z


def tiny(shape=(1, 4, 8), mixing=EmergingConv2d, coupling=AffineCoupling, num_levels=2, std=0.05, **options):
    flow = Flow(shape, mixing, coupling, num_levels, num_steps=2, hidden_channels=4, **options)
    move_parameters(flow, std)
    return flow


# -- the bijection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [LearnedPrior(), StandardPrior()], ids=["learned", "standard"])
@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
@pytest.mark.parametrize("mixing", configs.MIXINGS)
def test_whole_flow_against_autodiff(mixing, coupling, prior):
    flow = tiny(mixing=configs.mixing(mixing), coupling=coupling, prior=prior).double()
    v = torch.rand(2, 1, 4, 8, dtype=torch.float64) - 0.5

    def flat(v):
        return torch.cat([z.flatten(1) for z in flow(v)[0]], dim=1)

    jacobian = torch.autograd.functional.jacobian(flat, v).reshape(2, 32, 2, 32)
    latents, log_det = flow(v)
    for i in range(2):
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian[i, :, i]).logabsdet)
        assert not jacobian[i, :, 1 - i].any()
    torch.testing.assert_close(flow.inverse(latents), v)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(flow.log_prob(v), normal.log_prob(flat(v)).sum(1) + log_det)


@torch.no_grad()
def test_any_latent_is_some_image_s():
    flow = tiny().double()
    latents = [torch.randn(3, *shape, dtype=torch.float64) for shape in flow.latent_shapes]
    torch.testing.assert_close(flow(flow.inverse(latents))[0], latents)


@pytest.mark.parametrize("mixing", [Conv1x1, EmergingConv2d, PeriodicConv2d])
def test_flow_of_affine_layers_is_a_multivariate_normal(mixing):
    flow = tiny(mixing=mixing, coupling=Identity, num_levels=1, prior=StandardPrior(), margin=None).double()
    zero = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda v: flow(v)[0][0], zero).reshape(32, 32)
    mean = flow.inverse([torch.zeros_like(z) for z in flow(zero)[0]]).flatten()
    inverse = torch.linalg.inv(matrix)
    v = torch.randn(5, 1, 4, 8, dtype=torch.float64)
    expected = MultivariateNormal(mean, inverse @ inverse.T).log_prob(v.flatten(1))
    torch.testing.assert_close(flow.log_prob(v), expected)


def test_latents_have_as_many_dimensions_as_the_image_and_steps_know_their_shape():
    flow = Flow((3, 32, 16), Conv1x1, AffineCoupling, 3, 1, 4)
    assert flow.latent_shapes == [(6, 16, 8), (12, 8, 4), (48, 4, 2)]
    assert sum(math.prod(shape) for shape in flow.latent_shapes) == flow.num_dims == 3 * 32 * 16
    assert [shape for _, _, shape in flow.steps()] == [(12, 16, 8), (24, 8, 4), (48, 4, 2)]


def test_mixing_layers_are_not_shared_between_steps():
    flow = tiny()
    layers = [step.mixing for _, step, _ in flow.steps()]
    assert len({id(layer) for layer in layers}) == len(layers) == 4


# -- factoring out and priors ------------------------------------------------------------------------------------------


def test_factoring_out_is_inverted_and_counted():
    layer = FactorOut(4).double()
    move_parameters(layer, 0.1)
    h = torch.randn(2, 4, 3, 4, dtype=torch.float64)

    def flat(h):
        kept, z, _ = layer(h)
        return torch.cat([kept.flatten(1), z.flatten(1)], dim=1)

    kept, z, log_det = layer(h)
    torch.testing.assert_close(layer.inverse(kept, z), h)
    jacobian = torch.autograd.functional.jacobian(flat, h).reshape(2, 48, 2, 48)
    for i in range(2):
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian[i, :, i]).logabsdet)


def test_learned_priors_start_as_standard_normals():
    layer = FactorOut(4)
    h = torch.randn(2, 4, 3, 4)
    _, z, log_det = layer(h)
    torch.testing.assert_close(z, h[:, 2:])
    assert not log_det.any()


# -- pixels, reals, bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_uniform_density_costs_exactly_num_bits(num_bits):
    flow = tiny(dequantizer=partial(UniformDequantizer, num_bits=num_bits))
    flow.log_prob = lambda v: torch.zeros(len(v))
    assert flow.bits_per_dim(random_pixels(3, (1, 4, 8))).tolist() == [num_bits] * 3


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_every_pixel_survives_any_noise(num_bits):
    dequantizer = UniformDequantizer(num_bits)
    images = torch.arange(256, dtype=torch.uint8)
    for noise in (0.0, 0.5, 1 - 2**-10, 1 - 2**-24):  # the last is the largest that torch.rand gives
        v, log_q = dequantizer(images[:, None, None, None], torch.full((256, 1, 1, 1), noise))
        assert not log_q.any()
        assert v.min() >= -0.5
        assert v.max() < 0.5
        assert torch.equal(dequantizer.quantize(v).flatten(), dequantizer.reduce(images))
    assert len(dequantizer.reduce(images).unique()) == 2**num_bits


def test_fewer_bits_drop_the_low_ones():
    images = torch.tensor([0, 7, 8, 255], dtype=torch.uint8)
    assert UniformDequantizer(5).reduce(images).tolist() == [0, 0, 8, 248]
    assert UniformDequantizer(8).reduce(images).tolist() == images.tolist()


def test_values_outside_go_to_the_nearest_bin():
    assert UniformDequantizer().quantize(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_never_becomes_a_pixel(bad):
    with pytest.raises(NonFiniteError):
        UniformDequantizer().quantize(torch.tensor([0.0, bad]))


def test_only_uint8_images_are_accepted():
    with pytest.raises(InputError, match="uint8"):
        tiny().bits_per_dim(torch.zeros(1, 1, 4, 8))


def test_bits_per_dim_is_the_change_of_variables_by_hand():
    flow = tiny(dequantizer=partial(UniformDequantizer, num_bits=5))
    images, noise = random_pixels(3, (1, 4, 8)), torch.rand(3, 1, 4, 8)
    v = (images // 8 + noise) / 32 - 0.5
    expected = -(flow.log_prob(v) - 32 * math.log(32)) / (32 * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(images, noise), expected)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("mixing", [Conv1x1, EmergingConv2d, PeriodicConv2d])
def test_uniform_noise_costs_at_least_eight_bits(mixing, trained):
    shape = (1, 8, 8)
    flow = tiny(shape, mixing=mixing, std=0.02)
    flow.initialize(random_pixels(64, shape))
    if trained:
        optimizer = torch.optim.Adamax(flow.parameters(), lr=2e-3)
        for step in range(60):
            optimizer.zero_grad()
            flow.bits_per_dim(random_pixels(64, shape, seed=step)).mean().backward()
            optimizer.step()
    with torch.no_grad():
        scores = flow.bits_per_dim(random_pixels(512, shape, seed=1000)).double()
    assert scores.mean() > 8.0 - 3 * scores.std() / math.sqrt(512)


def test_training_brings_the_score_down():
    shape = (1, 8, 8)
    flow = tiny(shape, std=0.0)
    images = random_pixels(64, shape) // 64 * 64  # two bits of information in a pixel
    flow.initialize(images)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=5e-3)
    before = flow.bits_per_dim(images).mean()
    for _ in range(60):
        optimizer.zero_grad()
        flow.bits_per_dim(images).mean().backward()
        optimizer.step()
    assert flow.bits_per_dim(images).mean() < before - 0.3


# -- images in and out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", [8, 3])
@pytest.mark.parametrize("mixing", configs.MIXINGS)
def test_decoding_the_encoding_gives_the_image_back(mixing, num_bits):
    flow = tiny((3, 8, 16), mixing=configs.mixing(mixing), dequantizer=partial(UniformDequantizer, num_bits=num_bits))
    images = random_pixels(4, (3, 8, 16))
    flow.initialize(images)
    with torch.no_grad():
        assert torch.equal(flow.decode(flow.encode(images)), flow.dequantizer.reduce(images))
        assert round_trip_error(flow, images) < 0.1


def test_same_seed_same_samples_and_temperature_scales_the_latents():
    flow = tiny()
    first = flow.sample(3, 0.7, torch.Generator().manual_seed(5))
    assert first.dtype == torch.uint8
    assert first.shape == (3, 1, 4, 8)
    assert torch.equal(first, flow.sample(3, 0.7, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, flow.sample(3, 0.7, torch.Generator().manual_seed(6)))
    warm = flow.sample_latents(2, 1.0, torch.Generator().manual_seed(1))
    cold = flow.sample_latents(2, 0.5, torch.Generator().manual_seed(1))
    assert all(torch.equal(0.5 * a, b) for a, b in zip(warm, cold, strict=True))
    assert len(flow.sample(3, 0.0).unique(dim=0)) == 1


def test_samples_do_not_depend_on_how_they_are_batched():
    flow, generator = tiny((1, 6, 6), num_levels=1), torch.Generator().manual_seed(0)
    whole = flow.sample_latents(5, 0.7, torch.Generator().manual_seed(0))
    parts = [flow.sample_latents(count, 0.7, generator) for count in (2, 3)]
    for level, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(level, torch.cat(halves))


def test_a_layer_that_cannot_be_inverted_has_an_infinite_gain():
    layer = Conv1x1(3)
    with torch.no_grad():
        layer.weight.weight.zero_()
    assert layer_gain(layer, (3, 2, 2)) == math.inf
    autoregressive = EmergingConv2d(3)
    with torch.no_grad():
        autoregressive.lower.weight.zero_()
    assert layer_gain(autoregressive, (3, 4, 4)) == math.inf


def test_latents_that_overflow_have_an_infinite_error_and_gain():
    mixing = partial(MaskedAutoregressiveFlow, max_log_scale=None)
    flow = Flow((1, 4, 4), mixing, AffineCoupling, num_levels=1, num_steps=2, hidden_channels=4)
    with torch.no_grad():
        flow.levels[0][1].mixing.reverse_order.last.bias.fill_(
            -1e30
        )  # a scale of nearly 0, which the inverse divides by
        flow.levels[0][2].actnorm.log_scale.fill_(80.0)
    assert round_trip_error(flow, torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == math.inf
    assert max(mixing_gains(flow).values()) == math.inf


def test_sampling_that_overflows_raises():
    flow = tiny()
    with torch.no_grad():
        flow.levels[0][1].actnorm.log_scale.fill_(-100.0)
    with pytest.raises(NonFiniteError, match="temperature"):
        flow.sample(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_shape=(3, 12, 16), num_levels=3), "12 x 16 pixels cannot be halved 3 times"),
        (dict(image_shape=(3, 16)), "image_shape"),
        (dict(num_levels=0), "num_levels"),
        (dict(num_steps=0), "num_steps"),
        (dict(hidden_channels=0), "hidden_channels"),
        (dict(dequantizer=partial(UniformDequantizer, num_bits=9)), "num_bits"),
    ],
)
def test_flow_refuses_wrong_arguments(options, message):
    arguments = dict(image_shape=(3, 16, 16), num_levels=1, num_steps=1, hidden_channels=4) | options
    with pytest.raises(InputError, match=message):
        Flow(mixing=Conv1x1, coupling=AffineCoupling, **arguments)


def test_coupling_refuses_odd_channels():
    with pytest.raises(InputError, match="even, not 3"):
        AffineCoupling(3)


@pytest.mark.parametrize(("num_samples", "temperature"), [(0, 1.0), (1, -0.5), (1, math.nan)])
def test_sampling_refuses_wrong_arguments(num_samples, temperature):
    with pytest.raises(InputError):
        tiny().sample(num_samples, temperature)


def test_images_and_latents_of_the_wrong_shape_are_refused():
    flow = tiny()
    with pytest.raises(InputError, match="images must have the shape"):
        flow.bits_per_dim(random_pixels(1, (1, 8, 4)))
    with pytest.raises(InputError, match="latents must have the shapes"):
        flow.decode([torch.zeros(1, 2, 2, 4)])


# -- interpolation, noise, diagnostics ---------------------------------------------------------------------------------


def test_interpolation_starts_and_ends_exactly_and_keeps_the_length():
    a, b = ([torch.randn(1, 500, 2, 2), torch.randn(1, 10, 1, 1)] for _ in range(2))
    path = spherical(list(zip(a, b, strict=True)), torch.linspace(0, 1, 5))
    for level, first, last in zip(path, a, b, strict=True):
        assert torch.equal(level[0], first[0])
        assert torch.equal(level[-1], last[0])
    lengths = torch.stack([torch.cat([level[t].flatten() for level in path]).norm() for t in range(5)])
    assert lengths.max() / lengths.min() < 1.2  # a straight line would dip to 0.7


def test_interpolation_between_parallel_latents_is_straight():
    a = torch.randn(1, 4, 2, 2)
    (path,) = spherical([(a, 2 * a)], torch.tensor([0.5]))
    torch.testing.assert_close(path, 1.5 * a)


def test_noise_of_an_image_depends_on_its_index_alone():
    together = evaluation_noise("uniform", torch.tensor([3, 1, 4]), (2, 3))
    assert torch.equal(together[1], evaluation_noise("uniform", torch.tensor([1]), (2, 3))[0])
    assert not torch.equal(together, evaluation_noise("uniform", torch.tensor([3, 1, 4]), (2, 3), seed=1))
    assert together.min() >= 0
    assert together.max() < 1
    again = evaluation_noise("uniform", torch.tensor([3, 1, 4]), (2, 3), draw=1)
    assert not any(torch.equal(first, second) for first, second in zip(together, again, strict=True))


class LinearDensity:
    """A flow's face over one-pixel images whose density in a bin is ``2 u``: the bin has probability 1, 0 bits."""

    num_dims, image_shape, device, dtype = 1, (1, 1, 1), torch.device("cpu"), torch.float32
    dequantizer = UniformDequantizer()

    def bits_per_dim(self, images, noise):
        return -torch.log2(2 * noise).flatten()


def test_more_draws_tighten_the_bound_towards_the_probability_of_the_bin():
    batches = [(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), torch.arange(1000))]
    one, four, many = (
        float(bits_per_dim(LinearDensity(), batches, num_samples=num_samples).mean()) for num_samples in (1, 4, 64)
    )
    assert one == pytest.approx(1 / math.log(2) - 1, abs=0.1)  # E[-log2 2u]
    assert one > four > many > 0
    # The variance of 2u is 1/3, so that the second order of the logarithm leaves 1 / (6 K ln 2) bits.
    assert many == pytest.approx(1 / (6 * 64 * math.log(2)), abs=0.01)


def test_one_draw_is_the_usual_bound_and_fewer_are_refused():
    flow = Flow((3, 4, 4), Conv1x1, AffineCoupling, 1, 1, 4)
    images = random_pixels(6, (3, 4, 4))
    indices = torch.arange(6)
    expected = flow.bits_per_dim(images, evaluation_noise("uniform", indices, flow.image_shape))
    torch.testing.assert_close(bits_per_dim(flow, [(images, indices)]), expected.detach().double(), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="num_samples must be at least 1"):
        bits_per_dim(flow, [(images, indices)], num_samples=0)


def test_streams_never_share_random_numbers():
    draws = {float(torch.rand((), generator=generator_for(stream, 0, 1))) for stream in Stream}
    assert len(draws) == len(Stream)


def test_first_non_finite_names_the_parameter_or_the_layer():
    flow = tiny()
    v = torch.rand(2, 1, 4, 8) - 0.5
    with torch.no_grad():
        flow.levels[1][2].actnorm.log_scale[0] = 100.0  # overflows, though it is finite itself
    assert "levels.1.layers.2.actnorm" in first_non_finite(flow, v)
    with torch.no_grad():
        flow.levels[0][1].mixing.lower.weight[0, 0, 0, 0] = math.nan
    assert first_non_finite(flow, v) == "parameter levels.0.layers.1.mixing.lower.weight"


def test_layer_gain_is_one_for_orthogonal_layers_and_shows_a_dangerous_one():
    assert layer_gain(Reverse(4), (4, 3, 3)) == 1.0
    safe = EmergingConv2d(3)
    dangerous = EmergingConv2d(3)
    with torch.no_grad():
        dangerous.lower.weight[:] = -0.8
        dangerous.lower.weight[:, :, 1, 1].fill_diagonal_(0.8)  # every pixel adds up all those before it
    assert layer_gain(safe, (3, 8, 8)) < 3
    with pytest.warns(IllConditionedWarning):
        assert layer_gain(dangerous, (3, 8, 8)) > 100
    assert set(mixing_gains(tiny())) == {name for name, _, _ in tiny().steps()}
