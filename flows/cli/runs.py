"""Run folders: what is where, which checkpoint is meant, and how a run is taken up again.

A run folder holds ``config.yaml`` (resolved), ``overrides.yaml`` (the command line), ``metrics/`` (CSV),
``checkpoints/`` (``best.ckpt``, ``last.ckpt``), ``samples/`` (PNG), ``results.json`` and ``train.log``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from flows.checkpoint import read_checkpoint
from flows.errors import InputError
from flows.files import atomic_write

RUNS = Path("runs")
CONFIG, OVERRIDES, RESULTS = "config.yaml", "overrides.yaml", "results.json"
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
NAMED = ("best", "last")


def find_checkpoint(given: str, prefer: str = "best") -> Path:
    """The checkpoint file that a user means.

    Args:
        given: a checkpoint file; a run's folder; or ``best`` or ``last``, those of the newest run below ``runs/``.
        prefer: which one of a run's folder.

    Raises:
        InputError: there is none.
    """
    if given in NAMED and not Path(given).exists():
        found = sorted(RUNS.glob(f"**/{CHECKPOINTS}/{given}.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(f"checkpoint={given} means the newest run below {RUNS}/, but no run there has one")
        return found[-1]
    path = Path(given)
    if path.is_dir():
        order = (prefer, *(name for name in NAMED if name != prefer))
        for name in order:
            if (path / CHECKPOINTS / f"{name}.ckpt").is_file():
                return path / CHECKPOINTS / f"{name}.ckpt"
        raise InputError(f"{path} is not a run's folder: it has no {CHECKPOINTS}/{prefer}.ckpt")
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: give a .ckpt file, a run's folder, or best or last")
    return path


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.resolve().parent.parent
    return folder if checkpoint.parent.name == CHECKPOINTS and (folder / CONFIG).is_file() else None


def claim(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Make a run folder ours by writing its configuration.

    Raises:
        InputError: another run has it.
        StorageError: it cannot be written.
    """
    if (run_dir / CONFIG).exists():
        raise InputError(
            f"{run_dir} holds a run already: choose another run_dir, or continue that one with resume={run_dir}"
        )
    for name, content in ((OVERRIDES, overrides), (CONFIG, config)):
        with atomic_write(run_dir / name) as file:
            file.write(yaml.safe_dump(content, sort_keys=False).encode())


def release_if_unclaimed(run_dir: Path) -> None:
    """Remove a run folder that Hydra made for a run which then never started; only if it is empty."""
    with contextlib.suppress(OSError):
        if not (run_dir / CONFIG).exists():
            run_dir.rmdir()


def replay_when_resuming(argv: list[str]) -> list[str]:
    """With ``resume=X`` on the command line: the overrides that led to X, then those given now, in X's run folder."""
    try:
        overrides = OverridesParser.create().parse_overrides([word for word in argv if not word.startswith("-")])
    except OverrideParseException:
        return argv  # explained by whoever checks the command line
    given = {override.key_or_group: override.value() for override in overrides}
    if not given.get("resume"):
        return argv
    checkpoint = find_checkpoint(str(given["resume"]), prefer="last")
    folder = run_folder_of(checkpoint)
    replayed = list(read_checkpoint(checkpoint)["overrides"])
    replayed += [] if folder is None else [f"run_dir={_quoted(folder)}"]
    now = [str(override.input_line) for override in overrides if override.key_or_group != "resume"]
    latest: dict[str, str] = {}  # of several overrides of one key the last counts
    for override in OverridesParser.create().parse_overrides([*replayed, *now]):
        latest[override.key_or_group] = str(override.input_line)
    flags = [word for word in argv if word.startswith("-")]
    return [*flags, *latest.values(), f"resume={_quoted(checkpoint)}"]


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def require_same_model(checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse to resume with another model or other data than the checkpoint's.

    Raises:
        InputError: naming the keys that differ.
    """
    stored = read_checkpoint(checkpoint)["config"]
    differing = [key for part in ("model", "data") for key in _differences(part, stored[part], config[part])]
    differing = [key for key in differing if key not in ("data.num_workers", "data.eval_batch_size")]
    if differing:
        raise InputError(
            f"cannot resume {checkpoint}: {', '.join(differing)} would change; another model or data is a new run"
        )


def _differences(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _differences(f"{path}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [path]


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
