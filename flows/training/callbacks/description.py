"""What a checkpoint says of itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from flows.runs.checkpoint import FORMAT, age
from flows.runs.layout import CHECKPOINTS
from flows.training.lightning_seams import is_accumulating


class DescribeCheckpoint(pl.Callback):
    """Puts into every checkpoint what is needed to read it without anything else.

    It is given the whole configuration, so it cannot be a part of it: :mod:`flows.training.run` adds it.
    """

    def __init__(self, config: dict[str, Any], overrides: list[str]) -> None:
        self.description = {"format": FORMAT, "config": config, "overrides": overrides}
        self.folder = Path(config["run_dir"]) / CHECKPOINTS
        self._written = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = max((age(path)[0] for path in self.folder.glob("*.ckpt")), default=0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.update(self.description)
        checkpoint["within_step"] = is_accumulating(trainer)
        # The time, so that runs can be compared; but a counter, since clocks differ and are set back.
        checkpoint["written"] = self._written = max(self._written + 1, time.time_ns())
