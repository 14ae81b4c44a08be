"""Whether the latents of real images look as the model says that they do."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from flows.errors import InputError
from flows.training.module import FlowModule


class LatentMonitor(pl.Callback):
    """Logs, at every validation and for every level, how the latents of some validation images are distributed.

    The model says that they are standard normal, each independent of all others. On held-out images,
    ``latents/mean_level_1`` and so on should be near 0, and ``latents/std_level_1`` near 1. Level 1 is the finest, the
    first that is factored out.

    Args:
        num_images: of the first validation batch, on every device.
    """

    def __init__(self, num_images: int = 64) -> None:
        if num_images < 1:
            raise InputError(f"callbacks.latents.num_images must be at least 1, not {num_images}")
        self.num_images = num_images

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: FlowModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx > 0:
            return
        images, _ = batch
        moments: dict[str, Tensor] = {}
        for level, z in enumerate(pl_module.flow.encode(images[: self.num_images]), start=1):
            moments |= {f"latents/mean_level_{level}": z.mean(), f"latents/std_level_{level}": z.std()}
        pl_module.log_dict(moments, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
