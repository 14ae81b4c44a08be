"""How a run is resumed: from which checkpoint, with which command line, and as the same run."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import yaml

from flows.config.hydra_seams import read_command_line
from flows.config.overrides import parse, quoted
from flows.console import warn
from flows.errors import InputError
from flows.processes import slurm
from flows.runs.checkpoint import find_checkpoint, newest_whole, read_checkpoint
from flows.runs.layout import CHECKPOINTS, CONFIG, run_folder_of

AUTO = "auto"
"""As ``resume``: go on in this very run folder, or begin there if nothing has been saved yet."""

LOADING_KEYS = (
    "source",
    "root",
    "prepared_dir",
    "download_dir",
    "num_converters",
    "num_workers",
    "eval_batch_size",
)
"""Settings of the data that say where they are or how they are read, not what they are."""

NOT_OF_THE_RUN = (
    "run_dir",
    "data_dir",
    "resume",
    "packages",
    "logger",
    "estimate",
    *(f"data.{name}" for name in LOADING_KEYS),
)
"""Settings that say where a run is, how it starts, is read and is logged. Two runs may be the same but for these."""

TAKEN_ANEW = (
    "trainer",
    "callbacks",
    "schedule.num_steps",
    "precision",
    "compile",
    "model.memory",
    "on_nan",
    "keep_last",
)
"""Settings that a resumed run takes from its command line. All others are in its checkpoint, and stay."""

NOT_REPLAYED = ("run_dir", "resume", "packages")
"""Overrides that count for the command line on which they stand: no file can give them."""


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


def replay_when_resuming(argv: list[str]) -> list[str]:
    """With ``resume=X`` on the command line: the overrides that led to X, then those given now, in X's run folder.

    Raises:
        InputError: X is no checkpoint, or stores overrides that are not replayed from a file.
    """
    given_words = read_command_line(argv).overrides
    resumed = [override.value() for override in parse(given_words) if override.key_or_group == "resume"]
    if not resumed or not resumed[-1]:
        return argv
    given_checkpoint = str(resumed[-1])
    if given_checkpoint == AUTO:
        return argv
    checkpoint = _newest_whole(Path(given_checkpoint)) or find_checkpoint(given_checkpoint, prefer="last")
    folder = run_folder_of(checkpoint)
    given_keys = {override.key_or_group for override in parse(given_words)}
    replayed = _harmless(checkpoint, read_checkpoint(checkpoint)["overrides"], given_keys)
    own_folder = [] if folder is None else [f"run_dir={quoted(folder)}"]
    latest: dict[str, str] = {}  # of several overrides of one key the last counts
    for override in parse([*replayed, *own_folder, *given_words]):
        latest[override.key_or_group] = str(override.input_line)
    latest["resume"] = f"resume={quoted(checkpoint)}"
    flags = [word for word in argv if word not in given_words]
    return [*flags, *latest.values()]


def _harmless(checkpoint: Path, stored: list[Any], given_keys: set[str]) -> list[str]:
    """The overrides that a checkpoint stores, refused where they could choose what code is run, or where.

    What is given now takes the place of what the file says, which need not be refused.
    """
    lines = []
    for override in parse([line for line in stored if isinstance(line, str)]):
        line, key = str(override.input_line), override.key_or_group
        if key.split(".")[0] in NOT_REPLAYED:
            continue
        leaves_the_groups = ".." in line and "." not in key  # a value below a group may be a path
        is_of_hydra = key.split(".")[0].split("/")[0] == "hydra"
        if key not in given_keys and (leaves_the_groups or is_of_hydra or "_target_" in line or "${" in line):
            raise InputError(
                f"{checkpoint} stores the override {line!r}, which is not taken from a file: give it yourself"
            )
        lines.append(line)
    return lines


def assign_run_ids(loggers: dict[str, Any], continued: Path | None) -> None:
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


def changed_settings(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The dotted keys at which two configurations describe different runs, wherever their folders are."""
    text = json.dumps(stored).replace(json.dumps(stored["run_dir"])[1:-1], json.dumps(config["run_dir"])[1:-1])
    changed = differences("", json.loads(text), json.loads(json.dumps(config)))
    return [key for key in changed if not _is_below(key, NOT_OF_THE_RUN)]


def require_same_settings(checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse to resume with settings that would be written down and not used.

    Raises:
        InputError: naming the keys that differ.
    """
    changed = changed_settings(read_checkpoint(checkpoint)["config"], config)
    kept = [key for key in changed if not _is_below(key, TAKEN_ANEW)]
    if kept:
        raise InputError(
            f"cannot resume {checkpoint}: {', '.join(kept)} would change, which a run has from its start; "
            f"init={checkpoint} starts a new run from its weights"
        )


def _is_below(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def differences(path: str, old: Any, new: Any) -> list[str]:
    """The dotted keys below ``path`` at which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        below = f"{path}." if path else ""
        return [line for key in keys for line in differences(f"{below}{key}", old.get(key), new.get(key))]
    return [] if old == new else [path]
