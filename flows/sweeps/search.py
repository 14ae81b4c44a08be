"""``hydra/sweeper=optuna``: a search that can be stopped, resumed, and shared by several workers."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from flows import console
from flows.config.overrides import SINGLE
from flows.console import warn
from flows.errors import InputError, SweepError
from flows.home import as_typed
from flows.sweeps.job import RunScore, read_score
from flows.sweeps.study import Study, dimension_of
from flows.sweeps.sweeper import JobSweeper, Row


class Search(JobSweeper):
    """Searches for the settings with the lowest validation score, in a named study kept in a file.

    Every sweep on the command line is a dimension: ``a=1,2`` and ``choice(...)``, ``range(...)``, ``interval(...)``,
    ``int(interval(...))``, on a logarithmic scale as ``tag(log, ...)``. Starting the same study again, later or at the
    same time, joins it: the worker proposes, runs and records trials until there are ``n_trials``. A trial whose score
    is not finite counts as failed; a trial whose worker was killed is continued by another. The number of a job is that
    of its trial. The table at the end and the best settings are those of the whole study.

    Args:
        study_name: tells the studies of a folder apart.
        n_trials: of the whole study, over all workers and starts.
        n_jobs: trials handed to the launcher at a time; ``None``: its own ``n_jobs``, or 1 if it has none.
        seed: trial ``i`` is proposed from this, its number, and the scores known by then.
        params: see :class:`.JobSweeper`.

    Raises:
        InputError: nothing to search, or wrong arguments; another search under the same name.
        SweepError: the study is complete, and no trial has a score.
    """

    study: Study

    def __init__(
        self, study_name: str, n_trials: int, n_jobs: int | None, seed: int, params: dict[str, Any] | None
    ) -> None:
        super().__init__(params)
        self.study_name, self.num_jobs, self.n_jobs, self.seed = study_name, n_trials, n_jobs, seed
        for name, value, least in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise InputError(f"hydra.sweeper.{name} must be at least {least}, not {value}")

    def sweep(self, arguments: list[str]) -> None:
        fixed, swept = self.parse(arguments)
        if not swept:
            raise InputError(
                "there is nothing to search: give at least one setting as a sweep, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
            )
        space = {override.get_key_element(): dimension_of(override) for override in swept}
        settings = sorted([*fixed, *(str(override.input_line) for override in swept)])
        self.study = Study(self.sweep_dir, self.study_name, self.num_jobs, self.seed, space, settings)
        at_a_time = self.n_jobs or self.config.hydra.launcher.get("n_jobs") or 1
        try:
            while trials := self.study.take(at_a_time):
                self.run([self.job(one.number, fixed, _assignments(one), str(one.number)) for one in trials])
                for trial in trials:
                    self._record(self.rows[trial.number])
        finally:  # also of a search that is stopped
            self.show()
            self._report(fixed)
        if self.study.best() is None:
            raise SweepError(f"no trial of the study {self.study_name} in {self.sweep_dir} gave a score, see the table")

    def _record(self, row: Row) -> None:
        score, error = row.score.validation if row.score else None, row.error
        if score is not None and not math.isfinite(score):
            score, error = None, f"its score is {score}"
            warn(f"trial {row.job} counts as failed: {error}")
        self.study.record(row.job, score, error)

    def all_rows(self) -> list[Row]:
        """The study's finished trials, whichever worker has run them, and this one's."""
        rows, errors = dict(self.rows), self.study.errors()
        for trial in self.study.trials():
            if trial.state.is_finished():
                folder = self.sweep_dir / str(trial.number)
                score = None if trial.value is None else read_score(folder) or RunScore(trial.value, math.nan)
                is_old, title = trial.number not in self.rows, " ".join(_assignments(trial))
                rows[trial.number] = Row(trial.number, title, folder, score, errors[trial.number], is_old)
        return [rows[number] for number in sorted(rows)]

    def write(self) -> None:
        with self.study.lock:  # of several workers the last to write knows most
            super().write()

    def _report(self, fixed: Sequence[str]) -> None:
        best = self.study.best()
        counts = Counter(f"trials {trial.state.name.lower()}" for trial in self.study.trials())
        rows = [] if best is None else [("best score", best.value), ("of trial", best.number), *best.params.items()]
        console.show_table(f"Study {self.study_name}", [*rows, *counts.items()])
        if best is not None:
            console.show_paths([("best run", Path(self.config.hydra.sweep.dir, str(best.number)))])
            words = shlex.join([*fixed, *_assignments(best), SINGLE])
            console.say(as_typed(f"to train it again: python train.py {words}"))


def _assignments(trial: FrozenTrial) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]
