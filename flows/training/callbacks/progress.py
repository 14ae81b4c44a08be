"""What a training shows while it runs."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """A progress bar with bits/dim and images/s, and one line for every validation.

    Where the output is no terminal (a job's log file) only the lines are written.
    """

    def __init__(self) -> None:
        super().__init__()
        if not sys.stdout.isatty():
            self.disable()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        shown = {
            "train": "train/bits_per_dim",
            "val": "val/bits_per_dim",
            "val averaged": "val/bits_per_dim_averaged",
        }
        metrics = trainer.callback_metrics
        parts = [f"{label} {float(metrics[name]):.3f}" for label, name in shown.items() if name in metrics]
        speed = metrics.get("train/images_per_second")
        parts += [] if speed is None else [f"{float(speed):.0f} images/s"]
        line = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}, bits/dim: {', '.join(parts)}"
        if self.progress is None:
            print(line, flush=True)
        else:
            self.progress.console.print(line, highlight=False)
