"""How Lightning's checkpoints reach the disk, and how they come back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from flows.console import warn
from flows.errors import StorageError
from flows.files import atomic_write
from flows.runs.checkpoint import require_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination and renames it, so that the previous one survives any failure.

    Lightning's own goes through a temporary folder that may lie on another file system, where the last step is a copy
    and not a rename. What is read back is first compared with its checksums.

    Raises:
        StorageError: the disk is full, read-only or gone.
        InputError: a file to be read is damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError without a reason; a plain write does not
        torch.save(checkpoint, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        require_whole(path)
        return super().load_checkpoint(path, *arguments, **options)


def try_to_save(trainer: pl.Trainer, save: Callable[[], None]) -> StorageError | None:
    """Write a checkpoint of a training; a disk that fails costs the checkpoint, not the training.

    To be called by all ranks, of which one writes.

    Args:
        trainer: of the training.
        save: calls ``trainer.save_checkpoint``, at most once.

    Returns:
        What went wrong, the same on all ranks, after a warning; or ``None``.
    """
    failure = None
    try:
        save()
    except StorageError as error:
        failure = error
        trainer.strategy.barrier()  # where the other ranks wait for the one that writes
    failure = trainer.strategy.broadcast(failure)
    if failure is not None and trainer.is_global_zero:
        warn(f"step {trainer.global_step}: no checkpoint, the training goes on: {failure}")
    return failure
