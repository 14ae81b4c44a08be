"""Processes that load data beside a training."""

from __future__ import annotations

import signal
from typing import Any

from torch.utils.data import DataLoader

from flows.processes.signals import SIGNALS

GRACE_SECONDS = 60
"""How long a worker that was told to end goes on loading."""


class SteadyLoader(DataLoader):
    """A data loader whose workers go on when they are signalled along with their program.

    SLURM and terminals signal all processes of a job. The program wants to finish its batch, save, and then ends its
    workers itself. Should it not, they end after :data:`GRACE_SECONDS`; and they always end when it is gone.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.worker_init_fn = _go_on

    def _get_iterator(self) -> Any:
        # A worker begins with PyTorch's handlers, which would end it: what comes before it has its own is held back.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _go_on(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
