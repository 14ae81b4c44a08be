"""Training: what Lightning does with a flow, and the callbacks around it."""

import errno
import math
import random
import shutil
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import SingleDeviceStrategy
from support.small_training import Stripes, StripesModule, fit, flow, parameters

from datamodules import Augmentation
from flows import InputError, NonFiniteError, StorageError
from flows.runs.checkpoint import FORMAT
from flows.training.callbacks import (
    AveragedWeights,
    BestCheckpoint,
    InversionMonitor,
    LastCheckpoint,
    SamplePictures,
    StepSeeds,
    StopOnNonFinite,
    Throughput,
)
from flows.training.module import FlowModule
from flows.training.schedules import CosineDecay


class Described(pl.Callback):
    """Makes the project's checkpoints of Lightning's, apart from the model."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint.update({"format": FORMAT, "config": {}, "overrides": []})


def test_training_learns_and_logs(tmp_path):
    trainer, _ = fit(tmp_path, [Throughput(), InversionMonitor()], max_epochs=8, lr=1e-2)
    metrics = trainer.callback_metrics
    assert metrics["val/bits_per_dim"] < 7.5
    assert metrics["val/round_trip_error"] < 0.5
    assert 0 < metrics["val/inverse_gain"] < 1
    assert metrics["train/gradient_norm"] > 0
    assert metrics["train/images_per_second"] > 0


@pytest.mark.parametrize("eval_batch_size", [3, 10])
def test_validation_score_is_the_mean_over_images_whatever_the_batch_size(tmp_path, eval_batch_size):
    data = StripesModule(eval_batch_size=eval_batch_size)
    trainer, module = fit(tmp_path, data=data, max_epochs=1)
    with torch.no_grad():
        scores = module.bits_per_dim((data.val.gather(range(10)), torch.arange(10)))
    assert float(trainer.callback_metrics["val/bits_per_dim"]) == pytest.approx(float(scores.mean()), abs=1e-5)


class DrawsFromEverywhere(pl.Callback):
    """Moves a weight by what the global generators give."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            pl_module.flow.top.gaussian.bias += 1e-3 * (torch.rand(()) + random.random() + np.random.rand())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),
        (2, {}),
        (0, {"val_check_interval": 2}),
        (0, {"accumulate_grad_batches": 2}),
        (0, {"max_steps": 11, "max_epochs": -1}),
        (0, {"limit_train_batches": 3, "check_val_every_n_epoch": 2}),
    ],
)
def test_resumed_from_any_step_training_ends_where_the_undisturbed_one_does(tmp_path, workers, options):
    def train(folder, num_workers=0, ckpt_path=None, **saving):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(0)
        averaging, last = AveragedWeights(decay=0.5), LastCheckpoint(tmp_path / folder, **saving)
        callbacks = [StepSeeds(), DrawsFromEverywhere(), averaging, last]
        data = StripesModule(num_workers=num_workers, augmentation=Augmentation(horizontal_flip=True))
        schedule = partial(CosineDecay, total_steps=12, warmup_steps=2)
        trainer, module = fit(
            tmp_path, callbacks, data=data, schedule=schedule, ckpt_path=ckpt_path, **{"max_epochs": 3} | options
        )
        return trainer.global_step, torch.cat([parameters(module), parameters(averaging._average_model.module)])

    num_steps, whole = train("whole", every_n_train_steps=1, keep_last=100)
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"))
    assert len(steps) >= num_steps // 2
    for path in steps[:2] + steps[4::3] if workers == 0 else steps[4:6]:
        resumed_steps, resumed = train(f"from {path.stem}", workers, path)
        assert resumed_steps == num_steps
        assert torch.equal(whole, resumed), path


def test_steps_of_more_batches_begin_with_an_epoch(tmp_path):
    fit(tmp_path, [LastCheckpoint(tmp_path, every_n_train_steps=1, keep_last=100)])
    within, at_the_end = (tmp_path / f"step={step:07d}.ckpt" for step in (2, 4))
    with pytest.raises(InputError, match=r"resume it with trainer\.accumulate_grad_batches=1"):
        fit(tmp_path, ckpt_path=within, accumulate_grad_batches=2)
    trainer, _ = fit(tmp_path, ckpt_path=at_the_end, accumulate_grad_batches=2)
    assert trainer.global_step == 8


def test_the_chosen_number_of_predecessors_is_kept(tmp_path):
    fit(tmp_path, [LastCheckpoint(tmp_path, every_n_train_steps=1, keep_last=2)])
    kept = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert kept == ["last.ckpt", "step=0000006.ckpt", "step=0000007.ckpt"]
    for path in tmp_path.glob("step=*.ckpt"):
        assert torch.load(path, weights_only=True)["global_step"] == int(path.stem.removeprefix("step="))


def test_a_full_disk_costs_predecessors_only(tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    fit(tmp_path, [LastCheckpoint(tmp_path, keep_last=2)], max_epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert capsys.readouterr().err.count("is kept this time: ") == 1


def test_a_best_checkpoint_that_cannot_be_written_is_not_the_best(tmp_path, monkeypatch, capsys):
    save, scores, waits = pl.Trainer.save_checkpoint, [], []

    def save_the_first(trainer, *arguments):
        scores.append(trainer.callback_metrics["val/bits_per_dim"])
        if len(scores) > 1:
            raise StorageError("the disk is full")
        save(trainer, *arguments)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save_the_first)
    monkeypatch.setattr(SingleDeviceStrategy, "barrier", lambda self, *arguments: waits.append(arguments))
    best = BestCheckpoint(tmp_path)
    fit(tmp_path, [best], max_epochs=3, lr=1e-2)
    assert len(scores) == 3
    assert (best.best_model_path, best.best_model_score) == (str(tmp_path / "best.ckpt"), scores[0])
    assert best.scores == {"val/bits_per_dim": float(scores[0])}
    assert waits.count(()) == 2  # at the barrier where the other ranks wait
    assert capsys.readouterr().err.count("no checkpoint, the training goes on: the disk is full") == 2


def test_processes_that_resumed_at_different_steps_do_not_train(tmp_path, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", lambda self, obj, src=0: 4 if obj == 0 else obj)
    with pytest.raises(InputError, match="process 0 resumed at step 0, the first one at 4"):
        fit(tmp_path, [LastCheckpoint(tmp_path)])


def test_average_is_scored_apart_and_keeps_permutations(tmp_path):
    averaging, checkpoint = AveragedWeights(decay=0.9), ModelCheckpoint(tmp_path, "last")
    trainer, module = fit(tmp_path, [averaging, checkpoint], lr=1e-2)
    raw, averaged = (trainer.callback_metrics[f"val/bits_per_dim{suffix}"] for suffix in ("", "_averaged"))
    assert raw != averaged
    images = Stripes(4, 0).gather(range(4))
    for model in (module.flow, averaging._average_model.module.flow):
        with torch.no_grad():
            assert torch.equal(model.decode(model.encode(images)), images)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for state, model in (("current_model_state", module), ("state_dict", averaging._average_model.module)):
        assert all(torch.equal(saved[state][name], value) for name, value in model.named_parameters())


class NanAt(pl.Callback):
    """Spoils one weight before a step."""

    def __init__(self, step, name, value=math.nan):
        self.step, self.name, self.value = step, name, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            with torch.no_grad():
                dict(pl_module.named_parameters())[self.name].view(-1)[0] = self.value


def test_nan_stops_the_training_and_names_step_layer_and_checkpoint(tmp_path):
    name = "flow.levels.0.layers.1.mixing.layers.1.conv1x1.weight.weight"
    checkpoint = ModelCheckpoint(tmp_path, "last", every_n_train_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        fit(tmp_path, [NanAt(3, name), StopOnNonFinite(), checkpoint, Described()])
    message = str(caught.value)
    assert all(word in message for word in ("step 3", name.removeprefix("flow."), "last.ckpt"))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_one_nan_in_a_validation_is_not_left_out_of_its_mean(tmp_path, monkeypatch):
    bits_per_dim = FlowModule.bits_per_dim

    def all_but_the_first(module, batch):
        return torch.where(batch[1] == 0, math.nan, bits_per_dim(module, batch))

    monkeypatch.setattr(FlowModule, "bits_per_dim", all_but_the_first)
    trainer, _ = fit(tmp_path, max_epochs=1)
    assert math.isnan(trainer.callback_metrics["val/bits_per_dim"])


def test_overflow_names_the_layer_where_it_happens(tmp_path):
    spoil = NanAt(1, "flow.levels.0.layers.2.actnorm.log_scale", 60.0)
    with pytest.raises(NonFiniteError, match=r"levels\.0\.layers\.2\.actnorm.*no good checkpoint"):
        fit(tmp_path, [spoil, StopOnNonFinite()])


class GradientOf(pl.Callback):
    """Puts one number into the gradient of one parameter."""

    def __init__(self, value):
        self.value = value

    def on_after_backward(self, trainer, pl_module):
        pl_module.flow.top.gaussian.bias.grad.fill_(self.value)


def test_infinite_gradients_stop_before_the_weights_take_harm(tmp_path):
    model = flow()
    before = parameters(model)
    with pytest.raises(NonFiniteError, match=r"flow\.top\.gaussian\.bias"):
        fit(tmp_path, [GradientOf(math.inf), StopOnNonFinite()], model=model)
    assert torch.equal(parameters(model), before)


def test_finite_gradients_whose_norm_leaves_float32_train_on(tmp_path):
    trainer, _ = fit(tmp_path, [GradientOf(1e30), StopOnNonFinite()])
    assert trainer.global_step > 1
    assert math.isfinite(trainer.callback_metrics["train/gradient_norm"])


def test_sample_pictures_are_drawn_and_overflow_only_warns(tmp_path, capsys):
    pictures = SamplePictures(str(tmp_path / "samples"), temperatures=[0.5, 1.0], num_columns=3)
    _, module = fit(tmp_path, [pictures])
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    first, second = pictures.draw(module.flow), pictures.draw(module.flow)
    assert torch.equal(first[0], second[0])
    assert first[1].all()
    with torch.no_grad():
        module.flow.levels[0][1].actnorm.log_scale.fill_(-100.0)
    pictures.on_validation_end(module.trainer, module)
    assert "6 of 6 samples overflow" in capsys.readouterr().err
