"""Callbacks for trainings of several processes: one writes down what each saw and holds, one waits for a signal."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl

from flows import NonFiniteError
from flows.processes import signals
from flows.training.callbacks import AveragedWeights


def digests(module):
    """A fingerprint of every parameter and every buffer, to the last bit."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()[:16] for name, value in named}


class Witness(pl.Callback):
    """Writes ``FOLDER/rank-of-world.json``.

    Args:
        folder: where to.
        fate: what becomes of the last rank at its second step: ``killed``, ``nan``, ``bug`` or nothing.
    """

    def __init__(self, folder: str, fate: str | None = None):
        self.folder, self.fate = Path(folder), fate
        self.seen = {"indices": [], "noise": []}

    def setup(self, trainer, pl_module, stage):
        """Before anything is made the same everywhere by Lightning."""
        self.seen |= {"pid": os.getpid(), "before": digests(pl_module.flow)}
        self.write(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen["indices"].append(batch.indices.tolist())
        noise = pl_module.training_noise(batch.images, batch_idx)
        self.seen["noise"].append(noise.double().sum(dim=(1, 2, 3)).tolist())
        if self.fate and trainer.global_step == 1 and trainer.global_rank == trainer.world_size - 1:
            if self.fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"nan": NonFiniteError("a NaN for the test"), "bug": KeyError("a bug for the test")}[self.fate]

    def on_train_end(self, trainer, pl_module):
        averaging = next(callback for callback in trainer.callbacks if isinstance(callback, AveragedWeights))
        self.seen |= {"after": digests(pl_module.flow), "averaged": digests(averaging._average_model.module.flow)}
        self.write(trainer)

    def write(self, trainer):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{trainer.global_rank}-of-{trainer.world_size}.json"
        path.write_text(json.dumps(self.seen))


class WaitToBeTold(pl.Callback):
    """In a SLURM job's first attempt, goes beyond a step only when this process has been told to end.

    Args:
        step: the one that is not begun before.
    """

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while trainer.global_step == self.step and "SLURM_RESTART_COUNT" not in os.environ and not signals.received():
            time.sleep(0.05)
