"""What keeps inverses from exploding, what sees it when one does, and what then happens to the other images."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from support.contract import images
from support.weights import move_parameters, moved_flow

from flows import Flow, NonFiniteError
from flows.layers import (
    AffineCoupling,
    Conv1x1,
    EmergingConv2d,
    Logit,
    MaskedAutoregressiveFlow,
    PeriodicConv2d,
    SigmoidCoupling,
)
from flows.measures.diagnostics import (
    count_not_finite,
    gradient_norm,
    layer_gain,
    mixing_gains,
    round_trip_error,
    sample_health,
    unusual_images,
)
from flows.models.priors import ConditionalGaussian, LearnedPrior
from flows.numerics import bounded
from flows.pictures import grid, hatched, sheet, side_by_side
from flows.solvers import IllConditionedWarning, checks

BOUND = 0.7


small_flow = partial(moved_flow, (3, 8, 8), hidden_channels=8)


def wild(flow):
    """The flow with networks whose answers are as large as those of a diverging training."""
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "network.last" in name or "factor_outs" in name:
                parameter += 20.0 * torch.randn_like(parameter)
                if name.endswith("log_scale"):
                    parameter.zero_()
    return flow


# -- by construction ---------------------------------------------------------------------------------------------------


def test_bounded_is_smooth_odd_of_slope_one_and_bounded():
    h = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    s = bounded(h, BOUND)
    (slope,) = torch.autograd.grad(s.sum(), h)
    assert s.abs().max() <= BOUND
    torch.testing.assert_close(s, -s.flip(0))
    assert slope[500] == 1.0
    assert ((slope >= 0) & (slope <= 1)).all()
    assert bounded(h, None) is h


@pytest.mark.parametrize("num_steps, bound", [(4, 1.0), (8, 1.0), (32, 0.25)])
def test_a_deep_level_shares_the_log_scales_of_eight_steps(num_steps, bound):
    mixing = partial(MaskedAutoregressiveFlow, hidden_channels=6)
    flow = Flow((1, 4, 4), mixing, AffineCoupling, num_levels=1, num_steps=num_steps, hidden_channels=4)
    for _, step, _ in flow.steps():
        assert step.coupling.max_log_scale == bound
        assert step.mixing.forward_order.max_log_scale == step.mixing.reverse_order.max_log_scale == bound / 4
    chosen = Flow((1, 4, 4), Conv1x1, partial(AffineCoupling, num_steps=1), num_levels=1, num_steps=32)
    assert chosen.levels[0][1].coupling.max_log_scale == 1.0


@pytest.mark.parametrize("bound", [BOUND, None])
def test_the_bounded_mean_and_log_std_of_a_prior_come_from_even_and_odd_channels(bound):
    prior = ConditionalGaussian(2, 2, max_log_scale=bound, max_shift=bound).double()
    move_parameters(prior, 1.0)
    h = 10 * images((2, 3, 3))
    mean, log_std = prior.mean_and_log_std(h)
    outputs = bounded(prior.convolution(h), bound)
    torch.testing.assert_close(mean, outputs[:, 0::2])
    torch.testing.assert_close(log_std, outputs[:, 1::2])


def test_the_same_wild_networks_overflow_with_the_papers_scales_and_not_with_bounded_ones():
    assert count_not_finite(wild(small_flow()), 64) == 0
    unbounded = {"prior": LearnedPrior(None, None)}
    assert count_not_finite(wild(small_flow(coupling=SigmoidCoupling, **unbounded)), 64) > 0


def test_samples_of_a_flow_with_a_margin_stay_within_it():
    flow = wild(small_flow(margin=0.1))
    v, lost = flow.decode_values([100 * z for z in flow.sample_latents(8)])
    assert not lost
    assert v.abs().max() == pytest.approx(0.6)


def test_the_logit_has_slope_one_in_the_middle_and_is_steepest_at_the_ends():
    layer, x = Logit(0.1), torch.linspace(-0.5, 0.5, 11, dtype=torch.float64).view(1, 1, 1, 11).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x)[0].sum(), x)
    assert slope.min() == slope[0, 0, 0, 5] == pytest.approx(1.0)
    assert slope.max() == pytest.approx(1.2**2 / (4 * 0.1 * 1.1))


# -- matrices without an inverse ---------------------------------------------------------------------------------------


def weaken(layer, value):
    """Give the layer a singular value (of one frequency) of about this size."""
    with torch.no_grad():
        if isinstance(layer, PeriodicConv2d):
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = torch.eye(len(layer.bias))
            layer.weight[0, 0, 1, 1] = value
        elif hasattr(layer.weight, "log_scale"):
            layer.weight.log_scale[0] = math.log(value) if value else -math.inf
        else:
            layer.weight.weight.copy_(torch.eye(len(layer.weight.weight)))
            layer.weight.weight[0, 0] = value
    return layer


@pytest.mark.parametrize(
    "make_layer",
    [partial(Conv1x1, 5), partial(Conv1x1, 5, "plu"), partial(Conv1x1, 5, "qr"), partial(PeriodicConv2d, 5)],
    ids=["plain", "plu", "qr", "periodic"],
)
def test_a_singular_matrix_raises_and_a_badly_conditioned_one_warns(make_layer, monkeypatch):
    monkeypatch.setattr(checks, "_already_said", set())
    z = torch.randn(2, 5, 4, 4)
    with torch.no_grad(), pytest.raises(NonFiniteError, match="singular"):
        weaken(make_layer(), 0.0).inverse(z)
    assert layer_gain(weaken(make_layer(), 0.0), (5, 4, 4)) == math.inf
    with torch.no_grad(), pytest.warns(IllConditionedWarning, match="badly conditioned"):
        layer = weaken(make_layer(), 1e-6)
        layer.double().inverse(z.double())  # has digits enough
        layer.float().inverse(z)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        weaken(make_layer(), 0.1).inverse(z)


def test_decoding_with_a_singular_matrix_names_the_layer():
    flow = small_flow()
    weaken(flow.levels[1][2].mixing.conv1x1, 0.0)
    with pytest.raises(NonFiniteError, match=r"levels\.1\.layers\.2\.mixing\.conv1x1: the 24 x 24 .* singular"):
        flow.sample(2)
    _, finite = flow.decode_finite(flow.sample_latents(2))
    assert not finite.any()
    assert sample_health(flow, 4).not_finite == 1.0


# -- images that overflow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [EmergingConv2d, Conv1x1, PeriodicConv2d])
def test_the_images_that_are_finite_are_what_they_are_alone_and_the_others_are_named(mixing):
    flow = small_flow(mixing=mixing)
    latents = flow.sample_latents(5, 0.7, torch.Generator().manual_seed(0))
    expected = flow.decode(latents)
    latents[0][1, 0, 0, 0] = math.nan
    latents[1][3] = 1e38  # finite, until it is multiplied
    images, finite = flow.decode_finite(latents)
    assert finite.tolist() == [True, False, True, False, True]
    assert torch.equal(images[finite], expected[finite])
    assert not images[~finite].any()
    _, lost = flow.decode_values(latents)
    assert lost[1] == "latents"
    assert lost[3].startswith("levels.1.layers")
    with pytest.raises(NonFiniteError, match=r"2 of 5 images overflow .*latents \(image 1\), levels.* \(image 3\)"):
        flow.decode(latents)


def test_lost_cells_are_hatched_and_sheets_enlarged_under_their_labels():
    images, finite = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([True, False, True])
    cells = grid(images, 2, finite, gap=1)
    assert cells.shape == (3, 19, 19)
    assert torch.equal(cells[:, 1:9, 10:18], hatched((3, 8, 8)))
    assert not cells[:, 1:9, 1:9].any()
    assert (cells[:, 10:18, 10:18] == 255).all()  # a cell that nothing belongs to
    assert torch.equal(sheet(images, 2, finite, scale=1), grid(images, 2, finite))
    enlarged = sheet(images, 2, finite)
    assert torch.equal(enlarged, grid(images.repeat_interleave(8, 2).repeat_interleave(8, 3), 2, finite))
    labelled = sheet(images, 2, finite, title="a title", rows=["first", "\u732b\n\udcff"])  # no letters of the font
    left = labelled.shape[2] - enlarged.shape[2]
    assert torch.equal(labelled[:, 32:, left:], enlarged)
    for label in (labelled[:, :32], labelled[:, 32:98, :left], labelled[:, 98:, :left]):
        assert (label < 128).any()
    assert side_by_side([labelled, labelled], gap=5).shape == (3, len(labelled[0]), 2 * labelled.shape[2] + 5)


# -- seen by a monitor -------------------------------------------------------------------------------------------------


def test_gain_of_the_whole_inverse_sees_what_single_layers_do_not():
    flow = small_flow(coupling=SigmoidCoupling, std=0.0)
    before = sample_health(flow, 32)
    with torch.no_grad():
        for _, step, _ in flow.steps():
            step.coupling.network.last.convolution.bias[1::2] = -12.0  # a scale of 5e-5
    after = sample_health(flow, 32)
    assert max(mixing_gains(flow).values()) < 3
    assert after.gain > 1e4 * before.gain
    assert after.largest > 1e4
    assert after.outside > before.outside


def test_what_overflows_in_a_factored_out_gaussian_is_named_and_counted():
    flow = small_flow(prior=LearnedPrior(max_log_scale=None))
    with torch.no_grad():
        convolution = flow.factor_outs[0].gaussian.convolution.convolution
        convolution.bias[0] = 0.0
        convolution.weight[1, 0, 1, 1] = 35.0  # overflows where the first channel is above 2.5
    _, lost = flow.decode_values(flow.sample_latents(64))
    assert set(lost.values()) == {"factor_outs.0"}
    health = sample_health(flow, 64)
    assert health.not_finite == count_not_finite(flow, 64) / 64
    assert 0 < health.not_finite < 1
    assert health.gain == health.largest == math.inf


def test_unusual_images_come_back_and_the_error_sees_when_they_do_not():
    odd = unusual_images((3, 8, 8))
    assert torch.equal(odd, unusual_images((3, 8, 8)))
    flow = small_flow()
    flow.initialize(odd)
    assert round_trip_error(flow, odd) < 0.1
    assert torch.equal(flow.decode(flow.encode(odd)), odd)
    for _, step, _ in flow.steps():
        with torch.no_grad():
            step.actnorm.bias += 1e6  # costs the digits that tell grey levels apart
    assert round_trip_error(flow, odd) > 0.5


def test_the_norm_of_finite_gradients_is_finite():
    gradients = [torch.full((3,), 2e19), torch.tensor([[1e30, -1e30]])]
    expected = math.sqrt(3 * 4e38 + 2e60)
    assert float(gradient_norm(gradients)) == pytest.approx(expected)
    assert not np.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
