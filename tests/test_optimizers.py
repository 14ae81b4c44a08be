"""Optimisers and schedules: any of torch's, by name; settings of their own for some parameters."""

from functools import partial

import pytest
import torch
from support.configs import check_train, compose, options

from flows import InputError
from flows.config.building import build
from flows.training.optimizers import make_optimizer
from flows.training.schedules import planned


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


@pytest.mark.parametrize("option", options("optimizer"))
def test_every_shipped_optimizer_goes_with_every_recipe(option):
    for recipe in options("recipe"):
        config = compose(f"recipe={recipe}", f"optimizer={option}")
        assert config["optimizer"] == compose(f"optimizer={option}")["optimizer"]
        make_optimizer(network(), build(config["optimizer"]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("StepLR", {"step_size": 3}), ("ExponentialLR", {"gamma": 0.9}), ("OneCycleLR", {"max_lr": 1})],
)
def test_schedules_of_torch_are_told_the_planned_steps_if_they_ask(name, options):
    node = {"_target_": f"torch.optim.lr_scheduler.{name}", "_partial_": True, **options}
    optimizer = make_optimizer(network(), partial(torch.optim.SGD, lr=0.1))
    schedule = planned(build(node), 7)(optimizer)
    assert getattr(schedule, "total_steps", 7) == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=fast", "optimizer.lr must be a valid number, not 'fast'"),
        ("optimizer.betas=[0.9]", "optimizer.betas must be longer, not [0.9]"),
        ("optimizer.betas=[0.9,0.9,0.9]", "optimizer.betas must be a list of at most 2 items"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas must be a valid number, not [0.9, 'x']"),
        ("optimizer.eps=null", "optimizer.eps must be a valid number"),
    ],
)
def test_settings_are_held_against_the_types_that_torch_states(override, words):
    with pytest.raises(InputError) as caught:
        check_train(override)
    assert words in str(caught.value)


def test_groups_of_parameters_have_settings_of_their_own():
    module = network()
    groups = {"*.bias": {"weight_decay": 0.0}, "1.*": {"lr": 0.5}}
    optimizer = make_optimizer(module, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.2), groups)
    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1, 0.1, 0.2), (2, 0.1, 0.0), (1, 0.5, 0.2)]
    assert optimizer.param_groups[2]["params"][0] is module[1].weight


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        ({"*.bais": {"lr": 1.0}}, {}, "'*.bais' matches no parameter"),
        ({"*": {"lr": 1.0}, "*.bias": {"lr": 2.0}}, {}, "'*.bias' matches no parameter, or only those of earlier"),
        ({"*.bias": {"weight_decy": 0.0}}, {}, "AdamW has no setting 'weight_decy'; did you mean 'weight_decay'"),
        ({}, {"lr": -1.0}, "Invalid learning rate: -1"),
    ],
)
def test_groups_and_settings_that_make_no_sense_are_refused(groups, options, words):
    with pytest.raises(InputError) as caught:
        make_optimizer(network(), partial(torch.optim.AdamW, **options), groups)
    assert words in str(caught.value)
