"""A job as a process of its own: its command, its output, and how it ended."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

from flows.config.overrides import as_single_run

OUTPUT, OUTPUTS = "output.log", "output*.log"
"""Files in a job's folder: what its first process prints, and what all do. Another attempt is appended."""

ATTEMPT = "=== attempt of "
"""Starts the output of each attempt."""

ENDING = "=== "
"""Starts the line that says how a process ended, if it could not say so itself."""


def program(overrides: Sequence[str], hydra_overrides: Sequence[str]) -> list[str]:
    """The command that runs one job of this program's sweep as a single run."""
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *as_single_run(overrides, hydra_overrides)]


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
