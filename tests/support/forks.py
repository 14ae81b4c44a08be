"""Programs of the project in forked processes: as separate as a user's, without the seconds of a start."""

import multiprocessing
import os
import sys
from pathlib import Path

from support.programs import ROOT, error_line

TASKS = {
    "train.py": "flows.training.run.train",
    "sample.py": "flows.programs.sample.sample",
    "evaluate.py": "flows.programs.evaluate.evaluate",
    "prepare.py": "flows.programs.prepare.prepare",
    "report.py": "flows.programs.report.report",
}


def fork(arguments, cwd, before=lambda: None, program="train.py"):
    """Start a program with some arguments in the folder ``cwd``; returns the process.

    What it prints goes to ``out.txt`` there, or nowhere. ``before()`` is called in the new process first.
    """
    import flows.training.run  # noqa: F401 once, before the fork

    process = multiprocessing.get_context("fork").Process(target=_start, args=(arguments, cwd, before, program))
    process.start()
    return process


def _start(arguments, cwd, before, program):
    from flows.cli import entry
    from flows.processes import signals

    os.setsid()
    os.chdir(cwd)
    output = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = [str(ROOT / program), *map(str, arguments)]
    signals.install(is_resumable=program == "train.py")
    before()
    entry.run(TASKS[program], Path(program).stem)


def wait(process):
    """The exit code of a forked process; minus the signal's number if one has killed it."""
    process.join()
    return process.exitcode


def output(folder):
    """All that was printed by the processes forked in a folder."""
    return (Path(folder) / "out.txt").read_text()


def run_forked(program, *arguments, cwd, code=0):
    """All that a forked program printed; its exit code must be ``code``. It leaves nothing of its own in ``cwd``."""
    found = wait(fork(arguments, cwd, program=program))
    said = output(cwd)
    (Path(cwd) / "out.txt").unlink()
    assert found == code, f"exit code {found}\n{said}"
    return said


def refusal(program, *arguments, cwd, code=2):
    """The one line in which a forked program refuses, and all that it prints."""
    return error_line(run_forked(program, *arguments, cwd=cwd, code=code))
