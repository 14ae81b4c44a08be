"""Every seam of Lightning is still where the project takes hold of it: a test that fails names what has moved."""

import csv
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from support.small_training import fit, parameters

from flows.training import lightning_seams as seams


class Probe(pl.Callback):
    """Calls a function at the end of every batch and keeps what it returns."""

    def __init__(self, function):
        self.function, self.found = function, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(self.function(trainer))


@pytest.mark.parametrize("is_left_alone", [True, False])
def test_register_signal_handlers_is_what_takes_sigterm(is_left_alone, tmp_path, monkeypatch):
    class Setup(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            if is_left_alone:
                seams.leave_signals_alone(trainer)

    ours = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        probe = Probe(lambda trainer: signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        fit(tmp_path, [Setup(), probe], max_epochs=1)
        assert probe.found == [is_left_alone] * 4
    finally:
        signal.signal(signal.SIGTERM, ours)


def test_update_train_step_metrics_logs_a_row_once(tmp_path):
    probe = Probe(lambda trainer: seams.log_row_now(trainer) if trainer.global_step == 2 else None)
    fit(tmp_path, [probe], max_epochs=1, logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1))
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/bits_per_dim"]] == ["0", "1", "2", "3"]


def test_restarting_loops_leave_an_epoch_that_had_ended(tmp_path):
    class Resume(pl.Callback):
        events = ()

        def on_train_start(self, trainer, pl_module):
            seams.leave_ended_epoch(trainer)

        def on_train_epoch_start(self, trainer, pl_module):
            self.events += ("start", trainer.global_step)

        def on_train_epoch_end(self, trainer, pl_module):
            self.events += ("end", trainer.global_step)

    fit(tmp_path, [ModelCheckpoint(tmp_path, "ended", save_on_train_epoch_end=True)], max_steps=4)
    resumed = Resume()
    fit(tmp_path, [resumed], ckpt_path=tmp_path / "ended.ckpt", max_epochs=-1, max_steps=6)
    assert resumed.events == ("start", 4, "end", 6)


def test_should_accumulate_knows_the_middle_of_a_step(tmp_path):
    probe = Probe(seams.is_accumulating)
    fit(tmp_path, [probe], max_epochs=1, accumulate_grad_batches=2)
    assert probe.found == [True, False] * 4


def test_should_check_val_and_the_data_fetcher_know_where_a_validation_is_due(tmp_path):
    probe = Probe(seams.can_be_resumed_here)
    fit(tmp_path, [probe], max_epochs=1, val_check_interval=2)
    assert probe.found == [True, False, True, False]


def test_swap_models_puts_the_average_in_and_takes_it_out_again(tmp_path):
    average = EMAWeightAveraging(use_buffers=False, decay=0.5)

    def swapped(trainer):
        module = trainer.lightning_module
        raw, averaged = parameters(module), parameters(average._average_model.module)
        with seams.average_swapped_in(average, module):
            inside = parameters(module)
        assert torch.equal(inside, averaged) and torch.equal(parameters(module), raw)
        return seams.has_average(average) and not torch.equal(raw, averaged)

    probe = Probe(swapped)
    fit(tmp_path, [average, probe], max_epochs=1)
    assert probe.found == [False, True, True, True]
