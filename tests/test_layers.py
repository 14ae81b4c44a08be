"""Properties of single layers beyond the contract."""

import math
from functools import partial

import pytest
import torch
from support.contract import images, make
from torch.nn.functional import conv2d

from flows import InputError
from flows.layers import (
    ActNorm,
    AffineCoupling,
    AutoregressiveConv2d,
    Conv1x1,
    EmergingConv2d,
    Logit,
    MaskedAutoregressiveFlow,
    PeriodicConv2d,
    Reverse,
    Sequential,
    Shuffle,
    SigmoidCoupling,
    Squeeze,
)
from flows.layers.networks import PaddedConv2d
from flows.measures.diagnostics import count_parameters
from flows.models.initialization import initialize_from_data
from flows.models.priors import ConditionalGaussian


def dense_matrix(layer, shape):
    """The matrix of an affine layer, ``(D, D)``, rows and columns in the order of ``flatten``."""
    x = torch.zeros(1, *shape, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda v: layer(v)[0], x).reshape(x.numel(), x.numel())


# -- squeeze and permutations ------------------------------------------------------------------------------------------


def test_squeeze_does_what_its_picture_shows():
    x = torch.tensor([[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]).view(1, 1, 4, 4).float()
    z, _ = Squeeze()(x)
    expected = [[[1, 5], [9, 13]], [[2, 6], [10, 14]], [[3, 7], [11, 15]], [[4, 8], [12, 16]]]
    assert z[0].tolist() == expected


def test_reverse_reverses():
    z, _ = Reverse(3)(torch.arange(3.0).view(1, 3, 1, 1))
    assert z.flatten().tolist() == [2, 1, 0]


def test_shuffle_follows_the_seed():
    first = Shuffle(50).permutation
    torch.manual_seed(0)  # as before each test
    assert torch.equal(Shuffle(50).permutation, first)
    assert not torch.equal(Shuffle(50).permutation, first)


# -- actnorm -----------------------------------------------------------------------------------------------------------


def test_actnorm_is_never_initialised_by_a_forward_pass():
    layer = ActNorm(2).train()
    layer(torch.randn(8, 2, 3, 3))
    assert not layer.initialized
    assert not layer.bias.any()


def test_actnorm_is_initialised_once_also_after_loading():
    layer = ActNorm(2)
    initialize_from_data(layer, torch.randn(8, 2, 3, 3))
    loaded = ActNorm(2)
    loaded.load_state_dict(layer.state_dict())
    initialize_from_data(loaded, 100 + torch.randn(8, 2, 3, 3))
    assert torch.equal(loaded.bias, layer.bias)


def test_initialisation_reaches_nested_actnorms_with_normalised_activations():
    model = Sequential(ActNorm(4), Conv1x1(4), AffineCoupling(4, 5), ActNorm(4))
    x = 7 + 2 * torch.randn(64, 4, 4, 4)
    initialize_from_data(model, x)
    assert all(module.initialized for module in model.modules() if isinstance(module, ActNorm))
    z, _ = model(x)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.var(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=1e-4, atol=0)


def test_actnorm_survives_a_constant_channel():
    layer = ActNorm(1)
    initialize_from_data(layer, torch.full((4, 1, 2, 2), 3.0))
    assert torch.isfinite(layer.log_scale).all()


# -- maps of the channels fold into what follows -----------------------------------------------------------------------

MIXINGS = [
    Conv1x1,
    EmergingConv2d,
    partial(EmergingConv2d, mask="raster", dilation=2, parametrization="plu"),
    PeriodicConv2d,
    partial(PeriodicConv2d, boundary="reflect"),
    partial(PeriodicConv2d, orthogonal=True),
    Reverse,
]


def step_of(mixing):
    return make(lambda: Sequential(ActNorm(4), ActNorm(4), mixing(4), AffineCoupling(4, 6), Conv1x1(4)))


def answers_and_gradients(layer, x):
    x = x.clone().requires_grad_()
    z, log_det = layer(x)
    (z.square().sum() + log_det.sum()).backward()
    return [z, log_det, x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("mixing", MIXINGS)
def test_folded_maps_are_what_the_layers_are_one_by_one(mixing):
    layer, x = step_of(mixing), images((4, 3, 5))
    folded = answers_and_gradients(layer, x)
    layer.zero_grad()
    for module in layer.modules():
        module.register_forward_hook(lambda *_: None)  # nothing that is watched is folded
    torch.testing.assert_close(folded, answers_and_gradients(layer, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_no_pixelwise_layer_runs_by_itself_unless_a_hook_looks_at_it(mixing):
    layer, seen = step_of(mixing), []
    for kind in (ActNorm, Conv1x1):
        for module in layer.modules():
            if type(module) is kind:
                module.forward = lambda x, forward=module.forward: seen.append(1) or forward(x)
    layer(images((4, 3, 5)))
    assert not seen
    layer.layers[0].register_forward_hook(lambda *_: None)
    layer(images((4, 3, 5)))
    assert seen == [1]


# -- the networks ------------------------------------------------------------------------------------------------------


def test_edge_bias_is_a_channel_of_ones_on_the_padding():
    layer = PaddedConv2d(2, 3, 3, bias=True, edge_bias=True).double()
    x = images((2, 4, 5))
    padded = torch.nn.functional.pad(x, [1, 1, 1, 1])
    mark = torch.nn.functional.pad(torch.zeros(3, 1, 4, 5, dtype=torch.float64), [1, 1, 1, 1], value=1.0)
    weight = torch.cat([layer.weight, layer.edge_bias.weight], dim=1)
    expected = conv2d(torch.cat([padded, mark], dim=1), weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_couplings_take_shift_and_scale_from_even_and_odd_channels():
    bounded = make(lambda: AffineCoupling(4, 6, max_log_scale=0.3, max_shift=0.2))
    papers = make(lambda: SigmoidCoupling(4, 6))
    x = images((4, 3, 3))
    outputs = bounded.network(8 * torch.tanh(x[:, :2] / 8))
    shift, log_scale = 0.2 * torch.tanh(outputs[:, [0, 2]] / 0.2), 0.3 * torch.tanh(outputs[:, [1, 3]] / 0.3)
    torch.testing.assert_close(bounded(x)[0][:, 2:], x[:, 2:] * torch.exp(log_scale) + shift)
    outputs = papers.network(x[:, :2])
    expected = (x[:, 2:] + outputs[:, [0, 2]]) * torch.sigmoid(outputs[:, [1, 3]] + 2)
    torch.testing.assert_close(papers(x)[0][:, 2:], expected)


# -- wrong arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (partial(Conv1x1, 4, "lu"), "plain"),
        (partial(Conv1x1, 4, "qr", num_reflections=0), "between 1"),
        (partial(Conv1x1, 4, "qr", num_reflections=5), "between 1"),
        (partial(Conv1x1, 4, num_reflections=2), "qr"),
        (partial(AutoregressiveConv2d, 4, dilation=0), "dilation"),
        (partial(AutoregressiveConv2d, 4, direction="left"), "direction"),
        (partial(AutoregressiveConv2d, 4, mask="round"), "mask"),
        (partial(AutoregressiveConv2d, 4, solver="referense"), "reference"),
        (partial(AutoregressiveConv2d, 4, 0), "odd"),
        (partial(PeriodicConv2d, 4, 2), "odd"),
        (partial(AffineCoupling, 3), "even, not 3"),
        (partial(AffineCoupling, 4, 4, max_log_scale=0.0), "max_log_scale"),
        (partial(AffineCoupling, 4, 4, max_log_scale=math.inf), "max_log_scale"),
        (partial(AffineCoupling, 4, 4, max_shift=-1.0), "max_shift"),
        (partial(ConditionalGaussian, 4, 4, max_log_scale=0.0), "max_log_scale"),
        (partial(ConditionalGaussian, 4, 4, max_shift=-1.0), "max_shift"),
        (partial(MaskedAutoregressiveFlow, 4, max_log_scale=0.0), "max_log_scale"),
        (partial(MaskedAutoregressiveFlow, 4, max_shift=0.0), "max_shift"),
        (partial(MaskedAutoregressiveFlow, 4, max_input=0.0), "max_input"),
        (partial(MaskedAutoregressiveFlow, 4, 0), "hidden_channels"),
        (partial(MaskedAutoregressiveFlow, 4, solver="cuda"), "solver"),
        (partial(Logit, 0.0), "margin"),
        (partial(Squeeze(), torch.zeros(1, 1, 3, 4)), "even"),
    ],
)
def test_wrong_arguments_are_refused(make_wrong, message):
    with pytest.raises(InputError, match=message):
        make_wrong()


# -- 1x1 convolutions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", ["plain", "plu", "qr"])
def test_every_1x1_starts_orthogonal(parametrization):
    matrix = Conv1x1(6, parametrization).weight.matrix().double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-5)


def test_parametrisations_have_the_degrees_of_freedom_of_a_matrix():
    assert [count_parameters(Conv1x1(5, name)) for name in ("plain", "plu", "qr")] == [25, 25, 25]
    assert count_parameters(Conv1x1(5, "qr", num_reflections=1)) == 4 + 15


# -- autoregressive and emerging convolutions --------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["square", "raster"])
@pytest.mark.parametrize("direction", ["lower", "upper"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_autoregressive_matrix_is_triangular_in_the_declared_order(direction, mask, kernel_size, dilation):
    shape = (3, 4, 5)
    layer = make(lambda: AutoregressiveConv2d(3, kernel_size, dilation, direction=direction, mask=mask))
    with torch.no_grad():
        layer.weight[0] *= -1  # entries of both signs on the diagonal
    pixels_first = torch.arange(60).view(shape).permute(1, 2, 0)  # reading order of pixels, then channels
    order = pixels_first.flip(0, 1).flatten() if direction == "lower" else pixels_first.flip(2).flatten()
    matrix = dense_matrix(layer, shape)[order][:, order]
    assert not matrix.triu(1).any()
    centre = layer.filter()[:, :, kernel_size // 2, kernel_size // 2].diagonal()
    expected = centre if direction == "lower" else centre.flip(0)
    torch.testing.assert_close(matrix.diagonal(), expected.repeat(20))
    torch.testing.assert_close(layer(images(shape, 1))[1][0], torch.linalg.slogdet(matrix).logabsdet)


@pytest.mark.parametrize("mask", ["square", "raster"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_two_convolutions_equal_the_composed_filter_whose_square_is_full(kernel_size, dilation, mask):
    layer = make(lambda: EmergingConv2d(3, kernel_size, dilation, mask=mask))
    x = images((3, 14, 15))
    composed = layer.composed_filter()
    border = dilation * (composed.shape[-1] // 2)
    reach = kernel_size // 2
    assert mask == "raster" or composed.abs().sum(dim=(0, 1)).count_nonzero() == kernel_size**2
    assert composed[:, :, reach : reach + kernel_size, reach : reach + kernel_size].all()
    with_one = conv2d(x, composed, layer.upper.bias, dilation=dilation)
    with_two, _ = layer(x)
    torch.testing.assert_close(with_one, with_two[:, :, border:-border, border:-border])


# -- periodic convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (4, 4), (2, 3), (1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_periodic_against_the_dense_circulant_matrix(kernel_size, size):
    layer = make(lambda: PeriodicConv2d(2, kernel_size))
    height, width = size
    v = images((2, height, width), 1)
    z, log_det = layer(v)
    torus = conv2d(v.repeat(1, 1, 5, 5), layer.weight, layer.bias, padding=kernel_size // 2)
    torch.testing.assert_close(z, torus[:, :, 2 * height : 3 * height, 2 * width : 3 * width])
    circulant = dense_matrix(layer, (2, height, width))
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(circulant).logabsdet)
    torch.testing.assert_close(layer.inverse(z), v)
