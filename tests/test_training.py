"""Training: what Lightning does with a flow, and the callbacks around it."""

import errno
import math
import random
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import SingleDeviceStrategy
from support.small_training import Stripes, StripesModule, fit, flow, parameters
from torch.optim import Adamax

from flows import Flow, InputError, NonFiniteError, StorageError, load_flow
from flows.layers import AffineCoupling, EmergingConv2d
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
from flows.training.schedules import WarmUp


class Described(pl.Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        config = {
            "model": {
                "_target_": "flows.Flow",
                "image_shape": [1, 4, 4],
                "mixing": {"_target_": "flows.layers.EmergingConv2d", "_partial_": True},
                "coupling": {"_target_": "flows.layers.AffineCoupling", "_partial_": True},
                "num_levels": 1,
                "num_steps": 2,
                "hidden_channels": 4,
            }
        }
        checkpoint.update({"format": FORMAT, "config": config, "overrides": []})


def test_training_learns_and_logs(tmp_path):
    trainer, _ = fit(tmp_path, [Throughput(), InversionMonitor()], max_epochs=8, lr=1e-2)
    metrics = trainer.callback_metrics
    assert metrics["val/bits_per_dim"] < 7.5
    assert metrics["val/round_trip_error"] < 0.5
    assert 0 < metrics["val/inverse_gain"] < 1
    assert metrics["train/gradient_norm"] > 0
    assert metrics["train/images_per_second"] > 0


def test_validation_score_does_not_depend_on_the_batch_size(tmp_path):
    scores = []
    for eval_batch_size in (1, 3, 10):
        trainer, _ = fit(tmp_path, data=StripesModule(eval_batch_size=eval_batch_size), max_epochs=1)
        scores.append(float(trainer.callback_metrics["val/bits_per_dim"]))
    assert max(scores) - min(scores) < 1e-5


def test_validation_score_is_the_mean_over_images(tmp_path):
    trainer, module = fit(tmp_path, max_epochs=1)
    data = StripesModule()
    data.setup()
    with torch.no_grad():
        scores = module.bits_per_dim((data.val.gather(range(10)), torch.arange(10)))
    assert float(trainer.callback_metrics["val/bits_per_dim"]) == pytest.approx(float(scores.mean()), abs=1e-5)


def test_two_trainings_with_one_seed_are_the_same(tmp_path):
    first, second = (parameters(fit(tmp_path)[1]) for _ in range(2))
    assert torch.equal(first, second)


def test_resumed_training_ends_where_the_undisturbed_one_does(tmp_path):
    averaging, checkpoint = AveragedWeights(decay=0.5), ModelCheckpoint(tmp_path, "epoch{epoch}", save_top_k=-1)
    model = flow()
    model.initialize(Stripes(32, 0).gather(range(32)))
    _, whole = fit(tmp_path, [averaging, checkpoint], model=model, max_epochs=3)
    path = next(tmp_path.glob("*epoch=0.ckpt"))
    resumed_averaging = AveragedWeights(decay=0.5)
    _, resumed = fit(tmp_path / "again", [resumed_averaging], ckpt_path=path, max_epochs=3)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert torch.equal(parameters(averaging._average_model.module), parameters(resumed_averaging._average_model.module))
    assert all(step.actnorm.initialized for _, step, _ in resumed.flow.steps())


class DrawsFromEverywhere(pl.Callback):
    """Moves a weight by what the global generators give."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            pl_module.flow.top.gaussian.bias += 1e-3 * (torch.rand(()) + random.random() + np.random.rand())


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
    def callbacks(folder, **saving):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return [StepSeeds(), DrawsFromEverywhere(), AveragedWeights(decay=0.5), LastCheckpoint(folder, **saving)]

    options = {"max_epochs": 3} | options
    all_kept = callbacks(tmp_path / "whole", every_n_train_steps=1, keep_last=100)
    trainer, whole = fit(tmp_path, all_kept, data=StripesModule(), **options)
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"))
    assert len(steps) >= trainer.global_step // 2
    for path in steps[:2] + steps[4::3] if workers == 0 else steps[4:6]:
        data = StripesModule(num_workers=workers)
        again = callbacks(tmp_path / f"from {path.stem}")
        resumed_trainer, resumed = fit(tmp_path, again, data=data, ckpt_path=path, **options)
        assert resumed_trainer.global_step == trainer.global_step
        assert torch.equal(parameters(whole), parameters(resumed)), path
        averages = [parameters(averaging._average_model.module) for averaging in (all_kept[2], again[2])]
        assert torch.equal(*averages), path


def test_steps_of_more_batches_begin_with_an_epoch(tmp_path):
    fit(tmp_path, [LastCheckpoint(tmp_path, every_n_train_steps=1, keep_last=100)])
    within, at_the_end = (tmp_path / f"step={step:07d}.ckpt" for step in (2, 4))
    with pytest.raises(InputError, match=r"resume it with trainer\.accumulate_grad_batches=1"):
        fit(tmp_path, ckpt_path=within, accumulate_grad_batches=2)
    trainer, _ = fit(tmp_path, ckpt_path=at_the_end, accumulate_grad_batches=2)
    assert trainer.global_step == 8


def test_the_chosen_number_of_predecessors_is_kept(tmp_path):
    fit(tmp_path, [LastCheckpoint(tmp_path, every_n_train_steps=1, keep_last=2)])
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "last.ckpt",
        "step=0000006.ckpt",
        "step=0000007.ckpt",
    ]
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
    averaging = AveragedWeights(decay=0.9)
    trainer, module = fit(tmp_path, [averaging], lr=1e-2)
    raw, averaged = (trainer.callback_metrics[f"val/bits_per_dim{suffix}"] for suffix in ("", "_averaged"))
    assert raw != averaged
    images = Stripes(4, 0).gather(range(4))
    for model in (module.flow, averaging._average_model.module.flow):
        with torch.no_grad():
            assert torch.equal(model.decode(model.encode(images)), images)
    assert not torch.equal(parameters(module), parameters(averaging._average_model.module))


def test_checkpoint_holds_raw_and_averaged_weights(tmp_path):
    torch.manual_seed(0)
    model = Flow((1, 4, 4), EmergingConv2d, AffineCoupling, num_levels=1, num_steps=2, hidden_channels=4)
    averaging, checkpoint = AveragedWeights(decay=0.9), ModelCheckpoint(tmp_path, "last")
    _, module = fit(tmp_path, [averaging, checkpoint, Described()], model=model)
    raw, averaged = (load_flow(tmp_path / "last.ckpt", weights) for weights in ("raw", "averaged"))
    assert torch.equal(parameters(raw), parameters(module.flow))
    assert torch.equal(parameters(averaged), parameters(averaging._average_model.module.flow))


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
    assert "step 3" in message
    assert name.removeprefix("flow.") in message
    assert "last.ckpt" in message
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


class OneNan(FlowModule):
    """Cannot tell the bits/dim of the first image."""

    def bits_per_dim(self, batch):
        bits = super().bits_per_dim(batch)
        return torch.where(batch[1] == 0, math.nan, bits)


def test_one_nan_in_a_validation_is_not_left_out_of_its_mean(tmp_path):
    module = OneNan(flow(), Adamax, WarmUp)
    pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False).validate(
        module, StripesModule(), verbose=False
    )
    assert math.isnan(module.trainer.callback_metrics["val/bits_per_dim"])


def test_overflow_names_the_layer_where_it_happens(tmp_path):
    spoil = NanAt(1, "flow.levels.0.layers.2.actnorm.log_scale", 60.0)
    with pytest.raises(NonFiniteError, match=r"levels\.0\.layers\.2\.actnorm.*no good checkpoint"):
        fit(tmp_path, [spoil, StopOnNonFinite()])


class InfiniteGradient(pl.Callback):
    def on_after_backward(self, trainer, pl_module):
        pl_module.flow.top.gaussian.bias.grad.fill_(math.inf)


def test_infinite_gradients_stop_before_the_weights_take_harm(tmp_path):
    model = flow()
    before = parameters(model)
    with pytest.raises(NonFiniteError, match=r"flow\.top\.gaussian\.bias"):
        fit(tmp_path, [InfiniteGradient(), StopOnNonFinite()], model=model)
    assert torch.equal(parameters(model), before)


class HugeGradient(pl.Callback):
    def on_after_backward(self, trainer, pl_module):
        pl_module.flow.top.gaussian.bias.grad.fill_(1e30)


def test_finite_gradients_whose_norm_leaves_float32_train_on(tmp_path):
    trainer, _ = fit(tmp_path, [HugeGradient(), StopOnNonFinite()])
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
