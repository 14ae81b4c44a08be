"""How much memory the training needs."""

from __future__ import annotations

import resource
import sys
from typing import Any

import pytorch_lightning as pl
import torch

BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024
"""Of ``ru_maxrss``, which macOS counts in bytes and Linux in KiB."""


class PeakMemory(pl.Callback):
    """Logs the most memory that was in use so far, in GiB, whenever the training's figures are logged.

    * ``memory/process_gib``: of this process, in the machine's memory; workers that load data are not in it.
    * ``memory/device_gib``: of PyTorch's tensors on the GPU, if there is one.

    With several processes both are those of the first.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        peaks = {"memory/process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT / 2**30}
        if pl_module.device.type == "cuda":
            peaks["memory/device_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        pl_module.log_dict(peaks)
