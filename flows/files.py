"""Files that are whole or not there."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from flows.errors import StorageError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only when everything has been written.

    It is written beside its destination, flushed to the disk, and renamed. If anything goes wrong, the half-written
    file is removed and what was at ``path`` before is still there. Missing folders are made.

    Raises:
        StorageError: the file system refuses (full, read-only, no permission), with the path and the reason.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        kept = "; the file that was there before is untouched" if path.exists() else ""
        raise StorageError(f"cannot write {path}: {error.strerror or error}{kept}") from error
    finally:
        with suppress(OSError):  # gone already, or its folder cannot be reached: there is nothing left to remove
            beside.unlink()


@contextmanager
def growing_csv(path: Path, heads: Sequence[str]) -> Iterator[Callable[[Iterable[Sequence[Any]]], None]]:
    """Write a table row by row, for work that takes long: yields what appends rows.

    It grows as ``scores.csv.part``, which stays if the work ends early, and takes its name when complete.

    Raises:
        StorageError: the file system refuses; before the work if it can be known.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        # File names need not be text.
        with open(beside, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")

            def write(rows: Iterable[Sequence[Any]]) -> None:
                writer.writerows(rows)
                file.flush()

            write([heads])
            yield write
        os.replace(beside, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, its heads among the rows; like :func:`atomic_write`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
