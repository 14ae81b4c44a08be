"""A named study in a file, shared by every worker that opens it."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from flows.errors import InputError, StorageError
from flows.randomness import Stream, generator_for

SETTINGS, WORKER, LOST, REPEATS = "settings", "worker", "lost", "repeats"
"""Attributes: what a study searches; whose a trial is; that it died with its worker; which lost one it does again."""


class Study:
    """A worker's part in a study, as a context; the score is minimised.

    Beside the journal lies the folder ``<journal>.locks``. In it ``study`` is held by whoever takes trials, so that no
    two workers propose at once, and each worker holds a file of its own for as long as it lives. The system lets go of
    them when a process ends, however it ends: a running trial whose worker's file is free has died with it.

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
        self._turn = FileLock(self._locks / "study")
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._alive = FileLock(self._locks / self.worker)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._turn:
            storage = JournalStorage(JournalFileBackend(str(path)))
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

    def take(self, at_most: int) -> list[Trial]:
        """Trials for this worker to run; none if as many as the study shall have are finished or running."""
        with self._turn:
            self._give_up_lost_trials()
            trials = self._study.get_trials(deepcopy=False)
            missing = self.num_trials - sum(_counts(trial) for trial in trials)
            taken = [self._ask() for _ in range(min(at_most, missing))]
        return taken

    def tell(self, number: int, score: float | None) -> None:
        """Record the score of a trial; ``None`` if it failed."""
        self._study.tell(number, score, state=TrialState.COMPLETE if score is not None else TrialState.FAIL)

    def best(self) -> FrozenTrial:
        """The finished trial with the lowest score. Raises ``InputError`` if there is none."""
        try:
            return self._study.best_trial
        except ValueError as error:
            raise InputError(f"no trial of the study {self._study.study_name} in {self.path} gave a score") from error

    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        trials = self._study.get_trials(deepcopy=False)
        return dict(Counter(f"trials {LOST if LOST in t.user_attrs else t.state.name.lower()}" for t in trials))

    def _ask(self) -> Trial:
        trials = self._study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
        lost = next((one for one in trials if LOST in one.user_attrs and one.number not in repeated), None)
        if lost is not None:
            self._study.enqueue_trial(lost.params, user_attrs={REPEATS: lost.number})
        seed = generator_for(Stream.SEARCH, self.seed, len(trials)).initial_seed() % 2**32
        self._study.sampler = TPESampler(seed=seed)
        trial = self._study.ask(self.space)
        trial.set_user_attr(WORKER, self.worker)
        return trial

    def _give_up_lost_trials(self) -> None:
        """Record those as failed whose worker is gone; the same values are proposed once more."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER)
            if worker is None or not self._lives(worker):
                self._study._storage.set_trial_user_attr(trial._trial_id, LOST, True)
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _lives(self, worker: str) -> bool:
        if worker == self.worker:
            return True
        path = self._locks / Path(worker).name
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
                return False
        except Timeout:
            return True


def _counts(trial: FrozenTrial) -> bool:
    """Whether it is one of those that a study shall have."""
    return trial.state != TrialState.WAITING and LOST not in trial.user_attrs
