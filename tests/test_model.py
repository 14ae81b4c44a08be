"""The whole flow: exact likelihoods, bits/dim in closed form, priors, and images in and out."""

import math
from functools import partial

import pytest
import torch
from support import configs
from support.contract import check_log_det_against_autodiff, random_pixels
from support.weights import moved_flow

from flows import Flow, InputError, NonFiniteError
from flows.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Conv1x1,
    EmergingConv2d,
    MaskedAutoregressiveFlow,
    PeriodicConv2d,
    Reverse,
)
from flows.measures.bits_per_dim import bits_per_dim
from flows.measures.diagnostics import first_non_finite, layer_gain, mixing_gains, round_trip_error
from flows.models.dequantizers import UniformDequantizer
from flows.models.interpolation import spherical
from flows.models.priors import LearnedPrior, StandardPrior
from flows.randomness import Stream, evaluation_noise, generator_for
from flows.solvers import IllConditionedWarning

# -- the bijection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [LearnedPrior(), StandardPrior()], ids=["learned", "standard"])
@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
@pytest.mark.parametrize("mixing", configs.MIXINGS)
def test_whole_flow_against_autodiff(mixing, coupling, prior):
    flow = moved_flow(mixing=configs.mixing(mixing), coupling=coupling, prior=prior).double()
    v = torch.rand(2, 1, 4, 8, dtype=torch.float64) - 0.5

    def as_layer(v):
        latents, log_det = flow(v)
        return torch.cat([z.flatten(1) for z in latents], dim=1), log_det

    check_log_det_against_autodiff(as_layer, v)
    z, log_det = as_layer(v)
    torch.testing.assert_close(flow.inverse(flow(v)[0]), v)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(flow.log_prob(v), normal.log_prob(z).sum(1) + log_det)


def test_latents_have_as_many_dimensions_as_the_image_and_steps_know_their_shape():
    flow = Flow((3, 32, 16), Conv1x1, AffineCoupling, 3, 1, 4)
    assert flow.latent_shapes == [(6, 16, 8), (12, 8, 4), (48, 4, 2)]
    assert sum(math.prod(shape) for shape in flow.latent_shapes) == flow.num_dims == 3 * 32 * 16
    assert [shape for _, _, shape in flow.steps()] == [(12, 16, 8), (24, 8, 4), (48, 4, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("mixing", [EmergingConv2d, PeriodicConv2d])
def test_compiled_steps_keep_names_and_numbers(mixing):
    flow, v = moved_flow(mixing=mixing), torch.rand(2, 1, 4, 8) - 0.5
    names, exact = list(flow.state_dict()), flow.log_prob(v)
    gradients = torch.autograd.grad(exact.sum(), list(flow.parameters()))
    flow.compile_parts(backend="eager", fullgraph=True)
    compiled = flow.log_prob(v)
    torch.testing.assert_close(compiled, exact)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), list(flow.parameters())), gradients)
    assert list(flow.state_dict()) == names


@pytest.mark.slow
def test_steps_are_compiled_for_one_size_at_a_time():
    """Inductor fails on steps whose sizes are symbols."""
    torch.compiler.reset()  # what other tests compiled counts, too
    inputs = []

    def backend(graph, _):
        inputs.append([node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"])
        return graph.forward

    flow = moved_flow()
    flow.compile_parts(backend=backend, fullgraph=True)
    for num_images in (2, 3):
        for _ in range(2):
            flow.log_prob(torch.rand(num_images, 1, 4, 8) - 0.5).sum().backward()
    assert not any(isinstance(one, torch.SymInt) for of_one in inputs for one in of_one)
    assert len(inputs) <= 2 * (2 * len(flow.levels) + 1)  # steps of a level share one, the first knows no gradient


def test_a_score_compiles_nothing():
    flow, compiled = moved_flow(), []
    flow.compile_parts(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    bits_per_dim(flow, [(random_pixels(2, (1, 4, 8)), torch.arange(2))])
    assert not compiled


# -- pixels, reals, bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_uniform_density_costs_exactly_num_bits(num_bits):
    flow = moved_flow(dequantizer=partial(UniformDequantizer, num_bits=num_bits))
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


def test_values_outside_go_to_the_nearest_bin():
    assert UniformDequantizer().quantize(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_never_becomes_a_pixel(bad):
    with pytest.raises(NonFiniteError):
        UniformDequantizer().quantize(torch.tensor([0.0, bad]))


def test_bits_per_dim_is_the_change_of_variables_by_hand():
    flow = moved_flow(dequantizer=partial(UniformDequantizer, num_bits=5))
    images, noise = random_pixels(3, (1, 4, 8)), torch.rand(3, 1, 4, 8)
    v = (images // 8 + noise) / 32 - 0.5
    expected = -(flow.log_prob(v) - 32 * math.log(32)) / (32 * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(images, noise), expected)


# -- images in and out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", [8, 3])
@pytest.mark.parametrize("mixing", configs.MIXINGS)
def test_decoding_the_encoding_gives_the_image_back(mixing, num_bits):
    dequantizer = partial(UniformDequantizer, num_bits=num_bits)
    flow = moved_flow((3, 8, 16), configs.mixing(mixing), dequantizer=dequantizer)
    images = random_pixels(4, (3, 8, 16))
    flow.initialize(images)
    with torch.no_grad():
        assert torch.equal(flow.decode(flow.encode(images)), flow.dequantizer.reduce(images))
        assert round_trip_error(flow, images) < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flow.decode(flow.encode(images)), flow.dequantizer.reduce(images))


def test_latents_follow_the_seed_and_temperature_scales_them():
    flow = moved_flow()
    warm, again, cold = (flow.sample_latents(2, t, torch.Generator().manual_seed(1)) for t in (1.0, 1.0, 0.5))
    for first, second, scaled in zip(warm, again, cold, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(0.5 * first, scaled)


def test_samples_do_not_depend_on_how_they_are_batched():
    flow, generator = moved_flow((1, 6, 6), num_levels=1), torch.Generator().manual_seed(0)
    whole = flow.sample_latents(5, 0.7, torch.Generator().manual_seed(0))
    parts = [flow.sample_latents(count, 0.7, generator) for count in (2, 3)]
    for level, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(level, torch.cat(halves))


def test_latents_that_overflow_have_an_infinite_error_and_gain():
    mixing = partial(MaskedAutoregressiveFlow, max_log_scale=None)
    flow = moved_flow((1, 4, 4), mixing, num_levels=1, std=0.0)
    with torch.no_grad():
        # A scale of nearly 0, which the inverse divides by.
        flow.levels[0][1].mixing.reverse_order.last.bias.fill_(-1e30)
        flow.levels[0][2].actnorm.log_scale.fill_(80.0)
    assert round_trip_error(flow, torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == math.inf
    assert max(mixing_gains(flow).values()) == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(3, 12, 16), num_levels=3), "12 x 16 pixels cannot be halved 3 times"),
        (dict(shape=(3, 16)), "image_shape"),
        (dict(shape=(3, 0, 16)), "image_shape"),
        (dict(num_levels=0), "num_levels"),
        (dict(num_steps=0), "num_steps"),
        (dict(hidden_channels=0), "hidden_channels"),
        (dict(dequantizer=partial(UniformDequantizer, num_bits=9)), "num_bits"),
    ],
)
def test_flow_refuses_wrong_arguments(options, message):
    with pytest.raises(InputError, match=message):
        moved_flow(**options)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("sample", (0,), "num_samples"),
        ("sample", (1, -0.5), "temperature"),
        ("sample", (1, math.nan), "temperature"),
        ("bits_per_dim", (torch.zeros(1, 1, 4, 8),), "uint8"),
        ("bits_per_dim", (random_pixels(1, (1, 8, 4)),), "images must have the shape"),
        ("decode", ([torch.zeros(1, 2, 2, 4)],), "latents must have the shapes"),
    ],
)
def test_a_flow_refuses_what_it_cannot_compute_with(method, arguments, message):
    with pytest.raises(InputError, match=message):
        getattr(moved_flow(), method)(*arguments)


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
    flow = moved_flow()
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
        dangerous.lower.weight[:, :, 0, 0].fill_diagonal_(0.8)  # every pixel adds up all those before it
    assert layer_gain(safe, (3, 8, 8)) < 3
    with pytest.warns(IllConditionedWarning):
        assert layer_gain(dangerous, (3, 8, 8)) > 100
    assert set(mixing_gains(moved_flow())) == {name for name, _, _ in moved_flow().steps()}
