"""``hydra/sweeper=optuna``: a search that can be stopped, resumed, and shared by several workers."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from flows import console
from flows.config.overrides import SINGLE
from flows.console import warn
from flows.errors import InputError, SweepError
from flows.sweeps.folders import RunScore, read_score
from flows.sweeps.space import dimension_of
from flows.sweeps.study import Study
from flows.sweeps.summary import Row, Summary
from flows.sweeps.sweeper import JobSweeper


class Search(JobSweeper):
    """Searches for the settings with the lowest validation score, in a named study kept in a file.

    Every sweep on the command line is a dimension: ``a=1,2`` and ``choice(...)``, ``range(...)``, ``interval(...)``,
    ``int(interval(...))``, on a logarithmic scale as ``tag(log, ...)``. Starting the same study again, later or at the
    same time, joins it: the worker proposes, runs and records trials until there are ``n_trials``. A trial whose score
    is not finite counts as failed; a trial whose worker was killed is continued by another. The number of a job is that
    of its trial. The table at the end and the best settings are those of the whole study.

    Args:
        study_name: tells the studies of a file apart.
        storage: the study's file; ``None`` is ``study.journal`` in ``hydra.sweep.dir``.
        n_trials: of the whole study, over all workers and starts.
        n_jobs: trials handed to the launcher at a time; ``None``: its own ``n_jobs``, or 1 if it has none.
        seed: trial ``i`` is proposed from this, its number, and the scores known by then.
        params: see :class:`.JobSweeper`.

    Raises:
        InputError: nothing to search, or wrong arguments; another search under the same name.
        SweepError: the study is complete, and no trial has a score.
    """

    def __init__(
        self,
        study_name: str,
        storage: str | None,
        n_trials: int,
        n_jobs: int | None,
        seed: int,
        params: Mapping[str, Any],
    ) -> None:
        super().__init__(params)
        self.study_name, self.storage = study_name, storage
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if self.n_jobs is None:
            self.n_jobs = config.hydra.launcher.get("n_jobs") or 1
        for name, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"hydra.sweeper.{name} must be at least {least}, not {value}")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        overrides = self.parse(arguments)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        space = {
            override.get_key_element(): dimension_of(override) for override in overrides if override.is_sweep_override()
        }
        if not space:
            raise InputError(
                "there is nothing to search: give at least one setting as a sweep, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
            )
        settings = sorted(str(override.input_line) for override in overrides)
        storage = Path(self.storage or Path(self.config.hydra.sweep.dir, "study.journal"))
        study = Study(storage, self.study_name, self.n_trials, self.seed, space, settings)
        summary = Summary(self.sweep_dir, self.n_trials, lambda: self._recorded(study), study.lock)
        self.launcher.summary = summary
        try:
            while trials := study.take(self.n_jobs or 1):
                self._run(study, trials, fixed)
        finally:  # also of a search that is stopped
            summary.write()
            summary.show()
            self._report(study, storage, fixed)
        if study.best() is None:
            raise SweepError(f"no trial of the study {self.study_name} in {storage} gave a score, see the table")

    def _run(self, study: Study, trials: Sequence[FrozenTrial], fixed: Sequence[str]) -> None:
        jobs = [[*fixed, *_assignments(trial)] for trial in trials]
        self.launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial in trials:
            row = self.launcher.summary.rows[trial.number]
            if row.score is None:
                study.fail(trial.number, row.error)
            elif math.isfinite(row.score.validation):
                study.complete(trial.number, row.score.validation)
            else:
                error = f"its score is {row.score.validation}"
                study.fail(trial.number, error)
                warn(f"trial {trial.number} counts as failed: {error}")

    def _recorded(self, study: Study) -> list[Row]:
        """The study's finished trials, whichever worker has run them."""
        rows, errors = [], study.errors()
        for trial in study.trials():
            if trial.state.is_finished():
                folder = self.sweep_dir / str(trial.number)
                score = None if trial.value is None else read_score(folder) or RunScore(trial.value, math.nan)
                is_old = trial.number not in self.launcher.summary.rows
                title = " ".join(_assignments(trial))
                rows.append(Row(trial.number, title, folder, score, errors[trial.number], is_old))
        return rows

    def _report(self, study: Study, storage: Path, fixed: Sequence[str]) -> None:
        best = study.best()
        counts = Counter(f"trials {STATES[trial.state.name]}" for trial in study.trials())
        rows = [] if best is None else [("best score", best.value), ("of trial", best.number), *best.params.items()]
        console.show_table(f"Study {self.study_name}", [*rows, *counts.items()])
        console.show_paths([("study", storage)])
        if best is not None:
            console.show_paths([("best run", Path(self.config.hydra.sweep.dir, str(best.number)))])
            command = ["python", Path(sys.argv[0]).name, *fixed, *_assignments(best), SINGLE]
            console.say(f"to train it again: {shlex.join(command)}")


STATES = {"COMPLETE": "with a score", "FAIL": "failed", "RUNNING": "running or stopped", "WAITING": "waiting"}
"""Optuna's words, in plain ones."""


def _assignments(trial: FrozenTrial) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]
