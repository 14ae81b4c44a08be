"""``hydra/launcher=slurm``: an array of SLURM jobs, each of which runs the program once per process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from flows.errors import InputError, first_line
from flows.files import atomic_write
from flows.processes import slurm
from flows.sweeps.job import ENDING, OUTPUT, Job, end_of_process, explain_end, open_output
from flows.sweeps.launcher import JobLauncher, note_start, num_processes

QUEUE_POLL_S, TASK_POLL_S = 3.0, 0.5
"""Seconds between two looks at the queue, and at a task's process."""

WARNING = signal.SIGUSR2
"""How SLURM says, on submitit's behalf, that a job's time is about to end or that the node is wanted by others."""

JOB_ID = "slurm_job"
"""A file in a job's folder: its number in SLURM's queue, so that the same sweep, started again, waits for it."""

SCRIPTS = "slurm"
"""A folder in the sweep's: batch scripts, and what SLURM itself printed."""


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
                time.sleep(TASK_POLL_S)
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


class Slurm(JobLauncher):
    """Submits with submitit; every process of a job is a task of ``srun``, which Lightning takes for a DDP rank.

    ``squeue`` says whether a job still runs; many clusters have no ``sacct``.

    Args:
        timeout_min: minutes until SLURM stops a job. ``signal_delay_s`` earlier, the job saves and is queued again.
        max_num_timeout: how often a job is queued again at most.
        array_parallelism: jobs at a time.
        setup: lines of shell for the batch script.
        additional_parameters: further options of sbatch by their long names, ``{account: mine, exclusive: true}``.
        partition, cpus_per_task, gpus_per_node, mem_gb, job_name: as SLURM knows them.
    """

    def __init__(
        self,
        partition: str | None,
        cpus_per_task: int,
        gpus_per_node: int | None,
        mem_gb: float | None,
        timeout_min: int,
        signal_delay_s: int,
        max_num_timeout: int,
        array_parallelism: int,
        job_name: str,
        setup: Sequence[str],
        additional_parameters: dict[str, Any] | None,
    ) -> None:
        if shutil.which("sbatch") is None:
            raise InputError(
                "there is no SLURM here (sbatch is not installed): start the sweep on a cluster's login node, or use "
                "hydra/launcher=local_pool"
            )
        self.max_num_timeout, self.gpus_per_node = max_num_timeout, gpus_per_node
        root = shlex.quote(str(Path(sys.argv[0]).resolve().parent))  # of the project, which need not be installed
        given = {
            "name": job_name,
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node,
            "mem_gb": mem_gb,
            "slurm_partition": partition,
            "slurm_setup": [f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}", *setup],
            "slurm_additional_parameters": additional_parameters,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_array_parallelism": array_parallelism,
            # srun does not take over sbatch's --cpus-per-task; one dead process would leave the others waiting
            "slurm_srun_args": [f"--cpus-per-task={cpus_per_task}", "--kill-on-bad-exit=1"],
        }
        self.parameters = {name: value for name, value in given.items() if value is not None}

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        queued = _queued()
        if queued is None:
            raise InputError("squeue --me fails: SLURM is not up, or older than 20.11")
        running = {number: job for job in jobs if (number := _number(job)) in queued}
        found = {job.folder for job in running.values()}
        alike = defaultdict[tuple[int, int], list[Job]](list)
        for job in jobs:
            if job.folder not in found:
                trainer = job.config.trainer
                nodes, tasks = int(trainer.get("num_nodes", 1)), num_processes(trainer, self.gpus_per_node or 1)
                alike[nodes, tasks].append(job)
        try:
            for (nodes, tasks), group in alike.items():
                running |= self._submit(group, nodes=nodes, tasks_per_node=tasks)
            for number, job in running.items():
                still = "still " if job.folder in found else ""
                note_start(job, f"is {still}in the queue as SLURM job {number}")
            while running:
                time.sleep(QUEUE_POLL_S)
                queued = _queued()
                if queued is None:
                    continue  # the controller is busy or being restarted; its jobs go on
                for number in [number for number in running if number not in queued]:
                    job = running.pop(number)
                    yield job, _explain(number, job.folder)
        finally:
            if running:  # the sweep is stopped
                subprocess.run(["scancel", *running], check=False)

    def _submit(self, jobs: Sequence[Job], **layout: int) -> dict[str, Job]:
        """Submit jobs of one layout as an array; returns them by their number in the queue."""
        scripts = jobs[0].folder.parent / SCRIPTS
        executor = submitit.AutoExecutor(scripts, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout)
        executor.update_parameters(**layout, **self.parameters)
        try:
            with submitit.helpers.clean_env():
                submitted = executor.submit_array([SlurmTask(tuple(job.command()), job.folder) for job in jobs])
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"SLURM refuses the jobs: {first_line(error)}") from error
        for job, one in zip(jobs, submitted, strict=True):
            with atomic_write(job.folder / JOB_ID) as file:
                file.write(one.job_id.encode())
        return {one.job_id: job for job, one in zip(jobs, submitted, strict=True)}


def _number(job: Job) -> str | None:
    """A job's number in the queue, if it was ever there."""
    try:
        return (job.folder / JOB_ID).read_text()
    except OSError:
        return None


def _queued() -> set[str] | None:
    """The numbers of all my jobs that wait or run; ``None`` if SLURM does not say."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _explain(number: str, folder: Path) -> str:
    """Why a job ended, in its own words or in SLURM's."""
    words = explain_end(folder, None)
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True).stdout
    states = re.findall(r"\bJobState=(\w+)", shown)
    return f"{words} (SLURM: {states[0].lower()})" if states and states[0] not in ("COMPLETED", "FAILED") else words
