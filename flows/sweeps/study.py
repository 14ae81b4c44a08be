"""A named study in a file, shared by every worker that opens it."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from flows.errors import InputError, StorageError
from flows.randomness import Stream, generator_for

SETTINGS = "settings"
"""Attribute of a study: what it searches."""


class _Journal(JournalFileBackend):
    """Optuna's journal, where a worker that dies while it writes leaves neither its lock nor half a line.

    Optuna's own locks are files, which a killed worker leaves behind; half a line would spoil the next.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(str(path), lock)  # type: ignore[arg-type] # it can be acquired and released
        self.path, self.lock = path, lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self.lock:
            with open(self.path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)


class Study:
    """A worker's part in a study; the score is minimised.

    Beside the journal lie two files for locks. ``<journal>.lock`` is held by the worker that writes or takes trials, so
    that no two propose at once. Of ``<journal>.running`` a worker holds one byte per trial that it runs. The system
    releases both when a process ends, however it ends: a running trial whose byte is free has lost its worker.

    Args:
        path: the journal; made where there is none.
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
        path: Path,
        name: str,
        num_trials: int,
        seed: int,
        space: Mapping[str, BaseDistribution],
        settings: Sequence[str],
    ) -> None:
        self.num_trials, self.seed, self.space = num_trials, seed, dict(space)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._running = open(f"{path}.running", "ab")  # noqa: SIM115 held for as long as the worker lives
        except OSError as error:
            raise StorageError(f"cannot write to {path.parent}: {error.strerror or error}") from error
        self.lock = FileLock(f"{path}.lock")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.lock:
            storage = JournalStorage(_Journal(path, self.lock))
            self._study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
            begun_with = self._study.user_attrs.get(SETTINGS)
            if begun_with is None:
                self._study.set_user_attr(SETTINGS, list(settings))
            elif begun_with != list(settings):
                different = sorted(set(begun_with) ^ set(settings))
                raise InputError(
                    f"the study {name} in {path} was begun with other settings ({', '.join(different)}): "
                    "give the same, or choose another hydra.sweeper.study_name"
                )

    def take(self, at_most: int) -> list[FrozenTrial]:
        """Trials with consecutive numbers for this worker to run: those that lost theirs first, then new ones.

        The list is empty if the study has all its trials, finished or running.
        """
        with self.lock:
            numbers = self._lost(at_most)
            if not numbers:
                numbers = [self._ask() for _ in range(min(at_most, self.num_trials - len(self.trials())))]
            return [trial for trial in self.trials() if trial.number in numbers]

    def complete(self, number: int, score: float) -> None:
        """Record the score of a trial."""
        self._study.tell(number, score)

    def fail(self, number: int, error: str) -> None:
        """Record why a trial has no score."""
        self._study.set_user_attr(_reason(number), error)
        self._study.tell(number, state=TrialState.FAIL)

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

    def _lost(self, at_most: int) -> list[int]:
        """The first run of consecutive trials whose workers are gone; their folders hold what these have saved."""
        numbers: list[int] = []
        for trial in self.trials():
            is_next = numbers[-1:] in ([], [trial.number - 1])
            if len(numbers) < at_most and is_next and trial.state is TrialState.RUNNING and self._hold(trial.number):
                if trial.params.keys() == self.space.keys():
                    numbers.append(trial.number)
                else:
                    self.fail(trial.number, "its worker ended while proposing it")
        return numbers

    def _hold(self, number: int) -> bool:
        """Take a trial for this worker, unless another one lives that has it."""
        try:
            fcntl.lockf(self._running, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        return True


def _reason(number: int) -> str:
    return f"error of trial {number}"
