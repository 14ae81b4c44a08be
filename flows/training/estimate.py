"""``estimate=true``: what a run would cost, from a few of its steps and one validation."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from flows.console import duration, three_digits
from flows.errors import InputError
from flows.measures.cost import Cost

WARM_UP, MAX_TIMED, SECONDS = 2, 20, 10.0
"""Steps that are not timed, and the largest number of those that are, which also ends after this number of seconds."""

VALIDATION_BATCHES = 2
"""On the first one the callbacks do more than on others; the second one stands for those."""


def shortened(trainer: dict[str, Any], planned: pl.Trainer) -> dict[str, Any]:
    """The configuration of a trainer that trains like the planned one until :class:`StepWatch` stops it."""
    endless = {"max_epochs": -1, "max_steps": -1, "min_epochs": None, "min_steps": None, "max_time": None}
    limit = planned.limit_val_batches
    few = min(limit, VALIDATION_BATCHES) if isinstance(limit, int) else VALIDATION_BATCHES * (limit > 0)
    at_the_end = planned.check_val_every_n_epoch and 1
    own = {"limit_val_batches": few, "check_val_every_n_epoch": at_the_end, "enable_progress_bar": False}
    return {**trainer, **endless, **own}


class StepWatch(pl.Callback):
    """Times a few steps, stops the training, and times the validation that follows.

    It must be the last callback, so that it sees what the others take.

    Args:
        cost: of the training, as its meter counts it.
        planned: the trainer of the whole run.
        num_steps: of the whole run.

    Raises:
        InputError: the run has no planned end, or validates by the clock.
    """

    def __init__(self, cost: Cost, planned: pl.Trainer, num_steps: int | float) -> None:
        if num_steps == float("inf"):
            raise InputError("estimate=true needs a training with an end: give trainer.max_epochs or trainer.max_steps")
        if not isinstance(planned.val_check_interval, (int, float)):
            raise InputError(
                "estimate=true cannot foresee validations by the clock: trainer.val_check_interval=1.0 can"
            )
        self.cost, self.planned, self.num_steps = cost, planned, int(num_steps)
        self.num_timed, self.step_seconds, self.validation_seconds = 0, 0.0, 0.0
        self._warm_up = min(WARM_UP, self.num_steps - 1)
        self._step, self._before, self._since, self._batch_since, self._batch_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        if self._step <= self._warm_up:
            self._before = self.cost.step_seconds
            return
        seconds, self.num_timed = self.cost.step_seconds - self._before, self._step - self._warm_up
        self.step_seconds = seconds / self.num_timed
        is_enough = self.num_timed == MAX_TIMED or self._step == self.num_steps or seconds > SECONDS
        trainer.should_stop = trainer.strategy.broadcast(is_enough)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = _now(pl_module)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._batch_since = _now(pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._batch_seconds = _now(pl_module) - self._batch_since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.val_dataloaders is not None  # which a validation has
        limit, num_batches = self.planned.limit_val_batches, len(trainer.val_dataloaders)
        num_planned = min(limit, num_batches) if isinstance(limit, int) else int(limit * num_batches)
        further = num_planned - min(num_batches, VALIDATION_BATCHES)
        self.validation_seconds = _now(pl_module) - self._since + further * self._batch_seconds

    def rows(self, stopped: pl.Trainer) -> list[tuple[str, str]]:
        """What the whole run would cost, as rows of a table; ``stopped`` is the trainer of the steps."""
        num_validations = self._num_validations(stopped)
        whole = Cost(
            self.cost.device,
            self.cost.num_devices,
            images=self.cost.images * self.num_steps // self._step,
            peak_memory_bytes=self.cost.peak_memory_bytes,
            flops_per_image=self.cost.flops_per_image,
        )
        whole.add(self.num_steps * self.step_seconds, are_of_steps=True)
        whole.add(num_validations * self.validation_seconds, are_of_steps=False)
        steps = f"{self.num_steps:,} steps", f"{three_digits(1000 * self.step_seconds)} ms each"
        validations = f"{num_validations:,} validations", f"{duration(self.validation_seconds)} each"
        flops = None if whole.flops_per_image is None else whole.flops_per_image * whole.images / 1e12
        operations = [] if flops is None else [("TFLOPs in all", three_digits(flops))]
        return [steps, *([validations] if num_validations else []), *whole.rows(), *operations]

    def _num_validations(self, stopped: pl.Trainer) -> int:
        interval, every_n_epochs = stopped.val_check_batch, self.planned.check_val_every_n_epoch
        batches = int(stopped.num_training_batches)
        if not self.planned.limit_val_batches or not interval:
            return 0
        if every_n_epochs is None:
            return int(self.num_steps * self.planned.accumulate_grad_batches // interval)
        num_epochs = self.num_steps // -(-batches // self.planned.accumulate_grad_batches)
        return num_epochs // every_n_epochs * int(batches // interval)


def _now(module: pl.LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()
