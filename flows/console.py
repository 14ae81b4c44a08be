"""What a program prints: lines, warnings, tables, paths and progress bars. Imports nothing that takes time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import floor, log10
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """Print one line on stdout."""
    print(line, flush=True)


def warn(line: str) -> None:
    """Print one line on stderr about something that does not stop the program."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def show(renderable: Any) -> None:
    """Print what rich can draw, such as a table."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(renderable)


def show_table(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Print a table of two columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, str(value))
    show(table)


def show_paths(paths: Iterable[tuple[str, Path]]) -> None:
    """Print where things are, one path per line, so that they can be copied."""
    for name, path in paths:
        say(f"{name}: {path}")


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr that counts images; yields ``advance(num_images)``. It disappears when done.

    Where stderr is not a terminal nothing is shown, not even the empty line that rich would leave.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda num_images: bar.advance(task, num_images)


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten.

    >>> [three_digits(value) for value in (0, 0.01234, 5.0, 1234.5)]
    ['0', '0.0123', '5.00', '1,230']
    """
    return f"{float(f'{value:.3g}'):,.{max(0, 2 - floor(log10(value)))}f}" if value else "0"


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s`` or ``12.3 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"
