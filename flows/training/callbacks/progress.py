"""What a training shows while it runs."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar as LightningProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SHOWN = {"train": "train/bits_per_dim", "val": "val/bits_per_dim", "averaged": "val/bits_per_dim_averaged"}


class ProgressBar(LightningProgressBar):
    """One line that says how far an epoch is, in bits/dim and images/s, and one that stays for every validation.

    Where the output is no terminal (a job's log file) only the lines that stay are written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout.isatty()
        self._line: Progress | None = None

    def disable(self) -> None:
        """Lightning's wish where another process speaks."""
        self._is_terminal = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_terminal:
            return
        texts = ("{task.description}", "{task.fields[scores]}")
        epoch, scores = (TextColumn(text, table_column=Column(no_wrap=True)) for text in texts)
        columns = (epoch, BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(compact=True), scores)
        self._line = Progress(*columns, console=Console(highlight=False), expand=True, transient=True)
        self._line.add_task("", scores="")
        self._line.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._line is not None:
            self._line.reset(self._line.task_ids[0], total=self.total_train_batches, description=_epoch(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._line is not None:
            self._line.update(self._line.task_ids[0], completed=batch_idx + 1, scores=_scores(trainer, "train", "val"))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        line = f"{_epoch(trainer)}, step {trainer.global_step}: {_scores(trainer, *SHOWN)}"
        if self._line is None:
            print(line, flush=True)
        else:
            self._line.console.print(line)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._line is not None:
            self._line.stop()


def _epoch(trainer: pl.Trainer) -> str:
    """The epoch's number, the first being 1, and how many there are."""
    of_all = f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
    return f"epoch {trainer.current_epoch + 1}{of_all}"


def _scores(trainer: pl.Trainer, *labels: str) -> str:
    """``train 5.398  val 5.550  39 img/s``, of what is known."""
    metrics = trainer.callback_metrics
    scores = [f"{label} {float(metrics[SHOWN[label]]):.3f}" for label in labels if SHOWN[label] in metrics]
    speed = metrics.get("train/images_per_second")
    return "  ".join([*scores, *([] if speed is None else [f"{float(speed):.0f} img/s"])])
