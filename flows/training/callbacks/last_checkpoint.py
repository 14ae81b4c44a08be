"""The last checkpoint, from which a training is resumed."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from flows.console import warn
from flows.errors import InputError, StorageError
from flows.files import atomic_write
from flows.processes import signals
from flows.runs.checkpoint import age, require_whole
from flows.runs.layout import BEST, LAST, PREDECESSORS, predecessor
from flows.training.checkpoint_io import try_to_save
from flows.training.lightning_seams import can_be_resumed_here, leave_ended_epoch, leave_signals_alone, log_row_now


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a training can be resumed exactly, and some of its predecessors.

    It is written at the end of epochs, every few steps if so wished, and when a signal ends the training
    (:mod:`flows.processes.signals`). All ranks then agree to end after the batch, save, and raise. In the middle of
    accumulated gradients, or when a validation is due, this is put off until they are done.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_epochs: at least 1.
        every_n_train_steps: also after this number of optimiser steps, at least 1; ``None``: no.
        keep_last: how many predecessors of ``last.ckpt`` stay, as ``step=0000100.ckpt``; at least 0.

    Attributes:
        failure: why the latest attempt to save failed; ``None`` if it did not.
    """

    def __init__(
        self, dirpath: str, every_n_epochs: int = 1, every_n_train_steps: int | None = None, keep_last: int = 0
    ) -> None:
        if every_n_epochs < 1 or (every_n_train_steps is not None and every_n_train_steps < 1):
            raise InputError("callbacks.last: every_n_epochs and every_n_train_steps must be at least 1")
        if keep_last < 0:
            raise InputError(f"keep_last must be at least 0, not {keep_last}")
        self.dirpath, self.path = dirpath, Path(dirpath) / LAST
        self.every_n_epochs, self.every_n_train_steps, self.keep_last = every_n_epochs, every_n_train_steps, keep_last
        self.failure: StorageError | None = None
        self._saved_step = 0
        self._is_due = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not when the training starts: where no step is left to be made, Lightning does not start it.
        if trainer.is_global_zero:
            self._set_aside_damaged()
            if trainer.ckpt_path is not None:
                self._catch_up_with(Path(trainer.ckpt_path))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _require_same_step(trainer)
        self._saved_step = trainer.global_step
        leave_ended_epoch(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._saved_step and self.every_n_train_steps and step % self.every_n_train_steps == 0:
            self._is_due = True
        if can_be_resumed_here(trainer):
            self._save_if_wanted(trainer, self._is_due or step == trainer.max_steps, is_logged=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_due = self._is_due or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        self._save_if_wanted(trainer, is_due, is_logged=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved_step != trainer.global_step:  # fewer epochs than every_n_epochs have passed since
            self._save(trainer)

    def _set_aside_damaged(self) -> None:
        """Set aside what is damaged and would be overwritten."""
        for name in (BEST, LAST):
            path = self.path.with_name(name)
            if path.exists():
                try:
                    require_whole(path)
                except InputError:
                    os.replace(path, path.with_name(f"{path.name}.damaged"))

    def _catch_up_with(self, resumed: Path) -> None:
        """Let ``last.ckpt`` be the checkpoint that the training goes on from, if that is a later one of this run.

        A process that is killed after ``best.ckpt`` was written and before ``last.ckpt`` was leaves them so. If it was
        at its last step, the resumed training has nothing left to do and would not write ``last.ckpt`` again.
        """
        if resumed.resolve().parent != self.path.resolve().parent:
            return
        if not self.path.exists() or age(self.path) < age(resumed):
            self._keep_predecessors()
            try:
                _copy(resumed, self.path)
            except OSError as error:
                warn(f"{self.path} stays older than {resumed}: {error.strerror or error}")

    def _save_if_wanted(self, trainer: pl.Trainer, is_due: bool, is_logged: bool) -> None:
        """Save, and end if a signal says so; first the step's row is logged, since who resumes begins behind it."""
        is_interrupted = trainer.strategy.reduce_boolean_decision(signals.received(), all=False)
        if (is_due or is_interrupted) and self._saved_step != trainer.global_step:
            if not is_logged:
                log_row_now(trainer)
            self._save(trainer)
        if is_interrupted:
            raise signals.Interrupted(signals.EXIT_CODE)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step, self._is_due = trainer.global_step, False
        for logger in trainer.loggers:
            logger.save()  # who resumes from here should find the rows that led here
        if trainer.is_global_zero:
            self._keep_predecessors()
        self.failure = try_to_save(trainer, partial(trainer.save_checkpoint, self.path))

    def _keep_predecessors(self) -> None:
        """Keep what is about to be replaced, and no more than :attr:`keep_last` of those that were."""
        if not self.keep_last:
            return
        try:
            if self.path.exists():
                _, step = age(self.path)
                _copy(self.path, self.path.with_name(predecessor(step)))
            older = sorted(self.path.parent.glob(PREDECESSORS), key=age)
            for path in older[: -self.keep_last]:
                path.unlink()
        except OSError as error:
            warn(f"no predecessor of {self.path} is kept this time: {error.strerror or error}")


def _require_same_step(trainer: pl.Trainer) -> None:
    """Refuse to train when ranks have resumed from different checkpoints, as a network's stale folder may show them."""
    first = trainer.strategy.broadcast(trainer.global_step)
    if trainer.strategy.reduce_boolean_decision(first != trainer.global_step, all=False):
        raise InputError(
            f"the processes do not see the same checkpoints: process {trainer.global_rank} resumed at step "
            f"{trainer.global_step}, the first one at {first}; start again, or name the checkpoint by resume="
        )


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reading, atomic_write(target) as writing:
        shutil.copyfileobj(reading, writing)
