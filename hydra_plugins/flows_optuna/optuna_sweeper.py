"""``hparams_search=optuna``: a search for settings that can be stopped, taken up again, and shared by several workers.

Hydra runs this module at every start of every program; Optuna, a second's work, is imported by a search alone. Hydra
does so in a way that dataclasses with postponed annotations do not survive: there is no such import here.
"""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flows.cli import report
from flows.errors import InputError, first_line


@dataclass
class OptunaSweeperConf:
    """What ``hydra.sweeper`` may hold; see :class:`OptunaSweeper`."""

    _target_: str = "hydra_plugins.flows_optuna.optuna_sweeper.OptunaSweeper"
    study_name: str = "search"
    storage: str | None = None
    n_trials: int = 20
    n_jobs: int = 1
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="flows")


class OptunaSweeper(Sweeper):
    """Searches for the settings with the lowest score that the task returns, in a named study kept in a file.

    Every sweep on the command line is a dimension: ``a=1,2`` and ``choice(...)``, ``range(...)``, ``interval(...)``,
    ``int(interval(...))``, on a logarithmic scale as ``tag(log, ...)``. Whatever starts the same study again, later or
    at the same time, joins it: until there are ``n_trials`` it proposes, runs and records further ones. A trial that
    fails, or whose score is not finite, counts as one that failed; one whose worker was killed is done again. The jobs
    of a batch have consecutive numbers, those of their trials.

    Args:
        study_name: of letters, digits, ``.``, ``_`` and ``-``.
        storage: the study's file; ``None`` is ``study.journal`` in ``hydra.sweep.dir``.
        n_trials: of the whole study, over all workers and starts.
        n_jobs: trials handed to the launcher at a time.
        seed: trial ``i`` is proposed from this, its number, and the scores known by then.
        params: more sweeps, as on the command line, which goes before: ``{optimizer.lr: "interval(1e-4, 1e-2)"}``.

    Raises:
        InputError: nothing to search, or wrong arguments; another search under the same name; no trial with a score.
    """

    def __init__(
        self, study_name: str, storage: str | None, n_trials: int, n_jobs: int, seed: int, params: Mapping[str, Any]
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
        storage = Path(self.storage or Path(self.config.hydra.sweep.dir, "study.journal"))
        with Study(storage, self.study_name, self.n_trials, self.seed, space, settings) as study:
            while trials := study.take(self.n_jobs):
                jobs = [[*fixed, *assignments(trial.params)] for trial in trials]
                self._require_composable(jobs)
                results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
                for trial, result in zip(trials, results, strict=True):
                    study.tell(trial.number, _score_of(result, trial.number))
            best, counts = study.best(), study.counts()
        command = shlex.join(["python", f"{self.config.hydra.job.name}.py", *fixed, *assignments(best.params)])
        rows = [("best score", best.value), ("of trial", best.number), *best.params.items(), *counts.items()]
        report.show_table(f"Study {self.study_name}", rows)
        report.show_paths([("study", storage), ("best run", Path(self.config.hydra.sweep.dir, str(best.number)))])
        report.console.print(f"to train it again: {command}", markup=False)

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


def assignments(params: Mapping[str, Any]) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={value}" for key, value in params.items()]


def _score_of(result: JobReturn, number: int) -> float | None:
    """What a job returned; ``None``, and a line on stderr, if it failed or the score is not finite."""
    if result.status != JobStatus.COMPLETED:
        error = first_line(result._return_value)  # the property raises it
        print(f"trial {number} failed: {error}", file=sys.stderr, flush=True)
        return None
    score = float(result.return_value)
    if not math.isfinite(score):
        print(f"trial {number} failed: its score is {score}", file=sys.stderr, flush=True)
        return None
    return score
