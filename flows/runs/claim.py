"""Who may write into a run folder: the run whose configuration lies there, while it holds the folder's lock."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flows.console import say
from flows.errors import InputError, StorageError
from flows.files import atomic_write
from flows.processes import ranks, slurm
from flows.runs.layout import CONFIG, EVALUATIONS, LOCK, OVERRIDES, RESULTS

PATIENCE_S = 60.0
"""Seconds that a run waits for the end of another one in its folder."""


@functools.cache
def run_name() -> str:
    """The name of a run's folder, if none is given.

    Under SLURM it is the number of the job and of the array's task alone. So a requeued job finds its folder again, and
    all processes of a job find the same one. Elsewhere it is the time, and the process's number for those that start
    in the same second. Processes that train together take the first one's.
    """
    job = slurm.job_id()
    if job is not None:
        return f"slurm-{job}"
    return ranks.broadcast_from_rank_zero(f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")


def require_writable(run_dir: Path) -> None:
    """Refuse a run folder that could not be made or written.

    Raises:
        InputError: it is an address.
        StorageError: with the reason.
    """
    if ":/" in str(run_dir):  # the one slash that Path leaves of two
        raise InputError(f"{run_dir} is an address of something else than a folder: give a path")
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise StorageError(f"cannot write to {run_dir}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write to {run_dir}: no permission to write in {existing}")


@contextlib.contextmanager
def run_folder_lock(run_dir: Path) -> Iterator[None]:
    """Lock a run folder while a run writes into it, so that no other run does.

    A run that has been told to end, or whose launcher is gone, saves its work first: it is waited for.

    Raises:
        InputError: a living process holds the folder, and goes on doing so.
        StorageError: the folder cannot be written.
    """
    path = run_dir / LOCK
    lock = FileLock(path)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            say(f"{run_dir} belongs to a run that is still going ({path.read_text()}): waiting for its end")
            held = lock.acquire(timeout=PATIENCE_S)
        path.write_text(_signature())
    except Timeout as error:
        raise InputError(
            f"{run_dir} belongs to a run that is still going ({path.read_text()}): wait for its end, or choose another "
            f"run_dir"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    with held:
        yield


def _signature() -> str:
    """Whose a run folder is: the process, its machine, since when, and the commit of the code, if git knows."""
    held = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M')}"
    root = Path(__file__).parents[2]  # installed by pip it has no .git, and that of a folder above is not ours
    git = ["git", f"--git-dir={root}/.git", f"--work-tree={root}", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):  # there is no git
        done = subprocess.run(git, capture_output=True, text=True)
        held += f", commit {done.stdout.strip()}" if done.returncode == 0 else ""
    return held


def is_locked(run_dir: Path) -> bool:
    """Whether a living process writes into a run folder, as far as this one may ask."""
    if not (run_dir / LOCK).exists():
        return False
    try:
        with FileLock(run_dir / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def remove_partial_files(run_dir: Path) -> None:
    """Remove the files that a killed run left half-written; the caller holds the folder's lock."""
    for path in run_dir.rglob(".*.part"):
        if path.parent.name != EVALUATIONS:  # another program may be writing there
            path.unlink(missing_ok=True)


def require_unclaimed(run_dir: Path) -> None:
    """Refuse the folder of another run.

    Raises:
        InputError: it is one.
    """
    if (run_dir / CONFIG).exists():
        raise InputError(
            f"{run_dir} holds a run already: choose another run_dir, or give resume=auto to continue that one"
        )


def write_config(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Write down the configuration that a run folder's run has, from its start or from when it was resumed.

    Results of a shorter run, if there are any, are removed: they would pass for this one's.
    """
    (run_dir / RESULTS).unlink(missing_ok=True)
    for name, content in ((OVERRIDES, overrides), (CONFIG, config)):
        with atomic_write(run_dir / name) as file:
            file.write(yaml.safe_dump(content, sort_keys=False).encode())
