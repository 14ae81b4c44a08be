"""All that a program does by itself, before PyTorch is imported. Imports nothing that takes time.

PyTorch's threads (GNU OpenMP) meet at the end of every operation, and spin there for some milliseconds before they
sleep. On an idle machine nothing is faster. When another process is busy, a thread waits for its core while the others
spin, thousands of times per second: a training step on two cores took 30 times as long. Spinning for only 10,000
rounds costs nothing measurable on an idle machine, and beside that process a step is five times as fast.
"""

from __future__ import annotations

import io
import os
import sys

from flows.processes import signals

SPINS = "10000"


def run(task: str, config_name: str, is_resumable: bool = False) -> None:
    """Handle signals and let waiting threads sleep, unless the user has decided; then take the seconds of an import.

    Args:
        task: see :func:`flows.cli.entry.run`.
        config_name: likewise.
        is_resumable: whether the program goes on where a signal has ended it.
    """
    signals.install(is_resumable)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text, nor have letters of the terminal's
        sys.stdout.reconfigure(errors="backslashreplace")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

    from flows.cli import entry

    entry.run(task, config_name)
