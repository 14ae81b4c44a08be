"""A named study in a file, shared by every worker that opens it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from flows.errors import InputError, StorageError
from flows.randomness import Stream, generator_for

SETTINGS, WORKER, ERROR = "settings", "worker", "error"
"""Attributes: what a study searches; whose a trial is; why it has no score."""


class _Journal(JournalFileBackend):
    """Optuna's, of which a worker that is killed in the middle of a line leaves neither the lock nor half the line.

    Optuna's own lock is a link, at which others wait until it is old, or for ever if the journal's path is relative.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(str(path), lock)  # type: ignore[arg-type] # it can be acquired and released

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._lock:  # type: ignore[attr-defined]
            with open(self._file_path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)


class Study:
    """A worker's part in a study, as a context; the score is minimised.

    Beside the journal lies the folder ``<journal>.locks``. In it ``study`` is held by whoever takes trials, so that no
    two workers propose at once, and each worker holds a file of its own for as long as it lives. The system lets go of
    them when a process ends, however it ends: a running trial whose worker's file is free has lost it and is anyone's.

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
        self.path, self.num_trials, self.seed, self.space = path, num_trials, seed, dict(space)
        self._locks = path.with_name(f"{path.name}.locks")
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write to {path.parent}: {error.strerror or error}") from error
        self.turn = FileLock(self._locks / "study")
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._alive = FileLock(self._locks / self.worker)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.turn:
            storage = JournalStorage(_Journal(path, FileLock(self._locks / "journal")))
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

    def __enter__(self) -> Study:
        self._alive.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alive.release()
        with suppress(OSError):
            (self._locks / self.worker).unlink(missing_ok=True)

    def take(self, at_most: int) -> list[FrozenTrial]:
        """Trials with consecutive numbers for this worker to run: those that lost theirs first, then new ones.

        None if as many as the study shall have are finished or running.
        """
        with self.turn:
            numbers = self._lost(at_most)
            if not numbers:
                missing = self.num_trials - sum(map(self._counts, self.trials()))
                numbers = [self._ask() for _ in range(min(at_most, missing))]
            trials = self.trials()
            for number in numbers:
                self._note(trials[number], WORKER, self.worker)
            return [trials[number] for number in numbers]

    def tell(self, number: int, score: float | None, error: str = "") -> None:
        """Record the score of a trial; ``None`` and the reason if it failed."""
        if score is None:
            self._note(self.trials()[number], ERROR, error)
        self._study.tell(number, score, state=TrialState.COMPLETE if score is not None else TrialState.FAIL)

    def trials(self) -> list[FrozenTrial]:
        """All workers', by their numbers."""
        return self._study.get_trials(deepcopy=False)

    def finished(self) -> list[FrozenTrial]:
        """The trials that have a score or an error."""
        return [trial for trial in self.trials() if trial.state.is_finished() and self._counts(trial)]

    def best(self) -> FrozenTrial | None:
        """The finished trial with the lowest score, if there is any."""
        scored = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        return min(scored, key=lambda trial: trial.value or 0.0, default=None)

    def _ask(self) -> int:
        seed = generator_for(Stream.SEARCH, self.seed, len(self.trials())).initial_seed() % 2**32
        self._study.sampler = TPESampler(seed=seed)
        return self._study.ask(self.space).number

    def _lost(self, at_most: int) -> list[int]:
        """The first run of consecutive trials whose workers are gone; their folders hold what these have saved."""
        numbers: list[int] = []
        for trial in self.trials():
            if trial.state is not TrialState.RUNNING or self._lives(trial.user_attrs.get(WORKER)):
                continue
            if not self._counts(trial):
                self._study.tell(trial.number, state=TrialState.FAIL)
            elif len(numbers) < at_most and numbers[-1:] in ([], [trial.number - 1]):
                numbers.append(trial.number)
        return numbers

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether it is one of those that a study shall have; one whose worker died while proposing it is not."""
        return trial.params.keys() == self.space.keys()

    def _note(self, trial: FrozenTrial, name: str, value: str) -> None:
        self._study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _lives(self, worker: str | None) -> bool:
        if worker is None or worker == self.worker:
            return worker is not None
        path = self._locks / Path(worker).name
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
                return False
        except Timeout:
            return True
