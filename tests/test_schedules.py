"""The learning rate over a training, and what becomes of it when a training goes on."""

import math

import pytest
import pytorch_lightning as pl
import torch
from support.forks import refusal, run_forked
from support.programs import TINY
from support.small_training import QUIET, StripesModule, flow
from torch.optim import Adamax

from flows import InputError
from flows.training.module import FlowModule
from flows.training.run import planned_steps
from flows.training.schedules import CosineDecay, WarmUp


def make(schedule, **options):
    optimizer = Adamax([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    return optimizer, schedule(optimizer, **options)


def rates(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_is_linear_and_then_constant():
    found = rates(*make(WarmUp, warmup_steps=4), 7)
    assert found == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0])


def test_cosine_falls_from_the_rate_to_zero_at_the_last_step():
    found = rates(*make(CosineDecay, total_steps=10, warmup_steps=2), 11)
    assert found[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert found[2:] == pytest.approx([1.0 + math.cos(math.pi * t / 8) for t in range(9)], abs=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_steps": 10, "warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"total_steps": math.inf}, "give schedule.num_steps"),
        ({"total_steps": 10, "num_steps": 9}, "schedule.num_steps=10 stretches"),
    ],
)
def test_a_cosine_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        make(CosineDecay, **options)


def test_a_training_that_goes_on_keeps_the_horizon_it_began_with():
    _, begun = make(CosineDecay, total_steps=10)
    for shorter in (10, 5):
        _, schedule = make(CosineDecay, total_steps=shorter)
        schedule.load_state_dict(begun.state_dict())
        assert schedule.num_steps == 10
    _, longer = make(CosineDecay, total_steps=20)
    with pytest.raises(InputError, match=r"ends at step 10, the training at step 20: schedule\.num_steps=20"):
        longer.load_state_dict(begun.state_dict())
    _, stretched = make(CosineDecay, total_steps=20, num_steps=20)
    stretched.load_state_dict(begun.state_dict())
    assert stretched.num_steps == 20


def test_a_training_shorter_than_its_warm_up_only_warms_up():
    found = rates(*make(CosineDecay, total_steps=3, warmup_steps=4), 3)
    assert found == pytest.approx([0.4, 0.8, 1.2])


@pytest.mark.slow
def test_going_on_beyond_the_horizon_is_refused_and_leaves_the_run_as_it_is(tmp_path):
    run_forked("train.py", *TINY, "schedule=cosine", "schedule.warmup_steps=1", "run_dir=run", cwd=tmp_path)
    before = (tmp_path / "run/config.yaml").read_bytes()
    line = refusal("train.py", "resume=run", "trainer.max_epochs=3", cwd=tmp_path)
    assert "ends at step 4, the training at step 6: schedule.num_steps=6 stretches the cosine" in line
    assert (tmp_path / "run/config.yaml").read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}, {"limit_train_batches": 0.6}, {"max_steps": 5}])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_are_planned_as_lightning_counts_them(options, accumulated):
    data = StripesModule(images_per_epoch=64)
    data.setup()
    trainer = pl.Trainer(accumulate_grad_batches=accumulated, max_epochs=3, **QUIET, **options)
    expected = planned_steps(trainer, data)
    trainer.fit(FlowModule(flow(), Adamax, WarmUp), data)
    assert trainer.global_step == expected
