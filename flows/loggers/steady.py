"""Lightning's loggers of files, which here do not end a training when the disk is full or their folder has vanished.

A run has one file in each, however often it is resumed.
"""

from __future__ import annotations

import csv
import io
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flows.console import warn
from flows.files import atomic_write


class SteadyCSVLogger(CSVLogger):
    """A CSV file. Rows that cannot be written are kept, and written when it works again.

    What an earlier training logged from the step on that a resumed one begins at is dropped: it is done again.

    Arguments are Lightning's.
    """

    def __init__(self, save_dir: str, name: str = "metrics", flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name, version=0, flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._is_waiting = False

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _ContinuedFile(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        try:
            os.makedirs(self.log_dir, exist_ok=True)
            super().save()
            self._is_waiting = False
        except OSError as error:
            if not self._is_waiting:
                warn(f"metrics are not written to {self.log_dir} for now: {error.strerror or error}")
            self._is_waiting = True


class _ContinuedFile(ExperimentWriter):
    """Lightning's, except that it goes on in the file that is there, and never leaves one that is half rewritten."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._resumes = os.path.isfile(self.metrics_file_path)
        self._num_bytes = 0

    def _check_log_dir_exists(self) -> None:
        """An earlier training's file is not in the way."""

    def save(self) -> None:
        """Append the rows, all or none: when the disk fails, the file and what is known of its columns stay."""
        columns = list(self.metrics_keys)
        self._num_bytes = os.path.getsize(self.metrics_file_path) if os.path.isfile(self.metrics_file_path) else 0
        try:
            super().save()
        except OSError:
            self.metrics_keys = columns
            with suppress(OSError):
                os.truncate(self.metrics_file_path, self._num_bytes)
            raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Rewrite the file, which the first rows of a training and any new column call for."""
        end = min(row["step"] for row in self.metrics) if self._resumes else math.inf
        with open(self.metrics_file_path, newline="", encoding="utf-8", errors="replace") as file:
            earlier = csv.DictReader(line for line in file if line.endswith("\n"))  # the last may have been cut off
            rows = [row for row in earlier if str(row.get("step")).isdigit() and int(row["step"]) < end]
            fieldnames.extend(name for name in earlier.fieldnames or () if name not in fieldnames)
        fieldnames.sort()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        with atomic_write(self.metrics_file_path) as whole:
            whole.write(content)
        self._resumes, self._num_bytes = False, len(content)


class SteadyTensorBoardLogger(TensorBoardLogger):
    """A TensorBoard event file. When it cannot be written, nothing is until :meth:`save`, which tries a new one.

    Lightning saves after every row. What is logged between, and what TensorBoard had not yet written, is lost here; the
    CSV file has the numbers.

    Arguments are Lightning's.
    """

    def __init__(self, save_dir: str, name: str = "tensorboard") -> None:
        super().__init__(save_dir, name, version=0)
        self._is_waiting = False
        threading.excepthook = partial(_pass_over_what_is_raised_again, threading.excepthook)

    def attempt(self, write: Callable[[], object]) -> None:
        """Write something, unless the disk has failed since the last :meth:`save`."""
        if not self._is_waiting:
            self._try(write, says_so=True)

    def _try(self, write: Callable[[], object], says_so: bool) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            failure = error.__cause__ if isinstance(error, ValueError) else error  # Lightning wraps what it meets
            if not isinstance(failure, OSError):
                raise
            self._experiment, self._is_waiting = None, True  # the thread that writes the file has died of it
            if says_so:
                warn(f"TensorBoard's figures are not written to {self.log_dir} for now: {failure.strerror or failure}")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        self.attempt(partial(super().log_hyperparams, params, *arguments, **options))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.attempt(partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def save(self) -> None:
        was_waiting, self._is_waiting = self._is_waiting, False
        self._try(super().save, says_so=not was_waiting)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.attempt(partial(super().finalize, status))


def _pass_over_what_is_raised_again(
    otherwise: Callable[[threading.ExceptHookArgs], object], arguments: threading.ExceptHookArgs
) -> None:
    """Print no traceback of the thread that writes TensorBoard's file: whoever logs next meets the same exception."""
    by_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (by_tensorboard and isinstance(arguments.exc_value, OSError)):
        otherwise(arguments)
