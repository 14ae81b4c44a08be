"""What the project takes from inside Lightning, one function or class for each seam.

Lightning is pinned below 2.7. When it moves, this file is the list of what to look at, and each seam has a test that
fails by its name (tests/test_lightning_seams.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from flows.errors import StorageError


def checkpoint_content(trainer: pl.Trainer, weights_only: bool) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` writes, without its barrier, at which ranks wait for one that has failed."""
    content: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only)
    return content


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling SIGTERM: it broadcasts from within the handler, which hangs if ranks are apart."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def log_row_now(trainer: pl.Trainer) -> None:
    """Log the step's row now, and not once more after the batch, when Lightning would."""
    connector, name = trainer._logger_connector, "update_train_step_metrics"
    connector.update_train_step_metrics()
    setattr(connector, name, lambda: delattr(connector, name))  # instead of the method, for one call


def leave_ended_epoch(trainer: pl.Trainer) -> None:
    """Count an epoch as ended that had ended when it was saved: with ``max_steps`` Lightning would take it up again."""
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        loop._restarting = loop.epoch_loop._restarting = False


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether gradients are being accumulated, which no checkpoint holds."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def can_be_resumed_here(trainer: pl.Trainer) -> bool:
    """Whether Lightning resumes exactly from a checkpoint that is written at the end of this batch.

    A validation that is due would be left out.
    """
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return not (
        is_accumulating(trainer)
        or loop.batch_progress.is_last_batch
        or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    )


def has_average(callback: WeightAveraging) -> bool:
    """Whether there is an average of the weights yet."""
    return callback._average_model is not None and callback._latest_update_step != 0


@contextmanager
def average_swapped_in(callback: WeightAveraging, module: pl.LightningModule) -> Iterator[None]:
    """Inside, the module has the averaged weights."""
    callback._swap_models(module)
    try:
        yield
    finally:
        callback._swap_models(module)


class HonestModelCheckpoint(ModelCheckpoint):
    """Lightning's, but it records a checkpoint only after a successful write; subclasses say how to write."""

    _TRACKED_FIELDS = ("best_model_path", "best_model_score", "current_score", "kth_best_model_path", "kth_value")

    @abstractmethod
    def write(self, trainer: pl.Trainer, path: str) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: it could not be written; the previous best stays the best.
        """

    def _update_best_and_save(
        self, current: Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        before = {name: getattr(self, name) for name in self._TRACKED_FIELDS}
        before |= {"best_k_models": dict(self.best_k_models)}
        try:
            super()._update_best_and_save(current, trainer, monitor_candidates)
        except StorageError:
            vars(self).update(before)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.write(trainer, filepath)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
