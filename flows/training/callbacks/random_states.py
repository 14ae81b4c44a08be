"""The global random generators of every rank, kept in checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor


class RandomStates(pl.Callback):
    """Keeps the states of Python's, NumPy's and torch's global generators, on every rank.

    Nothing in this project draws from them (:mod:`flows.randomness`), but a layer or callback of somebody else's may.
    """

    def __init__(self) -> None:
        self._resumed: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, _states())
        else:
            states = [_states()]
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = checkpoint.get("random_states", [])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(self._resumed) == trainer.world_size:
            _restore(self._resumed[trainer.global_rank])
        self._resumed = []


def _states() -> dict[str, Any]:
    """Plain data, since tensors cannot be gathered from other processes as parts of objects."""
    _, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (np.asarray(keys).tolist(), *position),
        "torch": _to_text(torch.get_rng_state()),
        "cuda": _to_text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    }


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    keys, *position = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *position))
    torch.set_rng_state(_from_text(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_text(states["cuda"]))


def _to_text(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
