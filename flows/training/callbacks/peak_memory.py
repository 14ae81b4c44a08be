"""How much memory the training needs."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from flows.measures.cost import peak_memory, peak_process_memory


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
        peaks = {"memory/process_gib": peak_process_memory()}
        if pl_module.device.type == "cuda":
            peaks["memory/device_gib"] = peak_memory(pl_module.device)
        pl_module.log_dict({name: peak / 2**30 for name, peak in peaks.items() if peak is not None})
