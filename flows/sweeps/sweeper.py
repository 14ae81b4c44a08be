"""What all sweepers share: overrides become jobs, and a table says how they ended; the grid of all combinations."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape
from rich.table import Table

from flows import console
from flows.config.building import build, check
from flows.console import warn
from flows.errors import InputError, StorageError, SweepError, first_line
from flows.files import write_csv
from flows.sweeps.job import LOCATION_KEYS, Job, RunScore, finished, job_name, read_score
from flows.sweeps.launcher import JobLauncher

SUMMARY = "summary.csv"
COLUMNS = ("job", "overrides", "status", "val/bits_per_dim", "test/bits_per_dim", "error", "folder")


@dataclass(frozen=True)
class Row:
    """How a job ended: with a score, with the first line of an error, or with neither when the sweep was stopped."""

    job: int
    overrides: str
    folder: Path
    score: RunScore | None = None
    error: str = ""
    is_old: bool = False

    @property
    def status(self) -> str:
        """``done``, ``done before``, ``failed``, or ``stopped``."""
        if self.score is None:
            return "failed" if self.error else "stopped"
        return "done before" if self.is_old else "done"

    @property
    def outcome(self) -> str:
        """In words."""
        if self.score is None:
            return f"failed: {self.error}" if self.error else self.status
        return f"{self.status}: val {self.score.validation:.3f}, test {self.score.test:.3f} bits/dim"

    def cells(self) -> tuple[str, ...]:
        """What stands in the columns."""
        scores = ("", "") if self.score is None else (f"{self.score.validation:.4f}", f"{self.score.test:.4f}")
        return (str(self.job), self.overrides, self.status, *scores, self.error, str(self.folder))


class JobSweeper(ABC):
    """Makes jobs out of overrides, has a launcher run what is missing of them, and lists how they ended.

    Args:
        params: sweeps, as on the command line, which goes before: ``{optimizer.lr: "interval(1e-4, 1e-2)"}``.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: JobLauncher
    sweep_dir: Path
    num_jobs: int
    """How many there shall be."""

    def __init__(self, params: Mapping[str, Any] | None) -> None:
        self.params = dict(params or {})
        self.rows: dict[int, Row] = {}

    @abstractmethod
    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that some overrides stand for."""

    def parse(self, arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
        """The overrides that all jobs have, and those that are swept; of several for one key the last counts.

        Raises:
            InputError: those of the configuration cannot be read.
        """
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        try:
            parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(lines)
        except HydraException as error:
            raise InputError(f"hydra.sweeper.params cannot be read: {first_line(error)}") from error
        latest = {override.get_key_element().lstrip("+"): override for override in parsed}
        overrides = [override for key, override in latest.items() if key not in LOCATION_KEYS]
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        return fixed, [override for override in overrides if override.is_sweep_override()]

    def job(self, index: int, fixed: Sequence[str], swept: Sequence[str], name: str) -> Job:
        """The job of some overrides, in the folder of that name.

        Raises:
            InputError: there is no such configuration.
        """
        overrides = (*fixed, *swept)
        try:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(first_line(error)) from error
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(index), index
        return Job(index, overrides, " ".join(swept or fixed), self.sweep_dir / name, config)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run those that are not done yet; add all to the table."""
        missing = []
        for job in jobs:
            try:
                score, error = finished(job.folder, job.plain_config), ""
            except InputError as refusal:
                score, error = None, str(refusal)
            if score or error:
                self._note(Row(job.index, job.title, job.folder, score, error, is_old=True))
            else:
                missing.append(job)
        if not missing:
            return
        try:
            with closing(self.launcher.run(missing)) as ended:
                for job, error in ended:
                    score = read_score(job.folder)
                    self._note(Row(job.index, job.title, job.folder, score, "" if score else error))
        finally:
            for job in missing:
                self.rows.setdefault(job.index, Row(job.index, job.title, job.folder))

    def all_rows(self) -> list[Row]:
        """The table, in the order of the jobs."""
        return [self.rows[index] for index in sorted(self.rows)]

    def write(self) -> None:
        """Write the table anew; a disk that fails for a while costs the file, not the jobs."""
        try:
            write_csv(self.sweep_dir / SUMMARY, [COLUMNS, *(row.cells() for row in self.all_rows())])
        except StorageError as error:
            warn(f"the sweep goes on, but its summary is not up to date: {error}")

    def show(self) -> None:
        """Write and print the table, if there is any row."""
        rows = self.all_rows()
        if not rows:
            return
        self.write()
        table = Table(title="Sweep", title_justify="left", show_lines=True)
        for column in ("job", "overrides", "outcome", "folder"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, (str(row.job), row.overrides, row.outcome, row.folder.name)))
        console.show(table)
        console.show_paths([("summary", self.sweep_dir / SUMMARY)])

    def _note(self, row: Row) -> None:
        self.rows[row.job] = row
        self.write()
        progress = f"{len(self.all_rows())} of {self.num_jobs}"
        console.say(f"job {row.job} ({row.overrides}) {row.outcome} [{progress}]")


class Grid(JobSweeper):
    """``hydra/sweeper=basic``: all combinations of the given values.

    Args:
        params: see :class:`JobSweeper`.

    Raises:
        InputError: an interval has no values to combine.
        SweepError: jobs failed; the others are done.
    """

    def sweep(self, arguments: list[str]) -> None:
        fixed, swept = self.parse(arguments)
        combinations = dict.fromkeys(itertools.product(*map(_choices, swept)))  # what is asked for twice is run once
        self.num_jobs = len(combinations)
        jobs = [
            self.job(index, fixed, chosen, job_name(",".join(sorted(chosen or fixed))))
            for index, chosen in enumerate(combinations)
        ]
        self.sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.sweep_dir / "multirun.yaml")
        try:
            self.run(jobs)
        finally:
            self.show()
        failed = [row for row in self.rows.values() if row.score is None]
        if failed:
            raise SweepError(
                f"{len(failed)} of {len(self.rows)} jobs failed, see the table; the same command with "
                f"run_dir={self.sweep_dir} runs only what is missing"
            )


def _choices(override: Override) -> list[str]:
    """One override per value of a sweep."""
    if not override.is_discrete_sweep():
        raise InputError(f"{override.input_line!r} has no values to combine: search it with hparams_search=optuna")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def make_sweeper(hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> JobSweeper:
    """The sweeper of a configuration, with its launcher.

    Args:
        hydra_context: Hydra's.
        task_function: what a job does.
        config: the sweep's configuration, Hydra's part included.

    Raises:
        InputError: a setting is wrong, or there is nothing to sweep in this program.
    """
    if "run_dir" not in config:
        raise InputError("only train.py has sweeps: start this program once for each setting")
    node: dict[str, Any] = OmegaConf.to_container(config.hydra.sweeper, resolve=True)  # type: ignore[assignment]
    launcher: dict[str, Any] = OmegaConf.to_container(config.hydra.launcher, resolve=True)  # type: ignore[assignment]
    node["_target_"] = node.pop("sweeper")
    check({"hydra": {"sweeper": node, "launcher": launcher}})
    sweeper: JobSweeper = build(node)
    sweeper.hydra_context, sweeper.config = hydra_context, config
    sweeper.sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()
    sweeper.launcher = build(launcher)
    sweeper.launcher.hydra_context, sweeper.launcher.task_function = hydra_context, task_function
    return sweeper
