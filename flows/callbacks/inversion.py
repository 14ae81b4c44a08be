"""How exactly and how safely the flow can be inverted, followed through training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from flows.diagnostics import mixing_gains, round_trip_error
from flows.errors import InputError


class InversionMonitor(pl.Callback):
    """Logs, at every validation, the round trip's error and the conditioning of the mixing layers' inverses.

    * ``val/round_trip_error``: largest error of ``decode(encode(x))``, in grey levels; below 0.5 pixels are exact
      (:func:`flows.diagnostics.round_trip_error`).
    * ``val/inverse_gain``: largest entry of any mixing layer's inverse (:func:`flows.diagnostics.inverse_gain`).

    Args:
        num_images: images of the first validation batch that make the round trip.
    """

    def __init__(self, num_images: int = 8) -> None:
        if num_images < 1:
            raise InputError(f"callbacks.inversion.num_images must be at least 1, not {num_images}")
        self.num_images = num_images

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx > 0:
            return
        images, _ = batch
        metrics = {
            "val/round_trip_error": round_trip_error(pl_module.flow, images[: self.num_images]),
            "val/inverse_gain": max(mixing_gains(pl_module.flow).values()),
        }
        pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True, reduce_fx="max")
