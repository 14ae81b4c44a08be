"""A job of a sweep: its name, its command, what its folder says about it, and how its process ended."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flows.config.matching import resolve_width
from flows.config.overrides import as_single_run, quoted
from flows.errors import InputError
from flows.runs import layout, resume

MAX_LENGTH = 100
"""Length of a name's readable part; file systems take 255 bytes."""

LOCATION_KEYS = ("run_dir", "resume")
"""Keys that say where a job is and how it starts, not what it is."""

OUTPUT, OUTPUTS = "output.log", "output*.log"
"""Files in a job's folder: what its first process prints, and what all do. Another attempt is appended."""

ATTEMPT, ENDING = "=== attempt of ", "=== "
"""Start the output of each attempt, and the line that says how a process ended, if it could not say so itself."""

REASONS = (
    r"^error: (.*)",
    r"^Traceback .*\n(?:(?: .*)?\n)*(\S.*)",
    rf"^(?:{ENDING})?((?:interrupted|killed) by .*|ended with .*)",
)
"""Where an output says why a process ended, the best first: the first error, what the first traceback ends with."""


@dataclass(frozen=True)
class RunScore:
    """Bits/dim of a finished run: its best validation (NaN without any), and that checkpoint on the test images."""

    validation: float
    test: float


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        index: its number in the sweep.
        overrides: its overrides, without those of its folder and of how it starts.
        title: the overrides that distinguish it from the other jobs of the sweep, in one line.
        folder: its run folder, absolute.
        config: its configuration, Hydra's part included.
    """

    index: int
    overrides: tuple[str, ...]
    title: str
    folder: Path
    config: DictConfig

    def plain_config(self, run_dir: str) -> dict[str, Any]:
        """The resolved configuration, as a run in that folder writes it down."""
        own = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        own.run_dir = run_dir
        HydraConfig.instance().set_config(self.config)  # what ${hydra:...} refers to
        config: dict[str, Any] = OmegaConf.to_container(own, resolve=True)  # type: ignore[assignment]
        resolve_width(config)
        return config

    def in_its_folder(self) -> list[str]:
        """The overrides of a single run that does this job, or continues an earlier attempt."""
        return [*self.overrides, f"run_dir={quoted(self.folder)}", f"resume={resume.AUTO}"]

    def command(self) -> list[str]:
        """What runs this job as a process of its own."""
        own = as_single_run(self.in_its_folder(), list(self.config.hydra.overrides.hydra))
        return [sys.executable, str(Path(sys.argv[0]).resolve()), *own]


def job_name(overrides: str) -> str:
    """The name of a job's folder: readable, and different for different overrides.

    Args:
        overrides: in one line, sorted.

    Returns:
        The overrides themselves if file systems and shells accept them; otherwise their readable part and a hash.
    """
    readable = re.sub(r"[^\w.,=+-]+", "_", overrides, flags=re.ASCII)
    if readable == overrides and len(readable) <= MAX_LENGTH:
        return readable or "defaults"
    digest = hashlib.blake2b(overrides.encode(), digest_size=4).hexdigest()
    return f"{readable[:MAX_LENGTH]}-{digest}"


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
    score = read_score(folder)
    if score is None and not any((folder / layout.CHECKPOINTS).glob("*.ckpt")):
        return None  # there is nothing to lose
    stored = yaml.safe_load((folder / layout.CONFIG).read_text())
    differing = resume.changed_settings(stored, config_in(stored["run_dir"]))
    if differing:
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(differing[:3])}): choose another run_dir, or move "
            "that folder away"
        )
    return score


def open_output(folder: Path, name: str = OUTPUT) -> IO[bytes]:
    """A job's output file, ready for another attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("ab", buffering=0)
    file.write(f"{ATTEMPT}{datetime.now().astimezone().isoformat(timespec='seconds')}\n".encode())
    return file


def explain_end(folder: Path, code: int | None) -> str:
    """Why a job ended without a score: the first error in its last output, or how its process ended.

    With several processes the first that complains knows why; the others complain that it went away.

    Args:
        folder: the job's.
        code: its exit code, negative for a signal; ``None`` if that is not known.
    """
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob(OUTPUTS))]
    attempts = "".join(text.rpartition(ATTEMPT)[2] for text in texts)
    attempts = re.sub(r"^\[rank\d+\]: ", "", attempts, flags=re.MULTILINE)  # torch puts it before tracebacks
    for reason in REASONS:
        if found := re.search(reason, attempts, re.MULTILINE):
            return found[1]
    return "ended without a score" if not code else end_of_process(code)


def end_of_process(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
