"""Running the project's programs as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from support.waiting import SECONDS

ROOT = Path(__file__).resolve().parents[2]
TINY = ["experiment=smoke", "trainer=cpu"]


def environment(**more):
    """This process's, by which other processes find the project and what the tests share."""
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | more


def execute(*command, cwd, code=0, env=()):
    """Run a command in the folder ``cwd`` and return what it did; its exit code must be ``code``."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(**dict(env)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run(program, *arguments, cwd, **options):
    """Run a program of the project in the folder ``cwd``, as :func:`execute` does."""
    return execute(sys.executable, ROOT / program, *arguments, cwd=cwd, **options)


def error_line(stderr):
    """The one line that a failed program wrote to stderr."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]
