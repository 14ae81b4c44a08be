"""What a checkpoint says of itself."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from flows.runs.checkpoint import FORMAT
from flows.training.lightning_seams import is_accumulating


class DescribeCheckpoint(pl.Callback):
    """Puts into every checkpoint what is needed to read it without anything else.

    It is given the whole configuration, so it cannot be a part of it: :mod:`flows.training.run` adds it.
    """

    def __init__(self, config: dict[str, Any], overrides: list[str]) -> None:
        self.description = {"format": FORMAT, "config": config, "overrides": overrides}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.update(self.description)
        checkpoint["within_step"] = is_accumulating(trainer)
