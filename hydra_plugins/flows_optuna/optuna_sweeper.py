"""``hparams_search=optuna``: a search for settings that can be stopped, taken up again, and shared by several workers.

Hydra runs this module at every start of every program; Optuna, a second's work, is imported by a search alone. Hydra
does so in a way that dataclasses with postponed annotations do not survive: there is no such import here.
"""

import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows import console
from flows.cli.command_line import SEARCH
from flows.cli.sweeps.folders import Score, read_score
from flows.cli.sweeps.names import without
from flows.cli.sweeps.summary import CURRENT, Row
from flows.config.overrides import SINGLE
from flows.errors import InputError, SweepError, first_line, one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hydra_plugins.flows_optuna._study import Study


@dataclass
class OptunaSweeperConf:
    """What ``hydra.sweeper`` may hold; see :class:`OptunaSweeper`."""

    _target_: str = "hydra_plugins.flows_optuna.optuna_sweeper.OptunaSweeper"
    study_name: str = "search"
    storage: str | None = None
    n_trials: int = 20
    n_jobs: int | None = None
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="flows")


class OptunaSweeper(Sweeper):
    """Searches for the settings with the lowest score that the task returns, in a named study kept in a file.

    Every sweep on the command line is a dimension: ``a=1,2`` and ``choice(...)``, ``range(...)``, ``interval(...)``,
    ``int(interval(...))``, on a logarithmic scale as ``tag(log, ...)``. Whatever starts the same study again, later or
    at the same time, joins it: until there are ``n_trials`` it proposes, runs and records further ones. A trial that
    fails, or whose score is not finite, counts as one that failed; one whose worker was killed goes on with another.
    The jobs of a batch have consecutive numbers, those of their trials. The table at the end, and the best, are those
    of the whole study.

    Args:
        study_name: of letters, digits, ``.``, ``_`` and ``-``.
        storage: the study's file; ``None`` is ``study.journal`` in ``hydra.sweep.dir``.
        n_trials: of the whole study, over all workers and starts.
        n_jobs: trials handed to the launcher at a time; ``None``: its own ``n_jobs``, or 1 if it has none.
        seed: trial ``i`` is proposed from this, its number, and the scores known by then.
        params: more sweeps, as on the command line, which goes before: ``{optimizer.lr: "interval(1e-4, 1e-2)"}``.

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
        self.study_name, self.storage, self.params = study_name, storage, dict(params)
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", self.study_name):
            raise InputError(
                f"hydra.sweeper.study_name={self.study_name} is no plain name: use letters, digits, ., _ and -"
            )
        if self.n_jobs is None:
            self.n_jobs = config.hydra.launcher.get("n_jobs") or 1
        for name, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"hydra.sweeper.{name} must be at least {least}, not {value}")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from hydra_plugins.flows_optuna._space import dimension_of
        from hydra_plugins.flows_optuna._study import Study

        assert self.config is not None and self.launcher is not None
        overrides = self._parse(arguments)
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
        folder = Path(self.config.hydra.sweep.dir)
        storage = Path(self.storage or folder / "study.journal")
        with Study(storage, self.study_name, self.n_trials, self.seed, space, settings) as study:
            own = set[int]()
            CURRENT.follow(lambda: _rows(study, own, folder.absolute()), folder.absolute(), self.n_trials, study.turn)
            try:
                while trials := study.take(self.n_jobs or 1):
                    own |= {trial.number for trial in trials}
                    self._run(study, trials, fixed)
            finally:  # also of a search that is stopped
                CURRENT.show()
                self._report(study, storage, fixed)
            if study.best() is None:
                raise SweepError(f"no trial of the study {self.study_name} in {storage} gave a score, see the table")

    def _run(self, study: "Study", trials: "Sequence[FrozenTrial]", fixed: Sequence[str]) -> None:
        assert self.launcher is not None
        jobs = [[*fixed, *assignments(trial.params)] for trial in trials]
        self._require_composable(jobs)
        results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, results, strict=True):
            score, error = _score_of(result)
            study.tell(trial.number, score, error)
            if score is None and result.status is JobStatus.COMPLETED:  # else the launcher has said so
                print(f"trial {trial.number} counts as failed: {error}", file=sys.stderr, flush=True)
        CURRENT.drop(trial.number for trial in trials)  # the study has them now

    def _report(self, study: "Study", storage: Path, fixed: Sequence[str]) -> None:
        assert self.config is not None
        best = study.best()
        counts = Counter(f"trials {STATES[trial.state.name]}" for trial in study.trials())
        rows = [] if best is None else [("best score", best.value), ("of trial", best.number), *best.params.items()]
        console.show_table(f"Study {self.study_name}", [*rows, *counts.items()])
        console.show_paths([("study", storage)])
        if best is not None:
            console.show_paths([("best run", Path(self.config.hydra.sweep.dir, str(best.number)))])
            lines = self._without_the_search([*fixed, *assignments(best.params)])
            command = ["python", f"{self.config.hydra.job.name}.py", *lines]
            console.say(f"to train it again: {shlex.join(command)}")

    def _without_the_search(self, lines: Sequence[str]) -> list[str]:
        """Overrides without the choice of the search, unless that sets something for its trials too."""
        own = without(lines, [SEARCH])
        if own == lines or self._composed(own) == self._composed(lines):
            return own
        return [*lines, SINGLE]

    def _composed(self, lines: Sequence[str]) -> dict[str, Any]:
        assert self.hydra_context is not None and self.config is not None
        name, loader = self.config.hydra.job.config_name, self.hydra_context.config_loader
        config = loader.load_configuration(name, list(lines), RunMode.RUN)
        composed: Any = OmegaConf.to_container(config)
        return {key: value for key, value in composed.items() if key not in ("hydra", SEARCH)}

    def _parse(self, arguments: Sequence[str]) -> list[Override]:
        """The overrides of the configuration and of the command line, of several for one key the last."""
        assert self.hydra_context is not None
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        try:
            parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(lines)
        except HydraException as error:
            raise InputError(f"hydra.sweeper.params cannot be read: {first_line(error)}") from error
        return list({override.get_key_element().lstrip("+"): override for override in parsed}.values())

    def _require_composable(self, jobs: Sequence[Sequence[str]]) -> None:
        try:
            self.validate_batch_is_legal(jobs)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(first_line(error)) from error


STATES = {"COMPLETE": "with a score", "FAIL": "failed", "RUNNING": "running or stopped", "WAITING": "waiting"}
"""Optuna's words, in plain ones."""


def assignments(params: Mapping[str, Any]) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={value}" for key, value in params.items()]


def _score_of(result: JobReturn) -> tuple[float | None, str]:
    """What a job returned; ``None``, and why, if it failed or the score is not finite."""
    if result.status != JobStatus.COMPLETED:
        return None, one_line(result._return_value)  # the property raises it
    score = float(result.return_value)
    return (score, "") if math.isfinite(score) else (None, f"its score is {score}")


def _rows(study: "Study", own: set[int], folder: Path) -> list[Row]:
    """The study's finished trials, whoever has run them."""
    rows = []
    for trial in study.finished():
        run_dir, is_old = folder / str(trial.number), trial.number not in own
        score = None if trial.value is None else read_score(run_dir) or Score(trial.value, math.nan)
        error = trial.user_attrs.get("error", "")
        rows.append(Row(trial.number, " ".join(assignments(trial.params)), run_dir, score, error, is_old))
    return rows
