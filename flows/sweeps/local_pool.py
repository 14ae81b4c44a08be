"""``hydra/launcher=local_pool``: several jobs at a time on this machine, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from flows.errors import InputError
from flows.processes.ranks import LAUNCHED_BY
from flows.sweeps.job import Job, explain_end, open_output
from flows.sweeps.launcher import JobLauncher, note_start, num_processes

POLL_S = 0.2


@dataclass(frozen=True)
class Slot:
    """What one of the jobs at a time may use: numbers of cores, and names of GPUs."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]


def divide_machine(num_jobs: int, cores: Sequence[int], gpus: Sequence[str], gpus_per_job: int) -> list[Slot]:
    """Divide a machine among the jobs that run at a time.

    Each job gets a block of cores, and as many GPUs as it wants, starting over when there are not enough. If there are
    more jobs than cores, all jobs share all cores.
    """
    block = len(cores) // num_jobs
    slots = []
    for number in range(num_jobs):
        own = tuple(cores[number * block : (number + 1) * block]) if block else tuple(cores)
        wanted = range(number * gpus_per_job, (number + 1) * gpus_per_job)
        chosen = dict.fromkeys(gpus[index % len(gpus)] for index in wanted) if gpus else {}
        slots.append(Slot(own, tuple(chosen)))
    return slots


def environment(slot: Slot, num_threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """A job's environment variables: an ordinary run in its slot of this machine, whatever the sweep runs in.

    SLURM's variables are left out: Lightning would take the job for one of SLURM's processes. A job also learns which
    process has started it: when that is gone, the job saves what it has and ends.
    """
    of_others = ("SLURM_", "SBATCH_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_", "PL_")
    kept = {name: value for name, value in inherited.items() if not name.startswith(of_others)}
    limit = kept.get("OMP_NUM_THREADS", "")
    threads = min(num_threads, int(limit)) if limit.isdigit() else num_threads
    own = {"OMP_NUM_THREADS": str(max(1, threads)), LAUNCHED_BY: str(os.getpid())}
    if slot.gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    return kept | own


class LocalPool(JobLauncher):
    """Runs the program itself for every job, so that whatever a single run may do, a job may: DDP too.

    Args:
        n_jobs: at a time; ``None``: one for each job's worth of GPUs, or without GPUs for each job's worth of cores.
        grace_s: seconds that jobs have to save what they have when the sweep is stopped.
    """

    def __init__(self, n_jobs: int | None, grace_s: float) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise InputError(f"hydra.launcher.n_jobs must be at least 1, not {n_jobs}")
        self.n_jobs, self.grace_s = n_jobs, grace_s

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        waiting, free = list(jobs), self._slots(jobs)
        running: dict[subprocess.Popen[bytes], tuple[Job, Slot]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    job, slot = waiting.pop(0), free.pop(0)
                    running[self._start(job, slot)] = job, slot
                time.sleep(POLL_S)
                for process in [process for process in running if process.poll() is not None]:
                    job, slot = running.pop(process)
                    _signal(process, signal.SIGKILL)  # to ranks that its first process left behind
                    free.append(slot)
                    yield job, explain_end(job.folder, process.returncode)
        finally:
            self._stop(list(running))

    def _slots(self, jobs: Sequence[Job]) -> list[Slot]:
        cores = sorted(os.sched_getaffinity(0))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(index) for index in range(torch.cuda.device_count())]
        if gpus and visible:
            gpus = visible.split(",")[: len(gpus)]
        wanted = max(num_processes(job.config.trainer, 1) for job in jobs)  # "auto" is all of its slot: one
        at_a_time = self.n_jobs or max(1, (len(gpus) or len(cores)) // wanted)
        return divide_machine(min(at_a_time, len(jobs)), cores, gpus, wanted)

    def _start(self, job: Job, slot: Slot) -> subprocess.Popen[bytes]:
        note_start(job)
        num_threads = len(slot.cores) // num_processes(job.config.trainer, len(slot.gpus))
        with open_output(job.folder) as output:
            process = subprocess.Popen(
                job.command(),
                env=environment(slot, num_threads, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals come from here alone, and reach all of the job's processes
            )
        with suppress(OSError):  # it may be gone already
            os.sched_setaffinity(process.pid, slot.cores)
        return process

    def _stop(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s
        try:
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                time.sleep(POLL_S)
        finally:
            for process in processes:
                _signal(process, signal.SIGKILL)
                process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To a job's processes, all of them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
