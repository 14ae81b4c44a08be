"""What all launchers share, and the one that runs a job after the other in this process."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

from hydra.core.utils import run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from flows import console
from flows.cli.entry import EXIT_CODES
from flows.errors import first_line, one_line
from flows.processes.signals import Interrupted
from flows.runs import resume
from flows.sweeps.job import Job


class JobLauncher(ABC):
    """Runs jobs, each in its folder."""

    hydra_context: HydraContext
    task_function: TaskFunction

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        """Run the jobs; yield each as it ends, with the reason in case it has no score.

        When the generator is closed, it ends the jobs that still run.
        """


class InProcess(JobLauncher):
    """``hydra/launcher=basic``, the default, with nothing to set."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        for job in jobs:
            note_start(job)
            yield job, self._run(job)

    def _run(self, job: Job) -> str:
        config = job.config
        config.run_dir, config.resume = str(job.folder), resume.AUTO
        with read_write(config.hydra):
            config.hydra.overrides.task = job.in_its_folder()  # a job of several processes starts them with these
        failures = ["ended without a score"]

        def task(cfg: DictConfig) -> None:
            try:
                self.task_function(cfg)
            except Interrupted:  # the whole sweep is to end
                raise
            except tuple(EXIT_CODES) as error:
                print(f"error: {one_line(error)}", file=sys.stderr)
                failures.append(one_line(error))
            except Exception as error:
                traceback.print_exc()
                failures.append(f"{type(error).__name__}: {first_line(error)}")

        run_job(
            hydra_context=self.hydra_context,
            task_function=task,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
        )
        return failures[-1]


def note_start(job: Job, how: str = "starts") -> None:
    """Print one line for a job that starts, or is queued."""
    console.say(f"job {job.index} ({job.title}) {how}: {job.folder}")


def num_processes(trainer: DictConfig, num_gpus: int) -> int:
    """Number of processes per node that ``trainer.devices`` asks for, if the job may use ``num_gpus`` GPUs there."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if OmegaConf.is_list(devices):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return max(1, num_gpus) if trainer.get("accelerator", "auto") != "cpu" else 1
    return int(devices)
