"""Run folders: what is where, which checkpoint is meant, and how a run is taken up again.

A run folder holds ``config.yaml`` (resolved), ``overrides.yaml`` (the command line), ``metrics/`` (CSV),
``checkpoints/`` (``best.ckpt``, ``last.ckpt``, with ``keep_last`` also ``step=0000100.ckpt``), ``samples/`` (PNG) and
``results.json``; ``evaluate.py`` adds ``evaluations/*.json``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from flows import slurm
from flows.checkpoint import CHECKPOINTS, find_checkpoint, newest_whole, read_checkpoint
from flows.cli import processes
from flows.cli.hydra_seams import read_command_line
from flows.errors import InputError, StorageError
from flows.files import atomic_write
from flows.notices import warn

CONFIG, OVERRIDES, RESULTS, SAMPLES, LOCK = "config.yaml", "overrides.yaml", "results.json", "samples", ".lock"
EVALUATIONS = "evaluations"

AUTO = "auto"
"""As ``resume``: go on in this very run folder, or begin there if nothing has been saved yet."""

MOVABLE = (
    "source",
    "root",
    "prepared_dir",
    "download_dir",
    "mirrors",
    "num_converters",
    "num_workers",
    "eval_batch_size",
)
"""Settings of the data that say where they are or how they are read, not what they are."""


@functools.cache
def run_name() -> str:
    """The name of a run's folder, if none is given.

    Under SLURM it is made of the number of the job and of the array's task alone: a job that is put back into its queue
    finds its folder again, and all processes of a job find the same. Elsewhere it is the time, and the process's number
    for those that start in the same second; processes that train together take the first one's.
    """
    job = slurm.job_id()
    if job is not None:
        return f"slurm-{job}"
    return processes.agreed(f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")


def require_writable(run_dir: Path) -> None:
    """Refuse a run folder that could not be made or written.

    Raises:
        StorageError: with the reason.
    """
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise StorageError(f"cannot write to {run_dir}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write to {run_dir}: no permission to write in {existing}")


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for as long as a run writes into it, so that no other run does.

    The lock is the operating system's and ends with the process, however that ends. It is a POSIX lock, not flock's:
    processes that load data inherit the latter, and would hold it for some seconds after their parent was killed.

    Raises:
        InputError: a living process holds it.
        StorageError: the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / LOCK, "a+")  # noqa: SIM115 closed below
    except OSError as error:
        raise StorageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(
                f"{run_dir} belongs to a run that is still going ({owner}): wait for its end, or choose another run_dir"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot lock {run_dir}: {error.strerror or error}") from error
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield


def is_held(run_dir: Path) -> bool:
    """Whether another process writes into a run folder."""
    try:
        file = open(run_dir / LOCK, "rb+")  # noqa: SIM115 closed below
    except OSError:
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def clear_away(run_dir: Path) -> None:
    """Remove the files that a killed run left half-written; to be called by whoever holds the folder."""
    for path in run_dir.rglob(".*.part"):
        if path.parent.name != EVALUATIONS:  # another program may be writing there
            path.unlink(missing_ok=True)


def checkpoint_to_resume(resume: str | None, run_dir: Path) -> Path | None:
    """The checkpoint that a run continues from, or ``None`` if it begins.

    Raises:
        InputError: ``resume=auto``, and ``run_dir`` holds checkpoints, but no whole one.
    """
    if resume == AUTO:
        return _newest_whole(run_dir)
    return None if resume is None else Path(resume)


def _newest_whole(run_dir: Path) -> Path | None:
    newest, damaged = newest_whole(run_dir / CHECKPOINTS)
    if newest is None and damaged:
        raise InputError(f"there is no whole checkpoint in {run_dir}; the latest: {damaged[0]}")
    if slurm.rank() == 0:
        for error in damaged:
            warn(f"passed over, and left as it is: {error}")
    return newest


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.resolve().parent.parent
    return folder if checkpoint.parent.name == CHECKPOINTS and (folder / CONFIG).is_file() else None


def claim(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Make a run folder ours; of several processes that try, one succeeds.

    Raises:
        InputError: another run has it.
        StorageError: it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).touch(exist_ok=False)
    except FileExistsError as error:
        raise _taken(run_dir) from error
    except OSError as error:
        raise StorageError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    describe(run_dir, config, overrides)


def require_unclaimed(run_dir: Path) -> None:
    """Refuse a run folder that another run has, like :func:`claim`, without making it ours."""
    if (run_dir / CONFIG).exists():
        raise _taken(run_dir)


def _taken(run_dir: Path) -> InputError:
    return InputError(
        f"{run_dir} holds a run already: choose another run_dir, or continue that one with resume={run_dir}"
    )


def describe(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Write down the configuration that a run folder's run has, from its start or from when it was resumed.

    Results of a shorter run, if there are any, are removed: they would pass for this one's.
    """
    (run_dir / RESULTS).unlink(missing_ok=True)
    for name, content in ((OVERRIDES, overrides), (CONFIG, config)):
        with atomic_write(run_dir / name) as file:
            file.write(yaml.safe_dump(content, sort_keys=False).encode())


def release_if_unclaimed(run_dir: Path) -> None:
    """Remove a run folder that Hydra made for a run which then never started; only if it is empty."""
    with contextlib.suppress(OSError):
        if not (run_dir / CONFIG).exists():
            run_dir.rmdir()


def replay_when_resuming(argv: list[str]) -> list[str]:
    """With ``resume=X`` on the command line: the overrides that led to X, then those given now, in X's run folder.

    Raises:
        InputError: X is no checkpoint, or stores overrides that are not replayed from a file.
    """
    given_words = read_command_line(argv).overrides
    try:
        given = OverridesParser.create().parse_overrides(given_words)
    except OverrideParseException:
        return argv  # explained by whoever checks the command line
    resumed = [override.value() for override in given if override.key_or_group == "resume"]
    if not resumed or not resumed[-1]:
        return argv
    given_checkpoint = str(resumed[-1])
    if given_checkpoint == AUTO:
        return argv
    checkpoint = _newest_whole(Path(given_checkpoint)) or find_checkpoint(given_checkpoint, prefer="last")
    folder = run_folder_of(checkpoint)
    replayed = _harmless(checkpoint, read_checkpoint(checkpoint)["overrides"])
    own_folder = [] if folder is None else [f"run_dir={quoted(folder)}"]
    latest: dict[str, str] = {}  # of several overrides of one key the last counts
    for override in OverridesParser.create().parse_overrides([*replayed, *own_folder, *given_words]):
        latest[override.key_or_group] = str(override.input_line)
    latest["resume"] = f"resume={quoted(checkpoint)}"
    flags = [word for word in argv if word not in given_words]
    return [*flags, *latest.values()]


def _harmless(checkpoint: Path, stored: list[Any]) -> list[str]:
    """The overrides that a checkpoint stores, refused where they could choose what code is run, or where."""
    lines = [line for line in stored if isinstance(line, str) and not line.startswith(("run_dir=", "resume="))]
    try:
        overrides = OverridesParser.create().parse_overrides(lines)
    except OverrideParseException as error:
        raise InputError(f"{checkpoint} stores the override {error.override!r}, which cannot be read") from error
    for override in overrides:
        line, key = str(override.input_line), override.key_or_group
        if any(part in line for part in ("_target_", "${", "..")) or key.split(".")[0].split("/")[0] == "hydra":
            raise InputError(
                f"{checkpoint} stores the override {line!r}, which is not taken from a file: give it yourself"
            )
    return lines


def quoted(path: Path) -> str:
    """A path as a value of Hydra's command line."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def identify(loggers: dict[str, Any], continued: Path | None) -> None:
    """Give every logger that knows its runs by an ``id`` one, if it has none: a continued run's own, or a new one.

    Args:
        loggers: their part of the configuration; the ids are put into it, and with it into the run's folder and into
            every checkpoint.
        continued: the folder of the run that goes on, or ``None`` for a new run.
    """
    path = None if continued is None else continued / CONFIG
    stored = yaml.safe_load(path.read_text()) if path is not None and path.is_file() else None
    for name, node in loggers.items():
        if isinstance(node, dict) and "id" in node and node["id"] is None:
            previous = ((stored or {}).get("logger") or {}).get(name) or {}
            node["id"] = previous.get("id") or secrets.token_hex(4)


def require_same_model(checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse to resume with another model or other data than the checkpoint's.

    Raises:
        InputError: naming the keys that differ.
    """
    stored = read_checkpoint(checkpoint)["config"]
    differing = [key for part in ("model", "data") for key in differences(part, stored.get(part), config[part])]
    differing = [key for key in differing if key not in [f"data.{name}" for name in MOVABLE]]
    if differing:
        raise InputError(
            f"cannot resume {checkpoint}: {', '.join(differing)} would change; another model or data is a new run"
        )


def differences(path: str, old: Any, new: Any) -> list[str]:
    """The dotted keys below ``path`` at which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(f"{path}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [path]


def require_seed(seed: int) -> None:
    """Refuse a seed that some generator does not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be at least 0 and below 2^32, not {seed}")


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one; any of torch's names is accepted.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
