"""What the project takes from inside Lightning, one function or class for each seam.

Lightning is pinned below 2.7. When it moves, this file is the list of what to look at, and each seam has a test that
fails by its name (tests/test_lightning_seams.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging


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
