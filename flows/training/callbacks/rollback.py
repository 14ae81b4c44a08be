"""What happens to a training that has diverged: it ends, or goes back to a good checkpoint and learns more slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from flows.console import warn
from flows.errors import InputError, NonFiniteError
from flows.runs.checkpoint import newest_good
from flows.runs.layout import CHECKPOINTS


class Rollback(pl.Callback):
    """Decides what follows a :class:`flows.NonFiniteError`, and lowers the learning rate of a training that went back.

    How often a training has gone back is kept in its checkpoints, with the learning rate that it then had.

    Args:
        on_nan: ``"stop"``, or ``"rollback"`` to the newest good checkpoint (:func:`flows.runs.checkpoint.newest_good`).
        max_times: how often, at least 1.
        lr_factor: by what the learning rate is multiplied each time, in (0, 1).
    """

    def __init__(
        self, on_nan: Literal["stop", "rollback"] = "stop", max_times: int = 3, lr_factor: float = 0.5
    ) -> None:
        if max_times < 1:
            raise InputError(f"callbacks.rollback.max_times must be at least 1, not {max_times}")
        if not 0 < lr_factor < 1:
            raise InputError(f"callbacks.rollback.lr_factor must be between 0 and 1, not {lr_factor}")
        self.on_nan, self.max_times, self.lr_factor = on_nan, max_times, lr_factor
        self.times = 0
        self._times_at_checkpoint = 0

    def checkpoint_after(self, error: NonFiniteError, step: int, run_dir: Path, says_so: bool) -> Path:
        """The checkpoint to go back to when a step of the optimiser could not be made; counts.

        Raises:
            NonFiniteError: the given one, if the training is to end, or has gone back often enough, or cannot go back.
        """
        if self.on_nan == "stop" or self.times == self.max_times:
            raise error
        checkpoint = newest_good(run_dir / CHECKPOINTS, step)
        if checkpoint is None:
            raise error
        self.times += 1
        if says_so:
            warn(
                f"rollback {self.times} of {self.max_times}: {error}; going on from {checkpoint} with the "
                f"learning rate times {self.lr_factor:g}"
            )
        return checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"times": self.times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._times_at_checkpoint = state_dict["times"]
        self.times = max(self.times, self._times_at_checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        factor = self.lr_factor ** (self.times - self._times_at_checkpoint)
        self._times_at_checkpoint = self.times
        if factor == 1:
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor
                group["initial_lr"] *= factor
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]
        for logger in trainer.loggers:
            logger.log_metrics({"train/rollbacks": self.times}, step=trainer.global_step)
