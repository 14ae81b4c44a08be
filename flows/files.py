"""Files that are whole or not there, and locks on them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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


class LockedError(Exception):
    """Another process holds a lock; ``owner`` is what it says of itself."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


@contextmanager
def exclusive_lock(path: str | os.PathLike[str], owner: str | None = None) -> Iterator[None]:
    """Hold a file's lock, without waiting for it; the file stays when the lock ends.

    The lock is the operating system's and ends with the process, however that ends. It is a POSIX lock, not flock's:
    processes that load data inherit the latter, and would hold it for some seconds after their parent was killed.

    Args:
        path: of the file, which is made with its folder.
        owner: what is written into it for others to read; ``None`` leaves what is there.

    Raises:
        LockedError: another process holds the lock.
        StorageError: the file cannot be made or locked.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 closed below
    except OSError as error:
        raise StorageError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise LockedError(file.read().strip() or "another process") from error
        except OSError as error:
            raise StorageError(f"cannot lock {path.parent}: {error.strerror or error}") from error
        if owner is not None:
            file.truncate(0)
            print(owner, file=file, flush=True)
        yield
