"""Running the project's programs as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ["experiment=smoke", "trainer=cpu"]


def run(program, *arguments, cwd, code=0, timeout=3600, env=None, **options):
    """Run a program of the project in the folder ``cwd`` and return what it did; its exit code must be ``code``."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | (env or {})
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def error_line(done):
    """The one line that a failed program wrote to stderr."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
