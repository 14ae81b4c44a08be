"""The CSV file of a run: one file, however often the run is resumed."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from flows.console import warn
from flows.files import atomic_write


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, but a resumed training continues the file, and a full disk does not end the training.

    Rows that cannot be written are kept until they can be. A resumed training repeats the steps after its checkpoint:
    their earlier rows are dropped.

    Arguments are Lightning's.
    """

    def __init__(self, save_dir: str, name: str = "metrics", flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name, version=0, flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._table = _Table(Path(self.log_dir, "metrics.csv"))
        self._is_waiting = False

    @property
    def experiment(self) -> _Table:
        """What writes the file."""
        return self._table

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: the run's folder has its configuration."""

    @rank_zero_only
    def save(self) -> None:
        try:
            self._table.save()
            self._is_waiting = False
        except OSError as error:
            if not self._is_waiting:
                warn(f"metrics are not written to {self.log_dir} for now: {error.strerror or error}")
            self._is_waiting = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class _Table:
    """A CSV file, and the rows that it still lacks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics: list[dict[str, Any]] = []
        self._columns: list[str] = []  # of the file, once this training has written to it

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append(values | {"step": step})

    def save(self) -> None:
        """Write the rows, all or none: if the disk fails, the file stays as it is."""
        if not self.metrics:
            return
        if self.path.exists() and set().union(*self.metrics) <= set(self._columns):
            self._append()
        else:
            self._rewrite()
        self.metrics = []

    def _append(self) -> None:
        size = self.path.stat().st_size
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(self.metrics)
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, size)
            raise

    def _rewrite(self) -> None:
        """Write the file anew, as a training's first rows and any new column require."""
        columns, earlier = self._read()
        columns = sorted(set(columns).union(*self.metrics))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*earlier, *self.metrics])
        with atomic_write(self.path) as file:
            file.write(text.getvalue().encode())
        self._columns = columns

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of the file; of an earlier training's only the rows before this one's first step."""
        if not self.path.exists():
            return [], []
        end = math.inf if self._columns else min(row["step"] for row in self.metrics)
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(line for line in file if line.endswith("\n"))  # the last may have been cut off
            rows = [row for row in reader if str(row.get("step")).isdigit() and int(row["step"]) < end]
            return list(reader.fieldnames or []), rows
