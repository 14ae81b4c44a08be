"""What a program shows at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def show_table(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Print a table of two columns."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)


def show_paths(paths: Iterable[tuple[str, Path]]) -> None:
    """Print where things are, one path a line, so that they can be copied."""
    for name, path in paths:
        console.print(f"{name}: {path}", markup=False)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr that counts images; yields ``advance(num_images)``. It disappears when done.

    Where stderr is no terminal nothing is shown, not even the empty line that rich would leave.
    """
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda num_images: bar.advance(task, num_images)


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s`` or ``12.3 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"
