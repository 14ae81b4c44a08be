"""Pictures of samples while training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from flows.console import warn
from flows.errors import InputError, StorageError
from flows.models.base import DensityModel
from flows.pictures import grid, save_png, sheet, to_array
from flows.randomness import Stream, generator_for
from flows.runs.layout import picture
from flows.training.loggers import WandbLogger
from flows.training.module import FlowModule


class SamplePictures(pl.Callback):
    """Draws a grid of samples at the end of every n-th validation, one row for each temperature.

    The latents are the same every time, so that pictures can be compared. Each grid goes to ``folder`` as a PNG; the
    loggers that show images get its rows as ``samples``, captioned with their temperatures. A sample that overflows is
    a hatched cell, and a warning counts them.

    Args:
        folder: where the PNGs go.
        temperatures: of the rows, top to bottom.
        num_columns: samples at each temperature.
        every_n_validations: at least 1.
        seed: of the latents.
    """

    def __init__(
        self,
        folder: str,
        temperatures: Sequence[float] = (0.5, 0.7, 0.8, 1.0),
        num_columns: int = 8,
        every_n_validations: int = 1,
        seed: int = 0,
    ) -> None:
        if every_n_validations < 1 or num_columns < 1:
            raise InputError("callbacks.samples: every_n_validations and num_columns must be at least 1")
        if not temperatures or min(temperatures) < 0:
            raise InputError("callbacks.samples.temperatures must be a list of numbers, each at least 0")
        self.folder, self.temperatures, self.num_columns = Path(folder), list(temperatures), num_columns
        self.every_n_validations, self.seed = every_n_validations, seed
        self._num_validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        if trainer.sanity_checking:
            return
        self._num_validations += 1
        if self._num_validations % self.every_n_validations or not trainer.is_global_zero:
            return
        step = trainer.global_step
        images, finite = self.draw(pl_module.flow)
        if not finite.all():
            num_lost = int((~finite).sum())
            warn(f"step {step}: {num_lost} of {len(images)} samples overflow and are hatched in the picture")
        labels = [f"temperature {temperature:g}" for temperature in self.temperatures]
        try:
            save_png(sheet(images, self.num_columns, finite, rows=labels), self.folder / picture(step))
        except StorageError as error:
            warn(f"step {step}: no picture, the training goes on: {error}")
        rows = zip(labels, images.split(self.num_columns), finite.split(self.num_columns), strict=True)
        captioned = {label: grid(row, self.num_columns, is_finite) for label, row, is_finite in rows}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for caption, row in captioned.items():
                    logger.experiment.add_image(f"samples/{caption}", row, step)
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [*map(to_array, captioned.values())], step, caption=[*captioned])

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def draw(self, flow: DensityModel) -> tuple[Tensor, Tensor]:
        """The samples of one picture, row by row, and which are finite; every row starts from the same latents."""
        rows = [
            flow.decode_finite(flow.sample_latents(self.num_columns, t, generator_for(Stream.SAMPLES, self.seed)))
            for t in self.temperatures
        ]
        return torch.cat([images for images, _ in rows]), torch.cat([finite for _, finite in rows])
