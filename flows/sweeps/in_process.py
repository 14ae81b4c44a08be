"""``hydra/launcher=basic``: one job after the other, in this process."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator, Sequence

from hydra.core.utils import configure_log, run_job
from omegaconf import DictConfig, read_write

from flows.cli.entry import EXIT_CODES
from flows.errors import first_line, one_line
from flows.processes.signals import Interrupted
from flows.runs import resume
from flows.sweeps.launcher import Job, SweepLauncher


class InProcess(SweepLauncher):
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
        failures = ["ended without a score"]

        def task(cfg: DictConfig) -> None:
            try:
                self.task_function(cfg)
            except Interrupted:  # the whole sweep is to end
                raise
            except SystemExit as end:
                if end.code:
                    failures.append(f"ended with exit code {end.code}")
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
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return failures[-1]
