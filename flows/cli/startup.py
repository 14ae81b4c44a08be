"""All that a program does by itself, before PyTorch is imported. Imports nothing that takes time.

PyTorch's threads (GNU OpenMP) meet at the end of every operation, and spin there for some milliseconds before they
sleep. On an idle machine nothing is faster. When another process is busy, a thread waits for its core while the others
spin, thousands of times per second: a training step on two cores took 30 times as long. Spinning for only 10,000
rounds costs nothing measurable on an idle machine, and beside that process a step is five times as fast.
"""

from __future__ import annotations

import io
import os
import runpy
import sys

from flows.home import HOME, PROGRAMS, remedy_without
from flows.processes import signals, slurm
from flows.processes.memory import keep_freed_memory

SPINS = "10000"


class _Expendable(io.FileIO):
    """Standard output or error. What cannot be written there is lost, and nothing else is."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data) or len(data)
        except OSError:  # nobody reads it any more, or the disk behind it is full
            return len(data)


def run(task: str, config_name: str, is_resumable: bool = False) -> None:
    """Handle signals, keep freed memory and let waiting threads sleep; then take the seconds of an import.

    Args:
        task: see :func:`flows.cli.entry.run`.
        config_name: likewise.
        is_resumable: whether the program goes on where a signal has ended it.
    """
    signals.install(is_resumable)
    guard_output()
    keep_freed_memory()
    for name in slurm.RANKS:
        if os.environ.get(name) == "":  # says nothing, and Lightning would read a number
            del os.environ[name]
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

    try:
        from flows.cli import entry

        entry.run(task, config_name)
    except ModuleNotFoundError as error:
        if error.name is None or (remedy := remedy_without(error.name)) is None:
            raise
        print(f"error: this Python has no {error.name}; {remedy}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """``flows PROGRAM ...`` is ``python PROGRAM.py ...``, also where there is no clone."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        is_asked = name in ("-h", "--help")
        usage = f"usage: flows {{{','.join(PROGRAMS)}}} [key=value ...]; flows train --help says more"
        print(usage, file=sys.stdout if is_asked else sys.stderr)
        sys.exit(0 if is_asked else 2)
    sys.argv[:2] = [str(HOME / f"{name}.py")]
    runpy.run_path(sys.argv[0], run_name="__main__")


def guard_output() -> None:
    """Let no output end a program: a closed pipe, a full disk, a terminal that lacks a letter, no output at all."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one that was closed, whose number the next file would have, and be written to by what prints
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        encoding = "utf-8" if stream is None else stream.encoding
        file = io.BufferedWriter(_Expendable(number, "w", closefd=False))  # type: ignore[type-var]
        setattr(sys, name, io.TextIOWrapper(file, encoding, errors="backslashreplace", line_buffering=True))
