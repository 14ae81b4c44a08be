"""Signals that ask a program to end: noted when they come, obeyed where nothing is lost by it.

SIGTERM, SIGUSR1 (what SLURM sends before a time limit, if asked to) and Ctrl-C end a program with the exit code
:data:`EXIT_CODE`. While a training runs (:func:`deferred`) they are noted only, and the training ends by itself after
the batch; a second Ctrl-C then ends it at once. Under SLURM the job is put back into its queue upon SIGUSR1, and upon
SIGTERM if it is preempted (:func:`flows.processes.slurm.requeue`).

This module imports nothing that takes time, since the default action of these signals is to kill: programs install the
handlers before they import torch (:mod:`flows.cli.startup`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flows.processes import slurm

EXIT_CODE = 5
"""Of a program that a signal has ended."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(SystemExit):
    """A signal ends the program: the whole of it, so a sweep's other jobs are not begun."""


class _State:
    """What has been received, and whether it is obeyed at once."""

    received: signal.Signals | None = None
    deferring = False
    is_resumable = False
    main_process = 0


def install(is_resumable: bool = False) -> None:
    """Handle the signals from now on; a program that is not resumable is not put back into SLURM's queue either."""
    _State.main_process, _State.is_resumable = os.getpid(), is_resumable
    for number in SIGNALS:
        signal.signal(number, _handle)


def received() -> bool:
    """Whether this process has been asked to end."""
    return _State.received is not None


@contextmanager
def deferred() -> Iterator[None]:
    """Record signals instead of acting on them, for code that asks :func:`received`; exit when the block ends.

    Raises:
        Interrupted: a signal was noted.
    """
    _State.deferring = True
    try:
        yield
    except Interrupted:
        _end()
    finally:
        _State.deferring = False
    if received():
        _end()


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.main_process:
        return  # forked off us: SLURM and terminals signal it too, but it is needed until its parent ends
    if number == signal.SIGINT and received():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if _State.received is None:
        _State.received = signal.Signals(number)
        if not _State.deferring:
            _end()


def _end() -> None:
    """End the program; of several ranks the first one speaks for all."""
    if slurm.rank() > 0:
        raise Interrupted(0)
    name = _State.received.name if _State.received else "a signal to another process"
    is_sweep = not {"-m", "--multirun"}.isdisjoint(sys.argv)
    how = "the same command" if is_sweep else "resume=auto, or resume=<run folder>,"
    remedy = f": {how} continues" if _State.is_resumable else ""
    print(f"interrupted by {name}{remedy}", file=sys.stderr, flush=True)
    if _State.is_resumable and _State.received != signal.SIGINT:
        slurm.requeue(only_if_preempted=_State.received == signal.SIGTERM)
    raise Interrupted(EXIT_CODE)
