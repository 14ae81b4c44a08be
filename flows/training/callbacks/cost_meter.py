"""What the training costs, counted while it runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch

from flows.console import warn
from flows.errors import first_line
from flows.measures.cost import Cost, flops_per_image, peak_memory
from flows.measures.timing import device_name
from flows.training.module import FlowModule


class CostMeter(pl.Callback):
    """Counts what the training costs and logs ``cost/device_hours`` at every validation.

    The cost so far is in every checkpoint, so that a resumed training goes on counting. What a killed process did after
    its last checkpoint is not counted. Every run needs it, so it is not a part of the
    configuration: :mod:`flows.training.run` adds it.

    Attributes:
        cost: up to the latest event of the training.
    """

    def __init__(self) -> None:
        self.cost = Cost()
        self._since: float | None = None
        self._in_steps = False

    def state_dict(self) -> dict[str, Any]:
        self.count()
        return asdict(self.cost)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["seconds"] > self.cost.seconds:  # else the training went back to that checkpoint
            self.cost = Cost(**state_dict)

    def count(self) -> None:
        """Count the time since the last call."""
        if self._since is not None:
            now = time.perf_counter()
            self.cost.add(now - self._since, are_of_steps=self._in_steps)
            self._since = now

    def _note_peak(self, device: torch.device) -> None:
        peaks = (self.cost.peak_memory_bytes, peak_memory(device))
        self.cost.peak_memory_bytes = max((peak for peak in peaks if peak is not None), default=None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.cost.device, self.cost.num_devices = device_name(pl_module.device), trainer.world_size
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)  # a sweep's earlier job may have needed more
        self._since, self._in_steps = time.perf_counter(), False

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        if self.cost.flops_per_image is None:
            try:
                self.cost.flops_per_image = flops_per_image(pl_module.flow)
            except Exception as error:  # a layer that trains need not be one that can be copied and counted
                warn(f"operations per image are not counted: {first_line(error)}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.count()
        self._in_steps = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images, _ = batch
        self.cost.images += len(images) * trainer.world_size
        self.count()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count()
        self._note_peak(pl_module.device)
        self._in_steps = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count()
        pl_module.log("cost/device_hours", self.cost.device_hours, batch_size=1, sync_dist=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count()
        self._note_peak(pl_module.device)
        self._since = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)
