"""A named study in a file, shared by every worker that opens it; and Hydra's sweeps as the dimensions of its space."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from flows.errors import InputError, StorageError, first_line
from flows.randomness import Stream, generator_for

SETTINGS = "settings"
"""Attribute of a study: what it searches."""


class Study:
    """A worker's part in a study; the score is minimised.

    It is kept in ``study.journal``. A worker holds ``study.lock`` while it writes or takes trials, so that no two
    propose at once, and a lock in the folder of each trial that it runs. The system releases them when a process ends,
    however it ends: a running trial whose lock is free has lost its worker.

    Args:
        folder: of the study, with one below it for each trial; made where there is none.
        name: of the study.
        num_trials: how many shall have finished in all.
        seed: of the proposals.
        space: what to search, by name.
        settings: everything that makes scores comparable; a study is only continued with the same.

    Raises:
        InputError: the study was begun with other settings.
        StorageError: its folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        num_trials: int,
        seed: int,
        space: Mapping[str, BaseDistribution],
        settings: Sequence[str],
    ) -> None:
        self.folder, self.num_trials, self.seed, self.space = folder, num_trials, seed, dict(space)
        self.lock, self._held = FileLock(folder / "study.lock"), list[FileLock]()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = self.lock.acquire()
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error
        with held:
            journal = JournalFileBackend(str(folder / "study.journal"), self.lock)  # type: ignore[arg-type] # has its methods
            content = (folder / "study.journal").read_bytes()
            os.truncate(folder / "study.journal", content.rfind(b"\n") + 1)  # half a line would spoil the next
            storage = JournalStorage(journal)
            self._study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
            begun_with = self._study.user_attrs.get(SETTINGS)
            if begun_with is None:
                self._study.set_user_attr(SETTINGS, list(settings))
            elif begun_with != list(settings):
                different = sorted(set(begun_with) ^ set(settings))
                raise InputError(
                    f"the study {name} in {folder} was begun with other settings ({', '.join(different)}): "
                    "give the same, or choose another hydra.sweeper.study_name"
                )

    def take(self, at_most: int) -> list[FrozenTrial]:
        """Trials for this worker to run: those that lost theirs first, then new ones.

        The list is empty if the study has all its trials, finished or running.
        """
        with self.lock:
            lost = islice((trial for trial in self.trials() if self._is_lost(trial)), at_most)
            numbers = [trial.number for trial in lost]
            while len(numbers) < at_most and len(self.trials()) < self.num_trials:
                numbers.append(self._ask())
            return [trial for trial in self.trials() if trial.number in numbers]

    def record(self, number: int, score: float | None, error: str) -> None:
        """Record the score of a trial, or why it has none."""
        if error:
            self._study.set_user_attr(_reason(number), error)
        self._study.tell(number, score, TrialState.COMPLETE if score is not None else TrialState.FAIL)

    def trials(self) -> list[FrozenTrial]:
        """All workers', by their numbers."""
        return self._study.get_trials(deepcopy=False)

    def errors(self) -> dict[int, str]:
        """Why trials failed, by their numbers."""
        told = self._study.user_attrs
        return {trial.number: told.get(_reason(trial.number), "") for trial in self.trials()}

    def best(self) -> FrozenTrial | None:
        """The finished trial with the lowest score, if there is any."""
        scored = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        return min(scored, key=lambda trial: trial.value or 0.0, default=None)

    def _ask(self) -> int:
        number = len(self.trials())
        self._hold(number)
        seed = generator_for(Stream.SEARCH, self.seed, number).initial_seed() % 2**32
        self._study.sampler = TPESampler(seed=seed)
        return self._study.ask(self.space).number

    def _is_lost(self, trial: FrozenTrial) -> bool:
        """Whether a trial's worker is gone; its folder holds what that has saved, and this worker has it now."""
        if trial.state is not TrialState.RUNNING or not self._hold(trial.number):
            return False
        is_proposed = trial.params.keys() == self.space.keys()
        if not is_proposed:
            self.record(trial.number, None, "its worker ended while proposing it")
        return is_proposed

    def _hold(self, number: int) -> bool:
        """Take a trial for this worker, unless another one lives that has it."""
        lock = FileLock(self.folder / str(number) / ".trial", blocking=False)
        Path(lock.lock_file).parent.mkdir(exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._held.append(lock)
        return True


def _reason(number: int) -> str:
    return f"error of trial {number}"


def dimension_of(override: Override) -> BaseDistribution:
    """The values among which an override searches.

    Raises:
        InputError: there are no such values, or they have no logarithm.
    """
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            assert low is not None and high is not None
            return FloatDistribution(low, high, log=is_log)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            low, high, step, is_log = values[0], values[-1], abs(sweep.step), "log" in sweep.tags
            if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
                return IntDistribution(low, high, log=is_log, step=step)
            return FloatDistribution(low, high, log=is_log, step=None if is_log else step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise InputError(f"{override.input_line!r} cannot be searched: {first_line(error)}") from error
