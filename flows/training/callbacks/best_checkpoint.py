"""The best checkpoint, by a validation score."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from flows.runs.layout import BEST
from flows.training.checkpoint_io import try_to_save


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``: Lightning's, but it records only what was written, and finds it after the folder has moved.

    When the disk fails, the previous best stays the best. When the run's folder has been moved or copied, its best
    checkpoint has been too: a worse one does not replace it.

    Args:
        dirpath: the folder of the checkpoints.
        monitor: the score that decides, of the raw or of the averaged weights.

    Attributes:
        scores: every bits/dim of that validation, by its name.
    """

    def __init__(
        self, dirpath: str, monitor: Literal["val/bits_per_dim", "val/bits_per_dim_averaged"] = "val/bits_per_dim"
    ) -> None:
        filename = BEST.removesuffix(self.FILE_EXTENSION)
        super().__init__(dirpath, filename, monitor, save_on_train_epoch_end=False, enable_version_counter=False)
        self.scores: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        models = state_dict["best_k_models"]
        here = {path: os.path.join(self.dirpath, os.path.basename(path)) for path in models}
        if os.path.isfile(here.get(state_dict["best_model_path"], "")):  # else this is another run
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_k_models": {here[path]: score for path, score in models.items()},
                "best_model_path": here[state_dict["best_model_path"]],
                "kth_best_model_path": here.get(state_dict["kth_best_model_path"], ""),
            }
            # Checkpoints of earlier versions know the deciding score alone.
            self.scores = state_dict.get("scores", {self.monitor: float(state_dict["best_model_score"])})
        super().load_state_dict(state_dict)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        is_best = super().check_monitor_top_k(trainer, current)
        if is_best:
            metrics = trainer.callback_metrics.items()
            self.scores = {name: float(value) for name, value in metrics if name.startswith("val/bits_per_dim")}
        return is_best

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            return  # there is no average yet
        before = self.state_dict() | {"best_k_models": dict(self.best_k_models)}
        if try_to_save(trainer, partial(super().on_validation_end, trainer, pl_module)) is not None:
            vars(self).update(before)
