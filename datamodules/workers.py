"""Processes that load data beside a training."""

from __future__ import annotations

import signal

GRACE_SECONDS = 60
"""How long a worker that was told to end goes on loading."""


def outlive_signals(worker: int) -> None:
    """Make a worker go on when it is signalled along with its program, as SLURM and terminals do.

    The program wants to finish its batch, save, and then ends its workers itself. Should it not, they end after
    :data:`GRACE_SECONDS`; and they always end when it is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
