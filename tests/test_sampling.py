"""The prepared inverse of a whole model: the same images, never from stale weights, exact pixels."""

import copy
import pickle
from functools import partial

import pytest
import torch
from support import configs, weights

from flows.layers import (
    ActNorm,
    AutoregressiveConv2d,
    Conv1x1,
    EmergingConv2d,
    MaCow,
    MaskedAutoregressiveFlow,
    PeriodicConv2d,
    Reverse,
    Sequential,
    Shuffle,
)
from flows.layers.weight_cache import _same_on_device, same_contents
from flows.models import prepared_inverse
from flows.models.prepared_inverse import PixelMap, PreparedInverse


def maf(num_channels, **options):
    return MaskedAutoregressiveFlow(num_channels, 8, **options)


def mixed(num_channels):
    affine = PeriodicConv2d(num_channels), Reverse(num_channels), ActNorm(num_channels)
    return Sequential(Shuffle(num_channels), Sequential(), *affine)


OWN_KINDS = {"maf in torch": partial(maf, solver="torch"), "mixed": mixed}
"""Beside those of the configuration."""


make_flow = partial(weights.moved_flow, margin=None)


def prepared(flow, latents, inverse=None):
    inverse = flow._prepared_inverse if inverse is None else inverse
    with torch.inference_mode():
        return inverse(flow, [*flow.levels, flow.top], flow._invert, latents).clone()


def state_of(flow):
    _, values = flow._prepared_inverse._state._entry
    return next(iter(values.values()))


def assert_current(flow, batch=2):
    """What is prepared inverts like the layers themselves, whose own caches start empty."""
    latents = flow.sample_latents(batch)
    with torch.no_grad():
        expected = copy.deepcopy(flow).inverse(latents)
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(prepared(flow, latents), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [*configs.MIXINGS, *OWN_KINDS])
def test_the_prepared_inverse_is_the_inverse(kind):
    flow = make_flow(mixing=OWN_KINDS.get(kind) or configs.mixing(kind)).double()
    for batch in (3, 1, 3):
        assert_current(flow, batch)


AFFINE = [partial(ActNorm, 24), partial(Conv1x1, 48), partial(AutoregressiveConv2d, 24), partial(PeriodicConv2d, 12)]


@pytest.mark.parametrize("make_layer", AFFINE, ids=lambda make_layer: make_layer.func.__name__)
@torch.no_grad()
def test_affine_layers_are_encoded_and_decoded_in_float64(make_layer):
    layer = make_layer()
    weights.move_parameters(layer, 0.02)
    exact = copy.deepcopy(layer).double()
    x = 100 * torch.randn(4, next(layer.parameters()).shape[0], 8, 8)
    z = prepared_inverse.exact_forward(layer, x)
    assert torch.equal(z, exact(x.double())[0].float())
    again = PreparedInverse()(layer, [layer], lambda latents, invert, observe: invert(layer, latents[0]), [z])
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, exact.inverse(z.double()).float(), rtol=1e-7, atol=1e-7)


def test_neighbours_that_are_affine_in_each_pixel_are_merged():
    flow = make_flow(mixing=lambda c: Sequential(Conv1x1(c), Shuffle(c), ActNorm(c), Reverse(c)), num_levels=1)
    prepared(flow, flow.sample_latents(1))
    steps = state_of(flow)._steps
    # Two steps of flow, a coupling and one map each, and the squeeze; then the top.
    assert sorted(len(found) for found in steps.values()) == [1, 5]
    maps = [step.args[0] for found in steps.values() for _, step in found if isinstance(step, partial)]
    assert [type(step) for step in maps] == [PixelMap, PixelMap]


# -- never stale -------------------------------------------------------------------------------------------------------


def _one_entry_through_data(flow):
    flow.levels[0][1].actnorm.bias.data[0] += 0.25


def _coupling_through_data(flow):
    flow.levels[0][1].coupling.network.last.convolution.bias.data += 0.5


def _coupling_in_new_storage(flow):
    flow.levels[0][1].coupling.network.last.convolution.bias.data = torch.ones(4)


def _replace_by_a_layer_of_another_kind(flow):
    flow.levels[0][2].mixing = Conv1x1(4).to(flow.dtype)


OWN_CHANGES = [_one_entry_through_data, _coupling_through_data, _replace_by_a_layer_of_another_kind]


@pytest.mark.parametrize("change", [*weights.CHANGES, *OWN_CHANGES], ids=lambda change: change.__name__.strip("_"))
def test_stale_weights_cannot_be_sampled_from(change):
    flow = make_flow().double()
    for _ in range(2):
        assert_current(flow)
    change(flow)
    for _ in range(2):
        assert_current(flow)


def test_copies_and_pickles_start_empty_and_are_right():
    flow = make_flow()
    assert_current(flow)
    twin = copy.deepcopy(flow)
    weights.one_entry_or_two(twin)
    assert_current(twin)
    assert_current(flow)
    assert isinstance(pickle.loads(pickle.dumps(flow._prepared_inverse)), PreparedInverse)


def test_contents_are_compared_number_by_number_on_every_kind_of_device():
    tensors = [torch.randn(3), torch.randn(2, 2).double(), torch.arange(3), torch.tensor(True), torch.empty(0)]
    copies = [tensor.clone() for tensor in tensors]
    for compare in (same_contents, _same_on_device):
        assert compare(tensors, copies)
        assert compare([], [])
        for n in range(4):
            changed = [tensor.clone() for tensor in tensors]
            last = changed[n].view(-1)[-1:]
            last.copy_(~last if last.dtype == torch.bool else 2 * last + 1)
            assert not compare(tensors, changed)
        unknown = [torch.tensor([float("nan")])]
        assert not compare(unknown, [unknown[0].clone()])
    assert not same_contents(tensors, copies[:-1])
    assert not same_contents([torch.zeros(2)], [torch.zeros(2, 1)])
    assert not same_contents([torch.zeros(2)], [torch.zeros(2).double()])


# -- layers of other people --------------------------------------------------------------------------------------------


class Doubling(EmergingConv2d):
    """Replaces the inverse of a composite layer."""

    def forward(self, x):
        z, log_det = super().forward(x)
        return 2 * z, log_det

    def inverse(self, z):
        return super().inverse(z / 2)


def test_a_replaced_inverse_is_not_bypassed():
    assert_current(make_flow(mixing=Doubling))


# -- ordinary tensors --------------------------------------------------------------------------------------------------


def test_samples_are_ordinary_tensors_and_leave_nothing_behind_that_autograd_cannot_use():
    flow = make_flow(mixing=PeriodicConv2d).requires_grad_(False)
    images = flow.sample(2)
    images[0] = 0  # an inference tensor would refuse
    latents = [z.requires_grad_() for z in flow.sample_latents(2)]
    with torch.inference_mode():
        flow.inverse(latents)
    flow.inverse(latents).sum().backward()
    assert all(z.grad is not None for z in latents)


# -- CUDA graphs, without a GPU ----------------------------------------------------------------------------------------


def test_the_second_batch_of_a_size_is_captured_and_few_sizes_are_kept(graphs_on_cpu):
    flow = make_flow(mixing=Conv1x1)
    for number, batch in enumerate((1, 2, 1, 2, 1, 2)):
        assert_current(flow, batch)
        assert graphs_on_cpu.captured == min(max(number - 1, 0), 2)
    for batch in range(3, 8):
        assert_current(flow, batch)
    assert len(state_of(flow).graphs) <= prepared_inverse.MAX_GRAPHS


def test_a_graph_survives_what_it_sees_and_nothing_else(graphs_on_cpu):
    flow = make_flow(mixing=PeriodicConv2d)
    for _ in range(3):
        assert_current(flow)
    assert graphs_on_cpu.captured == 1
    _coupling_through_data(flow)  # where the graph reads
    assert_current(flow)
    assert graphs_on_cpu.captured == 1
    for change in (_one_entry_through_data, _coupling_in_new_storage, weights.optimizer_step):
        captured = graphs_on_cpu.captured
        change(flow)
        for _ in range(3):
            assert_current(flow)
        assert graphs_on_cpu.captured == captured + 1


@pytest.mark.parametrize("mixing", [maf, EmergingConv2d], ids=["maf", "emerging on a CPU"])
def test_a_model_is_captured_only_if_all_of_its_layers_agree(graphs_on_cpu, mixing):
    flow = make_flow(mixing=mixing)
    for _ in range(3):
        assert_current(flow)
    assert graphs_on_cpu.captured == 0


@pytest.mark.gpu
@pytest.mark.parametrize("mixing", [Conv1x1, EmergingConv2d, PeriodicConv2d, MaCow, maf])
def test_on_a_gpu_the_captured_inverse_is_the_inverse(mixing):
    flow = make_flow(mixing=mixing).cuda()
    for change in (None, _one_entry_through_data, _coupling_through_data, weights.new_storage):
        if change is not None:
            change(flow)
        for batch in (1, 2, 1, 2, 1, 2):
            assert_current(flow, batch)
    assert state_of(flow).is_capturable == (mixing is not maf)
