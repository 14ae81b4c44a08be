"""``hydra/launcher=basic``: one job after the other, in this process."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobStatus, configure_log, run_job
from omegaconf import DictConfig

from flows.cli.entry import EXIT_CODES
from flows.cli.sweeps.folders import continuation
from flows.cli.sweeps.launcher import Job, SweepLauncher, num_processes
from flows.errors import InputError, first_line, one_line
from flows.signals import Interrupted


class InThisProcess(SweepLauncher):
    """The default: nothing to set, nothing to wait for, and no second process in a job."""

    def check_jobs(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            trainer = job.config.trainer
            if num_processes(trainer) * int(trainer.get("num_nodes", 1)) > 1:
                raise InputError(
                    "the jobs of this sweep run in several processes each (trainer.devices, trainer.num_nodes), which "
                    "cannot be started from within one: use hydra/launcher=local_pool or hydra/launcher=slurm"
                )

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        for job in jobs:
            self.note_start(job)
            config = self.compose(job.index, [*job.placed_overrides(), *continuation(job.folder)])
            yield job, self._run(config, job)

    def _run(self, config: DictConfig, job: Job) -> str:
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(job.folder.parent), job.folder.name
        returned = run_job(
            hydra_context=self.hydra_context,
            task_function=_surviving_exits(self.task_function),
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if returned.status is JobStatus.COMPLETED:
            return "ended without a score"
        error: BaseException = returned._return_value  # the property raises it
        if isinstance(error, tuple(EXIT_CODES)):
            print(f"error: {one_line(error)}", file=sys.stderr)
            return one_line(error)
        traceback.print_exception(error)
        return f"{type(error).__name__}: {first_line(error)}"


def _surviving_exits(task):  # type: ignore[no-untyped-def]
    """A job that ends the program ends itself, unless somebody asked for the end of the program."""

    def job(cfg: DictConfig) -> object:
        try:
            return task(cfg)
        except SystemExit as end:
            if isinstance(end, Interrupted):
                raise
            if end.code:
                raise ChildProcessError(f"ended with exit code {end.code}") from end
            return None

    return job


@dataclass
class BasicConf:
    """``hydra.launcher.*``."""

    _target_: str = "hydra_plugins.flows_sweeps.basic.InThisProcess"


ConfigStore.instance().store(group="hydra/launcher", name="basic", node=BasicConf, provider="flows")
