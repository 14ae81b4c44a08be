"""The best checkpoint, by the validation score."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from flows.training.checkpoint_io import try_to_save


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but it records only what was written, and finds its checkpoint after the run folder has moved.

    When the disk fails, the previous best stays the best. When the run's folder has been moved or copied, its best
    checkpoint has been too: a worse one does not replace it.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        scores = state_dict["best_k_models"]
        here = {path: os.path.join(self.dirpath, os.path.basename(path)) for path in scores}
        if os.path.isfile(here.get(state_dict["best_model_path"], "")):  # else this is another run
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_k_models": {here[path]: score for path, score in scores.items()},
                "best_model_path": here[state_dict["best_model_path"]],
                "kth_best_model_path": here.get(state_dict["kth_best_model_path"], ""),
            }
        super().load_state_dict(state_dict)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.state_dict() | {"best_k_models": dict(self.best_k_models)}
        if try_to_save(trainer, partial(super().on_validation_end, trainer, pl_module)) is not None:
            vars(self).update(before)
