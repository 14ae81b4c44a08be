"""How exactly and how safely the flow can be inverted, followed through training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from flows.errors import InputError
from flows.measures.diagnostics import inverse_gain, mixing_gains, round_trip_error, sample_health, unusual_images
from flows.training.module import FlowModule


class InversionMonitor(pl.Callback):
    """Logs at every validation how exactly the raw weights' flow inverts, and how far its samples are from overflowing.

    Of the whole inverse, in the precision of ``decode``:

    * ``val/samples_not_finite``: share of samples at temperature 1 that overflow;
    * ``val/values_outside``: share of the other samples' values outside of [-1/2, 1/2], which decoding clamps;
    * ``val/largest_value``: largest absolute value of a sample, before the logit in front bounds it;
    * ``val/inverse_gain``: how much the inverse amplifies a small change of a latent, at validation images and at
      samples (:func:`flows.measures.diagnostics.inverse_gain`);
    * ``val/round_trip_error``: largest error of ``decode(encode(x))`` for validation images, in grey levels; below 0.5
      pixels are exact (:func:`flows.measures.diagnostics.round_trip_error`);
    * ``val/round_trip_error_unusual``: the same for noise, black, white, a checkerboard and one bright pixel.

    Of single layers, ``val/mixing_gain``: largest entry of any mixing layer's inverse.

    Args:
        num_images: images of the first validation batch that are inverted.
        num_samples: samples that are looked at; a share below 1 in that many is not seen.
    """

    def __init__(self, num_images: int = 8, num_samples: int = 256) -> None:
        if num_images < 1 or num_samples < 1:
            raise InputError("callbacks.inversion: num_images and num_samples must be at least 1")
        self.num_images, self.num_samples = num_images, num_samples

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: FlowModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx > 0:
            return
        flow, images = pl_module.flow, batch[0][: self.num_images]
        health = sample_health(flow, self.num_samples)
        metrics = {
            "val/samples_not_finite": health.not_finite,
            "val/values_outside": health.outside,
            "val/largest_value": health.largest,
            "val/inverse_gain": max(health.gain, inverse_gain(flow, flow.encode(images))),
            "val/round_trip_error": round_trip_error(flow, images),
            "val/round_trip_error_unusual": round_trip_error(flow, unusual_images(flow.image_shape)),
        }
        if gains := mixing_gains(flow):
            metrics["val/mixing_gain"] = max(gains.values())
        pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True, reduce_fx="max")
