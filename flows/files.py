"""Files that are whole or not there."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
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


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, its heads among the rows; like :func:`atomic_write`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
