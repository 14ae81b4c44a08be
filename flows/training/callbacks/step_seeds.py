"""The global random generators, seeded anew for each batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from flows.randomness import Stream, generator_for


class StepSeeds(pl.Callback):
    """Seeds Python's, NumPy's and torch's global generators before each batch, by seed, epoch, batch and rank.

    Nothing in this project draws from them (:mod:`flows.randomness`), but a layer or callback of somebody else's may:
    a resumed training then draws what the undisturbed one would have drawn.

    Args:
        seed: of the run, at least 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        counters = trainer.current_epoch, batch_idx, trainer.global_rank
        seed = generator_for(Stream.GLOBAL_GENERATORS, self.seed, *counters).initial_seed() % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
