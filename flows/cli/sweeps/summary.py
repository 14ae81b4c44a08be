"""One table of all jobs: on the terminal at the end, and at all times in the sweep's folder."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flows.cli import report
from flows.cli.sweeps.folders import Score
from flows.errors import SweepError
from flows.files import atomic_write

SUMMARY = "summary.csv"
COLUMNS = ("job", "overrides", "status", "val/bits_per_dim", "test/bits_per_dim", "error", "folder")


@dataclass(frozen=True)
class Row:
    """How a job ended: with a score, or with the first line of an error."""

    job: int
    overrides: str
    folder: Path
    score: Score | None = None
    error: str = ""
    is_old: bool = False

    @property
    def status(self) -> str:
        """``done``, ``done before``, or ``failed``."""
        if self.score is None:
            return "failed"
        return "done before" if self.is_old else "done"

    @property
    def outcome(self) -> str:
        """In words."""
        if self.score is None:
            return f"failed: {self.error}"
        return f"{self.status}: val {self.score.validation:.3f}, test {self.score.test:.3f} bits/dim"

    def cells(self) -> tuple[str, ...]:
        """What stands in the columns."""
        scores = ("", "") if self.score is None else (f"{self.score.validation:.4f}", f"{self.score.test:.4f}")
        return (str(self.job), self.overrides, self.status, *scores, self.error, str(self.folder))


class Summary:
    """The jobs of a sweep, as they end."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.sweep_dir: Path | None = None

    def add(self, row: Row, sweep_dir: Path) -> None:
        """Write a job's end down.

        Raises:
            StorageError: the sweep's folder cannot be written to.
        """
        self.rows[row.job] = row
        self.sweep_dir = sweep_dir
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *(self.rows[job].cells() for job in sorted(self.rows))])
        with atomic_write(sweep_dir / SUMMARY) as file:
            file.write(text.getvalue().encode())

    def show(self) -> None:
        """Print the table, if there was a sweep at all."""
        if self.sweep_dir is None:
            return
        table = Table(title="Sweep", title_justify="left", show_lines=True)
        for column in ("job", "overrides", "outcome", "folder"):
            table.add_column(column, overflow="fold")
        for job in sorted(self.rows):
            row = self.rows[job]
            folder = row.folder.name if row.folder.parent == self.sweep_dir else row.folder
            table.add_row(*map(escape, (str(job), row.overrides, row.outcome, str(folder))))
        report.console.print(table)
        report.show_paths([("summary", self.sweep_dir / SUMMARY)])

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


CURRENT = Summary()
"""Of the sweep that this process runs: launchers, which Hydra makes, write to it; the program's entry shows it."""
