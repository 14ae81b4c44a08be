"""Images per second."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class Throughput(pl.Callback):
    """Logs ``train/images_per_second`` over all devices: images since the last logged step by wall-clock time.

    Validation, checkpoints and pictures do not count: the clock runs from the first batch after each of them.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is None:  # the first batch also pays for what came before it
            self._since, self._images = now, 0
            return
        images, _ = batch
        self._images += len(images) * trainer.world_size
        if self._images and (trainer.global_step % trainer.log_every_n_steps == 0):  # type: ignore[attr-defined]
            pl_module.log("train/images_per_second", self._images / (now - self._since), prog_bar=True)
            self._since, self._images = now, 0
