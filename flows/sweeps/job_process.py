"""A job as a process of its own: the program's command line, its output, and how it ended."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

from flows.cli.command_line import SINGLE
from flows.cli.hydra_seams import read_command_line

OUTPUT, OUTPUTS = "output.log", "output*.log"
"""What a job prints, in its folder, and what all its processes print; a second attempt is appended."""

ATTEMPT = "=== attempt of "
"""How each attempt's output starts."""

ENDING = "=== "
"""How it may end, if the process could not say why."""

OF_THE_SWEEP = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep")
"""Settings that belong to the sweep and not to its jobs."""


def program(overrides: Sequence[str], hydra_overrides: Sequence[str]) -> list[str]:
    """The command that does one job of this program's sweep as a run of its own."""
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *as_single_run(overrides, hydra_overrides)]


def as_single_run(overrides: Sequence[str], hydra_overrides: Sequence[str]) -> list[str]:
    """The arguments that make this program do one run in another process, a sweep's job or just the run it does now.

    Args:
        overrides: the run's.
        hydra_overrides: those of Hydra's own settings that this program was started with; what concerns the run is
            kept.
    """
    given = read_command_line(sys.argv[1:])
    flags = [word for word in sys.argv[1:] if word not in given.overrides and word not in ("-m", "--multirun")]
    kept = [line for line in hydra_overrides if not line.lstrip("+~").startswith(OF_THE_SWEEP)]
    return [*flags, *kept, SINGLE, *overrides]


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
    attempts = [_last_attempt(path) for path in sorted(folder.glob(OUTPUTS))]
    for find in (_error_line, _raised, _ending):
        found = [words for lines in attempts if (words := find(lines))]
        if found:
            return found[0]
    return "ended without a score" if not code else end_of_process(code)


def end_of_process(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_attempt(path: Path) -> list[str]:
    text = path.read_text(errors="replace").rpartition(ATTEMPT)[2]
    return re.sub(r"^\[rank\d+\]: ", "", text, flags=re.MULTILINE).splitlines()  # torch puts it before tracebacks


def _error_line(lines: list[str]) -> str | None:
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)


def _raised(lines: list[str]) -> str | None:
    """What the first traceback ends with."""
    start = next((number for number, line in enumerate(lines) if line.startswith("Traceback ")), len(lines))
    return next((line for line in lines[start + 1 :] if line and not line.startswith(" ")), None)


def _ending(lines: list[str]) -> str | None:
    endings = (line for line in lines if line.startswith((ENDING, "interrupted by ")))
    return next((line.removeprefix(ENDING) for line in endings), None)
