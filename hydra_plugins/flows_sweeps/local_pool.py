"""``hydra/launcher=local_pool``: several jobs at a time on this machine, each a process of its own."""

import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from hydra.core.config_store import ConfigStore

from flows.cli.sweeps.launcher import Job, SweepLauncher, num_processes
from flows.cli.sweeps.processes import explain_end, open_output, program
from flows.errors import InputError
from flows.processes.ranks import LAUNCHED_BY

POLL_S = 0.2


@dataclass(frozen=True)
class Share:
    """What one of the jobs at a time may use: numbers of cores, and names of GPUs."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]


def shares(num_jobs: int, cores: Sequence[int], gpus: Sequence[str], gpus_per_job: int) -> list[Share]:
    """Deal out a machine among so many jobs at a time.

    Cores are dealt out in blocks; GPUs as many as each job wants, starting over when there are not enough. More jobs
    than cores share them all.
    """
    block = len(cores) // num_jobs
    dealt = []
    for number in range(num_jobs):
        own = tuple(cores[number * block : (number + 1) * block]) if block else tuple(cores)
        wanted = range(number * gpus_per_job, (number + 1) * gpus_per_job)
        chosen = dict.fromkeys(gpus[index % len(gpus)] for index in wanted) if gpus else {}
        dealt.append(Share(own, tuple(chosen)))
    return dealt


def environment(share: Share, num_threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """A job's environment variables: an ordinary run on its share of this machine, whatever the sweep runs in.

    Without SLURM's variables, by which Lightning would take the job for one of SLURM's processes, and with a port
    of its own, at which the processes of the job find each other. When this process is gone it saves what it has, and
    ends.
    """
    of_others = ("SLURM_", "SBATCH_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_", "PL_")
    kept = {name: value for name, value in inherited.items() if not name.startswith(of_others)}
    limit = kept.get("OMP_NUM_THREADS", "")
    threads = min(num_threads, int(limit)) if limit.isdigit() else num_threads
    own = {"OMP_NUM_THREADS": str(max(1, threads)), "MASTER_PORT": str(_free_port()), LAUNCHED_BY: str(os.getpid())}
    if share.gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    return kept | own


_given = deque[int](maxlen=1000)


def _free_port() -> int:
    """A port that is free, and that no other job of this process was given: it may not have begun to listen there."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.append(port)
            return port


@dataclass
class _Running:
    job: Job
    share: Share
    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        """To the job's processes, all of them."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class LocalPool(SweepLauncher):
    """Runs the program itself for every job, so that whatever a single run may do, a job may: DDP too.

    Args:
        n_jobs: at a time; ``None``: one for each job's worth of GPUs, or without GPUs for each job's worth of cores.
        grace_s: when the sweep is stopped, so many seconds remain for jobs to save what they have.
    """

    def __init__(self, n_jobs: int | None, grace_s: float) -> None:
        self.n_jobs, self.grace_s = n_jobs, grace_s

    def check_settings(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise InputError(f"hydra.launcher.n_jobs must be at least 1, not {self.n_jobs}")

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        if not jobs:
            return
        self.wait_for_former_attempts(jobs)
        waiting, running = list(jobs), list[_Running]()
        free = self._shares(jobs)
        try:
            while waiting or running:
                while waiting and free:
                    running.append(self._start(waiting.pop(0), free.pop(0)))
                time.sleep(POLL_S)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    one.signal(signal.SIGKILL)  # to ranks that its first process left behind
                    free.append(one.share)
                    yield one.job, explain_end(one.job.folder, one.process.returncode)
        finally:
            self._stop(running)

    def _shares(self, jobs: Sequence[Job]) -> list[Share]:
        cores = sorted(os.sched_getaffinity(0))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(index) for index in range(torch.cuda.device_count())]
        if gpus and visible:
            gpus = visible.split(",")[: len(gpus)]
        wanted = max(num_processes(job.config.trainer, 1) for job in jobs)  # "auto" is all of its share: one
        at_a_time = self.n_jobs or max(1, (len(gpus) or len(cores)) // wanted)
        return shares(min(at_a_time, len(jobs)), cores, gpus, wanted)

    def _start(self, job: Job, share: Share) -> _Running:
        self.note_start(job)
        num_threads = len(share.cores) // num_processes(job.config.trainer, len(share.gpus))
        command = program(job.in_its_folder(), list(self.config.hydra.overrides.hydra))
        with open_output(job.folder) as output:
            process = subprocess.Popen(
                command,
                env=environment(share, num_threads, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals come from here alone, and reach all of the job's processes
            )
        with suppress(OSError):  # it may be gone already
            os.sched_setaffinity(process.pid, share.cores)
        return _Running(job, share, process)

    def _stop(self, running: Sequence[_Running]) -> None:
        for one in running:
            one.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s
        try:
            while time.monotonic() < deadline and any(one.process.poll() is None for one in running):
                time.sleep(POLL_S)
        finally:
            for one in running:
                one.signal(signal.SIGKILL)
                one.process.wait()


@dataclass
class LocalPoolConf:
    """``hydra.launcher.*``."""

    _target_: str = "hydra_plugins.flows_sweeps.local_pool.LocalPool"
    n_jobs: int | None = None
    grace_s: float = 60.0


ConfigStore.instance().store(group="hydra/launcher", name="local_pool", node=LocalPoolConf, provider="flows")
