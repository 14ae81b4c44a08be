"""``hydra/launcher=basic``: one job after the other, in this process."""

import sys
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobStatus, configure_log, run_job
from omegaconf import DictConfig, read_write

from flows.cli.entry import EXIT_CODES
from flows.cli.sweeps.launcher import Job, SweepLauncher
from flows.errors import first_line, one_line
from flows.processes.signals import Interrupted
from flows.runs import resume


class InThisProcess(SweepLauncher):
    """The default, with nothing to set."""

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        self.wait_for_former_attempts(jobs)
        for job in jobs:
            self.note_start(job)
            yield job, self._run(job)

    def _run(self, job: Job) -> str:
        config = job.config
        config.run_dir, config.resume = str(job.folder), resume.AUTO
        with read_write(config.hydra):
            config.hydra.sweep.dir, config.hydra.sweep.subdir = str(job.folder.parent), job.folder.name
            config.hydra.overrides.task = job.in_its_folder()  # a job of several processes starts them with these
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
