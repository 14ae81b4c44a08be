"""Parameters away from their initial values, and every way in which they change under something that is remembered."""

import copy

import torch

from flows import Flow
from flows.layers import AffineCoupling, EmergingConv2d


def move_parameters(module, std=0.1):
    """Away from the initial values, where too much is zero or one for a test to see anything."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn_like(parameter)


def moved_flow(shape=(1, 4, 8), mixing=EmergingConv2d, coupling=AffineCoupling, std=0.05, **options):
    """A small one, away from its initial values."""
    flow = Flow(shape, mixing, coupling, **{"num_levels": 2, "num_steps": 2, "hidden_channels": 6} | options)
    move_parameters(flow, std)
    return flow


def moved_copy(module):
    """One of the same kind with other weights."""
    other = copy.deepcopy(module)
    move_parameters(other, 0.02)
    return other


def optimizer_step(module):
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
        torch.optim.Adamax([parameter], lr=0.01).step()


def load_by_assignment(module):
    module.load_state_dict(moved_copy(module).state_dict(), assign=True)


def swap_with_an_average(module):
    for ours, theirs in zip(module.parameters(), moved_copy(module).parameters(), strict=True):
        kept = ours.data.clone()
        ours.data.copy_(theirs.data)
        theirs.data.copy_(kept)


def new_storage(module):
    for parameter in module.parameters():
        parameter.data = parameter.data * 1.05


def one_entry_or_two(module):
    """The first and the last of each parameter, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.view(-1)[[0, -1]] += 0.02


def to_another_type_and_back(module):
    module.float().double()


CHANGES = [
    optimizer_step,
    load_by_assignment,
    swap_with_an_average,
    new_storage,
    one_entry_or_two,
    to_another_type_and_back,
]
