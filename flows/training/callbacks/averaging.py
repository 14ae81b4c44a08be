"""An exponential moving average of the weights, scored apart from the raw ones."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from flows.errors import InputError
from flows.training.lightning_seams import average_swapped_in, has_average
from flows.training.module import FlowModule


class AveragedWeights(EMAWeightAveraging):
    """Keeps an exponential moving average of the parameters and validates it beside the raw ones.

    Lightning's own callback replaces the raw weights by the averaged ones for validation and after training. Here
    both are scored: ``val/bits_per_dim`` is always the raw weights', ``val/bits_per_dim_averaged`` the average's.
    The checkpoint format is Lightning's: the average under ``state_dict``, the raw weights under
    ``current_model_state`` (:func:`flows.load_flow` reads either).

    Buffers are not averaged: the average of two permutations is not a permutation.

    Args:
        decay: weight of the old average at each step, in [0, 1).
        start_step: optimiser step from which to average; until then the average is the raw weights.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callbacks.averaging.decay must be in [0, 1), not {decay}")
        super().__init__(use_buffers=False, decay=decay, update_starting_at_step=start_step)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the raw weights first; nothing is swapped for the whole epoch."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing was swapped."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module keeps its raw weights."""

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: FlowModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if has_average(self):
            with average_swapped_in(self, pl_module):
                pl_module.score("val/bits_per_dim_averaged", "averaged", batch)
