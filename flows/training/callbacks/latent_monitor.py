"""Whether the latents of real images look as the model says that they do."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from flows.errors import InputError
from flows.training.loggers import log_histogram
from flows.training.module import FlowModule

EDGES = torch.linspace(-5.0, 5.0, 65)
"""Of the histograms' bins. Under the model 1 latent in 1.7 million lies outside."""


class LatentMonitor(pl.Callback):
    """Logs, at every validation and for every level, how the latents of some validation images are distributed.

    The model says that they are standard normal, each independent of all others. What they are on held-out images:

    * ``latents/mean_level_1`` and so on, which should be near 0, and ``latents/std_level_1``, which should be near 1;
    * ``latents/level_1``: a histogram, for the loggers that show any. What lies beyond -5 or 5 counts to the outermost
      bins.

    Level 1 is the finest, the first that is factored out.

    Args:
        num_images: of the first validation batch, on every device.
    """

    def __init__(self, num_images: int = 64) -> None:
        if num_images < 1:
            raise InputError(f"callbacks.latents.num_images must be at least 1, not {num_images}")
        self.num_images = num_images
        self._latents: list[Tensor] = []

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: FlowModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx > 0:
            return
        images, _ = batch
        self._latents = pl_module.flow.encode(images[: self.num_images])
        moments: dict[str, Tensor] = {}
        for level, z in enumerate(self._latents, start=1):
            moments |= {f"latents/mean_level_{level}": z.mean(), f"latents/std_level_{level}": z.std()}
        pl_module.log_dict(moments, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for level, z in enumerate(self._latents, start=1):
            for logger in trainer.loggers:
                log_histogram(
                    logger, f"latents/level_{level}", z.clamp(EDGES[0], EDGES[-1]), EDGES, trainer.global_step
                )
        self._latents = []
