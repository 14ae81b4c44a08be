"""What a job's folder says about it: done, half done, or not begun."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.errors import InputError
from flows.runs import layout, resume
from flows.sweeps.names import LOCATION_KEYS


@dataclass(frozen=True)
class RunScore:
    """Bits/dim of a finished run: its best validation (NaN without any), and that checkpoint on the test images."""

    validation: float
    test: float


def read_score(folder: Path) -> RunScore | None:
    """The score in a run's folder; ``None`` if the run is not finished."""
    try:
        results = json.loads((folder / layout.RESULTS).read_text())
        validation, test = results["val/bits_per_dim"], float(results["test/bits_per_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return RunScore(math.nan if validation is None else float(validation), test)


def finished(folder: Path, config_in: Callable[[str], dict[str, Any]]) -> RunScore | None:
    """The score of a job that has finished before; ``None`` if it still has to run.

    Args:
        folder: the job's folder.
        config_in: gives the job's configuration for a ``run_dir``. The folder may have been moved since, and launchers
            write its path in different ways; neither makes it another run.

    Raises:
        InputError: the folder holds the work of another run.
    """
    stored = _stored_config(folder)
    score = read_score(folder)
    if score is None and not any((folder / layout.CHECKPOINTS).glob("*.ckpt")):
        return None  # there is nothing to lose
    differing = _differences(stored, config_in(str(stored.get("run_dir", folder))))
    if differing:
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(differing[:3])}): choose another run_dir, or move "
            "that folder away"
        )
    return score


def _stored_config(folder: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load((folder / layout.CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Keys that differ and change the result of a run."""
    as_stored = yaml.safe_load(yaml.safe_dump(wanted))
    keys = sorted(set(stored) | set(as_stored))
    differing = [line for key in keys for line in resume.differences(key, stored.get(key), as_stored.get(key))]
    harmless = (*LOCATION_KEYS, *(f"data.{name}" for name in resume.LOADING_KEYS))
    return [key for key in differing if key not in harmless and not key.startswith("logger.")]
