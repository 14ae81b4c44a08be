"""One table of all jobs: on the terminal at the end, and at all times in the sweep's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows import console
from flows.console import warn
from flows.errors import StorageError, SweepError
from flows.files import atomic_write
from flows.sweeps.folders import RunScore

SUMMARY = "summary.csv"
COLUMNS = ("job", "overrides", "status", "val/bits_per_dim", "test/bits_per_dim", "error", "folder")

STOPPED = "stopped"
"""As error: the sweep was ended before this job did."""


@dataclass(frozen=True)
class Row:
    """How a job ended: with a score, or with the first line of an error."""

    job: int
    overrides: str
    folder: Path
    score: RunScore | None = None
    error: str = ""
    is_old: bool = False

    @property
    def status(self) -> str:
        """``done``, ``done before``, ``failed``, or ``stopped``."""
        if self.score is None:
            return STOPPED if self.error == STOPPED else "failed"
        return "done before" if self.is_old else "done"

    @property
    def outcome(self) -> str:
        """In words."""
        if self.score is None:
            return STOPPED if self.error == STOPPED else f"failed: {self.error}"
        return f"{self.status}: val {self.score.validation:.3f}, test {self.score.test:.3f} bits/dim"

    def cells(self) -> tuple[str, ...]:
        """What stands in the columns."""
        scores = ("", "") if self.score is None else (f"{self.score.validation:.4f}", f"{self.score.test:.4f}")
        return (str(self.job), self.overrides, self.status, *scores, self.error, str(self.folder))


class Summary:
    """The jobs of a sweep, as they end.

    Args:
        sweep_dir: the folder of the whole sweep.
        num_jobs: how many it shall have.
        recorded: jobs that are recorded as ended, whichever worker has run them.
        turn: held while the summary is written, so that of several workers the last to write knows most.
    """

    def __init__(
        self,
        sweep_dir: Path,
        num_jobs: int,
        recorded: Callable[[], Iterable[Row]] = tuple,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.sweep_dir, self.num_jobs = sweep_dir, num_jobs
        self.rows: dict[int, Row] = {}
        self._recorded, self._turn = recorded, turn or nullcontext()

    def add(self, row: Row) -> None:
        """Write down how a job of this worker ended."""
        self.rows[row.job] = row
        self.write()

    @property
    def progress(self) -> str:
        """How many jobs have ended."""
        return f"{len(self.all_rows())} of {self.num_jobs}"

    def all_rows(self) -> list[Row]:
        """In the order of the jobs."""
        rows = self.rows | {row.job: row for row in self._recorded()}
        return [rows[job] for job in sorted(rows)]

    def write(self) -> None:
        """Write everything anew; a disk that fails for a while costs the file, not the jobs."""
        with self._turn:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows([COLUMNS, *(row.cells() for row in self.all_rows())])
            try:
                with atomic_write(self.sweep_dir / SUMMARY) as file:
                    file.write(text.getvalue().encode())
            except StorageError as error:
                warn(f"the sweep goes on, but its summary is not up to date: {error}")

    def show(self) -> None:
        """Print the table, if any job has ended."""
        if not self.all_rows():
            return
        table = Table(title="Sweep", title_justify="left", show_lines=True)
        for column in ("job", "overrides", "outcome", "folder"):
            table.add_column(column, overflow="fold")
        for row in self.all_rows():
            folder = row.folder.name if row.folder.parent == self.sweep_dir else row.folder
            table.add_row(*map(escape, (str(row.job), row.overrides, row.outcome, str(folder))))
        console.show(table)
        console.show_paths([("summary", self.sweep_dir / SUMMARY)])

    def require_success(self) -> None:
        """Complain if a job failed.

        Raises:
            SweepError: with their number and what to do.
        """
        failed = [row for row in self.rows.values() if row.score is None]
        if failed:
            raise SweepError(
                f"{len(failed)} of {len(self.rows)} jobs failed, see the table; the same command with "
                f"run_dir={self.sweep_dir} runs only what is missing"
            )
