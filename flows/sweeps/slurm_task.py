"""What runs on a cluster's node: one process of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import DelayedSubmission, UncompletedJobError

from flows.processes import slurm
from flows.sweeps.job_process import ENDING, OUTPUT, end_of_process, open_output

POLL_S = 0.5

WARNING = signal.SIGUSR2
"""How SLURM says, on submitit's behalf, that a job's time is about to end or that the node is wanted by others."""


@dataclass(frozen=True)
class SlurmTask:
    """Runs the program as this rank of its job, and continues an interrupted attempt.

    When SLURM warns of a job's end, the program gets SIGTERM and saves its work; then submitit decides whether the job
    goes back into the queue. A partition that gives preempted jobs a time of grace sends SIGTERM instead, and does not
    requeue a job that then ends: it is put back here.

    Args:
        command: the program's, with ``resume=auto``.
        folder: the job's.
    """

    command: tuple[str, ...]
    folder: Path

    def __call__(self) -> None:
        rank = int(os.environ["SLURM_PROCID"])
        name = OUTPUT if rank == 0 else f"output.{rank}.log"
        told: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            told.append(number)

        requeue: Any = signal.signal(WARNING, note)
        signal.signal(signal.SIGTERM, note)
        with open_output(self.folder, name) as output:
            process = subprocess.Popen(
                self.command,
                env=os.environ | {"OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_ignore_the_warning,
            )
            while process.poll() is None and not told:
                time.sleep(POLL_S)
            if told:
                process.terminate()
                process.wait()
            if WARNING in told:
                try:
                    requeue(WARNING, None)  # on the first rank this ends here, and the job starts again
                except UncompletedJobError as refusal:
                    output.write(f"error: {refusal}\n".encode())
                    raise
            elif process.returncode:
                output.write(f"{ENDING}{end_of_process(process.returncode)}\n".encode())
                if told and rank == 0:
                    slurm.put_back(only_if_preempted=True)
                sys.exit(abs(process.returncode))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts back into the queue: the same again."""
        return DelayedSubmission(self)


def _ignore_the_warning() -> None:
    """SLURM sends it to all processes of a job; Python would die of it."""
    signal.signal(WARNING, signal.SIG_IGN)
