"""What a training costs: counted without touching it, kept through every interruption, and foreseen."""

import threading

import pytest
import pytorch_lightning as pl
import torch
from support.forks import run_forked
from support.small_training import QUIET, StripesModule, fit, flow, parameters
from torch import nn

from flows import Flow
from flows.layers import AffineCoupling, Conv1x1
from flows.measures.cost import Cost, flops_per_image
from flows.models.base import DensityModel
from flows.models.dequantizers import UniformDequantizer
from flows.training.callbacks import CostMeter, LastCheckpoint
from flows.training.estimate import StepWatch, shortened


class TwoConvolutions(DensityModel):
    """Draws from the global generator, changes a buffer at every call, and multiplies its weights once per step."""

    def __init__(self):
        super().__init__((1, 4, 6), UniformDequantizer())
        self.first, self.second = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 1, 3, padding=1)
        self.matrix = nn.Parameter(torch.eye(7))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, v):
        self.calls += 1
        h = self.second(self.first(v) + torch.rand(())) + (self.matrix @ self.matrix).sum()
        return [h], h.new_zeros(len(v))

    def inverse(self, latents):
        return latents[0]


def test_operations_are_those_of_an_image_forward_and_backward_and_nothing_is_touched():
    model = TwoConvolutions()
    state, generator = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    one = 2 * 4 * 6 * 5 * 9  # a convolution; its gradient by the weights or by the input takes as many
    assert flops_per_image(model) == 2 * one + 3 * one  # the images need no gradient
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_operations_that_are_done_again_to_save_memory_count():
    def count(memory):
        return flops_per_image(Flow((1, 4, 4), Conv1x1, AffineCoupling, 1, 2, hidden_channels=4, memory=memory))

    assert 0 < count("store") < count("recompute")


def test_a_training_ends_with_the_same_weights_whether_its_cost_is_counted_or_not(tmp_path):
    class Draws(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with torch.no_grad():
                pl_module.flow.top.gaussian.bias += 1e-3 * torch.rand(())

    ends = [parameters(fit(tmp_path, [*meter, Draws()])[1]) for meter in ([], [CostMeter()])]
    assert torch.equal(*ends)


def test_a_model_that_cannot_be_counted_trains_all_the_same(tmp_path, capsys):
    meter, model = CostMeter(), flow()
    model.lock = threading.Lock()  # which cannot be copied
    fit(tmp_path, [meter], model=model, max_epochs=1)
    assert meter.cost.images == 32 and meter.cost.flops_per_image is None
    assert "operations per image are not counted: cannot pickle" in capsys.readouterr().err


def test_a_resumed_training_adds_its_cost_to_what_its_checkpoint_says(tmp_path, monkeypatch):
    def train(ckpt_path=None, **options):
        meter = CostMeter()
        last = LastCheckpoint(tmp_path, every_n_train_steps=2, keep_last=1)
        trainer, _ = fit(tmp_path, [meter, last], ckpt_path=ckpt_path, **options)
        return meter.cost, trainer

    def saved(name):
        return Cost(**torch.load(tmp_path / name, weights_only=True)["callbacks"]["CostMeter"])

    first, _ = train(max_epochs=1)
    within, at_the_end = saved("step=0000002.ckpt"), saved("last.ckpt")
    assert (within.images, at_the_end.images) == (16, 32)
    assert 0 < within.seconds < at_the_end.seconds < first.seconds == first.device_seconds
    assert first.step_seconds < first.seconds
    monkeypatch.setattr("flows.training.callbacks.cost_meter.flops_per_image", lambda flow: 1 / 0)  # once is enough
    second, trainer = train(tmp_path / "step=0000002.ckpt", max_epochs=2)
    assert second.images == 64 and second.seconds > within.seconds
    assert second.flops_per_image == first.flops_per_image > 0
    logged = trainer.callback_metrics["cost/device_hours"]
    assert within.device_hours < logged <= second.device_hours


def test_going_back_does_not_make_a_training_cheaper():
    meter = CostMeter()
    meter.cost = Cost(seconds=5.0)
    meter.load_state_dict(Cost(seconds=2.0).__dict__)
    assert meter.cost.seconds == 5.0


@pytest.mark.parametrize(
    ("options", "num_steps", "num_validations"),
    [
        ({"max_epochs": 6, "check_val_every_n_epoch": 4}, 24, 1),
        ({"max_epochs": 6, "val_check_interval": 0.5, "accumulate_grad_batches": 2}, 24, 12),
        ({"max_steps": 10, "val_check_interval": 3, "check_val_every_n_epoch": None}, 10, 3),
        ({"max_epochs": 1, "limit_val_batches": 0}, 4, 0),
    ],
)
def test_the_whole_is_foreseen_from_a_few_steps(tmp_path, options, num_steps, num_validations, monkeypatch):
    monkeypatch.setattr("flows.training.estimate.MAX_TIMED", 5)
    meter, planned = CostMeter(), pl.Trainer(**QUIET | options)
    watch = StepWatch(meter.cost, planned, num_steps)
    stopped, _ = fit(tmp_path, [meter, watch], data=StripesModule(), **shortened(options, planned))
    assert stopped.global_step == min(2 + 5, num_steps)
    rows = dict(watch.rows(stopped))
    assert f"{num_steps} steps" in rows
    assert (f"{num_validations} validations" in rows) == (num_validations > 0)
    seconds = num_steps * watch.step_seconds + num_validations * watch.validation_seconds
    assert float(rows["device-hours"]) == pytest.approx(seconds / 3600, rel=0.01)
    images = num_steps * 8
    assert float(rows["TFLOPs in all"]) == pytest.approx(images * meter.cost.flops_per_image / 1e12, rel=0.01)


@pytest.mark.slow
def test_an_estimate_says_what_a_run_would_cost_and_leaves_nothing(tmp_path):
    tiny = ["data=digits", "model.num_levels=2", "model.num_steps=1", "model.hidden_channels=16", "trainer=cpu"]
    few = ["trainer.max_epochs=3", "data.images_per_epoch=64", "callbacks.inversion=null", "callbacks.samples=null"]
    said = run_forked("train.py", *tiny, *few, "logger=wandb", "estimate=true", cwd=tmp_path)
    for words in ("parameters", "3 validations", "peak memory, GiB", "device-hours", "TFLOPs in all", "images/s"):
        assert words in said
    assert not list(tmp_path.iterdir())
