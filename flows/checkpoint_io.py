"""How Lightning's checkpoints reach the disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from flows.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination and renames it, so that the previous one survives any failure.

    Lightning's own goes through a temporary folder that may lie on another file system, where the last step is a copy
    and not a rename.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError without a reason; a plain write does not
        torch.save(checkpoint, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
