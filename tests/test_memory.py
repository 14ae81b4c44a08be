"""``memory=recompute | invert``: what is kept, and that the gradients are those of ``store`` all the same."""

import math
import warnings
from functools import partial

import pytest
import torch
from layer_table import LAYERS
from support.contract import make, random_pixels
from support.weights import move_parameters, moved_flow

from flows import InputError, NonFiniteError
from flows.layers import ActNorm, AdditiveCoupling, AffineCoupling, Conv1x1, EmergingConv2d, Layer, Sequential, Shuffle
from flows.layers.networks import Network
from flows.models.memory import DriftWarning, run
from flows.numerics import in_precision
from flows.solvers import checks

CPU = torch.device("cpu")


def gradients(chain, x, memory):
    """Of the input and all parameters, from a loss of both results."""
    x = x.clone().requires_grad_()
    chain.zero_grad()
    z, log_det = run(chain, x, memory)
    weights = torch.linspace(-1, 1, z.numel()).view(z.shape).to(z.dtype)
    ((z * weights).sum() + (log_det * torch.arange(1, 1 + len(x))).sum()).backward()
    return [z.detach(), log_det.detach(), x.grad, *(parameter.grad for parameter in chain.parameters())]


def assert_near(ours, theirs, tolerance=1e-4):
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def assert_equal(ours, theirs):
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_store_for_every_layer(name):
    factory, shape = LAYERS[name]
    # Behind another layer, since the input of the first is always kept.
    chain = Sequential(Sequential(make(lambda: ActNorm(shape[0]))), Sequential(make(factory))).float()
    x = torch.randn(3, *shape)
    stored = gradients(chain, x, "store")
    assert_equal(gradients(chain, x, "recompute"), stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        assert_near(gradients(chain, x, "invert"), stored)


@pytest.mark.parametrize("mixing", [Conv1x1, EmergingConv2d, Shuffle])
def test_accumulated_gradients_of_a_deep_flow_are_those_of_store(mixing):
    flow = moved_flow((3, 8, 8), mixing, num_steps=8)
    images, noise = random_pixels(4, (3, 8, 8)), torch.rand(4, 3, 8, 8)
    flow.initialize(images)

    def accumulated(memory):
        flow.memory = memory
        flow.zero_grad()
        for half in (slice(2), slice(2, 4)):
            flow.bits_per_dim(images[half], noise[half]).mean().backward()
        return [parameter.grad for parameter in flow.parameters()]

    stored = accumulated("store")
    assert_equal(accumulated("recompute"), stored)
    assert_near(accumulated("invert"), stored)


@pytest.mark.filterwarnings("ignore::flows.models.memory.DriftWarning")  # rounding in half precision
@pytest.mark.parametrize("half", [partial(torch.autocast, "cpu", torch.bfloat16), partial(in_precision, "bf16", CPU)])
@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_a_backward_pass_outside_of_a_precision_computes_as_the_forward_pass_did(memory, half):
    chain = Sequential(*(make(lambda: AffineCoupling(4, 8)) for _ in range(2))).float()
    x = torch.randn(2, 4, 4, 4)

    def halved(memory):
        chain.zero_grad()
        with half():
            z, log_det = run(chain, x, memory)
        (z.float().square().sum() + log_det.sum()).backward()
        return [parameter.grad for parameter in chain.parameters()]

    assert_near(halved(memory), halved("store"), 0 if memory == "recompute" else 2e-2)
    assert not all(map(torch.equal, halved(memory), gradients(chain, x, memory)[3:]))


def test_a_graph_that_is_retained_can_be_gone_through_again():
    chain = Sequential(*(make(lambda: AffineCoupling(4, 8)) for _ in range(3))).float()
    z, log_det = run(chain, torch.randn(2, 4, 4, 4), "invert")
    loss, parameters = z.square().sum() + log_det.sum(), list(chain.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, parameters), first)


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_weights_that_changed_before_the_backward_pass_are_refused(memory):
    chain = Sequential(make(lambda: AffineCoupling(4, 8)))
    z, _ = run(chain, torch.randn(2, 4, 4, 4, dtype=torch.float64), memory)
    move_parameters(chain)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


# -- drift -------------------------------------------------------------------------------------------------------------


class InvertsBadly(AdditiveCoupling):
    """Every number that its inverse gives has this error, relative to it."""

    error = 0.0

    def inverse_transform(self, z2, outputs):
        if self.error == math.inf:
            raise NonFiniteError("there is no inverse")
        return super().inverse_transform(z2, outputs) * (1 + self.error)


@pytest.mark.parametrize("error", [1e-3, math.nan, math.inf])
def test_beyond_the_tolerance_inputs_are_computed_again_with_one_warning(error, monkeypatch):
    monkeypatch.setattr(checks, "_already_said", set())
    middle = make(lambda: InvertsBadly(4, 8))
    others = [make(lambda: AffineCoupling(4, 8)) for _ in range(4)]
    chain, x = Sequential(*others[:2], middle, *others[2:]), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    stored = gradients(chain, x, "store")
    middle.error = error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert_near(gradients(chain, x, "invert"), stored, 1e-12)
    assert [warning.category for warning in caught] == [DriftWarning]


def test_a_drift_within_the_tolerance_is_none():
    chain, x = Sequential(make(lambda: ActNorm(4)), make(lambda: InvertsBadly(4, 8))), torch.randn(2, 4, 4, 4).double()
    stored = gradients(chain, x, "store")
    chain[1].error = 5e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_near(gradients(chain, x, "invert"), stored)


# -- what is kept ------------------------------------------------------------------------------------------------------


def bytes_kept(mixing, memory, num_steps):
    """Of what the forward pass of one level keeps for the backward pass, parameters left out."""
    flow = moved_flow((3, 16, 16), mixing, num_levels=1, num_steps=num_steps, hidden_channels=32, memory=memory)
    known = {parameter.untyped_storage().data_ptr() for parameter in flow.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), tensor  # which lives on, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _ = flow.log_prob(torch.rand(2, 3, 16, 16) - 0.5)
    return sum(size for place, (size, _) in kept.items() if place not in known)


@pytest.mark.parametrize("mixing", [Conv1x1, EmergingConv2d])
def test_memory_grows_with_depth_by_what_each_mode_keeps(mixing):
    growth = {
        memory: bytes_kept(mixing, memory, 9) - bytes_kept(mixing, memory, 1)
        for memory in ("store", "recompute", "invert")
    }
    one_input, sums_of_channels = 4 * 2 * 12 * 8 * 8, 8 * 2 * 12
    assert growth["store"] > 8 * 10 * one_input
    assert growth["recompute"] == 8 * one_input
    assert growth["invert"] == (one_input + 23 * sums_of_channels if mixing is Conv1x1 else 8 * one_input)


class CountsRuns(Network):
    """Zero, whatever it sees."""

    def __init__(self, in_channels, hidden_channels, out_channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(out_channels, 1, 1))
        self.num_runs = 0

    def forward(self, x):
        self.num_runs += 1
        return self.weight.expand(len(x), -1, *x.shape[2:])


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_each_network_runs_once_more(memory):
    chain = Sequential(*(AffineCoupling(4, 8, CountsRuns) for _ in range(3)))
    gradients(chain, torch.randn(2, 4, 4, 4), memory)
    assert [coupling.network.num_runs for coupling in chain] == [2, 2, 2]


class CostlyInverse(Layer):
    """The identity, whose inverse must not be asked for."""

    def forward(self, x):
        return x, x.new_zeros(len(x))

    def inverse(self, z):
        raise AssertionError


def test_a_layer_that_is_no_coupling_and_not_pixelwise_is_not_inverted():
    chain = Sequential(make(lambda: ActNorm(4)), CostlyInverse(), make(lambda: AffineCoupling(4, 8)))
    gradients(chain, torch.randn(2, 4, 4, 4, dtype=torch.float64), "invert")


def test_another_mode_is_refused():
    with pytest.raises(InputError, match="memory must be store, recompute, invert, not 'none'"):
        moved_flow(memory="none")
