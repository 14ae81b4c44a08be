"""What all launchers share: a job's name, what is done already, the summary."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flows import console
from flows.config.matching import resolve_width
from flows.config.overrides import quoted
from flows.errors import InputError, first_line
from flows.runs import claim, resume
from flows.sweeps.folders import finished, read_score
from flows.sweeps.names import LOCATION_KEYS, job_name, keys_in_common, without
from flows.sweeps.summary import STOPPED, Row, Summary

PATIENCE_S = 60.0
"""Seconds that a sweep waits for the processes of an earlier attempt, which end by themselves."""


@contextmanager
def _as_hydra(config: DictConfig) -> Iterator[None]:
    """Inside, ``${hydra:...}`` refers to this job."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        index: its number in the sweep.
        overrides: its overrides, without those of its folder and of how it starts.
        title: the overrides that distinguish it from the other jobs of the sweep, in one line.
        folder: its run folder, absolute.
        config: its configuration, Hydra's part included.
    """

    index: int
    overrides: tuple[str, ...]
    title: str
    folder: Path
    config: DictConfig

    def plain_config(self, run_dir: str) -> dict[str, Any]:
        """The resolved configuration, as a run in that folder writes it down."""
        own = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        own.run_dir = run_dir
        with _as_hydra(self.config):
            config: dict[str, Any] = OmegaConf.to_container(own, resolve=True)  # type: ignore[assignment]
            resolve_width(config)
        return config

    def in_its_folder(self) -> list[str]:
        """The overrides of a single run that does this job, or continues an earlier attempt."""
        return [*self.overrides, f"run_dir={quoted(self.folder)}", f"resume={resume.AUTO}"]


class SweepLauncher(Launcher):
    """Runs what is missing of a sweep's jobs, each in its folder, and lists them all in the summary.

    The sweeper sets the summary, and reads there how the jobs ended; nothing is returned.
    """

    summary: Summary

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        if "run_dir" not in config:
            raise InputError("only train.py has sweeps: start this program once for each setting")
        OmegaConf.register_new_resolver("job_name", job_name, replace=True)
        self.check_settings()

    def check_settings(self) -> None:
        """Raise ``InputError`` if these jobs cannot be run here; called before anything is written."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, str], None, None]:
        """Run the jobs; yield each as it ends, with the reason in case it has no score.

        When the generator is closed, it ends the jobs that still run.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        jobs = [self._job(initial_job_idx + number, list(lines)) for number, lines in enumerate(job_overrides)]
        rows = dict(self._known(jobs))
        missing = list({job.folder: job for job in jobs if job.folder not in rows}.values())
        try:
            with closing(self.run(missing)) as ended:
                for job, error in ended:
                    score = read_score(job.folder)
                    rows[job.folder] = Row(job.index, job.title, job.folder, score, "" if score else error)
                    self._note(rows[job.folder])
        finally:
            for job in jobs:  # one that was interrupted has no row yet; of two of the same name, one was run
                row = rows.get(job.folder, Row(job.index, job.title, job.folder, error=STOPPED))
                self.summary.add(replace(row, job=job.index))
        return []

    @property
    def sweep_dir(self) -> Path:
        """The folder of the whole sweep."""
        return Path(str(self.config.hydra.sweep.dir)).absolute()

    def _job(self, index: int, overrides: list[str]) -> Job:
        own = without(overrides, LOCATION_KEYS)
        common = keys_in_common(overrides, OmegaConf.to_container(self.config.hydra.overrides.task))  # type: ignore[arg-type]
        unnamed = f"hydra.job.config.override_dirname.exclude_keys=[{','.join([*LOCATION_KEYS, *common])}]"
        try:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, [*overrides, unnamed])
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(first_line(error)) from error
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(index), index
        with _as_hydra(config):
            folder = self.sweep_dir / str(config.hydra.sweep.subdir)
        return Job(index, tuple(own), " ".join(without(own, common)), Path(os.path.normpath(folder)), config)

    def _known(self, jobs: Sequence[Job]) -> Iterator[tuple[Path, Row]]:
        """The jobs that are done already, and those that cannot run."""
        for job in jobs:
            try:
                score = finished(job.folder, job.plain_config)
                row = Row(job.index, job.title, job.folder, score, is_old=True)
            except InputError as error:
                row = Row(job.index, job.title, job.folder, error=str(error))
            if row.score is not None or row.error:
                self._note(row)
                yield job.folder, row

    def _note(self, row: Row) -> None:
        self.summary.add(row)
        console.say(f"job {row.job} ({row.overrides}) {row.outcome} [{self.summary.progress}]")

    def wait_for_former_attempts(self, jobs: Sequence[Job]) -> None:
        """Wait until processes that a killed sweep has left behind have saved their work and ended."""
        deadline = time.monotonic() + PATIENCE_S
        for job in jobs:
            if claim.is_locked(job.folder):
                console.say(f"job {job.index} ({job.title}) waits for its former attempt to end")
            while claim.is_locked(job.folder) and time.monotonic() < deadline:
                time.sleep(0.2)

    def note_start(self, job: Job, how: str = "starts") -> None:
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
